//! The peer port: Raft calls and Flight between nodes, from before the groups are open until the process ends.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use signaldb_lake::Lake;
use signaldb_query::{PeerFlight, PeerWorker, Queries};
use signaldb_raft::{Groups, PeerService, Peers};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

const WINDOW_BYTES: u32 = 16 << 20;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Serves peers until `stop`.
///
/// # Errors
/// When the port cannot be served.
pub(crate) async fn serve(
    listener: TcpListener,
    peers: Arc<Peers>,
    (lake, groups, queries, worker): (Lake, Arc<OnceLock<Arc<Groups>>>, Queries, PeerWorker),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let flight = PeerFlight::service(lake, groups, Arc::clone(&peers), queries);
    let routes = Routes::new(PeerService::new(Arc::clone(&peers))).add_service(flight);
    let routes = worker.mount(routes, peers);
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop.cancelled_owned())
        .await
        .context("serve listen.peer")
}
