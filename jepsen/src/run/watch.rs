//! Asks all nodes what they say of themselves, as long as a run lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, NODES};
use crate::invariants::Invariants;
use crate::leaders::Leaders;

pub(super) async fn watch(cluster: Arc<Cluster>, begun: Instant, stop: Arc<AtomicBool>) -> (Invariants, Leaders) {
    let (mut invariants, mut leaders) = (Invariants::default(), Leaders::default());
    while !stop.load(Ordering::Relaxed) {
        // Soon after it happened: it is judged by the faults of that time.
        cluster.excused_deaths();
        for node in 0..NODES {
            let life = cluster.life(node);
            // An account that came while the node was started again is of nobody knows which life.
            if let Some(state) = cluster.state(node).await
                && cluster.life(node) == life
            {
                invariants.sample(&state, life);
                leaders.sample(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), &state);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (invariants, leaders)
}
