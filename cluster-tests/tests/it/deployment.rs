use std::path::Path;
use std::process::Command;

use crate::fixtures::python;
use crate::node::binary;

/// Scenario: `scripts/test-deployment.sh` starts one node on its defaults, then three with PostgreSQL and S3, each twice.
/// Guarantees: an export is answered by every node, before and after a flush; a deployment that does not work is a failure.
#[tokio::test(flavor = "multi_thread")]
async fn both_deployments_take_an_export_and_answer_a_query() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/test-deployment.sh");
    let script = |bin: &Path| {
        let mut command = Command::new(&script);
        command.env("SIGNALDB_BIN", bin).env("SIGNALDB_PYTHON", &python);
        command
    };
    let output = script(&binary()?).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("monolith: passed") && said.contains("S3: passed"), "{said}");
    // A binary that only ends. What a failure leaves behind goes with the directory.
    let dir = tempfile::tempdir()?;
    let output = script(Path::new("/bin/true")).env("READY_SECONDS", "1").env("TMPDIR", dir.path()).output()?;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
