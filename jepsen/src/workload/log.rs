//! Appends whose positions matter: sent once, through two nodes at the same time, again after a while, or by clients that
//! crash; and reads of what is up to a position.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::client::{PAUSE, Sent};
use crate::cluster::{Consistency, NODES};
use crate::history::Position;
use crate::scenario::Workload;

use super::Test;
use super::rows::{Batch, Keys, Look, ids};

const REQUESTS_PER_KEY: u64 = 100;
/// Rows of a request, at most: more than one, to see that they are there together or not at all.
const ROWS: usize = 3;
/// When a request is repeated: within the dedup window, often after the fault that was there. Milliseconds.
const LATER: (u64, u64) = (500, 15_000);
/// Requests that a client still wants to repeat, or repeats just now; what comes then is not repeated.
const LATER_MAX: usize = 32;
/// How long a client may live that crashes. Milliseconds; most answers take less than the longer half.
const LIFE: (u64, u64) = (0, 30);
/// What is added to the number of a client for each time that it crashed: it is another one then, of the same node.
const NEXT_LIFE: usize = 9_999;
/// One of so many clients sends requests twice at the same time: it waits for whichever of two nodes is away.
const TWINS: usize = 4;
/// What is added for the second of two requests that are sent at the same time.
const TWIN: usize = 50;
/// What is added for a repeat: it may be sent to a node that is away while the client goes on.
const REPEAT: usize = 70;

/// What clients of both tenants share.
#[derive(Debug)]
pub(crate) struct Logs {
    keys: [Keys; 2],
    /// Where the last acknowledgment was, by tenant.
    newest: [Mutex<Option<Position>>; 2],
}

impl Logs {
    pub(crate) fn new() -> Self {
        Self { keys: [(); 2].map(|()| Keys::new("log", REQUESTS_PER_KEY)), newest: Default::default() }
    }

    fn note(&self, tenant: usize, sent: Sent) {
        if let Some(position) = sent.ack.and_then(|ack| ack.position) {
            *self.newest[tenant].lock().unwrap_or_else(PoisonError::into_inner) = Some(position);
        }
    }

    fn newest(&self, tenant: usize) -> Option<Position> {
        *self.newest[tenant].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends until told to stop, and then repeats what it still has to: no fault is there any more.
pub(crate) async fn append(test: Test, mut process: usize, logs: Arc<Logs>) -> anyhow::Result<()> {
    let (at, random, sends_twins) = (process % 2, &test.random, process.is_multiple_of(TWINS));
    // What is due first comes first.
    let mut later: Vec<(Instant, Batch)> = Vec::new();
    let mut repeats = JoinSet::new();
    while !test.stop.load(Ordering::Relaxed) {
        let due = later.partition_point(|(due, _)| *due <= Instant::now());
        for (_, batch) in later.drain(..due) {
            let (test, client, node) = (test.clone(), process + REPEAT, random.below(NODES));
            repeats.spawn(async move { batch.persist(&test, client, node).await });
        }
        while repeats.try_join_next().is_some() {}
        let (node, rows) = (Test::node_of(process), ids(random, ROWS));
        let batch = Batch::new(&test, Workload::Log, test.tenants[at], logs.keys[at].next(), rows);
        match random.below(12) {
            0 if sends_twins => {
                let (other, twin) = ((node + 1) % NODES, process + TWIN);
                let first = batch.persist(&test, process, node);
                let (first, second) = tokio::join!(first, batch.persist(&test, twin, other));
                [first, second].into_iter().for_each(|sent| logs.note(at, sent));
            }
            1 | 2 if later.len() + repeats.len() < LATER_MAX => {
                logs.note(at, batch.persist(&test, process, node).await);
                later.push((Instant::now() + Duration::from_millis(random.between(LATER)), batch));
                later.sort_by_key(|(due, _)| *due);
            }
            3 => {
                let life = Duration::from_millis(random.between(LIFE));
                logs.note(at, batch.abandon(&test, process, node, life).await);
                process += NEXT_LIFE;
            }
            4 => {
                batch.send_half(&test, process, node).await;
                process += NEXT_LIFE;
            }
            _ => logs.note(at, batch.persist(&test, process, node).await),
        }
        tokio::time::sleep(PAUSE).await;
    }
    repeats.join_all().await;
    for (_, batch) in later {
        batch.persist(&test, process, random.below(NODES)).await;
    }
    Ok(())
}

/// Reads keys until told to stop: half of the reads up to the position that was acknowledged last, half of them strong.
pub(crate) async fn poll(test: Test, process: usize, logs: Arc<Logs>) -> anyhow::Result<()> {
    let random = &test.random;
    while !test.stop.load(Ordering::Relaxed) {
        let at = random.below(2);
        let mut look = Look::at(Workload::Log, test.tenants[at], logs.keys[at].recent(random));
        if random.below(2) == 0 {
            look.consistency = Consistency::Eventual;
        }
        if random.below(2) == 0 {
            look.min = logs.newest(at);
        }
        look.ask(&test, process, random.below(NODES)).await;
        tokio::time::sleep(PAUSE * 16).await;
    }
    Ok(())
}
