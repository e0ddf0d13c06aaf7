//! What queries tell about themselves (docs/monitoring.md).

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

/// Help texts, for the recorder that is installed; call it once, after that.
pub fn describe() {
    describe_counter!("signaldb_queries_total", "Queries that were started.");
    counter!("signaldb_queries_total").increment(0);
    describe_counter!(
        "signaldb_query_cache_lookups_total",
        "Looks for parts of data files in memory, by outcome: hit, miss."
    );
    describe_gauge!(
        "signaldb_query_cache_bytes",
        Unit::Bytes,
        "Footers, page indexes, bloom filters and trace indexes that are kept in memory."
    );
    describe_gauge!("signaldb_query_cache_bytes_max", Unit::Bytes, "Their budget (query.cache).");
    for outcome in ["hit", "miss"] {
        counter!("signaldb_query_cache_lookups_total", "outcome" => outcome).increment(0);
    }
    record_kept(0, 0);
}

pub(crate) fn note_kept(hit: bool) {
    let outcome = if hit { "hit" } else { "miss" };
    counter!("signaldb_query_cache_lookups_total", "outcome" => outcome).increment(1);
}

pub(crate) fn record_kept(bytes: usize, bytes_max: usize) {
    gauge!("signaldb_query_cache_bytes").set(bytes as f64);
    gauge!("signaldb_query_cache_bytes_max").set(bytes_max as f64);
}
