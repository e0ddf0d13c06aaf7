//! Versions of keys, and reads of the newest: through every node, and up to the position of a write.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::client::PAUSE;
use crate::cluster::{Consistency, NODES};
use crate::history::{LOG_RECORDS, Position};
use crate::scenario::Workload;

use super::Test;
use super::rows::{Batch, Keys, Look};

const WRITES_PER_KEY: u64 = 60;

/// What clients share.
#[derive(Debug)]
pub(crate) struct Registers {
    /// By tenant.
    keys: [Keys; 2],
    versions: AtomicU64,
    /// The key and the position of the last write that was acknowledged, by tenant.
    newest: [Mutex<Option<(String, Position)>>; 2],
}

impl Registers {
    pub(crate) fn new() -> Self {
        let keys = [(); 2].map(|()| Keys::new("register", WRITES_PER_KEY));
        Self { keys, versions: AtomicU64::new(1), newest: Default::default() }
    }

    /// A version that nothing has yet; as texts they sort as their numbers do.
    fn version(&self) -> String {
        format!("{:012}", self.versions.fetch_add(1, Ordering::Relaxed))
    }
}

/// Writes until told to stop.
pub(crate) async fn write(test: Test, process: usize, registers: Arc<Registers>) -> anyhow::Result<()> {
    let random = &test.random;
    while !test.stop.load(Ordering::Relaxed) {
        let at = random.below(2);
        let (key, rows) = (registers.keys[at].next(), vec![registers.version()]);
        let batch = Batch::new(&test, Workload::Register, test.tenants[at], key, rows);
        let sent = batch.persist(&test, process, Test::node_of(process)).await;
        if let Some(position) = sent.ack.and_then(|ack| ack.position) {
            let newest = Some((batch.key, position));
            *registers.newest[at].lock().unwrap_or_else(PoisonError::into_inner) = newest;
        }
        tokio::time::sleep(PAUSE * 4).await;
    }
    Ok(())
}

/// Reads until told to stop: of two reads one is strong, and one must show the last acknowledged write.
pub(crate) async fn read(test: Test, process: usize, registers: Arc<Registers>) -> anyhow::Result<()> {
    let random = &test.random;
    while !test.stop.load(Ordering::Relaxed) {
        let at = random.below(2);
        let newest = registers.newest[at].lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (key, min) = match newest.filter(|_| random.below(2) == 0) {
            Some((key, position)) => (key, Some(position)),
            None => (registers.keys[at].recent(random), None),
        };
        let sql = format!("SELECT max(body) FROM {LOG_RECORDS} WHERE service_name = '{key}'");
        let mut look = Look { min, sql, ..Look::at(Workload::Register, test.tenants[at], key) };
        // Without a position only a strong read promises anything.
        if min.is_some() && random.below(2) == 0 {
            look.consistency = Consistency::Eventual;
        }
        look.ask(&test, process, random.below(NODES)).await;
        tokio::time::sleep(PAUSE * 16).await;
    }
    Ok(())
}
