//! The queries of all nodes: who runs what, and an end to it.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use signaldb_model::{NodeId, TenantId};
use signaldb_raft::Peers;

use super::QueryEngine;
use crate::error::{QueryError, QueryErrorKind};
use crate::queries::{Queries, QueryId, QueryStatus};
use crate::remote;

/// How long a node may take to say what it does.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

impl QueryEngine {
    /// The queries of all nodes, oldest first, of one tenant if it is named; and the nodes that do not answer.
    pub async fn queries(&self, tenant: Option<&TenantId>) -> (Vec<QueryStatus>, Vec<NodeId>) {
        of_all_nodes(&self.0.queries, self.0.groups.peers(), tenant).await
    }

    /// Stops a query, wherever it runs; only one of that tenant if one is named. Says whether there was one.
    ///
    /// # Errors
    /// [`QueryErrorKind::Unavailable`] when its node does not answer.
    pub async fn kill(&self, id: QueryId, tenant: Option<&TenantId>) -> Result<bool, QueryError> {
        let peers = self.0.groups.peers();
        if id.node == peers.node() {
            return Ok(self.0.queries.kill(id, tenant));
        }
        if !peers.addresses().contains_key(&id.node) {
            return Ok(false);
        }
        let killed = tokio::time::timeout(ASK_TIMEOUT, remote::kill(peers, id, tenant)).await;
        let failed = |why: String| {
            QueryError::new(QueryErrorKind::Unavailable, format!("node {} does not answer: {why}", id.node))
        };
        match killed {
            Ok(killed) => killed.map_err(|status| failed(status.message().to_owned())),
            Err(_) => Err(failed(format!("nothing for {ASK_TIMEOUT:?}"))),
        }
    }

    /// Stops the queries that answer these Flight tickets, wherever they run; only those of that tenant. Says whether there
    /// was one.
    ///
    /// # Errors
    /// [`QueryErrorKind::Unavailable`] when none was found and a node does not answer.
    pub async fn cancel(&self, tickets: &[Bytes], tenant: &TenantId) -> Result<bool, QueryError> {
        let peers = self.0.groups.peers();
        let asked = others(peers).into_iter().map(|node| async move {
            let answer = tokio::time::timeout(ASK_TIMEOUT, remote::cancel(peers, node, tickets, tenant)).await;
            (node, answer.ok().and_then(Result::ok))
        });
        let (mut found, mut silent) = (self.0.queries.cancel(tickets, tenant), None);
        for (node, answer) in join_all(asked).await {
            match answer {
                Some(there) => found |= there,
                None => silent = Some(node),
            }
        }
        match silent.filter(|_| !found) {
            Some(node) => {
                let message = format!("node {node} does not answer; the query may run there");
                Err(QueryError::new(QueryErrorKind::Unavailable, message))
            }
            None => Ok(found),
        }
    }
}

fn others(peers: &Peers) -> Vec<NodeId> {
    peers.addresses().keys().copied().filter(|node| *node != peers.node()).collect()
}

pub(crate) async fn of_all_nodes(
    queries: &Queries,
    peers: &Peers,
    tenant: Option<&TenantId>,
) -> (Vec<QueryStatus>, Vec<NodeId>) {
    let asked = others(peers).into_iter().map(|node| async move {
        let answer = tokio::time::timeout(ASK_TIMEOUT, remote::queries(peers, node, tenant)).await;
        (node, answer.ok().and_then(Result::ok))
    });
    let (mut found, mut silent) = (queries.statuses(tenant), Vec::new());
    for (node, answer) in join_all(asked).await {
        match answer {
            Some(more) => found.extend(more),
            None => silent.push(node),
        }
    }
    found.sort_by(|one, other| (one.started, &one.id).cmp(&(other.started, &other.id)));
    (found, silent)
}
