//! What whole nodes can be told to do wrong is noticed (docs/testing.md), and no release can be told.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::Context;
use signaldb_model::mutation::{Mutation, VARIABLE, assert_caught};

use crate::node::binary;

/// The crates of the release builds: `make run`, `make jepsen`, the image.
const RELEASED: [&str; 3] = ["signaldb-node", "signaldb-bench", "signaldb-jepsen"];
/// Names another binary than the one that was built beside these tests, and with their features.
const OTHER_BINARY: &str = "SIGNALDB_BIN";

fn is_other_binary() -> bool {
    let other = std::env::var_os(OTHER_BINARY).is_some();
    if other {
        eprintln!("nothing was tested: {OTHER_BINARY} need not have mutations");
    }
    other
}

#[test]
fn a_view_that_is_taken_after_the_metadata_is_caught() {
    if !is_other_binary() {
        // The nodes inherit the environment of their test.
        let test = "freshness::every_count_equals_the_acknowledged_total";
        assert_caught(Mutation::ViewAfterMetadata, test, "after export ");
    }
}

/// Runs the binary in an empty directory with a mutation of that name.
fn mutated(name: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(binary()?);
    command.current_dir(dir.path()).args(arguments).env(VARIABLE, name).output().context("run signaldb")
}

#[test]
fn a_build_with_mutations_says_so_and_refuses_names_that_are_none() -> anyhow::Result<()> {
    if is_other_binary() {
        return Ok(());
    }
    let version = mutated(Mutation::DedupOff.name(), &["--version"])?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(version.contains("WITH MUTATIONS"), "{version}");
    let refused = mutated("nonsense", &["server"])?;
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("nonsense"), "{said}");
    assert!(Mutation::ALL.iter().all(|mutation| said.contains(mutation.name())), "{said}");
    Ok(())
}

/// The features of a package in a build without tests, as cargo resolves them.
fn features_of(package: &str, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = RELEASED.into_iter().flat_map(|package| ["--package", package]);
    let tree = Command::new(cargo)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p} [{f}]"])
        .args(packages)
        .args(arguments)
        .output()
        .context("run cargo tree")?;
    anyhow::ensure!(tree.status.success(), "cargo tree: {}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout)?;
    let package = format!("{package} ");
    Ok(tree.lines().filter(|line| line.starts_with(&package)).map(str::to_owned).collect())
}

/// Guarantees: nothing can be told to be wrong in a release, by the features that cargo builds it with.
#[test]
fn releases_have_no_mutations() -> anyhow::Result<()> {
    let has_mutations = |line: &String| has(line, "mutations");
    let released = features_of("signaldb-model", &[])?;
    assert!(!released.is_empty() && !released.iter().any(has_mutations), "{released:?}");
    let asked = features_of("signaldb-model", &["--features", "signaldb-node/mutations"])?;
    assert!(!asked.is_empty() && asked.iter().all(has_mutations), "{asked:?}");
    Ok(())
}

/// Guarantees: what libFuzzer calls is not in a release.
#[test]
fn releases_have_no_entry_points_for_fuzzing() -> anyhow::Result<()> {
    for package in ["signaldb-query", "signaldb-api"] {
        let released = features_of(package, &[])?;
        assert!(!released.is_empty() && !released.iter().any(|line| has(line, "fuzzing")), "{released:?}");
    }
    Ok(())
}

fn has(line: &str, feature: &str) -> bool {
    line.rsplit('[').next().is_some_and(|features| features.contains(feature))
}
