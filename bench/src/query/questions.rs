//! What everybody is asked.

/// A question, in the words of each engine. `{traces}` and `{logs}` stand for tables, `{trace}` for a trace's id in hex.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) name: &'static str,
    pub(crate) signaldb: &'static str,
    /// DuckDB and DataFusion on our Parquet files, where ids are bytes and well-known attributes are columns alone.
    pub(crate) duckdb: &'static str,
    pub(crate) datafusion: &'static str,
    pub(crate) clickhouse: &'static str,
    /// Every engine must give the same rows; else as many.
    pub(crate) exact: bool,
    /// The most that it may take, in times of the fastest other engine, hot.
    pub(crate) expected: f64,
}

const COUNT: &str = "SELECT count(*) FROM {traces}";
const BY_SERVICE: &str = "SELECT service_name, count(*) FROM {traces} GROUP BY service_name ORDER BY 2 DESC, 1";
const BY_ROUTE: &str = "SELECT count(*) FROM {traces} WHERE http_route = '/api/cart/{id}'";
const BY_THREAD: &str = "SELECT count(*) FROM {traces} WHERE attributes['thread.name'] = 'http-nio-8080-exec-7'";
const ERRORS: &str = "SELECT service_name, http_route, count(*) FROM {traces} \
    WHERE status_code = 'ERROR' AND kind = 'SERVER' GROUP BY service_name, http_route ORDER BY 3 DESC, 1, 2";
const NEWEST: &str =
    "SELECT timestamp, service_name, name, duration_nano FROM {traces} ORDER BY timestamp DESC LIMIT 100";
const ORDERS: &str = "SELECT count(DISTINCT attributes['order.id']) FROM {logs}";
const JOINED: &str = "SELECT span.service_name, count(*) FROM {logs} AS log \
    JOIN {traces} AS span ON log.trace_id = span.trace_id AND log.span_id = span.span_id \
    WHERE span.status_code = 'ERROR' GROUP BY span.service_name ORDER BY 2 DESC, 1";
const P99: &str = "SELECT service_name, approx_percentile_cont(0.99) WITHIN GROUP (ORDER BY duration_nano) \
    FROM {traces} GROUP BY service_name ORDER BY 1";

/// The same words for everybody.
const fn alike(name: &'static str, sql: &'static str, expected: f64) -> Question {
    Question { name, signaldb: sql, duckdb: sql, datafusion: sql, clickhouse: sql, exact: true, expected }
}

pub(crate) const QUESTIONS: &[Question] = &[
    alike("count of all", COUNT, 1.2),
    alike("count by service", BY_SERVICE, 1.2),
    Question {
        signaldb: "SELECT count(*) FROM {traces} WHERE attributes['http.route'] = '/api/cart/{id}'",
        ..alike("count by promoted attribute", BY_ROUTE, 1.0)
    },
    alike("count by residual attribute", BY_THREAD, 1.0),
    // T-digests everywhere.
    Question {
        name: "p99 of duration by service",
        signaldb: P99,
        duckdb: "SELECT service_name, approx_quantile(duration_nano, 0.99) FROM {traces} GROUP BY service_name ORDER BY 1",
        datafusion: P99,
        clickhouse: "SELECT service_name, quantileTDigest(0.99)(duration_nano) FROM {traces} GROUP BY service_name \
            ORDER BY 1",
        exact: false,
        expected: 1.2,
    },
    alike("errors by service and route", ERRORS, 1.2),
    Question {
        name: "trace by id",
        signaldb: "SELECT * FROM {traces} WHERE trace_id = '{trace}'",
        // Its `=` finds no bytes where there are bloom filters: duckdb/duckdb#24994, fixed after 1.5.5.
        duckdb: "SELECT * FROM {traces} WHERE trace_id >= unhex('{trace}') AND trace_id <= unhex('{trace}')",
        datafusion: "SELECT * FROM {traces} WHERE trace_id = X'{trace}'",
        clickhouse: "SELECT * FROM {traces} WHERE trace_id = unhex('{trace}')",
        exact: false,
        expected: 1.0,
    },
    Question {
        clickhouse: "SELECT time_unix_nano, service_name, name, duration_nano FROM {traces} \
            ORDER BY time_unix_nano DESC LIMIT 100",
        exact: false,
        ..alike("newest 100", NEWEST, 1.0)
    },
    Question {
        // Its maps have an empty text for a key that is not there.
        clickhouse: "SELECT uniqExactIf(attributes['order.id'], mapContains(attributes, 'order.id')) FROM {logs}",
        ..alike("distinct values of an attribute", ORDERS, 1.2)
    },
    alike("logs joined to failed spans", JOINED, 1.2),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_have_names_of_their_own_and_tables_that_are_filled_in() {
        for (at, question) in QUESTIONS.iter().enumerate() {
            assert!(QUESTIONS[..at].iter().all(|other| other.name != question.name), "{}", question.name);
            for sql in [question.signaldb, question.duckdb, question.datafusion, question.clickhouse] {
                assert!(sql.contains("{traces}") || sql.contains("{logs}"), "{sql}");
            }
        }
    }
}
