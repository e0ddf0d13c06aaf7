//! Tables that are maintained while they are written and read, and `signaldb table`. Six hours by a clock that is moved are
//! in `lake/src/maintain/tests/hours.rs`: files are deleted after half an hour at the earliest, which no process here lives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Load, assert_everywhere};
use crate::fixtures::assert_pyiceberg;
use crate::node::{DEADLINE, Node, binary, flight_number, scale};
use crate::spans::{compare, hex, log_record, now_nanos, request, send_batch, send_until_acknowledged, span};

const COUNT: &str = "SELECT count(*) FROM traces";
const DISTINCT: &str = "SELECT count(*), count(DISTINCT span_id) FROM traces";
/// `compaction.min_files`, by default.
const MIN_FILES: u64 = 8;
/// Six hours of commits every 30 s.
const COMMITS: i64 = 720;
const METADATA_BYTES_MAX: u64 = 1_000_000;
/// The tables are looked after five times a second, also for orphans.
const EAGER: [&str; 5] = [
    "flush.interval=500ms",
    "flush.max_interval=500ms",
    "compaction.interval=200ms",
    "compaction.target_file_size=1MiB",
    "retention.collect_interval=2s",
];
/// Fewer flushes, and rewrites after fewer of them: three nodes share the machine.
const EAGER_CLUSTER: [&str; 6] = [
    "flush.interval=1500ms",
    "flush.max_interval=1500ms",
    "compaction.interval=200ms",
    "compaction.target_file_size=1MiB",
    "compaction.min_files=3",
    "retention.collect_interval=2s",
];

/// Runs `signaldb table`.
fn signaldb_table(node: &Node, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(binary()?);
    command.arg("table").args(arguments).args(["--endpoint", &node.url("")]);
    command.output().context("run signaldb table")
}

/// What it answers in JSON: one report, and for a long compaction several.
fn table(node: &Node, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let output = signaldb_table(node, &[arguments, &["--format", "json"][..]].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let reports = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    Ok(reports.collect::<Result<_, _>>()?)
}

/// The part of an answer that is about `traces`.
fn traces(answer: &Value) -> anyhow::Result<&Value> {
    let tables = answer["tables"].as_array().context("tables")?;
    tables.iter().find(|table| table["table"] == "traces").with_context(|| format!("no traces in {answer}"))
}

/// What the table of spans looks like.
async fn shape(node: &Node) -> anyhow::Result<Value> {
    let listed = node.http.get(node.url("/api/v1/admin/tables?table=traces")).send().await?.error_for_status()?;
    Ok(traces(&listed.json().await?)?.clone())
}

fn number(value: &Value) -> anyhow::Result<i64> {
    value.as_i64().with_context(|| format!("{value} is not a number"))
}

/// Merges what is left, and checks that no size class of a day has enough files for a rewrite.
async fn assert_within_policy(node: &Node, rows: usize, min_files: u64) -> anyhow::Result<()> {
    let reports = table(node, &["compact", "--table", "traces"])?;
    let last = traces(reports.last().context("a report")?)?;
    assert_eq!(last["left"], 0, "{last}");
    let shape = shape(node).await?;
    assert_eq!((&shape["planned_rewrites"], &shape["records"]), (&json!(0), &json!(rows)), "{shape}");
    let answer = table(node, &["files", "--table", "traces"])?.remove(0);
    let (mut classes, mut counted): (BTreeMap<String, u64>, u64) = Default::default();
    for file in answer["files"].as_array().context("files")? {
        assert_eq!(file["sorted"], true, "{file}");
        let path = file["path"].as_str().and_then(|path| path.strip_prefix("file://")).context("a path")?;
        assert!(Path::new(path).exists(), "{file} is missing");
        counted += file["records"].as_u64().context("records")?;
        *classes.entry(format!("{} {}", file["day"], file["class"])).or_default() += 1;
    }
    assert_eq!(counted, rows as u64);
    assert!(classes.values().all(|files| *files < min_files), "{classes:?}");
    Ok(())
}

/// How far the writer is, for readers that check what they see.
#[derive(Default)]
struct Progress {
    /// Rows that may be there.
    sent: AtomicI64,
    /// Rows that must be there.
    acknowledged: AtomicI64,
    stop: AtomicBool,
}

/// Counts without pause; how often.
async fn count_until_stopped(node: Arc<Node>, query: &str, progress: Arc<Progress>) -> anyhow::Result<usize> {
    let (mut last, mut asked) = (0, 0);
    while !progress.stop.load(Ordering::SeqCst) {
        let acknowledged = progress.acknowledged.load(Ordering::SeqCst);
        let answer = node.sql_json(query).await.context("a query failed")?;
        let sent = progress.sent.load(Ordering::SeqCst);
        for counted in answer["rows"][0].as_array().context("a row")? {
            let counted = number(counted)?;
            ensure!(counted >= last, "{query}: {counted} after {last}");
            ensure!((acknowledged..=sent).contains(&counted), "{query}: {counted}, not {acknowledged} to {sent}");
            last = counted;
        }
        asked += 1;
    }
    Ok(asked)
}

/// Scenario: six hours' worth of commits, or as many as 40 seconds allow, while the table is compacted and looked through
/// for orphans; two clients count without pause, one of them distinct ids.
/// Guarantees: no query fails, no count is below what was acknowledged before it or what it was before, none is above what
/// was sent, no id is doubled; files stay few all the time and are within the policy at the end; `metadata.json` is
/// below 1 MB; PyIceberg reads the same spans, and finds every file of every snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_commits_under_queries_leave_few_files_and_never_miscount() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Arc::new(Node::start(dir.path(), &EAGER).await?);
    let (urls, progress) = ([node.otlp_http("/v1/traces")], Arc::<Progress>::default());
    let mut readers = JoinSet::new();
    for query in [COUNT, DISTINCT] {
        readers.spawn(count_until_stopped(Arc::clone(&node), query, Arc::clone(&progress)));
    }
    let (mut ids, mut most, begun) = (Vec::new(), 0, Instant::now());
    loop {
        progress.sent.fetch_add(3, Ordering::SeqCst);
        ids.extend(send_batch(&node.http, &urls, 3).await?);
        progress.acknowledged.fetch_add(3, Ordering::SeqCst);
        node.flush().await?;
        let mut now = shape(&node).await?;
        // Hours are not that short: after some commits maintenance has the time that it would have had.
        let until = Instant::now() + DEADLINE;
        while number(&now["files"])? > 4 * MIN_FILES as i64 {
            ensure!(Instant::now() < until, "compaction does not keep up: {now}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            now = shape(&node).await?;
        }
        most = most.max(number(&now["files"])?);
        let (commits, enough) = (number(&now["version"])?, Duration::from_secs(40) * scale() as u32);
        if commits >= COMMITS || (commits >= 60 && begun.elapsed() > enough) {
            println!("{commits} commits, at most {most} files");
            break;
        }
    }
    progress.stop.store(true, Ordering::SeqCst);
    while let Some(reader) = readers.join_next().await {
        let asked = reader??;
        assert!(asked >= 10, "queries went on meanwhile: {asked}");
    }
    let (missing, doubled) = compare(&ids, &node.span_ids().await?);
    assert!(missing.is_empty() && doubled.is_empty(), "missing {missing:?}, doubled {doubled:?}");
    assert_within_policy(&node, ids.len(), MIN_FILES).await?;

    let expired = table(&node, &["expire"])?.remove(0);
    assert!(traces(&expired)?["error"].is_null(), "{expired}");
    let shape = shape(&node).await?;
    assert!(number(&shape["snapshots"])? <= 500, "{shape}");
    let location = node.sql_json("SELECT metadata_location FROM system.tables WHERE \"table\" = 'traces'").await?;
    let location = location["rows"][0][0].as_str().and_then(|location| location.strip_prefix("file://"));
    let bytes = std::fs::metadata(location.context("a location")?)?.len();
    assert!(bytes < METADATA_BYTES_MAX, "metadata.json has {bytes} bytes");
    assert_eq!(node.span_ids().await?.len(), ids.len());
    assert_pyiceberg(dir.path(), &dir.path().join("data/catalog.db"), &ids)
}

/// Rewrites that the node has committed since it started.
async fn rewrites(node: &Node) -> anyhow::Result<u64> {
    let metrics = node.http.get(node.url("/metrics")).send().await?.error_for_status()?.text().await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("signaldb_compaction_rewrites_total "));
    Ok(line.context("a counter of rewrites")?.trim().parse::<f64>()? as u64)
}

/// Waits until one of `nodes` commits a rewrite.
async fn wait_rewrite(cluster: &Cluster, nodes: &[usize]) -> anyhow::Result<()> {
    let mut before = Vec::new();
    for at in nodes {
        before.push(rewrites(&cluster.nodes[*at]).await?);
    }
    let until = Instant::now() + DEADLINE;
    loop {
        for (at, before) in nodes.iter().zip(&before) {
            if rewrites(&cluster.nodes[*at]).await? > *before {
                return Ok(());
            }
        }
        ensure!(Instant::now() < until, "nobody of {nodes:?} compacts");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Data files of spans that compaction wrote, in the table or not.
fn compacted_files(cluster: &Cluster) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    // Nothing is there before the first flush.
    let Ok(days) = std::fs::read_dir(cluster.root.join("shared/storage/default/default/traces/data")) else {
        return Ok(found);
    };
    for day in days {
        for file in std::fs::read_dir(day?.path())? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with("c-") {
                found.insert(file.path());
            }
        }
    }
    Ok(found)
}

/// Waits until a compaction has written a file, which it is about to commit; who leads it.
async fn wait_compacting(cluster: &Cluster) -> anyhow::Result<usize> {
    let (leader, before) = (cluster.leader().await?, compacted_files(cluster)?);
    let until = Instant::now() + DEADLINE;
    while compacted_files(cluster)?.is_subset(&before) {
        ensure!(Instant::now() < until, "nobody compacts");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(leader)
}

/// Scenario: three nodes flush and compact all the time, under load; the node that compacts is killed with SIGKILL when it
/// has just written a file, or a moment later, and comes back, again and again. Then every node is asked to compact.
/// Guarantees: another leader goes on compacting while it is away; every acknowledged span is on every node exactly once,
/// before and after the last compaction; whichever node is asked, the leader does it; PyIceberg reads the same spans, and
/// finds every file of every snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_compacting_leader_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &EAGER_CLUSTER).await?;
    let load = Load::start(&cluster, 2);
    for _ in 0..3 * scale() {
        let victim = wait_compacting(&cluster).await?;
        // Still writing, committing, telling the others, or done with all that.
        let pause = uuid::Uuid::new_v4().as_u128() % 300;
        tokio::time::sleep(Duration::from_millis(u64::try_from(pause)?)).await;
        cluster.nodes[victim].kill()?;
        let others: Vec<usize> = (0..3).filter(|at| *at != victim).collect();
        load.wait_more(20).await?;
        wait_rewrite(&cluster, &others).await?;
        cluster.nodes[victim].relaunch()?;
        cluster.nodes[victim].wait_ready().await?;
    }
    let acknowledged = load.stop().await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    cluster.nodes[0].flush().await?;
    for node in &cluster.nodes {
        assert_within_policy(node, acknowledged.len(), 3).await?;
    }
    assert_everywhere(&cluster, &acknowledged).await?;
    assert_pyiceberg(dir.path(), &cluster.root.join("shared/catalog.db"), &acknowledged)
}

fn days_ago(days: u64) -> u64 {
    now_nanos() - days * 86_400_000_000_000
}

/// Spans that began so many days ago: the bytes of a request, and their ids.
fn old_batch(days: u64, count: usize) -> (Bytes, Vec<String>) {
    let mut spans: Vec<_> = (0..count).map(|n| span(&format!("{days} days, {n}"))).collect();
    for span in &mut spans {
        span.start_time_unix_nano = days_ago(days);
        span.end_time_unix_nano = span.start_time_unix_nano + 1_000_000;
    }
    let ids = spans.iter().map(|span| hex(&span.span_id)).collect();
    (request("shop", spans).encode_to_vec().into(), ids)
}

/// Every node has these spans, over HTTP by id and over Flight by number, and the one log record.
async fn assert_kept(cluster: &Cluster, ids: &[String]) -> anyhow::Result<()> {
    assert_everywhere(cluster, ids).await?;
    for node in &cluster.nodes {
        assert_eq!(flight_number(&mut node.flight_client().await?, COUNT).await?, ids.len() as i64);
        assert_eq!(node.number("SELECT count(*) FROM logs").await?, 1);
    }
    Ok(())
}

/// Scenario: three nodes that keep spans for three days and log records for ever hold spans of 12, 5 and 1 days ago and
/// of now, and a record of 12 days ago. Retention is shown, applied by hand, and left to itself.
/// Guarantees: showing says what applying then removes, and removes nothing; the old spans are gone on every node, over
/// HTTP, Flight and PyIceberg, and nothing else is; without a hand it happens as well.
#[tokio::test(flavor = "multi_thread")]
async fn retention_removes_what_is_too_old_and_nothing_else() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = [
        "flush.interval=1h",
        "flush.max_interval=1h",
        "compaction.interval=1h",
        "retention.keep=3d",
        "retention.rules=[{table=\"logs\"}]",
    ];
    let mut cluster = Cluster::start(dir.path(), &settings).await?;
    let urls = cluster.urls();
    let (mut all, mut young) = (Vec::new(), Vec::new());
    for (days, count) in [(12, 4), (5, 3), (1, 2), (0, 1)] {
        let (body, ids) = old_batch(days, count);
        send_until_acknowledged(&cluster.http, &urls, body).await?;
        all.extend(ids.clone());
        if days < 3 {
            young.extend(ids);
        }
    }
    let logs: Vec<String> = cluster.nodes.iter().map(|node| node.otlp_http("/v1/logs")).collect();
    send_until_acknowledged(&cluster.http, &logs, log_record(days_ago(12))).await?;
    cluster.nodes[0].flush().await?;
    assert_kept(&cluster, &all).await?;

    for node in &cluster.nodes {
        let shown = table(node, &["retention", "--dry-run"])?.remove(0);
        let days = traces(&shown)?["days"].as_array().context("days")?;
        let rows: Vec<&Value> = days.iter().map(|day| &day["rows"]).collect();
        assert_eq!((shown["dry_run"].as_bool(), rows), (Some(true), vec![&json!(4), &json!(3)]), "{shown}");
        let policy = node.http.get(node.url("/api/v1/admin/tables/retention")).send().await?;
        assert_eq!(policy.error_for_status()?.json::<Value>().await?, shown);
    }
    assert_kept(&cluster, &all).await?;
    let done = table(&cluster.nodes[1], &["retention"])?.remove(0);
    assert_eq!(traces(&done)?["days"].as_array().map(Vec::len), Some(2), "{done}");
    assert_kept(&cluster, &young).await?;
    assert_pyiceberg(dir.path(), &cluster.root.join("shared/catalog.db"), &young)?;
    let nothing = table(&cluster.nodes[2], &["retention"])?.remove(0);
    assert_eq!(traces(&nothing)?["days"], json!([]));

    let (body, _) = old_batch(9, 5);
    send_until_acknowledged(&cluster.http, &urls, body).await?;
    cluster.nodes[0].flush().await?;
    assert_eq!(cluster.nodes[0].number(COUNT).await?, young.len() as i64 + 5);
    for node in &mut cluster.nodes {
        node.set("compaction.interval=200ms");
        node.terminate()?;
        node.relaunch()?;
        node.wait_ready().await?;
    }
    let until = Instant::now() + DEADLINE;
    while cluster.nodes[0].number(COUNT).await? != young.len() as i64 {
        ensure!(Instant::now() < until, "nobody applies the policy");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_kept(&cluster, &young).await
}

const TENANTS: &str = r#"
[auth]
enabled = true
admin_key = "sk-admin"
[[auth.tenants]]
id = "acme"
default_dataset = "production"
[[auth.tenants.api_keys]]
key = "sk-acme"
[[auth.tenants]]
id = "other"
default_dataset = "main"
[[auth.tenants.api_keys]]
key = "sk-other"
"#;

/// Scenario: a node with two tenants and an admin key; `acme` wrote. Operators ask by hand and over HTTP, also for what
/// there is not, and without the key.
/// Guarantees: only the admin key is let in; an operator sees the tables of the tenant that is named, and no others; what
/// is unknown is refused by name; a dry run changes nothing; lines for people say the same as JSON.
#[tokio::test(flavor = "multi_thread")]
async fn table_commands_are_the_operators_and_about_one_tenant() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("signaldb.toml"), TENANTS)?;
    let node = Node::start(dir.path(), &["compaction.interval=1h", "compaction.min_files=2"]).await?;
    let signed = |request: reqwest::RequestBuilder, key: &str, tenant: &str| {
        request.bearer_auth(key.to_owned()).header("x-tenant-id", tenant)
    };
    for _ in 0..2 {
        let (body, _) = crate::spans::batch(3);
        let export = signed(node.http.post(node.otlp_http("/v1/traces")), "sk-acme", "acme");
        export.header("content-type", "application/x-protobuf").body(body).send().await?.error_for_status()?;
        let flush = signed(node.http.post(node.url("/api/v1/admin/flush")), "sk-admin", "acme");
        flush.send().await?.error_for_status()?;
    }
    let admin = ["--key", "sk-admin", "--tenant", "acme"];
    let listed = table(&node, &[&["list", "--table", "traces"][..], &admin[..]].concat())?.remove(0);
    let shape = traces(&listed)?;
    assert_eq!((&shape["namespace"], &shape["records"]), (&json!("acme.production"), &json!(6)), "{listed}");
    assert_eq!((&shape["files"], &shape["planned_rewrites"]), (&json!(2), &json!(1)), "{listed}");
    let other = table(&node, &["list", "--key", "sk-admin", "--tenant", "other"])?.remove(0);
    let foreign = |table: &&Value| table["namespace"] != "other.main";
    assert_eq!(other["tables"].as_array().context("tables")?.iter().find(foreign), None, "{other}");

    for (key, path, status, reason) in [
        ("sk-acme", "", 403, "admin key"),
        ("sk-nobody", "", 403, "admin key"),
        ("sk-admin", "?table=nope", 400, "metrics_gauge"),
        ("sk-admin", "?dataset=NO", 400, "dataset name"),
        ("sk-admin", "/files", 400, "`table`"),
        ("sk-admin", "/files?table=traces&dataset=nope", 404, "acme.nope.traces"),
        ("sk-admin", "/compact", 405, "does not answer GET"),
    ] {
        let asked = signed(node.http.get(node.url(&format!("/api/v1/admin/tables{path}"))), key, "acme");
        let answer = asked.send().await?;
        let (found, body) = (answer.status().as_u16(), answer.text().await?);
        assert!(found == status && body.contains(reason), "{path}: {found} {body}");
    }
    let asked = signed(node.http.post(node.url("/api/v1/admin/tables/compact")), "sk-admin", "acme");
    let answer = asked.json(&json!({"dry": true})).send().await?;
    assert_eq!(answer.status().as_u16(), 400, "a misspelt dry run must not become a real one");
    let refused = signaldb_table(&node, &[&["files"][..], &admin[..]].concat())?;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--table"));

    let dry = table(&node, &[&["compact", "--dry-run"][..], &admin[..]].concat())?.remove(0);
    assert_eq!((&traces(&dry)?["left"], &traces(&dry)?["rewrites"][0]["files"]), (&json!(1), &json!(2)), "{dry}");
    assert_eq!(table(&node, &[&["list", "--table", "traces"][..], &admin[..]].concat())?.remove(0), listed);
    let said = signaldb_table(&node, &[&["compact"][..], &admin[..]].concat())?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains("acme.production.traces") && said.contains("1 rewrites made 1 files of 2 with 6 rows"),
        "{said}"
    );
    let files = table(&node, &[&["files", "--table", "traces"][..], &admin[..]].concat())?.remove(0);
    assert_eq!(files["files"].as_array().map(Vec::len), Some(1), "{files}");
    Ok(())
}
