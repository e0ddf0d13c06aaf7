//! Requests of realistic shape, and sending them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use signaldb_proto::otlp::collector::logs::v1::ExportLogsServiceRequest;
use signaldb_proto::otlp::collector::metrics::v1::ExportMetricsServiceRequest;
use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use signaldb_proto::otlp::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use signaldb_proto::otlp::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use signaldb_proto::otlp::metrics::v1::{
    Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point,
};
use signaldb_proto::otlp::resource::v1::Resource;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tokio::task::JoinSet;

use crate::node::Node;

pub(crate) const RECORDS_A_REQUEST: u64 = 1000;
const SERVICES: u64 = 20;
/// Attempts for each pair of runs whose follower stays one.
const PAIR_ATTEMPTS: usize = 3;

/// Stand-ins that are found again in the encoded bytes and replaced by fresh ids and times.
const TRACE_ID: [u8; 16] = *b"TRACE-ID-16bytes";
const SPAN_ID: [u8; 8] = *b"SPAN-ID8";
const PARENT_ID: [u8; 8] = *b"PARENT-8";
const START: u64 = 0x5354_4152_545f_4e53;
const END: u64 = 0x454e_445f_5f5f_4e53;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Spans,
    Logs,
    /// Gauges.
    Points,
}

impl Signal {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Spans => "/v1/traces",
            Self::Logs => "/v1/logs",
            Self::Points => "/v1/metrics",
        }
    }

    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::Spans => "traces",
            Self::Logs => "logs",
            Self::Points => "metrics_gauge",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spans => "spans",
            Self::Logs => "log records",
            Self::Points => "data points",
        }
    }
}

/// A small generator, seeded, so that runs are alike.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood, 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }

    /// Above 0, at most 1.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Box and Muller, 1958.
    pub(crate) fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        median * (sigma * normal).exp()
    }

    /// Below `bound`; the n-th is about 1/n as frequent as the first.
    pub(crate) fn zipf(&mut self, bound: u64) -> u64 {
        ((bound as f64 + 1.0).powf(self.unit()) as u64).clamp(1, bound) - 1
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}

/// Bytes that do not compress.
pub(crate) fn random_bytes(len: usize) -> Vec<u8> {
    Random(7).bytes(len)
}

pub(crate) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

pub(crate) fn int(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// About twenty attributes that every record of a service shares.
fn resource(service: u64) -> Resource {
    let attributes = vec![
        text("service.name", format!("service-{service:02}")),
        text("service.namespace", "shop"),
        text("service.version", format!("1.{}.0", service % 7)),
        text("service.instance.id", format!("627cc493-f310-47de-96bd-7141{service:08x}")),
        text("deployment.environment.name", "production"),
        text("host.name", format!("node-{}", service % 5)),
        text("k8s.namespace.name", "shop"),
        text("k8s.pod.name", format!("service-{service:02}-7d9c5b6f4-{service:05x}")),
        text("k8s.deployment.name", format!("service-{service:02}")),
        text("k8s.node.name", format!("node-{}", service % 5)),
        text("cloud.region", "eu-central-1"),
        text("os.type", "linux"),
        text("process.runtime.name", "OpenJDK Runtime Environment"),
        text("process.runtime.version", "21.0.4+7"),
        int("process.pid", 1000 + service as i64),
        text("telemetry.sdk.name", "opentelemetry"),
        text("telemetry.sdk.language", "java"),
        text("telemetry.sdk.version", "1.43.0"),
        text("container.id", format!("{service:064x}")),
    ];
    Resource { attributes, ..Resource::default() }
}

fn scope() -> Option<InstrumentationScope> {
    let name = "io.opentelemetry.tomcat-10.0".to_owned();
    Some(InstrumentationScope { name, version: "2.10.0".to_owned(), ..InstrumentationScope::default() })
}

const METHODS: &[&str] = &["GET", "GET", "GET", "POST", "PUT"];
const ROUTES: &[&str] =
    &["/api/cart", "/api/cart/{id}", "/api/products/{id}", "/api/checkout", "/api/users/{id}/orders"];

fn span(random: &mut Random) -> Span {
    let (method, route) = (random.pick(METHODS), random.pick(ROUTES));
    let status = if random.below(100) < 2 { 500 } else { 200 };
    let attributes = vec![
        text("http.request.method", method),
        text("http.route", route),
        int("http.response.status_code", status),
        text("url.path", route.replace("{id}", &random.below(5000).to_string())),
        text("url.scheme", "https"),
        text("server.address", "shop.example.com"),
        int("server.port", 443),
        text("client.address", format!("10.0.{}.{}", random.below(8), random.below(250))),
        text("network.protocol.version", "1.1"),
        text("user.id", format!("user-{}", random.below(10_000))),
        int("thread.id", 20 + random.below(40) as i64),
    ];
    Span {
        trace_id: TRACE_ID.to_vec(),
        span_id: SPAN_ID.to_vec(),
        parent_span_id: PARENT_ID.to_vec(),
        name: format!("{method} {route}"),
        kind: 2,
        start_time_unix_nano: START,
        end_time_unix_nano: END,
        attributes,
        ..Span::default()
    }
}

fn log_record(random: &mut Random) -> LogRecord {
    let order = random.below(1_000_000);
    let body = match random.below(3) {
        0 => format!("order {order} was accepted for user-{} in {} ms", random.below(10_000), random.below(500)),
        1 => format!("cache miss for product {} in region eu-central-1, loading from the database", random.below(5000)),
        _ => format!(
            "payment of {}.{:02} EUR for order {order} was authorized by provider stripe",
            random.below(300),
            random.below(100)
        ),
    };
    let attributes = vec![
        text("logger.name", random.pick(&["com.shop.Cart", "com.shop.Payment", "com.shop.Catalog"])),
        text("thread.name", format!("http-nio-8080-exec-{}", random.below(40))),
        text("code.function.name", random.pick(&["accept", "load", "authorize", "retry"])),
        text("user.id", format!("user-{}", random.below(10_000))),
        int("order.id", order as i64),
        text("http.request.method", random.pick(METHODS)),
        text("http.route", random.pick(ROUTES)),
    ];
    LogRecord {
        time_unix_nano: START,
        observed_time_unix_nano: START,
        severity_number: 9,
        severity_text: "INFO".to_owned(),
        body: Some(AnyValue { value: Some(Value::StringValue(body)) }),
        attributes,
        trace_id: TRACE_ID.to_vec(),
        span_id: SPAN_ID.to_vec(),
        ..LogRecord::default()
    }
}

/// An encoded request and where its ids and times are.
pub(crate) struct Template {
    /// A few different requests, so that dictionaries do not see the same thousand records for ever.
    variants: Vec<Variant>,
}

struct Variant {
    bytes: Vec<u8>,
    ids: Vec<(usize, usize)>,
    starts: Vec<usize>,
    ends: Vec<usize>,
}

impl Template {
    pub(crate) fn new(signal: Signal) -> Self {
        let mut random = Random(42);
        Self { variants: (0..16).map(|n| Variant::new(&encode(signal, n, &mut random))).collect() }
    }

    /// Bytes of a request.
    pub(crate) fn len(&self) -> usize {
        self.variants.iter().map(|variant| variant.bytes.len()).sum::<usize>() / self.variants.len()
    }

    /// A request with ids and times of its own.
    pub(crate) fn fresh(&self, number: u64) -> Bytes {
        let variant = &self.variants[(number % self.variants.len() as u64) as usize];
        let now = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos()).unwrap_or(0);
        let mut random = Random(now ^ number.wrapping_mul(0x9e37_79b9));
        let mut bytes = variant.bytes.clone();
        for (at, len) in &variant.ids {
            for chunk in bytes[*at..at + len].chunks_mut(8) {
                let value = random.next().to_le_bytes();
                chunk.copy_from_slice(&value[..chunk.len()]);
            }
        }
        for (n, at) in variant.starts.iter().enumerate() {
            let start = now - (variant.starts.len() - n) as u64 * 20_000;
            bytes[*at..at + 8].copy_from_slice(&start.to_le_bytes());
            if let Some(end) = variant.ends.get(n) {
                let duration = 200_000 + random.below(80_000_000);
                bytes[*end..end + 8].copy_from_slice(&(start + duration).to_le_bytes());
            }
        }
        bytes.into()
    }
}

fn encode(signal: Signal, variant: u64, random: &mut Random) -> Vec<u8> {
    // Requests come from a few services each, as a collector batches them.
    let services = (0..4).map(|n| (variant * 4 + n) % SERVICES);
    let each = RECORDS_A_REQUEST / 4;
    match signal {
        Signal::Spans => {
            let resource_spans = services.map(|service| ResourceSpans {
                resource: Some(resource(service)),
                scope_spans: vec![ScopeSpans {
                    scope: scope(),
                    spans: (0..each).map(|_| span(random)).collect(),
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            });
            ExportTraceServiceRequest { resource_spans: resource_spans.collect() }.encode_to_vec()
        }
        Signal::Logs => {
            let resource_logs = services.map(|service| ResourceLogs {
                resource: Some(resource(service)),
                scope_logs: vec![ScopeLogs {
                    scope: scope(),
                    log_records: (0..each).map(|_| log_record(random)).collect(),
                    ..ScopeLogs::default()
                }],
                ..ResourceLogs::default()
            });
            ExportLogsServiceRequest { resource_logs: resource_logs.collect() }.encode_to_vec()
        }
        Signal::Points => {
            let resource_metrics = services.map(|service| ResourceMetrics {
                resource: Some(resource(service)),
                scope_metrics: vec![ScopeMetrics {
                    scope: scope(),
                    metrics: gauges(each, random),
                    ..Default::default()
                }],
                ..ResourceMetrics::default()
            });
            ExportMetricsServiceRequest { resource_metrics: resource_metrics.collect() }.encode_to_vec()
        }
    }
}

/// Ten gauges with `points` data points between them.
fn gauges(points: u64, random: &mut Random) -> Vec<Metric> {
    const GAUGES: u64 = 10;
    let mut point = |n: u64| NumberDataPoint {
        attributes: vec![text("jvm.memory.pool.name", format!("pool-{n}")), text("jvm.memory.type", "heap")],
        time_unix_nano: START,
        value: Some(number_data_point::Value::AsDouble(random.below(1 << 30) as f64 / 8.0)),
        ..NumberDataPoint::default()
    };
    let gauge = |n: u64| Metric {
        name: format!("jvm.memory.gauge_{n}"),
        unit: "By".to_owned(),
        data: Some(metric::Data::Gauge(Gauge { data_points: (0..points / GAUGES).map(&mut point).collect() })),
        ..Metric::default()
    };
    (0..GAUGES).map(gauge).collect()
}

impl Variant {
    fn new(bytes: &[u8]) -> Self {
        let find = |needle: &[u8]| -> Vec<usize> {
            let matches = bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
            matches.map(|(at, _)| at).collect()
        };
        let ids = [&TRACE_ID[..], &SPAN_ID, &PARENT_ID];
        let ids = ids.iter().flat_map(|id| find(id).into_iter().map(|at| (at, id.len()))).collect();
        Self { bytes: bytes.to_vec(), ids, starts: find(&START.to_le_bytes()), ends: find(&END.to_le_bytes()) }
    }
}

/// Percentiles, milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Latency {
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |part: f64| {
            let index = ((times.len() as f64 - 1.0) * part).round() as usize;
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
        };
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

/// What a run did.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) records: u64,
    pub(crate) seconds: f64,
    pub(crate) latency: Latency,
}

impl Run {
    fn of(begun: Instant, times: Vec<Duration>) -> Self {
        let records = times.len() as u64 * RECORDS_A_REQUEST;
        Self { records, seconds: begun.elapsed().as_secs_f64(), latency: Latency::of(times) }
    }

    /// Records/s.
    pub(crate) fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }
}

/// Sends `requests`, each once, over `connections`; paced to `rate` records/s when it is given. Throttled requests are
/// sent again and count from their first attempt.
pub(crate) async fn run(
    urls: &[String],
    template: &Template,
    requests: u64,
    connections: usize,
    rate: Option<f64>,
) -> anyhow::Result<Run> {
    let template: Arc<Vec<Bytes>> = Arc::new((0..requests).map(|number| template.fresh(number)).collect());
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for connection in 0..connections {
        let url = urls[connection % urls.len()].clone();
        let (template, next) = (Arc::clone(&template), Arc::clone(&next));
        tasks.spawn(async move {
            let http = reqwest::Client::new();
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(body) = template.get(number as usize) else { return anyhow::Ok(times) };
                let mut due = begun;
                if let Some(rate) = rate {
                    // Open loop: latency counts from when the request was due, so that a stall is not hidden.
                    due += Duration::from_secs_f64((number * RECORDS_A_REQUEST) as f64 / rate);
                    tokio::time::sleep_until(due.into()).await;
                } else {
                    due = Instant::now();
                }
                send(&http, &url, body.clone()).await?;
                times.push(due.elapsed());
            }
        });
    }
    Ok(Run::of(begun, all(tasks).await?))
}

/// Sends requests over `connections` as fast as they are acknowledged, for `lasts`. Each is made when it is sent: all of
/// them would not fit into memory.
pub(crate) async fn run_for(
    urls: &[String],
    template: &Arc<Template>,
    connections: usize,
    lasts: Duration,
) -> anyhow::Result<Run> {
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for connection in 0..connections {
        let url = urls[connection % urls.len()].clone();
        let (template, next) = (Arc::clone(template), Arc::clone(&next));
        tasks.spawn(async move {
            let http = reqwest::Client::new();
            let mut times = Vec::new();
            while begun.elapsed() < lasts {
                let body = template.fresh(next.fetch_add(1, Ordering::Relaxed));
                let sent = Instant::now();
                send(&http, &url, body).await?;
                times.push(sent.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    Ok(Run::of(begun, all(tasks).await?))
}

async fn all(mut tasks: JoinSet<anyhow::Result<Vec<Duration>>>) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    while let Some(task) = tasks.join_next().await {
        times.extend(task??);
    }
    Ok(times)
}

/// The same load with every node, and with one stopped that leads nothing of it.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) every: Run,
    pub(crate) stopped: Run,
}

/// Runs of `lasts` in turn, so that drift meets both alike: with every node, then with a follower under SIGSTOP. Clients
/// use the other nodes in both, and memtables are empty before each.
pub(crate) async fn stopped_follower(
    node: &Node,
    template: &Arc<Template>,
    connections: usize,
    pairs: usize,
    lasts: Duration,
) -> anyhow::Result<Vec<Pair>> {
    let urls = node.otlp(Signal::Spans.path());
    let group = group_of_writes(&urls[0], template).await?;
    let mut measured = Vec::new();
    for _ in 0..PAIR_ATTEMPTS * pairs {
        if measured.len() == pairs {
            break;
        }
        let everybody: Vec<usize> = (0..urls.len()).collect();
        node.wait_led_by(&everybody).await?;
        let leader = node.leader_of(group).await?;
        let follower = (leader + 1) % urls.len();
        let others: Vec<usize> = everybody.into_iter().filter(|at| *at != follower).collect();
        let used: Vec<String> = others.iter().map(|at| urls[*at].clone()).collect();
        node.flush_through(leader).await?;
        let every = run_for(&used, template, connections, lasts).await?;
        node.flush_through(leader).await?;
        if node.leader_of(group).await? == follower {
            // Leaderships spread by themselves.
            continue;
        }
        node.signal(follower, "-STOP")?;
        node.wait_led_by(&others).await?;
        let stopped = run_for(&used, template, connections, lasts).await?;
        node.signal(follower, "-CONT")?;
        node.wait_caught_up(follower, leader).await?;
        measured.push(Pair { every, stopped });
    }
    anyhow::ensure!(measured.len() == pairs, "the leadership did not stay");
    Ok(measured)
}

/// The group that takes the writes: the position in an acknowledgment names it.
async fn group_of_writes(url: &str, template: &Template) -> anyhow::Result<u64> {
    let request = reqwest::Client::new().post(url).header("content-type", "application/x-protobuf");
    let sent = request.body(template.fresh(0)).send().await?.error_for_status()?;
    let position = sent.headers().get("x-signaldb-position").context("a position")?.to_str()?;
    let (group, _) = position.split_once(':').context("a position of a group")?;
    Ok(group.parse()?)
}

/// MB/s of single log records of `bytes` random bytes, which do not compress, `proposers` at a time,
/// for a few seconds: what the replicated log takes, whatever OTLP adds to it.
pub(crate) async fn appends(urls: &[String], bytes: usize, proposers: usize) -> anyhow::Result<f64> {
    const LASTS: Duration = Duration::from_secs(3);
    // Made before, so that making them is not measured; each record begins elsewhere in them.
    let random = Bytes::from(random_bytes(bytes + (1 << 20)));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for proposer in 0..proposers {
        let (url, random) = (urls[proposer % urls.len()].clone(), random.clone());
        tasks.spawn(async move {
            let http = reqwest::Client::new();
            let (mut sent, mut at) = (0, proposer);
            while begun.elapsed() < LASTS {
                send(&http, &url, one_record(random[at..at + bytes].to_vec())).await?;
                sent += bytes;
                at = (at + proposers) % (1 << 20);
            }
            anyhow::Ok(sent)
        });
    }
    let mut sent = 0;
    while let Some(task) = tasks.join_next().await {
        sent += task??;
    }
    Ok(sent as f64 / begun.elapsed().as_secs_f64() / 1e6)
}

fn one_record(body: Vec<u8>) -> Bytes {
    let record = LogRecord {
        time_unix_nano: u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos()).unwrap_or(0),
        body: Some(AnyValue { value: Some(Value::BytesValue(body)) }),
        ..LogRecord::default()
    };
    let scope_logs = vec![ScopeLogs { log_records: vec![record], ..ScopeLogs::default() }];
    let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
    ExportLogsServiceRequest { resource_logs }.encode_to_vec().into()
}

/// Seconds without an acknowledgment around a leader's `kill -9`, over `rounds` kills: one client through a node that
/// stays, a small request every 5 ms at most.
pub(crate) async fn failover_gaps(node: &mut Node, binary: &std::path::Path, rounds: u32) -> anyhow::Result<Vec<f64>> {
    let template = Template::new(Signal::Spans);
    let http = reqwest::Client::new();
    let mut gaps = Vec::new();
    for round in 0..rounds {
        let leader = node.leader().await?;
        let urls = node.otlp(Signal::Spans.path());
        let url = &urls[(leader + 1) % urls.len()];
        send(&http, url, template.fresh(u64::from(round))).await?;
        node.kill(leader)?;
        let begun = Instant::now();
        send(&http, url, template.fresh(u64::from(round) + 1_000_000)).await?;
        gaps.push(begun.elapsed().as_secs_f64());
        node.restart(binary, leader).await?;
    }
    gaps.sort_by(f64::total_cmp);
    Ok(gaps)
}

pub(crate) async fn send(http: &reqwest::Client, url: &str, body: Bytes) -> anyhow::Result<()> {
    send_as(http, url, "default", body).await
}

/// Sends one request of a tenant; throttled, again and again for a minute.
pub(crate) async fn send_as(http: &reqwest::Client, url: &str, tenant: &str, body: Bytes) -> anyhow::Result<()> {
    for _ in 0..600 {
        let request = http.post(url).header("content-type", "application/x-protobuf").header("x-tenant-id", tenant);
        let sent = request.body(body.clone()).send().await?;
        if !matches!(sent.status().as_u16(), 429 | 503) {
            sent.error_for_status()?;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("throttled for a minute")
}

/// Milliseconds from an acknowledgment until a strong count that includes it returned.
pub(crate) async fn ack_to_visible(
    node: &Node,
    urls: &[String],
    template: &Template,
    table: &str,
    rounds: u64,
) -> anyhow::Result<Latency> {
    let http = reqwest::Client::new();
    let count = format!("SELECT count(*) FROM {table}");
    let before = node.sql(&count).await?.0[0][0].as_u64().unwrap_or(0);
    let mut times = Vec::new();
    for round in 1..=rounds {
        send(&http, &urls[round as usize % urls.len()], template.fresh(u64::MAX - round)).await?;
        let (rows, took) = node.sql(&count).await?;
        let counted = rows[0][0].as_u64().unwrap_or(0);
        anyhow::ensure!(counted == before + round * RECORDS_A_REQUEST, "the count missed an acknowledged request");
        times.push(took);
    }
    Ok(Latency::of(times))
}

/// Named queries after the flush, milliseconds.
pub(crate) async fn queries(node: &Node, signal: Signal) -> anyhow::Result<Vec<(String, Latency)>> {
    let table = signal.table();
    let sample = format!("SELECT trace_id FROM {table} WHERE service_name = 'service-07' LIMIT 1");
    let trace = node.sql(&sample).await?.0[0][0].as_str().unwrap_or_default().to_owned();
    let named = [
        ("count(*)", format!("SELECT count(*) FROM {table}")),
        ("count by service", format!("SELECT service_name, count(*) FROM {table} GROUP BY 1")),
        (
            "filter by promoted attribute",
            format!("SELECT count(*) FROM {table} WHERE attributes['http.route'] = '/api/cart'"),
        ),
        ("trace by id", format!("SELECT * FROM {table} WHERE trace_id = '{trace}'")),
    ];
    let mut out = Vec::new();
    for (name, query) in named {
        let mut times = Vec::new();
        for _ in 0..10 {
            times.push(node.sql(&query).await?.1);
        }
        out.push((name.to_owned(), Latency::of(times)));
    }
    Ok(out)
}
