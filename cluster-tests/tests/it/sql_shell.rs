use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::fixtures::{python, run_script};
use crate::node::{DEADLINE, Node, binary};
use crate::spans::send_batch;

/// What a run of `signaldb sql` said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) error: String,
}

/// Runs `signaldb sql` against a node; `input` is what comes in.
pub(crate) fn sql(node: &Node, arguments: &[&str], input: &str) -> anyhow::Result<Said> {
    sql_as(node, &[], arguments, input)
}

fn sql_as(node: &Node, environment: &[(&str, &str)], arguments: &[&str], input: &str) -> anyhow::Result<Said> {
    let mut child = command(node)?.envs(environment.iter().copied()).args(arguments).spawn().context("start")?;
    // It may have ended without a look at it.
    let _ = child.stdin.take().context("an input")?.write_all(input.as_bytes());
    let output = child.wait_with_output().context("wait")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { code: output.status.code(), out: text(&output.stdout), error: text(&output.stderr) })
}

fn command(node: &Node) -> anyhow::Result<Command> {
    let mut command = Command::new(binary()?);
    command.arg("sql").current_dir(&node.dir).env("SIGNALDB_ENDPOINT", node.url(""));
    for name in ["SIGNALDB_API_KEY", "SIGNALDB_TENANT", "SIGNALDB_DATASET"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Scenario: one statement in every format, with rows and without.
/// Guarantees: each format has them, and an answer without rows is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_answered_in_every_format() -> anyhow::Result<()> {
    const COUNT: &str = "SELECT service_name, count(*) AS n FROM traces GROUP BY 1";
    const NOTHING: &str = "SELECT service_name, flags FROM traces WHERE service_name = 'nobody'";
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    send_batch(&node.http, &[node.otlp_http("/v1/traces")], 3).await?;
    let rule = "+--------------+---+\n";
    let table = format!("{rule}| service_name | n |\n{rule}| shop         | 3 |\n{rule}1 row\n");
    let lists = "-[ row 1 ]------------\nservice_name | shop\nn            | 3\n1 row\n";
    let nothing = "+--------------+-------+\n| service_name | flags |\n+--------------+-------+\n+--------------+-------+\n0 rows\n";
    let cases: [(&[&str], &str); 7] = [
        (&[COUNT], &table),
        (&["-x", COUNT], lists),
        (&["--format", "csv", COUNT], "service_name,n\nshop,3\n"),
        (&["--format", "ndjson", COUNT], "{\"service_name\":\"shop\",\"n\":3}\n"),
        (&[NOTHING], nothing),
        (&["--format", "csv", NOTHING], "service_name,flags\n"),
        (&["--format", "ndjson", NOTHING], ""),
    ];
    for (arguments, expected) in cases {
        let said = sql(&node, arguments, "")?;
        ensure!(said.code == Some(0) && said.out == expected, "{arguments:?}: {said:?}");
    }
    for (statement, rows) in [(COUNT, serde_json::json!([["shop", 3]])), (NOTHING, serde_json::json!([]))] {
        let said = sql(&node, &["--format", "json", statement], "")?;
        let document: serde_json::Value = serde_json::from_str(&said.out).with_context(|| format!("{said:?}"))?;
        assert_eq!(document["rows"], rows);
    }
    Ok(())
}

/// Scenario: scripts on the command line, in a file and through a pipe, with commands between statements of several lines.
/// Guarantees: settings hold until they are changed, `\q` ends, and the first failure ends a script with exit code 1 and its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_keeps_its_settings_and_ends_at_the_first_failure() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let script = "\\format csv\nSELECT 1 AS a; SELECT\n  'x;y' -- ; no end\n  AS b\n;\n\\o json\nSELECT 2 AS c;\n\\o csv\n\
                  \\o answers.csv\nSELECT 3 AS d;\n\\o\nSELECT 4 AS e;\n\\q\nSELECT 5 AS f;\n";
    let said = sql(&node, &[], script)?;
    ensure!(said.code == Some(0), "{said:?}");
    let (before, after) = said.out.split_once("{").context("a document")?;
    assert_eq!(before, "a\n1\nb\nx;y\n");
    ensure!(after.contains("\"rows\":[[2]]") && after.ends_with("}\ne\n4\n"), "{said:?}");
    assert_eq!(std::fs::read_to_string(dir.path().join("answers.csv"))?, "d\n3\n");
    // Without an end, as `echo` leaves it; and what commands say is no part of the answer.
    let said = sql(&node, &["--format", "csv", "-f", "-"], "\\timing on\nSELECT 6 AS g")?;
    ensure!(said.code == Some(0) && said.out == "g\n6\n" && said.error.contains("time: "), "{said:?}");

    std::fs::write(dir.path().join("broken.sql"), "SELECT 1 AS a;\n\nSELECT nope\nFROM traces;\nSELECT 3 AS c;\n")?;
    let said = sql(&node, &["--format", "csv", "-f", "broken.sql"], "")?;
    ensure!(said.code == Some(1) && said.out == "a\n1\n", "{said:?}");
    ensure!(said.error.contains("broken.sql:3: ") && said.error.contains("nope"), "{said:?}");
    for arguments in [
        &["SELEC 1"][..],
        &["\\nope"],
        &["-f", "missing.sql"],
        &["--endpoint", "http://127.0.0.1:1", "SELECT 1"],
        &["--format", "csv", "SELECT 1; SELECT * FROM nowhere; SELECT 3"],
    ] {
        let said = sql(&node, arguments, "")?;
        ensure!(said.code == Some(1) && !said.error.is_empty(), "{arguments:?}: {said:?}");
    }
    Ok(())
}

/// Scenario: `\d` and `\d table`, and a node with authentication, asked with the key in the environment.
/// Guarantees: tables and columns are listed with short types; keys open what they open.
#[tokio::test(flavor = "multi_thread")]
async fn tables_are_described_and_keys_come_from_the_environment() -> anyhow::Result<()> {
    const CONFIG: &str = "[auth]\nenabled = true\n[[auth.tenants]]\nid = \"acme\"\ndefault_dataset = \"production\"\n\
                          [[auth.tenants.api_keys]]\nkey = \"sk-acme\"\n";
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("signaldb.toml"), CONFIG)?;
    let node = Node::start(dir.path(), &[]).await?;
    let acme = [("SIGNALDB_API_KEY", "sk-acme"), ("SIGNALDB_TENANT", "acme")];
    let said = sql_as(&node, &acme, &["\\d"], "")?;
    ensure!(said.code == Some(0) && said.out.contains("| production | traces "), "{said:?}");
    let said = sql_as(&node, &acme, &["\\d traces"], "")?;
    for (column, kind) in [
        ("timestamp", "timestamp UTC"),
        ("trace_id", "text"),
        ("duration_nano", "bigint"),
        ("attributes", "map(text, text)"),
    ] {
        let is_listed = |line: &str| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            cells.next() == Some(column) && cells.next() == Some(kind)
        };
        ensure!(said.out.lines().any(is_listed), "{column}: {said:?}");
    }
    ensure!(sql_as(&node, &acme, &["--format", "csv", "\\d logs"], "")?.out.contains("\nbody,Utf8View,YES\n"));
    for (key, expected) in [("sk-other", 1), ("sk-acme", 0)] {
        let said = sql_as(&node, &[("SIGNALDB_TENANT", "acme")], &["--key", key, "SELECT 1"], "")?;
        ensure!(said.code == Some(expected) && !said.error.contains("sk-"), "{key}: {said:?}");
    }
    Ok(())
}

/// Scenario: a large answer, as a whole, and with a reader that goes away after its first line.
/// Guarantees: every row comes, in pages that need no second head; the reader's end is no failure.
#[tokio::test(flavor = "multi_thread")]
async fn large_answers_come_as_they_are_read() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let said = sql(&node, &["SELECT 1000000 + value AS n FROM generate_series(1, 50000) ORDER BY n"], "")?;
    ensure!(said.code == Some(0) && said.out.ends_with("| 1050000 |\n+---------+\n50000 rows\n"), "{:?}", said.error);
    assert_eq!(said.out.lines().count(), 50_000 + 5);

    let endless = "SELECT value AS n FROM generate_series(1, 1000000000000)";
    let mut child = command(&node)?.args(["--format", "ndjson", endless]).spawn()?;
    let mut first = String::new();
    BufReader::new(child.stdout.take().context("an output")?).read_line(&mut first)?;
    ensure!(first.starts_with("{\"n\":"), "{first}");
    let until = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > until => {
                child.kill()?;
                anyhow::bail!("it writes on, and nobody reads");
            }
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let output = child.wait_with_output()?;
    ensure!(status.success(), "{status}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Scenario: a person at a terminal (`cluster-tests/python/shell.py`): statements of several lines, a table that is too wide,
/// Ctrl-C while a query runs, Ctrl-D, and another day.
/// Guarantees: Ctrl-C ends the query and not the shell; what was typed is there another day.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_at_a_terminal_can_type_cancel_and_come_back() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    send_batch(&node.http, &[node.otlp_http("/v1/traces")], 1).await?;
    let environment = [
        ("SIGNALDB", binary()?.display().to_string()),
        ("SIGNALDB_ENDPOINT", node.url("")),
        ("SIGNALDB_HISTORY", dir.path().join("history").display().to_string()),
    ];
    run_script(&python, "shell.py", &environment, "the shell does what it is told").map(drop)
}
