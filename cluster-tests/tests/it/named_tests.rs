use std::path::Path;

use anyhow::Context;
use signaldb_model::mutation::Mutation;

/// Guarantees: every test that docs/testing.md and docs/consistency.md name as `file.rs:function` is there.
#[test]
fn every_promise_has_the_tests_that_the_guide_names() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let guides = ["docs/testing.md", "docs/consistency.md"].map(|guide| std::fs::read_to_string(root.join(guide)));
    let guide = guides.into_iter().collect::<Result<Vec<String>, _>>()?.concat();
    let mut named = 0;
    for quoted in guide.split('`').skip(1).step_by(2) {
        let Some((file, function)) = quoted.split_once(".rs:") else { continue };
        let path = root.join(format!("{file}.rs"));
        let source = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        assert!(source.contains(&format!("fn {function}(")), "{quoted} is not there");
        named += 1;
    }
    assert!(named > 20, "the table is not read: {named}");
    Ok(())
}

/// Guarantees: every mutation has a row in docs/testing.md with the test that fails and the one that wants it to.
#[test]
fn every_mutation_has_the_test_that_catches_it() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let guide = std::fs::read_to_string(root.join("docs/testing.md"))?;
    for mutation in Mutation::ALL {
        let row = format!("| `{}` |", mutation.name());
        let row = guide.lines().find(|line| line.starts_with(&row)).with_context(|| row.clone())?;
        let named: Vec<_> = row.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.split_once(".rs:")).collect();
        let [(_, fails), (catches, _)] = named[..] else { panic!("two tests in: {row}") };
        let source = std::fs::read_to_string(root.join(format!("{catches}.rs")))?;
        assert!(source.contains(&format!("Mutation::{mutation:?}")), "{catches}.rs has no test of {mutation:?}");
        assert!(source.contains(&format!("::{fails}\"")), "{catches}.rs does not run {fails}");
    }
    Ok(())
}
