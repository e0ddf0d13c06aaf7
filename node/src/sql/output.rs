//! Where answers go.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::path::Path;

use anyhow::Context;
use rustyline::DefaultEditor;

/// Whoever read the answer has gone: `head`, a pager.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the answer any more")]
pub(crate) struct ReaderGone;

/// The standard output, or a file.
pub(crate) struct Output {
    to: Box<dyn Write>,
    is_terminal: bool,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("is_terminal", &self.is_terminal).finish_non_exhaustive()
    }
}

impl Output {
    pub(crate) fn standard() -> Self {
        Self { to: Box::new(BufWriter::new(io::stdout())), is_terminal: io::stdout().is_terminal() }
    }

    /// # Errors
    /// When the file cannot be made.
    pub(crate) fn file(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        Ok(Self { to: Box::new(BufWriter::new(file)), is_terminal: false })
    }

    /// Columns of the terminal, when it is one: it may have another size now than before.
    pub(crate) fn columns(&self) -> Option<usize> {
        if !self.is_terminal {
            return None;
        }
        let (columns, _) = DefaultEditor::new().ok()?.dimensions()?;
        (columns > 0).then_some(usize::from(columns))
    }

    /// # Errors
    /// [`ReaderGone`], or what is wrong with the file.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        checked(self.to.write_all(bytes))
    }

    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        checked(self.to.flush())
    }
}

fn checked(written: io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        written => written.context("write the answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_is_gone_is_told_from_a_full_disk() {
        let gone = checked(Err(ErrorKind::BrokenPipe.into())).expect_err("gone").context("a.sql:1");
        assert!(gone.chain().any(|cause| cause.is::<ReaderGone>()));
        let full = checked(Err(ErrorKind::StorageFull.into())).expect_err("full");
        assert!(!full.chain().any(|cause| cause.is::<ReaderGone>()));
    }

    #[test]
    fn files_hold_what_was_written_and_are_no_terminals() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.csv");
        let mut output = Output::file(&path).expect("made");
        output.write(b"a,b\n").and_then(|()| output.flush()).expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"a,b\n");
        assert_eq!(output.columns(), None);
        assert!(Output::file(&dir.path().join("none/a.csv")).is_err());
    }
}
