use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use signaldb_proto::RawCodec;
use signaldb_proto::peer::{CLUSTER_KEY, FORMAT, FORMAT_KEY, IdentityRequest, IdentityResponse, SERVICE};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

use crate::cluster::{Cluster, assert_everywhere};
use crate::node::{DEADLINE, Node};
use crate::spans::send_batch;

/// Scenario: a caller on the peer port has another secret, another cluster's name, or a newer format, at Raft's service
/// and at Flight; then a node of the cluster comes back with another secret, and at last with the right one.
/// Guarantees: each caller is refused by name; the node never becomes ready and its log names the setting; the others
/// acknowledge and answer meanwhile; with the right secret it catches up.
#[tokio::test(flavor = "multi_thread")]
async fn the_peer_port_asks_for_secret_cluster_and_format() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(dir.path(), &["cluster.secret=right"]).await?;
    let urls = cluster.urls();
    let mut acknowledged = send_batch(&cluster.http, &urls, 3).await?;
    strangers_are_refused(&cluster.nodes[0]).await?;

    cluster.nodes[2].kill()?;
    cluster.nodes[2].set("cluster.secret=wrong");
    cluster.nodes[2].relaunch()?;
    let until = Instant::now() + DEADLINE;
    while !cluster.nodes[2].log()?.contains("cluster.secret") {
        assert!(Instant::now() < until, "its log does not say why it is refused: {}", cluster.nodes[2].log()?);
        assert!(!cluster.nodes[2].is_ready().await, "a node with a wrong secret is ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..10 {
        acknowledged.extend(send_batch(&cluster.http, &urls[..2], 3).await?);
        let counted = cluster.nodes[0].number("SELECT count(*) FROM traces").await?;
        assert_eq!(counted, acknowledged.len() as i64);
        assert!(!cluster.nodes[2].is_ready().await, "a node with a wrong secret is ready");
    }

    cluster.nodes[2].kill()?;
    cluster.nodes[2].set("cluster.secret=right");
    cluster.nodes[2].relaunch()?;
    cluster.wait_ready().await?;
    assert_everywhere(&cluster, &acknowledged).await
}

async fn strangers_are_refused(node: &Node) -> anyhow::Result<()> {
    let newer = (FORMAT + 1).to_string();
    let identity = format!("/{SERVICE}/Identity");
    let vote = format!("/{SERVICE}/Vote");
    for (key, value, code, named) in [
        ("authorization", "Bearer wrong", Code::Unauthenticated, "cluster.secret".to_owned()),
        (CLUSTER_KEY, "other", Code::FailedPrecondition, "\"other\"".to_owned()),
        (FORMAT_KEY, newer.as_str(), Code::FailedPrecondition, format!("format {newer}")),
    ] {
        for path in [identity.as_str(), vote.as_str(), "/arrow.flight.protocol.FlightService/DoAction"] {
            let refused = ask(node, path, (key, value)).await?.expect_err("a stranger is refused");
            assert_eq!(refused.code(), code, "{path} with {key}: {refused}");
            assert!(refused.message().contains(&named), "{path} with {key}: {refused}");
        }
    }
    let answer = ask(node, &identity, (CLUSTER_KEY, "test")).await??;
    assert_eq!(IdentityResponse::decode(answer)?.node, 1, "a caller that belongs is answered");
    Ok(())
}

/// Calls a method of the peer port as a node of the cluster would, except for one piece of metadata.
async fn ask(node: &Node, path: &str, differs: (&'static str, &str)) -> anyhow::Result<Result<Bytes, Status>> {
    let mut client = Grpc::new(Endpoint::from_shared(node.peer())?.connect().await?);
    client.ready().await?;
    let mut request = Request::new(Bytes::from(IdentityRequest {}.encode_to_vec()));
    let format = FORMAT.to_string();
    for (key, value) in
        [("authorization", "Bearer right"), (CLUSTER_KEY, "test"), (FORMAT_KEY, format.as_str()), differs]
    {
        request.metadata_mut().insert(key, value.parse()?);
    }
    let answer = client.unary(request, PathAndQuery::try_from(path)?, RawCodec).await;
    Ok(answer.map(tonic::Response::into_inner))
}
