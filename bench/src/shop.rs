//! What a shop of twenty services tells of itself: seeded traces and the log records of their requests, in order of time.
//!
//! Sizes depend on the shape, so it is this: requests come every 10 ms on average at one of 20 services of three
//! instances each; a request calls 0 to 3 others, up to four deep, each call a client span and a server span, with
//! queries and inner work beside them: about 22 spans a trace. Span and trace ids are random, durations log-normal,
//! routes, products and users as Zipf has them. Server spans have 14 attributes and more, client spans 8, queries 9, as the
//! semantic conventions name them; resources 19. One server span of a hundred fails, with an exception's stack trace.
//! About one request in three says something: six templates with numbers in them, in the trace's context.

use prost::Message;
use signaldb_proto::otlp::collector::logs::v1::ExportLogsServiceRequest;
use signaldb_proto::otlp::collector::trace::v1::ExportTraceServiceRequest;
use signaldb_proto::otlp::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use signaldb_proto::otlp::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use signaldb_proto::otlp::resource::v1::Resource;
use signaldb_proto::otlp::trace::v1::span::Event;
use signaldb_proto::otlp::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use crate::load::{RECORDS_A_REQUEST, Random, Signal, int, text};

const NAMES: [&str; 20] = [
    "frontend",
    "cart",
    "checkout",
    "payment",
    "catalog",
    "search",
    "users",
    "orders",
    "shipping",
    "quote",
    "currency",
    "email",
    "ads",
    "recommend",
    "inventory",
    "pricing",
    "reviews",
    "auth",
    "gateway",
    "billing",
];
const INSTANCES: u64 = 3;
const ROUTES: [&str; 6] = ["", "/{id}", "/{id}/items", "/search", "/batch", "/health"];
const METHODS: [&str; 6] = ["GET", "GET", "POST", "GET", "PUT", "GET"];
const TABLES: [&str; 6] = ["cart", "orders", "users", "products", "payments", "stock"];
const LOGGERS: [&str; 6] =
    ["com.shop.Orders", "com.shop.Cache", "com.shop.Payment", "com.shop.Access", "com.shop.Dao", "com.shop.Client"];
/// Calls below calls.
const DEPTH_MAX: u32 = 3;
/// Nanoseconds between two visits, on average.
const VISIT_EVERY: f64 = 10_000_000.0;
const SPAN_CLIENT: i32 = 3;
const SPAN_SERVER: i32 = 2;
const SPAN_INTERNAL: i32 = 1;
const STATUS_ERROR: i32 = 2;

/// Makes requests of one signal; the same seed makes the same ones, and log records fit the spans.
pub(crate) struct Shop {
    random: Random,
    signal: Signal,
    /// When the next visit begins, nanoseconds.
    now: u64,
    spans: Vec<Placed<Span>>,
    records: Vec<Placed<LogRecord>>,
}

/// A record and where it comes from.
struct Placed<T> {
    service: usize,
    instance: u64,
    scope: &'static str,
    record: T,
}

/// The request that a server handles.
struct Context {
    trace: Vec<u8>,
    span: Vec<u8>,
    service: usize,
    instance: u64,
    thread: u64,
}

/// What a caller learns of a call.
struct Answer {
    end: u64,
    failed: bool,
    method: &'static str,
    path: String,
}

impl Shop {
    /// `begin` is the time of the first visit, nanoseconds.
    pub(crate) fn new(signal: Signal, begin: u64) -> Self {
        Self { random: Random::new(42), signal, now: begin, spans: Vec::new(), records: Vec::new() }
    }

    /// The next [`RECORDS_A_REQUEST`] records, by resource and scope as a collector batches them.
    pub(crate) fn request(&mut self) -> Vec<u8> {
        let wanted = RECORDS_A_REQUEST as usize;
        match self.signal {
            Signal::Logs => {
                while self.records.len() < wanted {
                    self.visit();
                }
                logs_request(self.records.drain(..wanted))
            }
            _ => {
                while self.spans.len() < wanted {
                    self.visit();
                }
                traces_request(self.spans.drain(..wanted))
            }
        }
    }

    fn visit(&mut self) {
        self.now += (-self.random.unit().ln() * VISIT_EVERY) as u64;
        let trace = self.random.bytes(16);
        self.serve(trace, Vec::new(), self.now, 0, 0);
    }

    fn nanos(&mut self, median: f64, sigma: f64) -> u64 {
        self.random.log_normal(median, sigma) as u64
    }

    /// A request to `service` at `at`, and all that comes of it.
    fn serve(&mut self, trace: Vec<u8>, parent: Vec<u8>, at: u64, service: usize, depth: u32) -> Answer {
        let random = &mut self.random;
        let (route, instance) = (random.zipf(ROUTES.len() as u64) as usize, random.below(INSTANCES));
        let context = Context { trace, span: random.bytes(8), service, instance, thread: 20 + random.below(40) };
        let method = METHODS[(route + service) % METHODS.len()];
        let route = format!("/api/{}{}", NAMES[service], ROUTES[route]);
        let mut now = at + self.nanos(300_000.0, 0.6);
        self.say(&context, now);
        let calls = if depth < DEPTH_MAX { [0, 1, 1, 2, 3][self.random.below(5) as usize] } else { 0 };
        for _ in 0..calls {
            now = self.call(&context, now, depth) + self.nanos(100_000.0, 0.6);
        }
        for _ in 0..[0, 1, 1, 2][self.random.below(4) as usize] {
            now = self.query(&context, now) + self.nanos(50_000.0, 0.6);
        }
        if self.random.below(10) < 3 {
            now = self.work(&context, now);
        }
        self.say(&context, now);
        let end = now + self.nanos(200_000.0, 0.7);
        let failed = self.random.below(100) == 0;
        let path = route.replace("{id}", &self.random.zipf(5000).to_string());
        let mut span = context.span_of(parent, format!("{method} {route}"), SPAN_SERVER, (at, end));
        span.span_id.clone_from(&context.span);
        span.attributes = self.server_attributes(method, route, &path, service, depth == 0, failed);
        span.attributes.extend(context.thread_attributes());
        if failed {
            span.status = Some(Status { message: String::new(), code: STATUS_ERROR });
            span.events = vec![self.exception(service, end - 5000)];
        }
        self.keep(&context, "io.opentelemetry.tomcat-10.0", span);
        Answer { end, failed, method, path }
    }

    /// A call of another service; returns when it ended.
    fn call(&mut self, caller: &Context, at: u64, depth: u32) -> u64 {
        let callee = 1 + self.random.below(NAMES.len() as u64 - 1) as usize;
        let id = self.random.bytes(8);
        let sent = at + self.nanos(400_000.0, 0.4);
        let answer = self.serve(caller.trace.clone(), id.clone(), sent, callee, depth + 1);
        let end = answer.end + self.nanos(300_000.0, 0.4);
        let mut span = caller.span_of(caller.span.clone(), answer.method.to_owned(), SPAN_CLIENT, (at, end));
        span.span_id = id;
        span.attributes = vec![
            text("http.request.method", answer.method),
            int("http.response.status_code", if answer.failed { 500 } else { 200 }),
            text("url.full", format!("http://{}:8080{}", NAMES[callee], answer.path)),
            text("server.address", NAMES[callee]),
            int("server.port", 8080),
            text("network.protocol.version", "1.1"),
        ];
        span.attributes.extend(caller.thread_attributes());
        self.keep(caller, "io.opentelemetry.java-http-client", span);
        end
    }

    fn query(&mut self, caller: &Context, at: u64) -> u64 {
        let table = self.random.pick(&TABLES);
        let (operation, query) = match self.random.below(5) {
            0 => ("INSERT", format!("INSERT INTO {table} (id, user_id, amount, created_at) VALUES (?, ?, ?, ?)")),
            1 => ("UPDATE", format!("UPDATE {table} SET amount = ?, updated_at = ? WHERE id = ?")),
            _ => ("SELECT", format!("SELECT id, name, price, updated_at FROM {table} WHERE id = ?")),
        };
        let end = at + self.nanos(1_500_000.0, 0.9);
        let mut span = caller.span_of(caller.span.clone(), format!("{operation} {table}"), SPAN_CLIENT, (at, end));
        span.span_id = self.random.bytes(8);
        span.attributes = vec![
            text("db.system.name", "postgresql"),
            text("db.namespace", "shop"),
            text("db.operation.name", operation),
            text("db.collection.name", table),
            text("db.query.text", query),
            text("server.address", "postgres"),
            int("server.port", 5432),
        ];
        span.attributes.extend(caller.thread_attributes());
        self.keep(caller, "io.opentelemetry.jdbc", span);
        end
    }

    fn work(&mut self, caller: &Context, at: u64) -> u64 {
        let end = at + self.nanos(800_000.0, 0.8);
        let mut span = caller.span_of(caller.span.clone(), "Service.render".to_owned(), SPAN_INTERNAL, (at, end));
        span.span_id = self.random.bytes(8);
        let items = self.random.below(30) as i64;
        span.attributes = vec![text("code.function.name", "com.shop.Service.render"), int("app.items.count", items)];
        span.attributes.extend(caller.thread_attributes());
        self.keep(caller, "com.shop.app", span);
        end
    }

    fn server_attributes(
        &mut self,
        method: &str,
        route: String,
        path: &str,
        service: usize,
        edge: bool,
        failed: bool,
    ) -> Vec<KeyValue> {
        let random = &mut self.random;
        let browser = format!(
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0 Safari/537.36",
            110 + random.zipf(20)
        );
        let (address, port) = if edge { ("shop.example.com", 443) } else { (NAMES[service], 8080) };
        let mut attributes = vec![
            text("http.request.method", method),
            int("http.response.status_code", if failed { 500 } else { 200 }),
            text("http.route", route),
            text("url.path", path),
            text("url.scheme", if edge { "https" } else { "http" }),
            text("server.address", address),
            int("server.port", port),
            text("client.address", format!("10.0.{}.{}", random.below(8), random.below(250))),
            text("network.peer.address", format!("10.0.{}.{}", random.below(8), random.below(250))),
            int("network.peer.port", 32_768 + random.below(28_000) as i64),
            text("network.protocol.version", "1.1"),
            text("user_agent.original", if edge { browser } else { "Java-http-client/21.0.4".to_owned() }),
        ];
        if edge {
            attributes.push(text("user.id", format!("user-{}", random.zipf(10_000))));
        }
        if failed {
            attributes.push(text("error.type", "500"));
        }
        attributes
    }

    fn exception(&mut self, service: usize, at: u64) -> Event {
        let order = self.random.below(1_000_000);
        let frames = (0..15)
            .map(|n| format!("\tat com.shop.{}.Handler{n}.handle(Handler{n}.java:{})\n", NAMES[service], 40 + n * 7));
        let trace = format!("java.lang.IllegalStateException: no state\n{}", frames.collect::<String>());
        let attributes = vec![
            text("exception.type", "java.lang.IllegalStateException"),
            text("exception.message", format!("order {order} is in no state to be paid")),
            text("exception.stacktrace", trace),
        ];
        Event { time_unix_nano: at, name: "exception".to_owned(), attributes, ..Event::default() }
    }

    /// One request in three says something.
    fn say(&mut self, context: &Context, at: u64) {
        if self.random.below(100) >= 35 {
            return;
        }
        let template = self.random.below(LOGGERS.len() as u64) as usize;
        let order = self.random.below(1_000_000);
        let millis = self.nanos(12.0, 1.0);
        let random = &mut self.random;
        let body = match template {
            0 => format!("order {order} was accepted for user-{} in {millis} ms", random.zipf(10_000)),
            1 => format!(
                "cache miss for product {} in region eu-central-1, loading from the database",
                random.zipf(5000)
            ),
            2 => format!(
                "payment of {millis}.{:02} EUR for order {order} was authorized by provider stripe",
                random.below(100)
            ),
            3 => format!("GET /api/{} responded 200 in {millis} ms", NAMES[context.service]),
            4 => format!("Fetched {} rows from {} in {millis} ms", random.below(50), random.pick(&TABLES)),
            _ => format!("retrying request to {}, attempt {}", random.pick(&NAMES), 1 + random.below(3)),
        };
        let (severity_number, severity) = match random.below(100) {
            0..85 => (9, "INFO"),
            85..94 => (5, "DEBUG"),
            _ => (13, "WARN"),
        };
        let mut attributes = context.thread_attributes();
        attributes.push(text("code.function.name", format!("{}.log", LOGGERS[template])));
        if matches!(template, 0 | 2) {
            attributes.push(int("order.id", order as i64));
        }
        let record = LogRecord {
            time_unix_nano: at,
            observed_time_unix_nano: at + random.below(200_000),
            severity_number,
            severity_text: severity.to_owned(),
            body: Some(AnyValue { value: Some(Value::StringValue(body)) }),
            attributes,
            flags: 1,
            trace_id: context.trace.clone(),
            span_id: context.span.clone(),
            ..LogRecord::default()
        };
        if self.signal == Signal::Logs {
            let Context { service, instance, .. } = *context;
            self.records.push(Placed { service, instance, scope: LOGGERS[template], record });
        }
    }

    fn keep(&mut self, context: &Context, scope: &'static str, record: Span) {
        if self.signal != Signal::Logs {
            let Context { service, instance, .. } = *context;
            self.spans.push(Placed { service, instance, scope, record });
        }
    }
}

impl Context {
    /// A span of this request's trace, without an id.
    fn span_of(&self, parent: Vec<u8>, name: String, kind: i32, (start, end): (u64, u64)) -> Span {
        Span {
            trace_id: self.trace.clone(),
            // W3C: sampled; and whether the parent is remote is known.
            flags: 0x101,
            parent_span_id: parent,
            name,
            kind,
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            ..Span::default()
        }
    }

    fn thread_attributes(&self) -> Vec<KeyValue> {
        let name = format!("http-nio-8080-exec-{}", self.thread - 20);
        vec![int("thread.id", self.thread as i64), text("thread.name", name)]
    }
}

/// Nineteen attributes that every record of an instance shares.
fn resource(service: usize, instance: u64) -> Option<Resource> {
    let mut random = Random::new(1000 + service as u64 * INSTANCES + instance);
    let mut hex = |bytes: usize| -> String { random.bytes(bytes).iter().map(|byte| format!("{byte:02x}")).collect() };
    let id = format!("{}-{}-{}-{}-{}", hex(4), hex(2), hex(2), hex(2), hex(6));
    let (name, node) = (NAMES[service], format!("node-{}", (service as u64 + instance) % 5));
    let attributes = vec![
        text("service.name", name),
        text("service.namespace", "shop"),
        text("service.version", format!("1.{}.0", service % 7)),
        text("service.instance.id", id),
        text("deployment.environment.name", "production"),
        text("host.name", node.clone()),
        text("k8s.namespace.name", "shop"),
        text("k8s.pod.name", format!("{name}-7d9c5b6f4-{}", hex(3))),
        text("k8s.deployment.name", name),
        text("k8s.node.name", node),
        text("cloud.region", "eu-central-1"),
        text("os.type", "linux"),
        text("process.runtime.name", "OpenJDK Runtime Environment"),
        text("process.runtime.version", "21.0.4+7"),
        int("process.pid", 1 + service as i64),
        text("telemetry.sdk.name", "opentelemetry"),
        text("telemetry.sdk.language", "java"),
        text("telemetry.sdk.version", "1.43.0"),
        text("container.id", hex(32)),
    ];
    Some(Resource { attributes, ..Resource::default() })
}

fn scope(name: &str) -> Option<InstrumentationScope> {
    let version = "2.10.0".to_owned();
    Some(InstrumentationScope { name: name.to_owned(), version, ..InstrumentationScope::default() })
}

/// Records by instance, and those of an instance by scope.
type Grouped<T> = std::collections::BTreeMap<(usize, u64), std::collections::BTreeMap<&'static str, Vec<T>>>;

fn grouped<T>(records: impl Iterator<Item = Placed<T>>) -> Grouped<T> {
    let mut out = Grouped::new();
    for Placed { service, instance, scope, record } in records {
        out.entry((service, instance)).or_default().entry(scope).or_default().push(record);
    }
    out
}

fn traces_request(spans: impl Iterator<Item = Placed<Span>>) -> Vec<u8> {
    let resource_spans = grouped(spans).into_iter().map(|((service, instance), scopes)| ResourceSpans {
        resource: resource(service, instance),
        scope_spans: scopes
            .into_iter()
            .map(|(name, spans)| ScopeSpans { scope: scope(name), spans, ..ScopeSpans::default() })
            .collect(),
        ..ResourceSpans::default()
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }.encode_to_vec()
}

fn logs_request(records: impl Iterator<Item = Placed<LogRecord>>) -> Vec<u8> {
    let resource_logs = grouped(records).into_iter().map(|((service, instance), scopes)| ResourceLogs {
        resource: resource(service, instance),
        scope_logs: scopes
            .into_iter()
            .map(|(name, log_records)| ScopeLogs { scope: scope(name), log_records, ..ScopeLogs::default() })
            .collect(),
        ..ResourceLogs::default()
    });
    ExportLogsServiceRequest { resource_logs: resource_logs.collect() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: u64 = 1_800_000_000_000_000_000;

    #[test]
    fn a_seed_makes_the_same_requests_of_a_thousand_records() {
        for signal in [Signal::Spans, Signal::Logs] {
            let (mut one, mut two) = (Shop::new(signal, BEGIN), Shop::new(signal, BEGIN));
            for _ in 0..3 {
                assert_eq!(one.request(), two.request());
            }
        }
        let request = Shop::new(Signal::Spans, BEGIN).request();
        let request = ExportTraceServiceRequest::decode(request.as_slice()).expect("decodes");
        let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        let spans: Vec<&Span> = scopes.flat_map(|scope| &scope.spans).collect();
        assert_eq!(spans.len() as u64, RECORDS_A_REQUEST);
        assert!(spans.iter().all(|span| span.span_id.len() == 8 && span.trace_id.len() == 16));
        assert!(spans.iter().all(|span| BEGIN <= span.start_time_unix_nano));
        assert!(spans.iter().all(|span| span.start_time_unix_nano < span.end_time_unix_nano));
    }

    #[test]
    fn log_records_are_of_the_spans() {
        let request = Shop::new(Signal::Spans, BEGIN).request();
        let request = ExportTraceServiceRequest::decode(request.as_slice()).expect("decodes");
        let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        let spans: std::collections::HashSet<Vec<u8>> =
            scopes.flat_map(|scope| &scope.spans).map(|span| span.span_id.clone()).collect();
        let request = Shop::new(Signal::Logs, BEGIN).request();
        let request = ExportLogsServiceRequest::decode(request.as_slice()).expect("decodes");
        let scopes = request.resource_logs.iter().flat_map(|resource| &resource.scope_logs);
        assert!(scopes.flat_map(|scope| &scope.log_records).any(|record| spans.contains(&record.span_id)));
    }
}
