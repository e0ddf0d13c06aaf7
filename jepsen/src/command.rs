//! Programs that are run for what they do.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// The system's own, if there is one: others may be scripts that take their time.
pub(crate) fn python() -> &'static Path {
    let system = Path::new("/usr/bin/python3");
    if system.exists() { system } else { Path::new("python3") }
}

/// Standard output of a command that succeeds. Blocking.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", command.get_program().display(), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
