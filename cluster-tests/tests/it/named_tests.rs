use std::path::Path;

use anyhow::Context;

/// Guarantees: every test that docs/testing.md names as `file.rs:function` is there.
#[test]
fn every_promise_has_the_tests_that_the_guide_names() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let guide = std::fs::read_to_string(root.join("docs/testing.md"))?;
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
