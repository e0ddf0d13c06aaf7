//! Programs that are run for what they do.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// The system's own, if there is one: others may be scripts that take their time.
pub(crate) fn python() -> &'static Path {
    let system = Path::new("/usr/bin/python3");
    if system.exists() { system } else { Path::new("python3") }
}

/// Standard output of a command that succeeds. Blocking.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    feed(command, "")
}

/// The same of a command that reads `input`. Blocking.
pub(crate) fn feed(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let program = command.get_program().display().to_string();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says by its status what that means.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_reads_and_says_is_passed_on_and_its_failure_named() -> anyhow::Result<()> {
        assert_eq!(feed(&mut Command::new("cat"), "a\nb\n")?, "a\nb\n");
        assert_eq!(run(&mut Command::new("cat"))?, "");
        let failed = run(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).expect_err("it fails").to_string();
        assert_eq!(failed, "sh: no");
        Ok(())
    }
}
