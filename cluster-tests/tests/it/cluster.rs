//! Three nodes as processes, with one store and one catalog.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::node::{DEADLINE, Node, free_ports};
use crate::spans::{compare, send_batch};

/// Three running nodes. Dropping it kills them.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    /// Holds the directories of the nodes, and `shared`: catalog and store.
    pub(crate) root: PathBuf,
    pub(crate) http: reqwest::Client,
}

impl Cluster {
    /// Starts three nodes in directories below `dir` and waits until they are ready.
    pub(crate) async fn start(dir: &Path, settings: &[&str]) -> anyhow::Result<Self> {
        for attempt in 0..5 {
            let root = dir.join(format!("attempt-{attempt}"));
            let ports = [free_ports()?, free_ports()?, free_ports()?];
            let nodes = (0..3).map(|at| {
                Node::launch(
                    &root.join(format!("node-{}", at + 1)),
                    Self::settings(&root, &ports, at, settings),
                    ports[at],
                )
            });
            let nodes = nodes.collect::<anyhow::Result<_>>()?;
            let mut cluster = Self { nodes, root, http: reqwest::Client::new() };
            // Somebody else may have taken a port in between.
            if cluster.wait_ready().await.is_ok() {
                return Ok(cluster);
            }
        }
        bail!("the cluster did not become ready; its output is below {}", dir.display())
    }

    /// Settings of node `at`, counted from 0.
    pub(crate) fn settings(root: &Path, ports: &[[u16; 5]; 3], at: usize, extra: &[&str]) -> Vec<String> {
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(at, ports)| format!("\"{}=127.0.0.1:{}\"", at + 1, ports[4])).collect();
        let shared: PathBuf = root.join("shared");
        // Whoever comes first makes it.
        let _ = std::fs::create_dir_all(&shared);
        let shared = shared.display();
        let mut settings = vec![
            format!("node.id={}", at + 1),
            "cluster.name=test".to_owned(),
            format!("cluster.peers=[{}]", peers.join(",")),
            format!("schema.catalog_uri=sqlite://{shared}/catalog.db"),
            format!("database.dsn=sqlite://{shared}/signaldb.db"),
            "storage.adapters.local.type=filesystem".to_owned(),
            format!("storage.adapters.local.url=file://{shared}/storage"),
        ];
        settings.extend(extra.iter().map(|setting| (*setting).to_owned()));
        settings
    }

    pub(crate) async fn wait_ready(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.wait_ready().await?;
        }
        Ok(())
    }

    /// Where each node takes spans over HTTP.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.otlp_http("/v1/traces")).collect()
    }

    /// Waits until every node's log of the busiest group ends at the same entry.
    pub(crate) async fn wait_equal_logs(&self) -> anyhow::Result<()> {
        let until = Instant::now() + DEADLINE;
        loop {
            let mut ends = Vec::new();
            for node in &self.nodes {
                let status: Value = node.http.get(node.url("/api/v1/cluster")).send().await?.json().await?;
                let groups = status["groups"].as_array().context("groups")?;
                let data = groups.iter().filter(|group| group["group"] != 0);
                ends.push(data.map(|group| group["last_log_index"].as_u64()).collect::<Vec<_>>());
            }
            if ends.iter().all(|end| *end == ends[0]) {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < until, "the logs stay different: {ends:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The data group that holds the default tenant, and the position of its leader in `nodes`.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        let until = Instant::now() + DEADLINE;
        loop {
            for node in &self.nodes {
                let Ok(response) =
                    node.http.get(node.url("/api/v1/cluster")).timeout(Duration::from_secs(3)).send().await
                else {
                    continue;
                };
                let body: Value = response.json().await?;
                let groups = body["groups"].as_array().context("groups")?;
                let busy = groups.iter().filter(|group| group["group"] != 0);
                let busy = busy.max_by_key(|group| group["last_log_index"].as_u64()).context("a data group")?;
                if let Some(leader) = busy["leader"].as_u64() {
                    return Ok(usize::try_from(leader)? - 1);
                }
            }
            anyhow::ensure!(Instant::now() < until, "no node knows a leader");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Every node has the same spans, each once.
pub(crate) async fn assert_everywhere(cluster: &Cluster, acknowledged: &[String]) -> anyhow::Result<()> {
    for (at, node) in cluster.nodes.iter().enumerate() {
        let found = node.span_ids().await?;
        let (missing, doubled) = compare(acknowledged, &found);
        assert!(missing.is_empty() && doubled.is_empty(), "node {}: missing {missing:?}, doubled {doubled:?}", at + 1);
        assert_eq!(found.len(), acknowledged.len(), "nothing is there that was not acknowledged in the end");
    }
    Ok(())
}

/// Clients that export without pause through all nodes, and what was acknowledged to them.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    last: Arc<Mutex<Instant>>,
    clients: JoinSet<anyhow::Result<()>>,
}

impl Load {
    pub(crate) fn start(cluster: &Cluster, clients: usize) -> Self {
        let urls = cluster.urls();
        let mut load = Self {
            stop: Arc::default(),
            acknowledged: Arc::default(),
            last: Arc::new(Mutex::new(Instant::now())),
            clients: JoinSet::new(),
        };
        for client in 0..clients {
            let (stop, acknowledged, last) =
                (Arc::clone(&load.stop), Arc::clone(&load.acknowledged), Arc::clone(&load.last));
            let (http, mut urls) = (cluster.http.clone(), urls.clone());
            urls.rotate_left(client % cluster.nodes.len());
            load.clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let ids = send_batch(&http, &urls, 5).await?;
                    acknowledged.lock().await.extend(ids);
                    *last.lock().await = Instant::now();
                    urls.rotate_left(1);
                }
                Ok(())
            });
        }
        load
    }

    pub(crate) async fn count(&self) -> usize {
        self.acknowledged.lock().await.len()
    }

    /// Waits until `more` further spans were acknowledged; returns how long that took.
    pub(crate) async fn wait_more(&self, more: usize) -> anyhow::Result<Duration> {
        let (begun, from) = (Instant::now(), self.count().await);
        while self.count().await < from + more {
            anyhow::ensure!(
                begun.elapsed() < DEADLINE,
                "no acknowledgments for {:?}",
                self.last.lock().await.elapsed()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(begun.elapsed())
    }

    /// Ends the clients; returns the ids of everything that was acknowledged.
    pub(crate) async fn stop(mut self) -> anyhow::Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client??;
        }
        Ok(self.acknowledged.lock().await.clone())
    }
}
