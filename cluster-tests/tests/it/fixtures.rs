//! What scenarios of several files share beside nodes and clusters.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::node::DEADLINE;

/// Asks again until it holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    while !holds().await? {
        ensure!(Instant::now() < until, "never {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

pub(crate) fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A Python with the clients, moto and PyIceberg; without one, which only CI must have, the scenarios are skipped.
pub(crate) fn python() -> anyhow::Result<Option<PathBuf>> {
    let python = std::env::var_os("SIGNALDB_PYTHON").map(PathBuf::from).filter(|python| python.exists());
    if python.is_none() {
        ensure!(std::env::var_os("CI").is_none(), "SIGNALDB_PYTHON must name a Python with the clients in CI");
        println!("skipped: SIGNALDB_PYTHON is not set; `make test` makes the virtual environment and sets it");
    }
    Ok(python)
}

/// Runs a script of `cluster-tests/python`; it must end well, and say what is expected. Returns what it said.
pub(crate) fn run_script(
    python: &Path,
    script: &str,
    environment: &[(&str, String)],
    expected: &str,
) -> anyhow::Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
    let mut command = Command::new(python);
    command.arg(script).envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
    let output = command.output().context("run Python")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && text.contains(expected), "{text}");
    Ok(text)
}

/// PyIceberg reads exactly these spans, and finds every file that any kept snapshot names
/// (`cluster-tests/python/maintained_tables.py`).
pub(crate) fn assert_pyiceberg(dir: &Path, catalog: &Path, ids: &[String]) -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let spans = dir.join("spans.txt");
    std::fs::write(&spans, ids.join("\n"))?;
    let catalog = ("SIGNALDB_CATALOG", format!("sqlite:///{}", catalog.display()));
    let environment = [catalog, ("SPANS", spans.display().to_string())];
    run_script(&python, "maintained_tables.py", &environment, "nothing is missing").map(drop)
}
