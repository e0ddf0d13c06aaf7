//! `signaldb wal` on the log of a stopped node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

use crate::fixtures::copy_dir;
use crate::node::{Node, binary};
use crate::spans::{batch, compare, send_batch};

/// Small segments, and nothing is flushed while a test runs.
const SETTINGS: &[&str] = &["wal.max_segment_size=32KiB", "flush.interval=1h", "flush.max_interval=1h"];
const HEADER_BYTES: usize = 72;
const APPEND: u8 = 3;

/// How a command ended and what it said.
struct Answer {
    code: Option<i32>,
    text: String,
}

impl Answer {
    fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.text).with_context(|| self.text.clone())
    }
}

/// Runs `signaldb wal` on the node in `dir`.
fn wal(dir: &Path, arguments: &[&str]) -> anyhow::Result<Answer> {
    let mut command = Command::new(binary()?);
    command.current_dir(dir).arg("wal").args(arguments).arg("--data-dir").arg(dir.join("data"));
    let output = command.output().context("run signaldb wal")?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(Answer { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() })
}

/// Every file below `dir` with its content.
fn files(dir: &Path) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            out.extend(files(&path)?);
        } else {
            out.insert(path.clone(), std::fs::read(&path)?);
        }
    }
    Ok(out)
}

/// Scenario: a node that runs, then one that was stopped.
/// Guarantees: nothing looks into a log that is in use; of a stopped node's it tells groups and tenants, says that it is
/// whole, changes nothing, and the node starts again.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_stopped_node_is_shown_and_is_whole() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), SETTINGS).await?;
    let urls = [node.otlp_http("/v1/traces")];
    let mut ids = send_batch(&node.http, &urls, 10).await?;
    ids.extend(send_batch(&node.http, &urls, 20).await?);
    for arguments in [&["inspect"][..], &["verify"], &["repair", "--accept-data-loss"]] {
        let refused = wal(dir.path(), arguments)?;
        assert_eq!(refused.code, Some(2), "{}", refused.text);
        assert!(refused.text.contains("used by another signaldb process"), "{}", refused.text);
    }
    node.terminate()?;
    let before = files(&dir.path().join("data/wal"))?;
    let shown = wal(dir.path(), &["inspect"])?;
    assert_eq!(shown.code, Some(0), "{}", shown.text);
    assert!(shown.text.contains("no damage") && shown.text.contains("committed"), "{}", shown.text);
    let shown = wal(dir.path(), &["inspect", "--format", "json"])?.json()?;
    assert_eq!(shown["groups"].as_array().map(Vec::len), Some(9), "{shown}");
    assert_eq!(shown["groups"][0]["voted_for"], 1, "{shown}");
    let of_tenant = wal(dir.path(), &["inspect", "--tenant", "default", "--format", "json"])?.json()?;
    let [share] = of_tenant["tenants"].as_array().context("tenants")?.as_slice() else {
        anyhow::bail!("one group holds the tenant: {of_tenant}")
    };
    assert_eq!((&share["rows"], &share["entries"]), (&json!(30), &json!(2)), "{share}");
    assert_eq!((&share["dataset"], &share["tables"]), (&json!("default"), &json!(["traces"])), "{share}");
    let table = wal(dir.path(), &["inspect", "--tenant", "default"])?;
    assert!(table.text.contains("traces"), "{}", table.text);
    let logs = wal(dir.path(), &["inspect", "--tenant", "default", "--signal", "logs", "--format", "json"])?.json()?;
    assert_eq!(logs["tenants"], json!([]));
    let listed = wal(dir.path(), &["inspect", "--entries", "--format", "json"])?;
    let listed = listed.text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    assert_eq!(listed[0], json!({"sound": true}));
    let rows: Vec<&Value> = listed.iter().filter(|line| line["entry"] == "rows").collect();
    assert_eq!(rows.iter().map(|line| line["rows"].as_u64()).collect::<Vec<_>>(), [Some(10), Some(20)]);
    assert!(
        rows.iter().all(|line| line["request"].is_string()) && rows[0]["request"] != rows[1]["request"],
        "{rows:?}"
    );
    let group = listed.iter().find(|line| line["group"] == rows[0]["group"]).context("its group")?;
    let indexes =
        listed.iter().filter(|line| line["group"] == rows[0]["group"]).filter_map(|line| line["index"].as_u64());
    let indexes: Vec<u64> = indexes.collect();
    let whole = group["first"].as_u64().context("first")?..=group["last"].as_u64().context("last")?;
    assert_eq!(indexes, whole.collect::<Vec<_>>(), "every index, in their order");
    let whole = wal(dir.path(), &["verify"])?;
    assert_eq!(whole.code, Some(0), "{}", whole.text);
    let nothing = wal(dir.path(), &["repair", "--accept-data-loss"])?;
    assert_eq!(nothing.code, Some(0), "{}", nothing.text);
    assert_eq!(files(&dir.path().join("data/wal"))?, before, "nothing was changed");
    let nowhere = wal(&dir.path().join("data"), &["verify"])?;
    assert_eq!(nowhere.code, Some(2), "{}", nowhere.text);
    node.restart().await?;
    assert_eq!(compare(&ids, &node.span_ids().await?), (vec![], vec![]));
    Ok(())
}

/// Scenario: the golden log of version 1 (`wal/tests/golden`).
/// Guarantees: its segments, groups and rows are shown as they were written.
#[test]
fn the_golden_log_of_version_1_is_shown() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wal/tests/golden/v1/wal");
    std::fs::create_dir_all(dir.path().join("data/wal/segments"))?;
    for name in ["metadata.json", "segments/000001.wal", "segments/000002.wal", "segments/000003.wal"] {
        std::fs::copy(golden.join(name), dir.path().join("data/wal").join(name))?;
    }
    let shown = wal(dir.path(), &["inspect", "--tenant", "acme", "--format", "json"])?;
    assert_eq!(shown.code, Some(0), "{}", shown.text);
    let shown = shown.json()?;
    assert_eq!(shown["damages"], json!([]));
    assert_eq!(shown["torn_tail"], Value::Null);
    let segments = shown["segments"].as_array().context("segments")?;
    let segments: Vec<Value> =
        segments.iter().map(|segment| json!([segment["number"], segment["bytes"], segment["sealed"]])).collect();
    assert_eq!(json!(segments), json!([[1, 4412, true], [2, 1884, true], [3, 675, false]]));
    let group = |group, first, last, committed, purged, term, trust| {
        json!({"group": group, "first": first, "last": last, "committed": committed, "purged": purged, "term": term,
            "voted_for": 1, "trust": trust, "lost_vote": false})
    };
    let expected = json!([
        group(0, 0, 4, 4, Value::Null, 1, json!("synced")),
        group(1, 5, 9, 9, json!(4), 2, json!("synced")),
        group(2, 0, 3, 3, Value::Null, 1, Value::Null),
    ]);
    assert_eq!(shown["groups"], expected);
    let share = |dataset, index, rows, bytes| {
        json!({"tenant": "acme", "dataset": dataset, "group": 1, "entries": 1, "bytes": bytes, "first": index,
            "last": index, "rows": rows, "rows_in_iceberg": 0, "tables": ["traces"]})
    };
    assert_eq!(shown["tenants"], json!([share("production", 7, 4, 89), share("staging", 9, 1, 85)]));
    assert_eq!(wal(dir.path(), &["verify"])?.code, Some(0));
    Ok(())
}

/// An append record of a group.
#[derive(Debug)]
struct Record {
    offset: usize,
    len: usize,
    group: u32,
    first: u64,
    last: u64,
}

/// The longest append record of a segment.
fn longest_append(segment: &[u8]) -> anyhow::Result<Record> {
    let mut longest: Option<Record> = None;
    let mut at = 0;
    while let Some(header) = segment.get(at..at + HEADER_BYTES).filter(|header| header.starts_with(b"SDB1")) {
        let u32_at = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes);
        let u64_at = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes);
        let len = HEADER_BYTES + u32_at(8)? as usize;
        let record = Record { offset: at, len, group: u32_at(20)?, first: u64_at(48)?, last: u64_at(56)? };
        if header[4] == APPEND && longest.as_ref().is_none_or(|longest| longest.len < len) {
            longest = Some(record);
        }
        at += len;
    }
    longest.context("the segment holds an append")
}

/// One acknowledged request.
struct Sent {
    group: u32,
    index: u64,
    ids: Vec<String>,
}

async fn send(node: &Node, count: usize) -> anyhow::Result<Sent> {
    let (body, ids) = batch(count);
    let request = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
    let response = request.body(body).send().await?.error_for_status()?;
    let position = response.headers().get("x-signaldb-position").context("a position")?.to_str()?;
    let (group, index) = position.split_once(':').context("group:index")?;
    Ok(Sent { group: group.parse()?, index: index.parse()?, ids })
}

/// Scenario: one byte in a sealed segment of a single node is flipped, and its loss is accepted.
/// Guarantees: `verify` and the start name segment, offset and group, and change nothing; nothing is repaired unasked;
/// the repair names exactly what is lost by group and tenant; after it the node serves all the rest and takes writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_named_and_its_loss_is_accepted_by_name() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), SETTINGS).await?;
    let mut sent = Vec::new();
    let segments = dir.path().join("data/wal/segments");
    while !segments.join("000004.wal").exists() {
        anyhow::ensure!(sent.len() < 500, "segments are not sealed");
        sent.push(send(&node, 100).await?);
    }
    node.terminate()?;
    // Not the first segment: it holds what the cluster was founded with.
    let path = segments.join("000002.wal");
    let mut content = std::fs::read(&path)?;
    let record = longest_append(&content)?;
    content[record.offset + record.len / 2] ^= 0x10;
    std::fs::write(&path, &content)?;

    let (segment, offset) = ("segment 000002", format!("offset {}", record.offset));
    let names = |text: &str| text.contains(segment) && text.contains(&offset);
    let verified = wal(dir.path(), &["verify"])?;
    assert_eq!(verified.code, Some(1), "{}", verified.text);
    assert!(names(&verified.text) && verified.text.contains(&format!("group {}", record.group)), "{}", verified.text);
    assert!(verified.text.contains("signaldb wal repair --accept-data-loss"), "{}", verified.text);
    let verified = wal(dir.path(), &["verify", "--format", "json"])?.json()?;
    let damage = &verified["damages"][0];
    assert_eq!((&damage["segment"], &damage["offset"]), (&json!(2), &json!(record.offset)), "{verified}");
    assert_eq!(damage["groups"], json!([record.group]), "{verified}");

    // A start trusts the footer of a sealed segment; a read finds the damage, and the next start looks at all of it.
    node.relaunch()?;
    let said = node.wait_ended().await?;
    assert!(names(&said), "{said}");
    let before = files(&segments)?;
    node.relaunch()?;
    let said = node.wait_ended().await?;
    assert!(names(&said) && said.contains("signaldb wal repair --accept-data-loss"), "{said}");
    let unasked = wal(dir.path(), &["repair"])?;
    assert_eq!(unasked.code, Some(1), "{}", unasked.text);
    assert_eq!(files(&segments)?, before, "nothing was changed");

    let repaired = wal(dir.path(), &["repair", "--accept-data-loss", "--format", "json"])?;
    assert_eq!(repaired.code, Some(0), "{}", repaired.text);
    let repaired = repaired.json()?;
    let loss = &repaired["loss"];
    let group = &loss["groups"][0];
    assert_eq!((&group["group"], &group["first"]), (&json!(record.group), &json!(record.first)), "{loss}");
    assert_eq!(group["unreadable"], json!(record.last + 1 - record.first), "{loss}");
    let of_group = |sent: &&Sent| sent.group == record.group;
    let readable = sent.iter().filter(of_group).filter(|sent| sent.index > record.last).count();
    assert!(readable > 0, "requests followed the damaged one");
    assert_eq!(loss["tenants"][0]["tenant"], "default", "{loss}");
    assert_eq!(loss["tenants"][0]["rows"], json!(100 * readable), "{loss}");
    assert_eq!(wal(dir.path(), &["verify"])?.code, Some(0));

    let kept = sent.iter().filter(|sent| sent.group != record.group || sent.index < record.first);
    let mut kept: Vec<String> = kept.flat_map(|sent| sent.ids.clone()).collect();
    for _ in 0..2 {
        node.restart().await?;
        let found = node.span_ids().await?;
        assert_eq!(compare(&kept, &found), (vec![], vec![]));
        assert_eq!(found.len(), kept.len(), "what was named as lost is lost, and nothing else");
        kept.extend(send(&node, 10).await?.ids);
        node.terminate()?;
    }
    Ok(())
}

/// Scenario: the log is damaged below rows that are in the tables, and the loss is accepted.
/// Guarantees: the repair says that tables know more than the log; rows in the tables stay, and rows that take the indexes
/// of lost entries are neither hidden nor doubled.
#[tokio::test(flavor = "multi_thread")]
async fn a_repaired_log_behind_its_tables_goes_on_without_hiding_new_rows() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::start(dir.path(), SETTINGS).await?;
    let mut ids = Vec::new();
    let segments = dir.path().join("data/wal/segments");
    while !segments.join("000003.wal").exists() {
        anyhow::ensure!(ids.len() < 50_000, "segments are not sealed");
        ids.extend(send(&node, 100).await?.ids);
    }
    node.flush().await?;
    // Behind the cut, so that no snapshot covers it; then a second cut.
    while !segments.join("000006.wal").exists() {
        anyhow::ensure!(ids.len() < 100_000, "segments are not sealed");
        ids.extend(send(&node, 100).await?.ids);
    }
    node.kill()?;
    // The tables get ahead of what will be left of the log: the flush is made, its snapshot is not.
    let state = dir.path().join("state-before");
    copy_dir(&dir.path().join("data/state"), &state)?;
    node.restart().await?;
    node.flush().await?;
    node.kill()?;
    std::fs::remove_dir_all(dir.path().join("data/state"))?;
    copy_dir(&state, &dir.path().join("data/state"))?;
    let path = segments.join("000005.wal");
    let mut content = std::fs::read(&path)?;
    let record = longest_append(&content)?;
    content[record.offset + record.len / 2] ^= 0x10;
    std::fs::write(&path, &content)?;

    let repaired = wal(dir.path(), &["repair", "--accept-data-loss", "--format", "json"])?;
    assert_eq!(repaired.code, Some(0), "{}", repaired.text);
    let repaired = repaired.json()?;
    assert_eq!(repaired["tables_ahead"][0]["group"], json!(record.group), "{repaired}");
    for _ in 0..2 {
        node.restart().await?;
        assert_eq!(compare(&ids, &node.span_ids().await?), (vec![], vec![]), "all of it is in the tables");
        for _ in 0..5 {
            ids.extend(send(&node, 10).await?.ids);
        }
        assert_eq!(compare(&ids, &node.span_ids().await?), (vec![], vec![]));
        node.flush().await?;
        assert_eq!(compare(&ids, &node.span_ids().await?), (vec![], vec![]));
        node.kill()?;
    }
    Ok(())
}
