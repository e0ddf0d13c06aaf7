use std::path::Path;
use std::process::Command;

use crate::node::binary;
use crate::object_store::python;

/// Scenario: `scripts/test-deployment.sh` starts one node on its defaults, then three with PostgreSQL and S3, each twice.
/// Guarantees: an export is answered by every node, before and after a flush; a deployment that does not work is a failure.
#[tokio::test(flavor = "multi_thread")]
async fn both_deployments_take_an_export_and_answer_a_query() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/test-deployment.sh");
    let run = |bin: &Path, ready_seconds: &str| {
        let mut command = Command::new(&script);
        command.env("SIGNALDB_BIN", bin).env("SIGNALDB_PYTHON", &python).env("READY_SECONDS", ready_seconds).output()
    };
    let output = run(&binary()?, "120")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("monolith: passed") && said.contains("S3: passed"), "{said}");
    // A binary that only ends.
    let output = run(Path::new("/bin/true"), "1")?;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
