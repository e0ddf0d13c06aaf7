//! The part with a terminal: statements are typed and edited, and kept for the next time.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, anyhow};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::ReaderGone;
use super::session::Session;
use super::splitter;

const PROMPT: &str = "signaldb> ";
/// Entries that are kept.
const HISTORY_MAX: usize = 1000;

/// Reads statements and shows answers until the user ends it.
///
/// # Errors
/// Those of the terminal; those of a statement are shown.
pub(crate) async fn run(session: &mut Session, history: Option<&Path>) -> anyhow::Result<()> {
    let config = Config::builder().max_history_size(HISTORY_MAX).context("set up the history")?;
    let config = config.history_ignore_space(true).build();
    let mut editor: Editor<Statements, DefaultHistory> = Editor::with_config(config).context("open the terminal")?;
    editor.set_helper(Some(Statements));
    let mut history = history.filter(|path| load(&mut editor, path));
    println!("Statements go to {}; \\? lists commands, Ctrl-D ends.", session.endpoint());
    loop {
        // From before the statement is there: Ctrl-C right after Enter is meant for it, and ends no process.
        let mut interrupts = interrupts()?;
        let entry = match editor.readline(PROMPT) {
            Ok(entry) => entry,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("read a statement"),
        };
        history = history.filter(|path| keep(&mut editor, path, &entry));
        if perform(session, &entry, &mut interrupts).await?.is_break() {
            return Ok(());
        }
    }
}

/// Runs what was typed, up to the first failure. Ctrl-C ends the statement that runs, not the shell.
async fn perform(session: &mut Session, entry: &str, interrupts: &mut Signal) -> anyhow::Result<ControlFlow<()>> {
    let mut rest = entry;
    while let Some(piece) = splitter::first(rest, true) {
        let outcome = tokio::select! {
            outcome = session.run(piece.what) => outcome,
            _ = interrupts.recv() => Err(anyhow!("cancelled")),
        };
        match outcome {
            Ok(ControlFlow::Continue(())) => rest = &rest[piece.end..],
            Ok(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
            Err(error) if error.is::<ReaderGone>() => return Err(error),
            Err(error) => {
                session.end_answer();
                eprintln!("{error:#}");
                break;
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Those that come from now on.
fn interrupts() -> anyhow::Result<Signal> {
    signal(SignalKind::interrupt()).context("listen for Ctrl-C")
}

/// Whether entries can be kept there.
fn load(editor: &mut Editor<Statements, DefaultHistory>, path: &Path) -> bool {
    match editor.load_history(path) {
        Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => {
            eprintln!("nothing is kept: the history {} cannot be read: {error}", path.display());
            false
        }
        Ok(()) => true,
    }
}

/// Whether an entry was kept; other shells may keep theirs in the same file.
fn keep(editor: &mut Editor<Statements, DefaultHistory>, path: &Path, entry: &str) -> bool {
    let kept = editor.add_history_entry(entry).and_then(|_| editor.append_history(path));
    if let Err(error) = &kept {
        eprintln!("nothing is kept any more: the history {} cannot be written: {error}", path.display());
    }
    kept.is_ok()
}

/// Enter goes on to the next line while a statement has no end.
struct Statements;

impl Validator for Statements {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match splitter::is_whole(context.input()) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

impl Completer for Statements {
    type Candidate = String;
}

impl Hinter for Statements {
    type Hint = String;
}

impl Highlighter for Statements {}

impl Helper for Statements {}
