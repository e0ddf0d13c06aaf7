//! Promises about whatever bytes a client sends. Each function panics where its promise is broken. libFuzzer calls them
//! (`fuzz/`, docs/testing.md), and the tests below with the same seeds.

use std::sync::OnceLock;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use signaldb_catalog::{Access, AccessError, Database, PoolConfig, TenantConfig};
use signaldb_model::{DatasetId, TenantId};
use signaldb_signals::decode::decode;
use signaldb_signals::request::{check, split};
use signaldb_signals::{SignalKind, json};

use crate::error::Kind;
pub use crate::flight_sql::fuzzing::ticket;
use crate::identity::{Credentials, Key};

/// Bytes of the parts that a request is split into.
const PART_BYTES: usize = 300;

const API_KEY: &str = "sk-acme";
const SECRET: &[u8] = b"secret";
/// Seconds since 1970.
const UNTIL: u64 = 1000;

/// The Authorization header is read or a 400.
pub fn credentials(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, value);
    match Credentials::read(&headers) {
        Ok(Credentials { key: Some(Key::Session(token)), .. }) => session(&token),
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind, Kind::Invalid, "{}", error.message),
    }
}

/// A session token that no node sealed opens nothing, whether the bytes are one, or what is changed in a good one.
pub fn session(bytes: &[u8]) {
    let access = access();
    let resumed = |token: &[u8]| access.resume_session(token, SECRET, UNTIL - 1, None, None);
    let sealed = access.open_session(API_KEY, SECRET, UNTIL).expect("a known key");
    assert!(resumed(&sealed).is_ok_and(|identity| identity.tenant.as_str() == "acme"));
    let mut changed = sealed;
    changed.iter_mut().zip(bytes).for_each(|(byte, bits)| *byte ^= bits);
    for token in [bytes, &changed] {
        assert!(*token == sealed[..] || resumed(token) == Err(AccessError::SessionEnded), "{token:?}");
    }
}

/// A tenant with a key, in memory.
fn access() -> &'static Access {
    static ACCESS: OnceLock<Access> = OnceLock::new();
    ACCESS.get_or_init(|| {
        let tenant = TenantConfig {
            id: TenantId::new("acme").expect("a valid name"),
            default_dataset: DatasetId::new("production").expect("a valid name"),
            datasets: Vec::new(),
            keys: vec![(API_KEY.to_owned(), "key".to_owned())],
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let database = Database::open("sqlite::memory:", &PoolConfig::default()).await.expect("opens");
            Access::open(database, true, &[tenant]).await.expect("opens")
        })
    })
}

/// An OTLP request of any kind, which the first byte chooses, is refused, or decodes to as many rows as were counted.
pub fn otlp(bytes: &[u8]) {
    let Some((first, request)) = bytes.split_first() else { return };
    requests(SignalKind::from_code(first % 3 + 1).expect("there are three kinds"), request);
}

/// JSON is no OTLP request, or one whose protobuf is as above.
pub fn otlp_json(bytes: &[u8]) {
    for kind in [SignalKind::Traces, SignalKind::Logs, SignalKind::Metrics] {
        if let Ok(request) = json::to_protobuf(kind, bytes) {
            requests(kind, &request);
        }
    }
}

fn requests(kind: SignalKind, request: &[u8]) {
    let Ok(checked) = check(kind, request) else { return };
    let accepted = checked.accepted.as_deref().unwrap_or(request);
    assert_eq!(rows(kind, accepted), checked.rows());
    if let Ok(parts) = split(accepted, PART_BYTES) {
        assert_eq!(parts.iter().map(|part| rows(kind, part)).sum::<u64>(), checked.rows());
    }
}

fn rows(kind: SignalKind, request: &[u8]) -> u64 {
    decode(kind, [(0, request)]).iter().map(|table| table.rows.num_rows() as u64).sum()
}

/// A trace id of up to 32 hex digits is that number, and all else is a 400.
pub fn trace_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match crate::tempo::trace_id(text) {
        Ok(id) => {
            let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            let read = text.to_ascii_lowercase();
            assert_eq!(digits.trim_start_matches('0'), read.trim_start_matches('0'));
        }
        Err(error) => assert_eq!(error.kind, Kind::Invalid),
    }
}

#[cfg(test)]
mod tests;
