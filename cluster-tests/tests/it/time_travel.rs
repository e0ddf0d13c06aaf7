use serde_json::{Value, json};

use crate::node::Node;
use crate::spans::send_batch;

/// The snapshots of `traces`, oldest first: id, time as text, rows added and in total, index of the flush.
const SNAPSHOTS: &str = "SELECT snapshot_id, CAST(committed_at AS VARCHAR), added_records, total_records, flush_index
    FROM system.snapshots WHERE \"table\" = 'traces' ORDER BY sequence_number";

async fn refusal(node: &Node, query: &str) -> String {
    match node.sql_json(query).await {
        Ok(answer) => format!("was answered: {answer}"),
        Err(error) => error.to_string(),
    }
}

/// Scenario: three spans are flushed, two more are flushed, four more are not; the table is asked for as it is and as of
/// each snapshot, by id, by time, by function and by clause, alone and joined with the present.
/// Guarantees: the past is what had been committed to Iceberg by then, exactly; what was not is refused and says why.
#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_what_was_committed_by_then() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let urls = [node.otlp_http("/v1/traces")];
    let first = send_batch(&node.http, &urls, 3).await?;
    node.flush().await?;
    send_batch(&node.http, &urls, 2).await?;
    node.flush().await?;
    send_batch(&node.http, &urls, 4).await?;

    let snapshots = node.sql_json(SNAPSHOTS).await?["rows"].clone();
    let cell = |row: usize, column: usize| snapshots[row][column].clone();
    assert_eq!([cell(0, 2), cell(0, 3), cell(1, 2), cell(1, 3)].map(|cell| cell.as_i64()), [3, 3, 2, 5].map(Some));
    assert!(cell(0, 4).as_i64() < cell(1, 4).as_i64(), "{snapshots}");
    assert_eq!(snapshots.as_array().map(Vec::len), Some(2), "{snapshots}");
    let (old, new) = (cell(0, 0), cell(1, 0));
    let (then, later) = (cell(0, 1), cell(1, 1));
    let (then, later) = (then.as_str().unwrap_or_default(), later.as_str().unwrap_or_default());
    let span = &first[0];
    for (query, expected) in [
        ("SELECT count(*) FROM traces".to_owned(), 9),
        (format!("SELECT count(*) FROM traces FOR VERSION AS OF {old}"), 3),
        (format!("SELECT count(*) FROM table_at_snapshot('default.traces', {new})"), 5),
        (format!("SELECT count(*) FROM traces FOR TIMESTAMP AS OF '{then}'"), 3),
        (format!("SELECT count(*) FROM table_at('traces', '{later}')"), 5),
        (format!("SELECT count(*) FROM table_at('traces', TIMESTAMP '{later}' - INTERVAL '1 millisecond')"), 3),
        ("SELECT count(*) FROM signaldb.default.traces FOR SYSTEM_TIME AS OF now()".to_owned(), 5),
        (format!("SELECT count(*) FROM traces FOR VERSION AS OF {new} WHERE traces.span_id = '{span}'"), 1),
        (format!("SELECT count(*) FROM traces JOIN traces FOR VERSION AS OF {old} AS old USING (span_id)"), 3),
        (
            format!(
                "SELECT count(*) FROM traces present LEFT ANTI JOIN traces FOR VERSION AS OF {old} AS old
                    ON present.span_id = old.span_id"
            ),
            6,
        ),
        (format!("SELECT count(DISTINCT attributes['http.route']) FROM traces FOR VERSION AS OF {old}"), 1),
    ] {
        assert_eq!(node.number(&query).await?, expected, "{query}");
    }

    for (query, reason) in [
        ("SELECT * FROM traces FOR TIMESTAMP AS OF '2020-01-01'", "has no snapshot at 2020-01-01T00:00:00.000Z"),
        ("SELECT * FROM logs FOR TIMESTAMP AS OF now()", "has no snapshot at"),
        ("SELECT * FROM traces FOR VERSION AS OF 1", "keeps no snapshot 1"),
        ("SELECT * FROM nope FOR VERSION AS OF 1", "table 'nope' not found"),
        ("SELECT * FROM table_at('traces', 5)", "table_at takes"),
        ("SELECT * FROM traces FOR TIMESTAMP AS OF", "after AS OF comes"),
    ] {
        let refused = refusal(&node, query).await;
        assert!(refused.starts_with("400") && refused.contains(reason), "{query}: {refused}");
    }
    Ok(())
}

/// Scenario: a node with flushed spans is asked for its data files and for the columns of all system tables.
/// Guarantees: every row is in one file of the current snapshot, with bounds of its time.
#[tokio::test(flavor = "multi_thread")]
async fn data_files_are_a_table() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path(), &[]).await?;
    let urls = [node.otlp_http("/v1/traces")];
    for spans in [3, 4] {
        send_batch(&node.http, &urls, spans).await?;
        node.flush().await?;
    }
    let files = "SELECT sum(records), min(bytes) > 0, count(DISTINCT path) >= 2, bool_and(path LIKE '%.parquet'),
        bool_and(timestamp_min <= timestamp_max), bool_and(CAST(timestamp_min AS DATE) = partition_day)
        FROM system.files WHERE \"table\" = 'traces'";
    let answer = node.sql_json(files).await?;
    assert_eq!(answer["rows"], json!([[7, true, true, true, true, true]]), "{answer}");
    let columns = "SELECT DISTINCT table_name FROM information_schema.columns WHERE table_schema = 'system' ORDER BY 1";
    let answer = node.sql_json(columns).await?;
    let names: Vec<Value> =
        ["files", "flushes", "groups", "nodes", "queries", "snapshots", "tables"].map(|name| json!([name])).into();
    assert_eq!(answer["rows"], Value::from(names));
    Ok(())
}
