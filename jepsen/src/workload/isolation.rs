//! The same rows under the same names in two tenants and two datasets of one of them; reads by each, and queries that name
//! what is another one's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::client::PAUSE;
use crate::cluster::{Consistency, NODES};
use crate::history::{DEFAULT_DATASET, LOG_RECORDS, Purpose};
use crate::scenario::Workload;

use super::Test;
use super::rows::{Batch, Keys, Look, records, unique};

const REQUESTS_PER_KEY: u64 = 60;
/// Datasets of one tenant are in the same groups: nothing but the name is between them.
const OTHER_DATASET: &str = "other";
/// How far the numbers of clients are apart that one client sends for at the same time.
const NEXT: usize = 10;

/// Tenant, by its number, and dataset.
const PLACES: [(usize, &str); 3] = [(0, DEFAULT_DATASET), (0, OTHER_DATASET), (1, DEFAULT_DATASET)];

/// Keys are the same everywhere.
pub(crate) fn keys() -> Keys {
    Keys::new("isolation", REQUESTS_PER_KEY)
}

/// Writes until told to stop.
pub(crate) async fn write(test: Test, process: usize, keys: Arc<Keys>) -> anyhow::Result<()> {
    let random = &test.random;
    while !test.stop.load(Ordering::Relaxed) {
        let (key, id, node) = (keys.next(), unique(random), random.below(NODES));
        let same_bytes = random.below(2) == 0;
        let body = records(&key, std::slice::from_ref(&id));
        // One of four is left out: what it shows all the same is another one's.
        let left_out = random.below(4);
        let batch = |place: usize| {
            let (tenant, dataset) = (test.tenants[PLACES[place].0], PLACES[place].1);
            let row = if same_bytes { id.clone() } else { format!("{id} of {tenant}/{dataset}") };
            let mut batch = Batch::new(&test, Workload::Isolation, tenant, key.clone(), vec![row]);
            batch.export.dataset = dataset;
            batch.export.request = Some(id.clone());
            batch.request = id.clone();
            if same_bytes {
                batch.export.body = body.clone();
            }
            batch
        };
        let batches = [0, 1, 2].map(|place| (place != left_out).then(|| batch(place)));
        let send = |place: usize| send(&test, process + place * NEXT, (node + place) % NODES, batches[place].as_ref());
        tokio::join!(send(0), send(1), send(2));
        tokio::time::sleep(PAUSE * 4).await;
    }
    Ok(())
}

async fn send(test: &Test, process: usize, node: usize, batch: Option<&Batch>) {
    if let Some(batch) = batch {
        batch.persist(test, process, node).await;
    }
}

/// Reads until told to stop.
pub(crate) async fn read(test: Test, process: usize, keys: Arc<Keys>) -> anyhow::Result<()> {
    let random = &test.random;
    while !test.stop.load(Ordering::Relaxed) {
        let (tenant, dataset) = PLACES[random.below(PLACES.len())];
        let (tenant, other) = (test.tenants[tenant], test.tenants[1 - tenant]);
        let mut look = Look::at(Workload::Isolation, tenant, keys.recent(random));
        look.dataset = dataset;
        look.from = dataset;
        match random.below(8) {
            0 => {
                look.purpose = Purpose::Trespass;
                look.sql = trespass(other, random.below(4));
            }
            1 | 2 => look.consistency = Consistency::Eventual,
            // A dataset of one's own tenant may be named from another one.
            3 if dataset == OTHER_DATASET => {
                look.from = DEFAULT_DATASET;
                let key = &look.key;
                look.sql = format!("SELECT body FROM \"{dataset}\".{LOG_RECORDS} WHERE service_name = '{key}'");
            }
            _ => {}
        }
        look.ask(&test, process, random.below(NODES)).await;
        tokio::time::sleep(PAUSE * 20).await;
    }
    Ok(())
}

/// A query that names tables of `other`: it is refused, or shows nothing.
fn trespass(other: &str, choice: usize) -> String {
    match choice {
        0 => format!("SELECT body FROM \"{other}\".{LOG_RECORDS}"),
        1 => format!("SELECT body FROM \"{other}.{DEFAULT_DATASET}\".{LOG_RECORDS}"),
        2 => format!("SELECT body FROM signaldb.\"{other}.{DEFAULT_DATASET}\".{LOG_RECORDS}"),
        _ => format!("SELECT metadata_location FROM system.tables WHERE metadata_location LIKE '%/{other}/%'"),
    }
}
