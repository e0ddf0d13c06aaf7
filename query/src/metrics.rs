//! What queries tell about themselves (docs/monitoring.md).

use datafusion::execution::disk_manager::SpillingProgress;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};

use crate::budget::Budget;
use crate::error::QueryError;
use crate::pool::NodeMemory;

/// Help texts, for the recorder that is installed; call it once, after that.
pub fn describe() {
    describe_counter!("signaldb_queries_total", "Queries that were started.");
    describe_counter!("signaldb_queries_failed_total", "Queries that ended with an error.");
    describe_counter!(
        "signaldb_query_budget_exceeded_total",
        "Those of them that went beyond a budget, by the setting that is the budget."
    );
    describe_gauge!("signaldb_queries_running", "Queries that are planned or run.");
    describe_gauge!("signaldb_queries_waiting", "Queries that wait for their turn.");
    describe_histogram!(
        "signaldb_query_duration_seconds",
        Unit::Seconds,
        "From the arrival of a query until nobody works on it any more."
    );
    describe_counter!("signaldb_query_scanned_bytes_total", Unit::Bytes, "Bytes that queries read from the store.");
    describe_gauge!("signaldb_query_memory_bytes", Unit::Bytes, "Memory that queries hold.");
    describe_gauge!("signaldb_query_memory_bytes_max", Unit::Bytes, "Memory that they may hold together.");
    describe_gauge!("signaldb_query_spill_bytes", Unit::Bytes, "Bytes that running queries spilled to disk.");
    describe_gauge!("signaldb_query_spill_files", "The files that they are in.");
    describe_counter!("signaldb_query_guests_total", "Queries of other nodes that this node did shares of.");
    counter!("signaldb_query_guests_total").increment(0);
    counter!("signaldb_queries_total").increment(0);
    counter!("signaldb_queries_failed_total").increment(0);
    counter!("signaldb_query_scanned_bytes_total").increment(0);
    // Rules may ask for one before anybody went beyond it.
    for budget in Budget::ALL {
        counter!("signaldb_query_budget_exceeded_total", "budget" => budget.key()).increment(0);
    }
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

pub(crate) fn note_started() {
    counter!("signaldb_queries_total").increment(1);
}

pub(crate) fn note_guest() {
    counter!("signaldb_query_guests_total").increment(1);
}

pub(crate) fn note_failed(error: &QueryError) {
    counter!("signaldb_queries_failed_total").increment(1);
    if let Some(budget) = error.budget {
        counter!("signaldb_query_budget_exceeded_total", "budget" => budget.key()).increment(1);
    }
}

pub(crate) fn record(memory: &NodeMemory, spilled: &SpillingProgress) {
    gauge!("signaldb_query_memory_bytes").set(memory.held() as f64);
    gauge!("signaldb_query_memory_bytes_max").set(memory.bytes_max() as f64);
    gauge!("signaldb_query_spill_bytes").set(spilled.current_bytes as f64);
    gauge!("signaldb_query_spill_files").set(spilled.active_files_count as f64);
}

pub(crate) fn note_kept(hit: bool) {
    let outcome = if hit { "hit" } else { "miss" };
    counter!("signaldb_query_cache_lookups_total", "outcome" => outcome).increment(1);
}

pub(crate) fn record_kept(bytes: usize, bytes_max: usize) {
    gauge!("signaldb_query_cache_bytes").set(bytes as f64);
    gauge!("signaldb_query_cache_bytes_max").set(bytes_max as f64);
}
