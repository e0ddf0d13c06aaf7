//! What queries tell about themselves (docs/monitoring.md).

use metrics::{counter, describe_counter};

/// Help texts, for the recorder that is installed; call it once, after that.
pub fn describe() {
    describe_counter!("signaldb_queries_total", "Queries that were started.");
    counter!("signaldb_queries_total").increment(0);
}
