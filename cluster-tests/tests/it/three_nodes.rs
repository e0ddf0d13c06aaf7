use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use signaldb_catalog::test_postgres::Server;

use crate::cluster::{Cluster, Load, assert_everywhere};
use crate::node::{DEADLINE, Node, flight_number, free_ports, scale};
use crate::spans::{batch, send_batch, send_until_acknowledged};

const COUNT: &str = "SELECT count(*) FROM traces";
const FAST_FLUSH: [&str; 2] = ["flush.interval=200ms", "flush.max_interval=200ms"];

/// Scenario: flushes every 200 ms while a client exports through one node after the other and, after each
/// acknowledgment, counts through another, alternately over HTTP and Flight.
/// Guarantees: every count equals the acknowledged total exactly, whoever is asked.
#[tokio::test(flavor = "multi_thread")]
async fn every_node_counts_what_any_node_acknowledged() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &FAST_FLUSH).await?;
    let mut flights = Vec::new();
    for node in &cluster.nodes {
        flights.push(node.flight_client().await?);
    }
    let urls = cluster.urls();
    let mut acknowledged = 0;
    for export in 0..60 * scale() {
        let random = uuid::Uuid::new_v4().as_u128();
        let (writer, reader) = ((random % 3) as usize, ((random + 1 + random / 3 % 2) % 3) as usize);
        let ids = send_batch(&cluster.http, &urls[writer..=writer], 1 + export % 3).await?;
        acknowledged += ids.len() as i64;
        let counted = match export % 2 {
            0 => cluster.nodes[reader].number(COUNT).await?,
            _ => flight_number(&mut flights[reader], COUNT).await?,
        };
        assert_eq!(counted, acknowledged, "export {export} through node {}, asked node {}", writer + 1, reader + 1);
    }
    let flushed = cluster.nodes[0].number("SELECT count(*) FROM system.flushes WHERE added_records > 0").await?;
    assert!(flushed >= 2, "flushes went on meanwhile: {flushed}");
    for node in &cluster.nodes {
        node.flush().await?;
        assert_eq!(node.number(COUNT).await?, acknowledged);
    }
    let in_iceberg = "SELECT sum(added_records) FROM system.flushes WHERE \"table\" = 'traces'";
    assert_eq!(cluster.nodes[2].number(in_iceberg).await?, acknowledged);
    Ok(())
}

/// Scenario: four clients export without pause through all nodes while one node after the other is killed with SIGKILL
/// at a random moment and started again; at last all three at once.
/// Guarantees: acknowledgments resume with two nodes; every acknowledged span is on every node exactly once; the killed
/// node catches up.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_any_node_and_of_all_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &FAST_FLUSH).await?;
    let load = Load::start(&cluster, 4);
    load.wait_more(50).await?;
    let (mut gaps, mut last) = (Vec::new(), 0);
    for round in 0..3 * scale() {
        let pause = 50 + uuid::Uuid::new_v4().as_u128() % 700;
        tokio::time::sleep(Duration::from_millis(u64::try_from(pause)?)).await;
        // Whoever leads first, then the two others: each node at least once in three rounds.
        let victim = match round % 3 {
            0 => cluster.leader().await?,
            _ => (last + 1) % 3,
        };
        last = victim;
        cluster.nodes[victim].kill()?;
        gaps.push(load.wait_more(20).await?);
        cluster.nodes[victim].relaunch()?;
        cluster.nodes[victim].wait_ready().await?;
    }
    println!("acknowledgments resumed after {gaps:?}");
    let acknowledged = load.stop().await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    cluster.nodes.iter_mut().try_for_each(Node::kill)?;
    cluster.nodes.iter_mut().try_for_each(Node::relaunch)?;
    cluster.wait_ready().await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    cluster.nodes[1].flush().await?;
    assert_everywhere(&cluster, &acknowledged).await
}

/// Scenario: a request is acknowledged by one node; the same bytes are sent again through another, and through a third
/// after the leader was killed.
/// Guarantees: one row each, the first position, and the header that says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_through_another_node_is_stored_once() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    let (body, ids) = batch(3);
    let mut positions = Vec::new();
    for at in 0..3 {
        let leader = cluster.leader().await?;
        if at == 2 {
            cluster.nodes[leader].kill()?;
        }
        let through = (0..3).find(|node| *node != leader).unwrap_or(0);
        let url = cluster.nodes[through].otlp_http("/v1/traces");
        let request = cluster.http.post(url).header("content-type", "application/x-protobuf").body(body.clone());
        let response = request.timeout(Duration::from_secs(30)).send().await?.error_for_status()?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        positions.push(header("x-signaldb-position"));
        assert_eq!(header("x-signaldb-deduplicated").is_some(), at > 0);
        assert_eq!(header("x-signaldb-ack").as_deref(), Some("quorum"));
        if at == 2 {
            cluster.nodes[leader].relaunch()?;
            cluster.nodes[leader].wait_ready().await?;
        }
    }
    assert!(positions[0].is_some() && positions.iter().all(|position| *position == positions[0]), "{positions:?}");
    assert_everywhere(&cluster, &ids).await
}

/// Scenario: under load each node is stopped with SIGTERM and started again, one after the other.
/// Guarantees: it gives its leaderships away and exits with code 0 within ten seconds; no request fails beyond
/// retryable ones; nothing is lost; in the end every node leads about as many groups as the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_request() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &FAST_FLUSH).await?;
    let load = Load::start(&cluster, 3);
    load.wait_more(30).await?;
    for at in 0..3 {
        let (code, took) = cluster.nodes[at].terminate()?;
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(10), "{took:?}");
        load.wait_more(20).await?;
        cluster.nodes[at].relaunch()?;
        cluster.nodes[at].wait_ready().await?;
    }
    let until = Instant::now() + DEADLINE;
    loop {
        let state: Value = cluster.http.get(cluster.nodes[0].url("/api/v1/cluster")).send().await?.json().await?;
        let led =
            |node: u64| state["groups"].as_array().into_iter().flatten().filter(move |group| group["leader"] == node);
        if (1..=3).all(|node| led(node).count() >= 2) {
            break;
        }
        assert!(Instant::now() < until, "leaders are not spread: {state}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let acknowledged = load.stop().await?;
    assert_everywhere(&cluster, &acknowledged).await
}

/// Scenario: two of three nodes are killed; a client writes and asks.
/// Guarantees: both are refused within the deadline with a retry hint, never guessed; an eventual read answers and says
/// what is missing; with one node back they succeed.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_writes_and_strong_reads_are_refused() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    let urls = cluster.urls();
    let mut acknowledged = send_batch(&cluster.http, &urls, 3).await?;
    cluster.nodes[0].kill()?;
    cluster.nodes[2].kill()?;
    let (body, ids) = batch(2);
    let begun = Instant::now();
    let request = cluster.http.post(&urls[1]).header("content-type", "application/x-protobuf").body(body.clone());
    let refused = request.timeout(Duration::from_secs(30)).send().await?;
    assert_eq!(refused.status().as_u16(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let query = cluster.nodes[1].sql_json(COUNT).await.expect_err("nobody can prove what is committed");
    assert!(query.to_string().contains("503"), "{query}");
    let eventual = cluster.http.post(cluster.nodes[1].url("/api/v1/sql?consistency=eventual"));
    let eventual = eventual.json(&json!({"query": COUNT})).send().await?;
    assert!(eventual.headers().contains_key("x-signaldb-missing-groups"));
    let eventual: Value = eventual.error_for_status()?.json().await?;
    assert_eq!(eventual["stats"]["partial"], true, "never silently: {eventual}");
    cluster.nodes[0].relaunch()?;
    cluster.nodes[0].wait_ready().await?;
    send_until_acknowledged(&cluster.http, &urls[..2], body).await?;
    acknowledged.extend(ids);
    cluster.nodes[2].relaunch()?;
    cluster.wait_ready().await?;
    assert_everywhere(&cluster, &acknowledged).await
}

/// Scenario: a tenant writes for the first time while one node is away; that node comes back alone and is asked for an
/// eventual answer; then the others come back.
/// Guarantees: it does not know where the tenant's rows are and says so, the meta group is missing, instead of taking
/// the tenant for a new one; a tenant that is new, and a node that knows, answer without a mark.
#[tokio::test(flavor = "multi_thread")]
async fn an_eventual_answer_tells_a_new_tenant_from_an_unknown_one() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    let tenant = HeaderMap::from_iter([(HeaderName::from_static("x-tenant-id"), HeaderValue::from_static("late"))]);
    let late = reqwest::Client::builder().default_headers(tenant).build()?;
    for node in &cluster.nodes {
        wait_eventual_count(&late, node, 0).await?;
    }
    cluster.nodes[2].kill()?;
    send_batch(&late, &cluster.urls()[..2], 3).await?;
    cluster.nodes[0].kill()?;
    cluster.nodes[1].kill()?;
    cluster.nodes[2].relaunch()?;
    assert_eq!(eventual_count(&late, &cluster.nodes[2]).await?, (0, Some("0".to_owned())));
    cluster.nodes[0].relaunch()?;
    cluster.nodes[1].relaunch()?;
    cluster.wait_ready().await?;
    for node in &cluster.nodes {
        wait_eventual_count(&late, node, 3).await?;
    }
    Ok(())
}

/// Waits until an eventual answer is whole and counts `expected` spans.
async fn wait_eventual_count(http: &reqwest::Client, node: &Node, expected: i64) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        let answer = eventual_count(http, node).await?;
        if answer == (expected, None) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "{answer:?}, expected {expected} spans and no missing group");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An eventual count, and the groups that it says are missing; asked again while the node starts.
async fn eventual_count(http: &reqwest::Client, node: &Node) -> anyhow::Result<(i64, Option<String>)> {
    let until = Instant::now() + DEADLINE;
    loop {
        let request = http.post(node.url("/api/v1/sql?consistency=eventual")).json(&json!({"query": COUNT}));
        let answer = request.timeout(Duration::from_secs(30)).send().await;
        match answer.and_then(reqwest::Response::error_for_status) {
            Ok(response) => {
                let missing = response.headers().get("x-signaldb-missing-groups");
                let missing = missing.and_then(|groups| groups.to_str().ok()).map(str::to_owned);
                let body: Value = response.json().await?;
                assert_eq!(body["stats"]["partial"] == true, missing.is_some(), "{body}");
                return Ok((body["rows"][0][0].as_i64().context("a number")?, missing));
            }
            Err(error) => anyhow::ensure!(Instant::now() < until, "no answer: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Scenario: a node is away while the others write, flush, and purge their logs; it comes back, and then the others go
/// one after the other until it leads.
/// Guarantees: it is given a snapshot instead of the log that is gone; as the leader it has every row, flushed or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_for_long_catches_up_from_a_snapshot() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = ["wal.keep_flushed=0s", "wal.max_segment_size=64KiB", "flush.max_interval=60s"];
    let mut cluster = Cluster::start(dir.path(), &settings).await?;
    let urls = cluster.urls();
    let mut acknowledged = send_batch(&cluster.http, &urls, 5).await?;
    let leader = cluster.leader().await?;
    let away = (leader + 1) % 3;
    cluster.nodes[away].kill()?;
    for _ in 0..4 {
        for _ in 0..10 {
            acknowledged.extend(send_batch(&cluster.http, &urls[leader..=leader], 50).await?);
        }
        cluster.nodes[leader].flush().await?;
    }
    // Not flushed: the new leader must read these from its log.
    acknowledged.extend(send_batch(&cluster.http, &urls[leader..=leader], 7).await?);
    let until = Instant::now() + DEADLINE;
    // What is left of the log does not reach back to when the node went away.
    loop {
        let state: Value = cluster.http.get(cluster.nodes[leader].url("/api/v1/cluster")).send().await?.json().await?;
        let groups = state["groups"].as_array().into_iter().flatten();
        if groups.filter_map(|group| group["purged_index"].as_u64()).max() > Some(40) {
            break;
        }
        assert!(Instant::now() < until, "the log is not purged: {state}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.nodes[away].relaunch()?;
    cluster.wait_ready().await?;
    while !cluster.nodes[away].log()?.contains("snapshot from the leader installed") {
        assert!(Instant::now() < until, "the node that was away was given no snapshot");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Without the two others it cannot lead; without the one that leads, and with the third slow to start, it may.
    loop {
        let leader = cluster.leader().await?;
        if leader == away {
            break;
        }
        assert!(Instant::now() < until, "the node that was away never led");
        cluster.nodes[leader].kill()?;
        acknowledged.extend(send_batch(&cluster.http, &urls[away..=away], 1).await?);
        cluster.nodes[leader].relaunch()?;
        cluster.wait_ready().await?;
    }
    assert_everywhere(&cluster, &acknowledged).await?;
    cluster.nodes[away].flush().await?;
    assert_everywhere(&cluster, &acknowledged).await
}

/// Scenario: three nodes share a catalog in PostgreSQL; the server stops under load and comes back.
/// Guarantees: acknowledgments go on without it; every row is in Iceberg once when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_a_catalog_in_postgresql() -> anyhow::Result<()> {
    let mut server = tokio::task::spawn_blocking(Server::start).await??;
    let dir = tempfile::tempdir()?;
    let settings = [format!("schema.catalog_uri={}", server.address()), format!("database.dsn={}", server.address())];
    let settings = [FAST_FLUSH[0], FAST_FLUSH[1], &settings[0], &settings[1]];
    let cluster = Cluster::start(dir.path(), &settings).await?;
    let load = Load::start(&cluster, 3);
    load.wait_more(30).await?;
    cluster.nodes[0].flush().await?;
    server.stop()?;
    load.wait_more(50).await?;
    server.start_again()?;
    load.wait_more(20).await?;
    let acknowledged = load.stop().await?;
    assert_everywhere(&cluster, &acknowledged).await?;
    // Flushers pause between attempts while the catalog is down.
    let until = Instant::now() + DEADLINE;
    while let Err(error) = cluster.nodes[1].flush().await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let in_iceberg = "SELECT sum(added_records) FROM system.flushes WHERE \"table\" = 'traces'";
    assert_eq!(cluster.nodes[2].number(in_iceberg).await?, acknowledged.len() as i64);
    assert_everywhere(&cluster, &acknowledged).await
}

/// Scenario: a node comes back with an empty disk, with another store, and under another cluster's name.
/// Guarantees: it never becomes ready and says why; the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_belong_is_refused_by_name() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    let urls = cluster.urls();
    let acknowledged = send_batch(&cluster.http, &urls, 3).await?;

    cluster.nodes[2].kill()?;
    let store = cluster.root.join("shared/storage/signaldb-store.json");
    let honest = std::fs::read(&store)?;
    std::fs::write(&store, r#"{"store_id": "somebody-else"}"#)?;
    cluster.nodes[2].relaunch()?;
    let said = cluster.nodes[2].wait_ended().await?;
    assert!(said.contains("somebody-else"), "{said}");
    std::fs::write(&store, honest)?;

    let data = cluster.nodes[2].dir.join("data");
    std::fs::rename(&data, cluster.nodes[2].dir.join("away"))?;
    cluster.nodes[2].relaunch()?;
    let said = cluster.nodes[2].wait_ended().await?;
    assert!(said.contains("wiped") && said.contains("add-node"), "{said}");
    std::fs::remove_dir_all(&data)?;
    std::fs::rename(cluster.nodes[2].dir.join("away"), &data)?;
    cluster.nodes[2].relaunch()?;
    cluster.wait_ready().await?;

    // A stranger with another name finds the peers and gets no answer from them.
    let mut ports = [cluster.nodes[0].ports, cluster.nodes[1].ports, cluster.nodes[2].ports];
    ports[2] = free_ports()?;
    let settings = Cluster::settings(&cluster.root, &ports, 2, &["cluster.name=other"]);
    let stranger = Node::launch(&dir.path().join("stranger"), settings, ports[2])?;
    let until = Instant::now() + DEADLINE;
    loop {
        let said = stranger.log()?;
        if said.contains("\"other\"") && said.contains("\"test\"") {
            break;
        }
        assert!(Instant::now() < until, "{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_everywhere(&cluster, &acknowledged).await
}
