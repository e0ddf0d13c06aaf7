//! Requests that hold memory before their rows do.

use std::time::{Duration, Instant};

use prost::Message;
use signaldb_proto::otlp::collector::trace::v1::trace_service_client::TraceServiceClient;
use signaldb_proto::rpc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::Code;

use crate::node::{DEADLINE, Node};
use crate::outage::metric;
use crate::spans::{batch, request, span};

/// Scenario: a node with little memory has most of a large request, whose end does not come; others send meanwhile.
/// Guarantees: they are throttled with a hint over HTTP and gRPC, on connections that go on; what the large one held is
/// free when its connection ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_counts_while_it_is_read() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    // A sixteenth of it for requests: a lone one of 8 MiB is taken all the same.
    let node = Node::start(dir.path(), &["memory.limit=64MiB"]).await?;
    let mut grpc = TraceServiceClient::connect(node.otlp_grpc()).await?;
    let (body, _) = batch(1);
    let post = || {
        let request = node.http.post(node.otlp_http("/v1/traces")).header("content-type", "application/x-protobuf");
        request.body(body.clone()).send()
    };
    let mut large = TcpStream::connect(("127.0.0.1", node.ports[1])).await?;
    let head = "POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-protobuf\r\n\
        content-length: 8388608\r\n\r\n";
    large.write_all(head.as_bytes()).await?;
    large.write_all(&vec![0; 6 << 20]).await?;
    let until = Instant::now() + DEADLINE;
    // Beside another request it would itself be one that does not fit.
    while metric(&node.http, &node.url("/metrics"), "signaldb_ingest_held_bytes").await? < 6e6 {
        anyhow::ensure!(Instant::now() < until, "the large request is not counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = loop {
        let response = post().await?;
        if response.status().as_u16() != 200 {
            break response;
        }
        anyhow::ensure!(Instant::now() < until, "nobody was refused");
    };
    assert_eq!(refused.status().as_u16(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(rpc::Status::decode(refused.bytes().await?)?.retry_after().is_some());
    let status = grpc.export(request("shop", vec![span("refused")])).await.expect_err("is refused");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(rpc::Status::decode(status.details())?.retry_after().is_some());
    drop(large);
    while post().await?.status().as_u16() != 200 {
        anyhow::ensure!(Instant::now() < until, "what the request held is not free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    grpc.export(request("shop", vec![span("accepted")])).await?;
    Ok(())
}
