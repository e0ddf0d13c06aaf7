//! Consistency as every API offers it, SQL over HTTP and Flight and Tempo's: strong, eventual, and up to a position, on
//! three nodes.

use std::time::{Duration, Instant};

use anyhow::Context;
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use prost::Message;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::node::{DEADLINE, Node};
use crate::spans::{hex, request, span};

const COUNT: &str = "SELECT count(*) FROM traces";

/// Exports new spans through a node; returns the position of the acknowledgment, and a trace of theirs.
async fn export(node: &Node, spans: usize) -> anyhow::Result<(String, String)> {
    let spans: Vec<_> = (0..spans).map(|n| span(&format!("span {n}"))).collect();
    let trace = hex(&spans[0].trace_id);
    let body = request("shop", spans).encode_to_vec();
    let request = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
    let response = request.body(body).timeout(DEADLINE).send().await?.error_for_status()?;
    let position = response.headers().get("x-signaldb-position").context("a position")?;
    Ok((position.to_str()?.to_owned(), trace))
}

/// A trace by its id over Tempo's API: status, and missing groups.
async fn trace_tempo(node: &Node, trace: &str, headers: &[(&str, &str)]) -> anyhow::Result<(u16, Option<String>)> {
    let request = node.http.get(node.url(&format!("/tempo/api/traces/{trace}"))).timeout(DEADLINE);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.send().await?;
    let missing = response.headers().get("x-signaldb-missing-groups");
    let missing = missing.and_then(|groups| groups.to_str().ok()).map(str::to_owned);
    Ok((response.status().as_u16(), missing))
}

/// A count over HTTP, as a header or a parameter asks for it: status, missing groups, and the answer.
async fn count_http(
    node: &Node,
    parameters: &str,
    headers: &[(&str, &str)],
) -> anyhow::Result<(u16, Option<String>, Value)> {
    let url = node.url(&format!("/api/v1/sql{parameters}"));
    let request = node.http.post(url).json(&json!({"query": COUNT})).timeout(DEADLINE);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.send().await?;
    let missing = response.headers().get("x-signaldb-missing-groups");
    let missing = missing.and_then(|groups| groups.to_str().ok()).map(str::to_owned);
    Ok((response.status().as_u16(), missing, response.json().await?))
}

async fn flight(node: &Node, headers: &[(&str, &str)]) -> anyhow::Result<FlightSqlServiceClient<Channel>> {
    let mut client = node.flight_client().await?;
    for (name, value) in headers {
        client.set_header(*name, *value);
    }
    Ok(client)
}

/// A count over Flight SQL: missing groups, and the answer.
async fn count_flight(node: &Node, headers: &[(&str, &str)]) -> anyhow::Result<(Option<String>, i64)> {
    let mut client = flight(node, headers).await?;
    let info = client.execute(COUNT.to_owned(), None).await?;
    let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone()).context("a ticket")?;
    let rows = client.do_get(ticket).await?;
    let missing = rows.headers().get("x-signaldb-missing-groups");
    let missing = missing.and_then(|groups| groups.to_str().ok()).map(str::to_owned);
    let batches: Vec<_> = rows.try_collect().await?;
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).context("a row")?;
    Ok((missing, batch.column(0).as_primitive::<Int64Type>().value(0)))
}

/// Scenario: a client exports through one node and, with the position of each acknowledgment, asks the other nodes for an
/// eventual answer, over HTTP, Flight SQL and Tempo's API.
/// Guarantees: the rows are seen, whoever is asked; a position that does not exist, or of a group without the tenant's
/// rows, is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_makes_an_eventual_answer_see_the_row() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &[]).await?;
    let (mut acknowledged, mut last) = (0, String::new());
    for round in 0..12 {
        let trace;
        (last, trace) = export(&cluster.nodes[round % 3], 1 + round % 2).await?;
        acknowledged += 1 + i64::try_from(round % 2)?;
        let reader = &cluster.nodes[(round + 1) % 3];
        let position = ("x-signaldb-min-position", last.as_str());
        let (status, missing, body) = count_http(reader, "?consistency=eventual", &[position]).await?;
        assert_eq!((status, missing), (200, None), "{body}");
        assert_eq!(body["rows"], json!([[acknowledged]]), "round {round}");
        let headers = [position, ("x-signaldb-consistency", "eventual")];
        assert_eq!(count_http(reader, "", &headers).await?.2["rows"], json!([[acknowledged]]), "round {round}");
        let reader = &cluster.nodes[(round + 2) % 3];
        assert_eq!(count_flight(reader, &headers).await?, (None, acknowledged), "round {round}");
        assert_eq!(trace_tempo(reader, &trace, &headers).await?, (200, None), "round {round}");
    }
    let (group, index) = last.split_once(':').context("group:index")?;
    let (future, elsewhere) = (format!("{group}:{}", index.parse::<u64>()? + 1_000_000), format!("999:{index}"));
    for bad in [future.as_str(), elsewhere.as_str(), "nonsense"] {
        let (status, _, body) = count_http(&cluster.nodes[0], "", &[("x-signaldb-min-position", bad)]).await?;
        assert_eq!((status, &body["error"]["code"]), (400, &json!("invalid_argument")), "{bad}: {body}");
        assert!(count_flight(&cluster.nodes[0], &[("x-signaldb-min-position", bad)]).await.is_err(), "{bad}");
    }
    let (status, _, body) = count_http(&cluster.nodes[0], "?consistency=sometimes", &[]).await?;
    assert_eq!(status, 400, "{body}");
    Ok(())
}

/// Scenario: two of three nodes are gone, so that no group has a leader; the third is asked over HTTP, Flight SQL and
/// Tempo's API.
/// Guarantees: a strong answer, and one up to a position, is refused as unavailable with a hint to come again; an eventual
/// one is given and names the groups whose rows may be missing. With a majority back all are whole.
#[tokio::test(flavor = "multi_thread")]
async fn without_leaders_only_eventual_answers_are_given_and_say_so() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &[]).await?;
    let (position, trace) = export(&cluster.nodes[0], 3).await?;
    // A leader whose followers are gone has its rows all the same.
    let leader = cluster.leader().await?;
    let (other, left) = ((leader + 1) % 3, (leader + 2) % 3);
    // So that the node which is left knows where the tenant's rows are.
    assert_eq!(cluster.nodes[left].number(COUNT).await?, 3);
    cluster.nodes[leader].kill()?;
    cluster.nodes[other].kill()?;
    let left = &cluster.nodes[left];
    let min_position = ("x-signaldb-min-position", position.as_str());
    let up_to = [min_position, ("x-signaldb-consistency", "eventual")];
    for headers in [&[][..], &up_to] {
        // Each waits for a leader as long as it may.
        let (http, flight, tempo) = tokio::join!(
            count_http(left, "", headers),
            count_flight(left, headers),
            trace_tempo(left, &trace, headers)
        );
        assert_eq!(tempo?, (503, None), "{headers:?}");
        let (status, _, body) = http?;
        assert_eq!((status, &body["error"]["code"]), (503, &json!("unavailable")), "{headers:?}: {body}");
        let refused = format!("{:#}", flight.err().context("was answered")?).to_lowercase();
        assert!(refused.contains("unavailable"), "{headers:?}: {refused}");
    }
    let (status, missing, body) = count_http(left, "?consistency=eventual", &[]).await?;
    assert_eq!((status, &body["stats"]["partial"]), (200, &json!(true)), "{body}");
    let group: u64 = position.split_once(':').context("group:index")?.0.parse()?;
    assert_eq!(missing, Some(group.to_string()));
    assert_eq!(body["stats"]["missing_groups"], json!([group]));
    let eventual = [("x-signaldb-consistency", "eventual")];
    let (missing, _) = count_flight(left, &eventual).await?;
    assert_eq!(missing, Some(group.to_string()));
    let found = left.http.get(left.url(&format!("/api/v2/traces/{trace}?consistency=eventual"))).send().await?;
    let missing = found.error_for_status()?.headers().get("x-signaldb-missing-groups").cloned();
    assert_eq!(missing.context("the trace may lack spans")?, group.to_string().as_str());

    cluster.nodes[leader].relaunch()?;
    cluster.nodes[other].relaunch()?;
    cluster.wait_ready().await?;
    let until = Instant::now() + DEADLINE;
    loop {
        let answer = count_flight(&cluster.nodes[2], &eventual).await?;
        if answer == (None, 3) {
            break;
        }
        anyhow::ensure!(Instant::now() < until, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (status, missing, body) = count_http(&cluster.nodes[2], "", &[min_position]).await?;
    assert_eq!((status, missing, &body["rows"]), (200, None, &json!([[3]])));
    Ok(())
}
