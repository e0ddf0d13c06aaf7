//! One append path for every transport: check, digest, split, compress, commit.

use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use futures::future::join_all;
use signaldb_catalog::Identity;
use signaldb_model::limits::{ENTRY_BYTES_MAX, ENTRY_BYTES_TARGET};
use signaldb_model::{AckLevel, Position, UnixNanos};
use signaldb_raft::{Append, Compression, Digest, Group, TableStats, Written};
use signaldb_signals::SignalKind;
use signaldb_signals::request::{self, Checked};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::metrics::note_failed_ingest;

/// Header names of DESIGN section 2, as HTTP and gRPC metadata spell them.
pub(crate) const POSITION: &str = "x-signaldb-position";
pub(crate) const ACK: &str = "x-signaldb-ack";
pub(crate) const DEDUPLICATED: &str = "x-signaldb-deduplicated";
const IDEMPOTENCY_KEY: &str = "x-signaldb-idempotency-key";
const DEDUP: &str = "x-signaldb-dedup";

/// Largest single record, uncompressed, so that its entry fits whatever compression does to it.
const RECORD_BYTES_MAX: usize = ENTRY_BYTES_MAX - (64 << 10);

/// What a request asks beside its body.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    ack: Option<AckLevel>,
    idempotency_key: Option<String>,
    no_dedup: bool,
}

/// An acknowledged request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accepted {
    /// `None` when the request had no record to store.
    pub(crate) written: Option<Written>,
    pub(crate) rejected: u64,
    /// Goes into `partial_success`: why records were rejected, or a warning.
    pub(crate) message: String,
}

impl Options {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let text = |name: &str| {
            let value = headers.get(name).map(|value| value.to_str()).transpose();
            value.map_err(|_| ApiError::invalid(format!("the {name} header is not ASCII text")))
        };
        let ack = text(ACK)?.map(str::parse).transpose();
        Ok(Self {
            ack: ack.map_err(|error: signaldb_model::ParseAckLevelError| ApiError::invalid(error.to_string()))?,
            idempotency_key: text(IDEMPOTENCY_KEY)?.map(str::to_owned),
            no_dedup: text(DEDUP)?.is_some_and(|value| value.eq_ignore_ascii_case("off")),
        })
    }
}

/// Stores the records of a request. `body` is what the client sent, decompressed; `protobuf` the same as protobuf
/// (another slice of the same bytes, or the translation of JSON).
///
/// # Errors
/// 400 for bytes that are no request; 429 and 503 with a retry hint when nothing was written; 503 `unknown_outcome`
/// when the commit was not confirmed.
pub(crate) async fn ingest(
    app: &App,
    kind: SignalKind,
    identity: &Identity,
    options: &Options,
    body: &Bytes,
    protobuf: Bytes,
) -> Result<Accepted, ApiError> {
    let outcome = store(app, kind, identity, options, body, protobuf).await;
    outcome.inspect_err(|error| note_failed_ingest(error.kind))
}

async fn store(
    app: &App,
    kind: SignalKind,
    identity: &Identity,
    options: &Options,
    body: &Bytes,
    protobuf: Bytes,
) -> Result<Accepted, ApiError> {
    let checked = request::check(kind, &protobuf).map_err(|error| ApiError::invalid(error.to_string()))?;
    metrics::counter!("signaldb_ingest_requests_total").increment(1);
    metrics::counter!("signaldb_ingest_records_total").increment(checked.rows());
    metrics::counter!("signaldb_ingest_rejected_records_total").increment(checked.rejected);
    metrics::counter!("signaldb_ingest_bytes_total").increment(body.len() as u64);
    let mut accepted = Accepted { written: None, rejected: checked.rejected, message: message(kind, &checked) };
    app.prepare(identity);
    if checked.rows() == 0 {
        return Ok(accepted);
    }
    // While the request was read others were applied.
    if let Some(error) = refusal(app, kind, 0) {
        return Err(error);
    }
    let group = app.groups.home(&identity.tenant, app.write_timeout).await?;
    let asked = strongest(options.ack, app.tenant_acks.get(&identity.tenant).copied());
    let dedup = Dedup { digest: digest(app, kind, identity, options, body), window: app.dedup_window };
    let parts = parts(kind, &checked, protobuf)?;
    let single = parts.len() == 1;
    let appends = parts.into_iter().enumerate().map(|(part, (payload, tables))| {
        let digest = dedup.digest.map(|digest| if single { digest } else { part_digest(digest, part) });
        write(app, &group, asked, append(kind, identity, Dedup { digest, ..dedup }, payload, tables))
    });
    accepted.written = whole(join_all(appends).await)?;
    Ok(accepted)
}

/// Why this node takes no records of the kind now, if it does not; `arriving` bytes of requests will become rows.
pub(crate) fn refusal(app: &App, kind: SignalKind, arriving: usize) -> Option<ApiError> {
    if !app.signals.contains(&kind) {
        let message = format!("{} are not stored here: schema.default_schemas disables them", kind.records());
        return Some(ApiError::new(Kind::Forbidden, message));
    }
    if app.disk_full() {
        return Some(ApiError::new(Kind::Unavailable, "the disk reserve is reached: free space on the log's disk"));
    }
    app.lake.refusal(arriving).map(|reason| ApiError::new(Kind::Throttled, reason))
}

/// The level that satisfies both the request and its tenant.
fn strongest(request: Option<AckLevel>, tenant: Option<AckLevel>) -> Option<AckLevel> {
    match (request, tenant) {
        (Some(request), Some(tenant)) if request.satisfies(tenant) => Some(request),
        (request, tenant) => tenant.or(request),
    }
}

/// One outcome for all parts. The position is the last part's: who waits for it sees them all. As soon as one part is
/// written, a refusal of another leaves the request unknown: its retry completes it.
fn whole(outcomes: Vec<Result<Written, ApiError>>) -> Result<Option<Written>, ApiError> {
    let some_written = outcomes.iter().any(Result::is_ok);
    let mut last: Option<Written> = None;
    for outcome in outcomes {
        let written = match outcome {
            Ok(written) => written,
            Err(error) if some_written => return Err(ApiError::new(Kind::UnknownOutcome, error.message)),
            Err(error) => return Err(error),
        };
        let deduplicated = written.deduplicated && last.is_none_or(|last| last.deduplicated);
        let newest = last.filter(|last| last.position.index > written.position.index).unwrap_or(written);
        last = Some(Written { deduplicated, ..newest });
    }
    Ok(last)
}

async fn write(app: &App, group: &Group, asked: Option<AckLevel>, append: Append) -> Result<Written, ApiError> {
    Ok(group.append(append, asked, app.write_timeout).await?)
}

fn message(kind: SignalKind, checked: &Checked) -> String {
    match &checked.first_rejection {
        Some(reason) => format!("{} {} rejected; the first because its {reason}", checked.rejected, kind.records()),
        None if checked.replaced_text => "text that is not UTF-8 was stored with replacement characters".to_owned(),
        None => String::new(),
    }
}

/// Identity of the request for the dedup window. The seed is the cluster's own, and no secret: who reads the properties of a
/// table knows it.
fn digest(app: &App, kind: SignalKind, identity: &Identity, options: &Options, body: &Bytes) -> Option<Digest> {
    if options.no_dedup || app.dedup_window.is_zero() {
        return None;
    }
    let seed = xxhash_rust::xxh3::xxh3_64(app.groups.founding().cluster_id.as_bytes());
    let (source, bytes) = match &options.idempotency_key {
        Some(key) => ("key", key.as_bytes()),
        None => ("body", body.as_ref()),
    };
    let content = xxh3_128_with_seed(bytes, seed);
    let whole = format!("{source}/{}/{}/{}/{content:032x}", identity.tenant, identity.dataset, kind as u8);
    Some(Digest(xxh3_128_with_seed(whole.as_bytes(), seed).to_le_bytes()))
}

/// A part's own key: (digest, part), so that a retry completes whatever parts were missing.
fn part_digest(digest: Digest, part: usize) -> Digest {
    let mut bytes = digest.0.to_vec();
    bytes.extend_from_slice(&(part as u64).to_le_bytes());
    Digest(xxhash_rust::xxh3::xxh3_128(&bytes).to_le_bytes())
}

#[derive(Clone, Copy)]
struct Dedup {
    digest: Option<Digest>,
    window: Duration,
}

/// The window travels with the entry, so that every replica and every replay decides alike.
fn dedup_seconds(window: Duration) -> u32 {
    u32::try_from(window.as_secs().max(1)).unwrap_or(u32::MAX)
}

type Part = (Bytes, Vec<TableStats>);

/// One entry for most requests; large ones are split between records.
fn parts(kind: SignalKind, checked: &Checked, protobuf: Bytes) -> Result<Vec<Part>, ApiError> {
    let payload = checked.accepted.clone().map_or(protobuf, Bytes::from);
    if payload.len() <= ENTRY_BYTES_TARGET {
        return Ok(vec![(payload, stats(checked))]);
    }
    let split = request::split(&payload, ENTRY_BYTES_TARGET).map_err(|error| ApiError::invalid(error.to_string()))?;
    if let Some(part) = split.iter().find(|part| part.len() > RECORD_BYTES_MAX) {
        let message = format!("one record has {} bytes, the limit is {RECORD_BYTES_MAX}", part.len());
        return Err(ApiError::new(Kind::TooLarge, message));
    }
    let part = |part: Vec<u8>| {
        let checked = request::check(kind, &part).map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok((Bytes::from(part), stats(&checked)))
    };
    split.into_iter().map(part).collect()
}

fn stats(checked: &Checked) -> Vec<TableStats> {
    let stats = |count: &request::TableCount| TableStats {
        table: count.table,
        rows: count.rows,
        time_min: count.time_min,
        time_max: count.time_max,
    };
    checked.tables.iter().map(stats).collect()
}

fn append(kind: SignalKind, identity: &Identity, dedup: Dedup, payload: Bytes, tables: Vec<TableStats>) -> Append {
    let compressed = lz4_flex::block::compress(&payload);
    let raw_len = payload.len() as u32;
    let (compression, payload) = if compressed.len() < payload.len() {
        (Compression::Lz4, Bytes::from(compressed))
    } else {
        (Compression::None, payload)
    };
    Append {
        kind: kind as u8,
        tenant: identity.tenant.clone(),
        dataset: identity.dataset.clone(),
        at: UnixNanos::default(),
        dedup: dedup.digest.map(|digest| (digest, dedup_seconds(dedup.window))),
        tables,
        compression,
        raw_len,
        payload,
    }
}

/// Response headers of an acknowledged request.
pub(crate) fn ack_headers(accepted: &Accepted) -> Vec<(&'static str, String)> {
    let Some(written) = accepted.written else { return Vec::new() };
    let position: Position = written.position;
    let mut headers = vec![(POSITION, position.to_string()), (ACK, written.level.to_string())];
    if written.deduplicated {
        headers.push((DEDUPLICATED, "true".to_owned()));
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use signaldb_model::GroupId;
    use signaldb_model::limits::REQUEST_BYTES_MAX;
    use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
    use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span};

    use super::*;

    #[test]
    fn a_60_mib_request_becomes_parts_that_fit_an_entry_and_have_keys_of_their_own() {
        let span = Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: "x".repeat(256 << 10), ..Span::default() };
        let scope = ScopeSpans { spans: vec![span; 240], ..ScopeSpans::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        let body = Bytes::from(ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec());
        assert!(body.len() > 60 << 20 && body.len() <= REQUEST_BYTES_MAX);
        let checked = request::check(SignalKind::Traces, &body).expect("valid");
        let split = parts(SignalKind::Traces, &checked, body.clone()).expect("splits");
        assert!(split.iter().all(|(payload, _)| payload.len() <= ENTRY_BYTES_TARGET + 64));
        assert!((15..=17).contains(&split.len()), "{} parts", split.len());
        let rows = |(_, tables): &Part| tables.iter().map(|table| table.rows).sum::<u32>();
        assert_eq!(split.iter().map(rows).sum::<u32>(), 240);
        let again = parts(SignalKind::Traces, &checked, body).expect("splits");
        assert!(again == split, "a retry falls into other parts");
        let whole = Digest([7; 16]);
        let keys: BTreeSet<Digest> = (0..split.len()).map(|part| part_digest(whole, part)).chain([whole]).collect();
        assert_eq!(keys.len(), split.len() + 1);
        assert_eq!(part_digest(whole, 3), part_digest(whole, 3));
    }

    #[test]
    fn a_request_is_acknowledged_when_every_part_is_and_unknown_when_some_are() {
        let position = |index| Position { group: GroupId(1), index };
        let ok = |index, deduplicated| Ok(Written { position: position(index), level: AckLevel::Quorum, deduplicated });
        let refused = || Err(ApiError::new(Kind::Throttled, "full"));
        let outcome = |outcomes: Vec<Result<Written, ApiError>>| {
            let written = whole(outcomes).map_err(|error| error.kind);
            written.map(|written| written.map(|written| (written.position.index, written.deduplicated)))
        };
        assert_eq!(outcome(vec![]), Ok(None));
        assert_eq!(outcome(vec![ok(3, false), ok(5, false), ok(4, false)]), Ok(Some((5, false))));
        assert_eq!(outcome(vec![ok(3, true), ok(4, true)]), Ok(Some((4, true))), "a repeat of all parts");
        assert_eq!(outcome(vec![ok(9, false), ok(4, true)]), Ok(Some((9, false))), "a retry that completed it");
        assert_eq!(outcome(vec![ok(3, false), refused()]), Err(Kind::UnknownOutcome));
        assert_eq!(outcome(vec![refused(), ok(3, true)]), Err(Kind::UnknownOutcome));
        assert_eq!(outcome(vec![refused(), refused()]), Err(Kind::Throttled));
    }

    #[test]
    fn a_request_may_ask_for_more_than_its_tenant_and_never_gets_less() {
        use AckLevel::{Quorum, QuorumFsync};
        for (request, tenant, expected) in [
            (None, None, None),
            (Some(Quorum), None, Some(Quorum)),
            (None, Some(QuorumFsync), Some(QuorumFsync)),
            (Some(Quorum), Some(QuorumFsync), Some(QuorumFsync)),
            (Some(QuorumFsync), Some(Quorum), Some(QuorumFsync)),
        ] {
            assert_eq!(strongest(request, tenant), expected, "{request:?}, {tenant:?}");
        }
    }
}
