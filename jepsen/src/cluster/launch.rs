//! How a node is told what it is: its settings, and where its tables are.

use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use anyhow::Context;

use crate::bucket;

use super::{Cluster, NODES, name};

/// The secret of the cluster, and both halves of the key to our bucket, which looks at none.
const KEY: &str = "jepsen";

impl Cluster {
    pub(super) fn launch(&self, node: usize) -> anyhow::Result<()> {
        let dir = self.dir.join(name(node));
        let shared = self.dir.join("shared");
        std::fs::create_dir_all(&dir)?;
        std::fs::create_dir_all(&shared)?;
        let address = |to: usize| self.network.peer(node, to, self.ports[to][4]);
        let peers: Vec<String> = (0..NODES).map(|to| format!("\"{}={}\"", to + 1, address(to))).collect();
        let (catalog, database) = match &self.postgres {
            Some(server) => (server.address(), server.address()),
            None => (self.sqlite("catalog"), self.sqlite("signaldb")),
        };
        let store = match &self.bucket {
            Some(bucket) => in_bucket(&bucket.endpoint()),
            None => vec!["type=filesystem".to_owned(), format!("url=file://{}/storage", shared.display())],
        };
        let mut settings = vec![
            format!("node.id={}", node + 1),
            "cluster.name=jepsen".to_owned(),
            // Both are asked for beyond loopback.
            format!("cluster.secret={KEY}"),
            "auth.allow_anonymous=true".to_owned(),
            format!("cluster.peers=[{}]", peers.join(",")),
            format!("schema.catalog_uri={catalog}"),
            format!("database.dsn={database}"),
            "flush.interval=500ms".to_owned(),
            "flush.max_interval=500ms".to_owned(),
            "wal.disk_reserve=64MiB".to_owned(),
        ];
        settings.extend(store.into_iter().map(|setting| format!("storage.adapters.local.{setting}")));
        if self.small_log {
            settings.extend(["wal.max_segment_size=256KiB".to_owned(), "wal.keep_flushed=20s".to_owned()]);
        }
        for (name, port) in ["otlp_grpc", "otlp_http", "http", "flight", "peer"].iter().zip(self.ports[node]) {
            settings.push(format!("listen.{name}={}:{port}", self.network.host(node)));
        }
        let log = std::fs::File::options().create(true).append(true).open(dir.join("node.log"))?;
        let mut command = Command::new(&self.binary);
        command.current_dir(&dir).args(["server", "--data-dir", "data"]);
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        command.env("SIGNALDB_BOOT_ID_PATH", self.boot_id(node));
        if let Ok(clocks) = &self.clocks {
            clocks.load_into(&mut command, &name(node));
        }
        let mut command = self.network.enter(node, command);
        self.lives[node].fetch_add(1, Ordering::Relaxed);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.with_context(|| format!("start {}", self.binary.display()))?;
        self.children.lock().unwrap_or_else(PoisonError::into_inner)[node] = Some(child);
        Ok(())
    }

    fn sqlite(&self, file: &str) -> String {
        format!("sqlite://{}/shared/{file}.db", self.dir.display())
    }

    /// How PyIceberg opens a table of a tenant: as Python that makes `table`. Blocking.
    pub(crate) fn pyiceberg(&self, tenant: &str, dataset: &str, table: &str) -> anyhow::Result<String> {
        let namespace = format!("{tenant}.{dataset}");
        let store = self.bucket.as_ref().map_or_else(String::new, |bucket| {
            format!(
                "'s3.endpoint': '{}', 's3.region': 'us-east-1', 's3.access-key-id': '{KEY}', 's3.secret-access-key': '{KEY}'",
                bucket.endpoint()
            )
        });
        Ok(match &self.postgres {
            None => format!(
                "from pyiceberg.catalog import load_catalog
catalog = load_catalog('signaldb', type='sql', uri='sqlite:///{}/shared/catalog.db', **{{{store}}})
table = catalog.load_table(('{namespace}', '{table}'))",
                self.dir.display()
            ),
            // Its catalog would need a driver that nothing else here needs.
            Some(server) => format!(
                "from pyiceberg.table import StaticTable
table = StaticTable.from_metadata('{}', {{{store}}})",
                server.metadata_location(&namespace, table)?
            ),
        })
    }
}

/// Settings of an adapter for our bucket.
fn in_bucket(endpoint: &str) -> Vec<String> {
    let options = [
        format!("endpoint={endpoint}"),
        "allow_http=true".to_owned(),
        "region=us-east-1".to_owned(),
        format!("access_key_id={KEY}"),
        format!("secret_access_key={KEY}"),
        "timeout=10s".to_owned(),
    ];
    let store = ["type=s3".to_owned(), format!("url=s3://{}", bucket::NAME)];
    store.into_iter().chain(options.into_iter().map(|option| format!("options.{option}"))).collect()
}
