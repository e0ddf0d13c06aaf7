//! Export requests as bytes: checking them, counting their records, splitting large ones.

use std::collections::BTreeSet;

use signaldb_model::{TableCode, UnixNanos};
use thiserror::Error;

use crate::table::SignalTable;
use crate::wire::{self, Fields, Kind, Shape, WireError, put_bytes};

/// What a request carries. The number is persisted in the log as the kind of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SignalKind {
    Traces = 1,
    Logs = 2,
    Metrics = 3,
}

/// A request that is not stored at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    #[error("request body is not a valid protobuf message: {0}")]
    Wire(#[from] WireError),
    /// Resource, scope and metric are repeated in every row: a few megabytes can ask for terabytes.
    #[error("resources and scopes repeated for each record come to {bytes} bytes, the limit is {EXPANDED_BYTES_MAX}")]
    Expansion { bytes: u64 },
    /// Each day is a file of its own.
    #[error("records lie on {days} different days, the limit of one request is {DAYS_MAX}; split it by time")]
    Days { days: usize },
}

/// What is known of a request after one pass over it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Records for each table that gets any, with the range of their times.
    pub tables: Vec<TableCount>,
    /// Records that cannot be stored, and why the first of them cannot.
    pub rejected: u64,
    pub first_rejection: Option<String>,
    /// The request without its rejected records; `None` when nothing was rejected.
    pub accepted: Option<Vec<u8>>,
    /// Whether some text is not UTF-8: it is stored with replacement characters.
    pub replaced_text: bool,
}

/// Records of one table in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableCount {
    pub table: TableCode,
    pub rows: u32,
    pub time_min: UnixNanos,
    pub time_max: UnixNanos,
}

impl SignalKind {
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Traces, Self::Logs, Self::Metrics].into_iter().find(|kind| *kind as u8 == code)
    }

    /// Plural name of the records, as messages to clients say it.
    pub fn records(self) -> &'static str {
        match self {
            Self::Traces => "spans",
            Self::Logs => "log records",
            Self::Metrics => "data points",
        }
    }

    fn shape(self) -> &'static Shape {
        match self {
            Self::Traces => &TRACES,
            Self::Logs => &LOGS,
            Self::Metrics => &METRICS,
        }
    }
}

const NANOS_A_DAY: u64 = 86_400_000_000_000;
/// Days of which one request may hold records: a backfill of a year fits.
pub const DAYS_MAX: usize = 400;

/// Bytes of resources, scopes and metrics, once for each record that has them, that one request may come to.
pub const EXPANDED_BYTES_MAX: u64 = 256 << 20;

/// Bytes that what records share takes when it is written once a record.
pub fn expanded_bytes(kind: SignalKind, request: &[u8]) -> u64 {
    let head = |message: &[u8]| -> u64 {
        let nested: usize = messages(message, 2).map(field_bytes).sum();
        message.len().saturating_sub(nested) as u64
    };
    let mut total = 0u64;
    for resource in messages(request, 1) {
        let resource_head = head(resource);
        for scope in messages(resource, 2) {
            let shared = resource_head + head(scope);
            for item in messages(scope, 2) {
                let (rows, own) = if kind == SignalKind::Metrics { points(item) } else { (1, 0) };
                total = total.saturating_add(rows.saturating_mul(shared + own));
            }
        }
    }
    total
}

/// Number of a metric's points, and the bytes of the metric without them.
fn points(metric: &[u8]) -> (u64, u64) {
    let (mut count, mut bytes) = (0, 0);
    for (_, data) in Fields::of(metric).filter(|(field, _)| metric_table(*field).is_some()) {
        for point in messages(data.bytes(), 1) {
            count += 1;
            bytes += field_bytes(point);
        }
    }
    (count, metric.len().saturating_sub(bytes) as u64)
}

/// Bytes of a message as a field of another, tag and length included: of very many small ones these alone are much.
fn field_bytes(message: &[u8]) -> usize {
    let length_bits = usize::BITS - message.len().leading_zeros();
    1 + length_bits.div_ceil(7).max(1) as usize + message.len()
}

/// Checks a request: malformed protobuf is an error, a record that cannot be stored is rejected alone.
///
/// # Errors
/// [`RequestError::Wire`] says what is wrong with the bytes. What passes here always decodes.
pub fn check(kind: SignalKind, request: &[u8]) -> Result<Checked, RequestError> {
    let mut checked = Checked { replaced_text: !wire::check(kind.shape(), request, 0)?, ..Checked::default() };
    let bytes = expanded_bytes(kind, request);
    if bytes > EXPANDED_BYTES_MAX {
        return Err(RequestError::Expansion { bytes });
    }
    for resource in messages(request, 1) {
        for scope in messages(resource, 2) {
            for item in messages(scope, 2) {
                match kind {
                    SignalKind::Metrics => checked.count_metric(item),
                    _ => checked.count_record(kind, item),
                }
            }
        }
    }
    let span = |count: &TableCount| (count.time_max.0 - count.time_min.0) / NANOS_A_DAY;
    if checked.tables.iter().any(|count| span(count) as usize >= DAYS_MAX) {
        let days = days(kind, request);
        if days > DAYS_MAX {
            return Err(RequestError::Days { days });
        }
    }
    if checked.rejected > 0 {
        checked.accepted = Some(keep_records(kind, request));
    }
    Ok(checked)
}

/// Days on which the request has records.
fn days(kind: SignalKind, request: &[u8]) -> usize {
    let mut days = BTreeSet::new();
    for item in messages(request, 1).flat_map(|resource| messages(resource, 2)).flat_map(|scope| messages(scope, 2)) {
        match kind {
            SignalKind::Traces => drop(days.insert(number(item, 7) / NANOS_A_DAY)),
            SignalKind::Logs => drop(days.insert(log_time(item) / NANOS_A_DAY)),
            SignalKind::Metrics => {
                let data = Fields::of(item).filter(|(field, _)| metric_table(*field).is_some());
                let points = data.flat_map(|(_, data)| messages(data.bytes(), 1));
                days.extend(points.map(|point| number(point, 3) / NANOS_A_DAY));
            }
        }
    }
    days.len()
}

/// When a log record happened, or was seen when it does not say.
fn log_time(record: &[u8]) -> u64 {
    match number(record, 1) {
        0 => number(record, 11),
        time => time,
    }
}

impl Checked {
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|count| u64::from(count.rows)).sum()
    }

    fn count_record(&mut self, kind: SignalKind, record: &[u8]) {
        match reason_to_reject(kind, record) {
            None if kind == SignalKind::Traces => self.count(SignalTable::Traces, number(record, 7)),
            None => self.count(SignalTable::Logs, log_time(record)),
            Some(reason) => self.reject(reason),
        }
    }

    fn count_metric(&mut self, metric: &[u8]) {
        for (field, data) in Fields::of(metric) {
            let Some(table) = metric_table(field) else { continue };
            for point in messages(data.bytes(), 1) {
                match reason_to_reject_point(field, point) {
                    None => self.count(table, number(point, 3)),
                    Some(reason) => self.reject(reason),
                }
            }
        }
    }

    fn count(&mut self, table: SignalTable, time: u64) {
        let time = UnixNanos(time);
        match self.tables.iter_mut().find(|count| count.table == table.code()) {
            Some(count) => {
                count.rows += 1;
                count.time_min = count.time_min.min(time);
                count.time_max = count.time_max.max(time);
            }
            None => self.tables.push(TableCount { table: table.code(), rows: 1, time_min: time, time_max: time }),
        }
    }

    fn reject(&mut self, reason: String) {
        self.rejected += 1;
        self.first_rejection.get_or_insert(reason);
    }
}

/// Ids have 16 and 8 bytes, or none; anything else has no place in the columns.
fn reason_to_reject(kind: SignalKind, record: &[u8]) -> Option<String> {
    let ids: &[(u32, &str, usize)] = match kind {
        SignalKind::Traces => &[(1, "trace_id", 16), (2, "span_id", 8), (4, "parent_span_id", 8)],
        SignalKind::Logs => &[(9, "trace_id", 16), (10, "span_id", 8)],
        SignalKind::Metrics => &[],
    };
    let links = if kind == SignalKind::Traces { 13 } else { u32::MAX };
    for (field, value) in Fields::of(record) {
        if let Some(reason) = wrong_length(ids, field, value.bytes()) {
            return Some(reason);
        }
        if field == links {
            let link_ids = &[(1, "link trace_id", 16), (2, "link span_id", 8)];
            let wrong = Fields::of(value.bytes()).find_map(|(field, id)| wrong_length(link_ids, field, id.bytes()));
            if wrong.is_some() {
                return wrong;
            }
        }
    }
    None
}

fn reason_to_reject_point(data: u32, point: &[u8]) -> Option<String> {
    let exemplars = match data {
        5 | 7 => 5,
        9 => 8,
        10 => 11,
        _ => return None,
    };
    let ids = &[(4, "exemplar span_id", 8), (5, "exemplar trace_id", 16)];
    messages(point, exemplars)
        .find_map(|exemplar| Fields::of(exemplar).find_map(|(field, id)| wrong_length(ids, field, id.bytes())))
}

fn wrong_length(ids: &[(u32, &str, usize)], field: u32, id: &[u8]) -> Option<String> {
    let (_, name, length) = ids.iter().find(|(known, _, _)| *known == field)?;
    let wrong = !id.is_empty() && id.len() != *length;
    wrong.then(|| format!("{name} has {} bytes instead of {length}", id.len()))
}

/// The table of a metric's data, by the number of its field.
pub(crate) fn metric_table(field: u32) -> Option<SignalTable> {
    Some(match field {
        5 => SignalTable::MetricsGauge,
        7 => SignalTable::MetricsSum,
        9 => SignalTable::MetricsHistogram,
        10 => SignalTable::MetricsExponentialHistogram,
        11 => SignalTable::MetricsSummary,
        _ => return None,
    })
}

/// The nested messages in `field`.
pub(crate) fn messages(message: &[u8], field: u32) -> impl Iterator<Item = &[u8]> + Clone {
    Fields::of(message).filter(move |(found, _)| *found == field).map(|(_, value)| value.bytes())
}

/// The last value of a numeric field, 0 when it is not there.
pub(crate) fn number(message: &[u8], field: u32) -> u64 {
    Fields::of(message).filter(|(found, _)| *found == field).last().map_or(0, |(_, value)| value.number())
}

/// The request without the records that [`check`] rejects.
fn keep_records(kind: SignalKind, request: &[u8]) -> Vec<u8> {
    rewrite(request, 1, &mut |resource| {
        Some(rewrite(resource, 2, &mut |scope| {
            Some(rewrite(scope, 2, &mut |item| match kind {
                SignalKind::Metrics => Some(keep_points(item)),
                _ => reason_to_reject(kind, item).is_none().then(|| item.to_vec()),
            }))
        }))
    })
}

fn keep_points(metric: &[u8]) -> Vec<u8> {
    let mut out = metric.to_vec();
    for data in [5, 7, 9, 10] {
        out = rewrite(&out, data, &mut |points| {
            Some(rewrite(points, 1, &mut |point| reason_to_reject_point(data, point).is_none().then(|| point.to_vec())))
        });
    }
    out
}

/// Copies a message with the nested messages in `field` replaced, or left out.
fn rewrite(message: &[u8], field: u32, replace: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    let mut fields = Fields::of(message);
    loop {
        let before = fields.rest();
        let Some((found, value)) = fields.next() else { return out };
        if found == field {
            if let Some(nested) = replace(value.bytes()) {
                put_bytes(&mut out, field, &nested);
            }
        } else {
            out.extend_from_slice(&before[..before.len() - fields.rest().len()]);
        }
    }
}

/// Splits a request into requests of about `bytes_max`, each complete in itself. The rules are frozen for format 1 of
/// the log: a retry must fall into the same parts.
///
/// Records stay in order and whole; a single record larger than `bytes_max` is a part of its own. Metrics are split
/// between metrics, not between the points of one.
///
/// # Errors
/// [`RequestError::Expansion`] when repeating resources and scopes in each part would more than double the request.
pub fn split(request: &[u8], bytes_max: usize) -> Result<Vec<Vec<u8>>, RequestError> {
    let mut parts = Parts { bytes_max, ..Parts::default() };
    for resource in messages(request, 1) {
        let resource_head = without(resource, 2);
        for scope in messages(resource, 2) {
            let scope_head = without(scope, 2);
            for item in messages(scope, 2) {
                parts.add(&resource_head, &scope_head, item);
                if parts.bytes > 2 * request.len() + bytes_max {
                    return Err(RequestError::Expansion { bytes: parts.bytes as u64 });
                }
            }
            parts.close_scope(&scope_head);
        }
        parts.close_resource(&resource_head);
    }
    parts.close_part();
    Ok(parts.done)
}

fn without(message: &[u8], field: u32) -> Vec<u8> {
    rewrite(message, field, &mut |_| None)
}

#[derive(Default)]
struct Parts {
    bytes_max: usize,
    done: Vec<Vec<u8>>,
    /// Of the parts that are done.
    bytes: usize,
    part: Vec<u8>,
    scopes: Vec<u8>,
    items: Vec<u8>,
}

impl Parts {
    fn add(&mut self, resource_head: &[u8], scope_head: &[u8], item: &[u8]) {
        let held = self.part.len() + self.scopes.len() + self.items.len();
        let heads = resource_head.len() + scope_head.len();
        if held > 0 && held + heads + item.len() > self.bytes_max {
            self.close_scope(scope_head);
            self.close_resource(resource_head);
            self.close_part();
        }
        put_bytes(&mut self.items, 2, item);
    }

    fn close_scope(&mut self, head: &[u8]) {
        if !self.items.is_empty() {
            let scope = [head, &std::mem::take(&mut self.items)].concat();
            put_bytes(&mut self.scopes, 2, &scope);
        }
    }

    fn close_resource(&mut self, head: &[u8]) {
        if !self.scopes.is_empty() {
            let resource = [head, &std::mem::take(&mut self.scopes)].concat();
            put_bytes(&mut self.part, 1, &resource);
        }
    }

    fn close_part(&mut self) {
        if !self.part.is_empty() {
            self.bytes += self.part.len();
            self.done.push(std::mem::take(&mut self.part));
        }
    }
}

// The shapes of OTLP 1.x (opentelemetry-proto): field numbers and kinds of what the decoder reads.

static ANY_VALUE: Shape = Shape {
    fields: &[
        (1, Kind::Text),
        (2, Kind::Varint),
        (3, Kind::Varint),
        (4, Kind::Fixed64),
        (5, Kind::Message(&ARRAY_VALUE)),
        (6, Kind::Message(&KEY_VALUE_LIST)),
        (7, Kind::Bytes),
    ],
};
static ARRAY_VALUE: Shape = Shape { fields: &[(1, Kind::Message(&ANY_VALUE))] };
static KEY_VALUE_LIST: Shape = Shape { fields: &[(1, Kind::Message(&KEY_VALUE))] };
static KEY_VALUE: Shape = Shape { fields: &[(1, Kind::Text), (2, Kind::Message(&ANY_VALUE))] };
static ENTITY_REF: Shape = Shape { fields: &[(1, Kind::Text), (2, Kind::Text), (3, Kind::Text), (4, Kind::Text)] };
static RESOURCE: Shape =
    Shape { fields: &[(1, Kind::Message(&KEY_VALUE)), (2, Kind::Varint), (3, Kind::Message(&ENTITY_REF))] };
static SCOPE: Shape =
    Shape { fields: &[(1, Kind::Text), (2, Kind::Text), (3, Kind::Message(&KEY_VALUE)), (4, Kind::Varint)] };

static TRACES: Shape = Shape { fields: &[(1, Kind::Message(&RESOURCE_SPANS))] };
static RESOURCE_SPANS: Shape =
    Shape { fields: &[(1, Kind::Message(&RESOURCE)), (2, Kind::Message(&SCOPE_SPANS)), (3, Kind::Text)] };
static SCOPE_SPANS: Shape = Shape { fields: &[(1, Kind::Message(&SCOPE)), (2, Kind::Message(&SPAN)), (3, Kind::Text)] };
static SPAN: Shape = Shape {
    fields: &[
        (1, Kind::Bytes),
        (2, Kind::Bytes),
        (3, Kind::Text),
        (4, Kind::Bytes),
        (5, Kind::Text),
        (6, Kind::Varint),
        (7, Kind::Fixed64),
        (8, Kind::Fixed64),
        (9, Kind::Message(&KEY_VALUE)),
        (10, Kind::Varint),
        (11, Kind::Message(&EVENT)),
        (12, Kind::Varint),
        (13, Kind::Message(&LINK)),
        (14, Kind::Varint),
        (15, Kind::Message(&STATUS)),
        (16, Kind::Fixed32),
    ],
};
static EVENT: Shape =
    Shape { fields: &[(1, Kind::Fixed64), (2, Kind::Text), (3, Kind::Message(&KEY_VALUE)), (4, Kind::Varint)] };
static LINK: Shape = Shape {
    fields: &[
        (1, Kind::Bytes),
        (2, Kind::Bytes),
        (3, Kind::Text),
        (4, Kind::Message(&KEY_VALUE)),
        (5, Kind::Varint),
        (6, Kind::Fixed32),
    ],
};
static STATUS: Shape = Shape { fields: &[(2, Kind::Text), (3, Kind::Varint)] };

static LOGS: Shape = Shape { fields: &[(1, Kind::Message(&RESOURCE_LOGS))] };
static RESOURCE_LOGS: Shape =
    Shape { fields: &[(1, Kind::Message(&RESOURCE)), (2, Kind::Message(&SCOPE_LOGS)), (3, Kind::Text)] };
static SCOPE_LOGS: Shape =
    Shape { fields: &[(1, Kind::Message(&SCOPE)), (2, Kind::Message(&LOG_RECORD)), (3, Kind::Text)] };
static LOG_RECORD: Shape = Shape {
    fields: &[
        (1, Kind::Fixed64),
        (2, Kind::Varint),
        (3, Kind::Text),
        (5, Kind::Message(&ANY_VALUE)),
        (6, Kind::Message(&KEY_VALUE)),
        (7, Kind::Varint),
        (8, Kind::Fixed32),
        (9, Kind::Bytes),
        (10, Kind::Bytes),
        (11, Kind::Fixed64),
        (12, Kind::Text),
    ],
};

static METRICS: Shape = Shape { fields: &[(1, Kind::Message(&RESOURCE_METRICS))] };
static RESOURCE_METRICS: Shape =
    Shape { fields: &[(1, Kind::Message(&RESOURCE)), (2, Kind::Message(&SCOPE_METRICS)), (3, Kind::Text)] };
static SCOPE_METRICS: Shape =
    Shape { fields: &[(1, Kind::Message(&SCOPE)), (2, Kind::Message(&METRIC)), (3, Kind::Text)] };
static METRIC: Shape = Shape {
    fields: &[
        (1, Kind::Text),
        (2, Kind::Text),
        (3, Kind::Text),
        (5, Kind::Message(&NUMBERS)),
        (7, Kind::Message(&NUMBERS)),
        (9, Kind::Message(&HISTOGRAMS)),
        (10, Kind::Message(&EXPONENTIAL_HISTOGRAMS)),
        (11, Kind::Message(&SUMMARIES)),
        (12, Kind::Message(&KEY_VALUE)),
    ],
};
static NUMBERS: Shape = Shape { fields: &[(1, Kind::Message(&NUMBER_POINT)), (2, Kind::Varint), (3, Kind::Varint)] };
static HISTOGRAMS: Shape = Shape { fields: &[(1, Kind::Message(&HISTOGRAM_POINT)), (2, Kind::Varint)] };
static EXPONENTIAL_HISTOGRAMS: Shape =
    Shape { fields: &[(1, Kind::Message(&EXPONENTIAL_HISTOGRAM_POINT)), (2, Kind::Varint)] };
static SUMMARIES: Shape = Shape { fields: &[(1, Kind::Message(&SUMMARY_POINT))] };
static NUMBER_POINT: Shape = Shape {
    fields: &[
        (2, Kind::Fixed64),
        (3, Kind::Fixed64),
        (4, Kind::Fixed64),
        (5, Kind::Message(&EXEMPLAR)),
        (6, Kind::Fixed64),
        (7, Kind::Message(&KEY_VALUE)),
        (8, Kind::Varint),
    ],
};
static HISTOGRAM_POINT: Shape = Shape {
    fields: &[
        (2, Kind::Fixed64),
        (3, Kind::Fixed64),
        (4, Kind::Fixed64),
        (5, Kind::Fixed64),
        (6, Kind::PackedFixed64),
        (7, Kind::PackedFixed64),
        (8, Kind::Message(&EXEMPLAR)),
        (9, Kind::Message(&KEY_VALUE)),
        (10, Kind::Varint),
        (11, Kind::Fixed64),
        (12, Kind::Fixed64),
    ],
};
static EXPONENTIAL_HISTOGRAM_POINT: Shape = Shape {
    fields: &[
        (1, Kind::Message(&KEY_VALUE)),
        (2, Kind::Fixed64),
        (3, Kind::Fixed64),
        (4, Kind::Fixed64),
        (5, Kind::Fixed64),
        (6, Kind::Varint),
        (7, Kind::Fixed64),
        (8, Kind::Message(&BUCKETS)),
        (9, Kind::Message(&BUCKETS)),
        (10, Kind::Varint),
        (11, Kind::Message(&EXEMPLAR)),
        (12, Kind::Fixed64),
        (13, Kind::Fixed64),
        (14, Kind::Fixed64),
    ],
};
static BUCKETS: Shape = Shape { fields: &[(1, Kind::Varint), (2, Kind::PackedVarint)] };
static SUMMARY_POINT: Shape = Shape {
    fields: &[
        (2, Kind::Fixed64),
        (3, Kind::Fixed64),
        (4, Kind::Fixed64),
        (5, Kind::Fixed64),
        (6, Kind::Message(&QUANTILE)),
        (7, Kind::Message(&KEY_VALUE)),
        (8, Kind::Varint),
    ],
};
static QUANTILE: Shape = Shape { fields: &[(1, Kind::Fixed64), (2, Kind::Fixed64)] };
static EXEMPLAR: Shape = Shape {
    fields: &[
        (2, Kind::Fixed64),
        (3, Kind::Fixed64),
        (4, Kind::Bytes),
        (5, Kind::Bytes),
        (6, Kind::Fixed64),
        (7, Kind::Message(&KEY_VALUE)),
    ],
};

#[cfg(test)]
mod tests;
