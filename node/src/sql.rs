//! `signaldb sql`: a shell for people, and statements from the command line, a file or a pipe for scripts; against any
//! node, over HTTP.
//!
//! [`splitter`] says where a statement ends, [`command`] what `\d` and the like mean, [`session`] asks the node and writes
//! what it answers, [`table`] makes it readable. [`shell`] is the part with a terminal.

mod client;
mod command;
mod output;
mod session;
mod shell;
mod splitter;
mod table;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;

use client::{Client, Consistency};
use output::ReaderGone;
use session::{Format, Session};
use table::Expanded;

/// What to ask and whom.
#[derive(Debug, clap::Args)]
pub(crate) struct SqlArgs {
    /// Statements, separated by `;`. Without them, and without a file: a shell, or what comes in when that is a pipe.
    query: Option<String>,
    /// Statements from a file; `-` is what comes in. The first that fails ends it.
    #[arg(short, long, value_name = "FILE", conflicts_with = "query")]
    file: Option<PathBuf>,
    /// Address of a node's HTTP API.
    #[arg(long, env = "SIGNALDB_ENDPOINT", default_value = "http://127.0.0.1:3000")]
    endpoint: String,
    /// How answers are written. `ndjson` and `csv` come as they are computed; `json` is one document.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Write each row of a table as a list of its columns: always, never, or when the table is wider than the terminal.
    #[arg(short = 'x', long, value_enum, default_value = "auto", default_missing_value = "on", num_args = 0..=1, require_equals = true)]
    expanded: Expanded,
    /// API key, when authentication is on.
    #[arg(long, env = "SIGNALDB_API_KEY", hide_env_values = true)]
    key: Option<String>,
    #[arg(long, env = "SIGNALDB_TENANT")]
    tenant: Option<String>,
    #[arg(long, env = "SIGNALDB_DATASET")]
    dataset: Option<String>,
    /// `strong` sees all that was acknowledged before the query; `eventual` what the node has.
    #[arg(long, value_enum, default_value = "strong")]
    consistency: Consistency,
    /// Where the shell keeps what was typed; nowhere if it is empty. Default: `.signaldb_history` in the home directory.
    #[arg(long, env = "SIGNALDB_HISTORY", value_name = "FILE")]
    history: Option<OsString>,
}

pub(crate) async fn run(args: SqlArgs) -> anyhow::Result<()> {
    let client = Client::new(args.endpoint, args.key, args.tenant, args.dataset);
    let mut session = Session::new(client, args.format, args.expanded, args.consistency);
    let outcome = match (args.query, args.file) {
        (Some(text), _) => {
            let mut script = Script { text, ..Script::default() };
            script.go_on(&mut session, true).await.map(drop)
        }
        (None, Some(path)) if path != Path::new("-") => file(&mut session, &path).await,
        (None, None) if io::stdin().is_terminal() => shell::run(&mut session, history(args.history).as_deref()).await,
        _ => pipe(&mut session).await,
    };
    match outcome {
        // `signaldb sql ... | head` is no failure.
        Err(error) if error.chain().any(|cause| cause.is::<ReaderGone>()) => Ok(()),
        outcome => outcome,
    }
}

async fn file(session: &mut Session, path: &Path) -> anyhow::Result<()> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("read {name}"))?;
    let mut script = Script { source: Some(name), text, ..Script::default() };
    script.go_on(session, true).await.map(drop)
}

/// Runs each statement as soon as it has come in.
async fn pipe(session: &mut Session) -> anyhow::Result<()> {
    let mut script = Script { source: Some("standard input".to_owned()), ..Script::default() };
    loop {
        let ended = io::stdin().read_line(&mut script.text).context("read statements")? == 0;
        if script.go_on(session, ended).await?.is_break() || ended {
            return Ok(());
        }
    }
}

/// A text whose statements run as soon as they are whole.
#[derive(Debug, Default)]
struct Script {
    /// Where it comes from, for errors; the command line needs no name.
    source: Option<String>,
    /// Lines that were run before `text`.
    lines: usize,
    text: String,
}

impl Script {
    /// Runs what is whole, of an `ended` text also what no `;` ends. Breaks after `\q`.
    async fn go_on(&mut self, session: &mut Session, ended: bool) -> anyhow::Result<ControlFlow<()>> {
        let mut done = 0;
        while let Some(piece) = splitter::first(&self.text[done..], ended) {
            let line = self.lines + newlines(&self.text[..done + piece.begin]) + 1;
            let outcome = session.run(piece.what).await;
            done += piece.end;
            let outcome = match &self.source {
                Some(source) => outcome.with_context(|| format!("{source}:{line}")),
                None => outcome,
            };
            if outcome?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.lines += newlines(&self.text[..done]);
        self.text.drain(..done);
        Ok(ControlFlow::Continue(()))
    }
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// Where the shell keeps its history, if anywhere.
fn history(asked: Option<OsString>) -> Option<PathBuf> {
    match asked {
        Some(path) => (!path.is_empty()).then(|| path.into()),
        None => std::env::var_os("HOME").map(|home| Path::new(&home).join(".signaldb_history")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        // Nobody listens there; none of these commands asks.
        let client = Client::new("http://127.0.0.1:1".to_owned(), None, None, None);
        Session::new(client, Format::Table, Expanded::Off, Consistency::Strong)
    }

    #[tokio::test]
    async fn lines_of_errors_are_those_of_the_source() {
        let mut script = Script { source: Some("a.sql".to_owned()), ..Script::default() };
        let mut session = session();
        for line in ["\\timing on\n", "\n-- a comment\n", "\\format csv\n"] {
            script.text.push_str(line);
            assert!(script.go_on(&mut session, false).await.expect("runs").is_continue());
        }
        script.text.push_str("\\timing off\n\n\\format xml\n");
        let error = format!("{:#}", script.go_on(&mut session, false).await.expect_err("no such format"));
        assert!(error.starts_with("a.sql:7: ") && error.contains("xml"), "{error}");
    }

    #[tokio::test]
    async fn nothing_runs_after_the_end_of_a_session() {
        let mut script = Script { text: "\\q\n\\format xml\n".to_owned(), ..Script::default() };
        assert!(script.go_on(&mut session(), true).await.expect("ends").is_break());
    }

    #[test]
    fn an_empty_history_is_none() {
        assert_eq!(history(Some(OsString::new())), None);
        assert_eq!(history(Some("/h".into())), Some(PathBuf::from("/h")));
    }
}
