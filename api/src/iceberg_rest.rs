//! A read-only Iceberg REST catalog under `/iceberg/v1`: the tables' names and their current metadata.
//!
//! A tenant is the first level of a namespace, a dataset the second, as in the SQL catalog: `acme.production.traces`.
//! Each answer comes from one read of the catalog. Data files are read from the store with the client's own credentials;
//! none are handed out. Whatever would write is refused with 403: clients know it as forbidden, and none takes it for a
//! commit whose outcome is unknown.
//!
//! Source: Apache Iceberg, `open-api/rest-catalog-open-api.yaml`.

use std::collections::{BTreeSet, HashSet};

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query as UrlQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use signaldb_catalog::{Identity, TablePointer};
use signaldb_lake::LakeError;

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::identity::identify;

/// Between the levels of a namespace in a URL.
const LEVEL_SEPARATOR: char = '\u{1f}';
/// Names on a page when a client asks for pages but not how long they are.
const PAGE_NAMES: usize = 1000;

/// What is answered, as the specification names it; clients try nothing else.
const ENDPOINTS: [&str; 8] = [
    "GET /v1/{prefix}/namespaces",
    "GET /v1/{prefix}/namespaces/{namespace}",
    "HEAD /v1/{prefix}/namespaces/{namespace}",
    "GET /v1/{prefix}/namespaces/{namespace}/tables",
    "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "HEAD /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}/metrics",
    "GET /v1/{prefix}/namespaces/{namespace}/views",
];

pub(crate) fn routes() -> Router<App> {
    let tables = "/iceberg/v1/namespaces/{namespace}/tables";
    Router::new()
        .route("/iceberg/v1/config", get(config).fallback(refuse))
        .route("/iceberg/v1/namespaces", get(namespaces).fallback(refuse))
        .route("/iceberg/v1/namespaces/{namespace}", get(namespace).head(namespace_exists).fallback(refuse))
        .route("/iceberg/v1/namespaces/{namespace}/views", get(views).fallback(refuse))
        .route(tables, get(list_tables).fallback(refuse))
        .route(&format!("{tables}/{{table}}"), get(table).head(table_exists).fallback(refuse))
        .route(&format!("{tables}/{{table}}/metrics"), post(metrics).fallback(refuse))
        .route("/iceberg/{*rest}", any(refuse))
}

/// Part of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageQuery {
    page_token: Option<String>,
    page_size: Option<String>,
    parent: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct TableQuery {
    snapshots: Option<String>,
}

/// The segments of a path; one that is no UTF-8 is the client's mistake.
type Segments<T> = Result<Path<T>, PathRejection>;

fn segments<T>(segments: Segments<T>) -> Result<T, ApiError> {
    segments.map(|Path(segments)| segments).map_err(|error| ApiError::invalid(error.body_text()))
}

fn answer(outcome: Result<Response, ApiError>) -> Response {
    outcome.unwrap_or_else(ApiError::into_iceberg)
}

fn ok(body: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// A list, and where it goes on.
fn list(name: &str, items: Value, next: Option<String>) -> Response {
    let mut body = json!({name: items});
    if let Some(token) = next {
        body["next-page-token"] = token.into();
    }
    ok(&body)
}

fn exists(outcome: Result<Response, ApiError>) -> Response {
    answer(outcome.map(|_| StatusCode::NO_CONTENT.into_response()))
}

async fn config(State(app): State<App>, headers: HeaderMap) -> Response {
    let body = json!({
        // Beneath what the client configured: it may reach the store on another way.
        "defaults": app.lake.store().client_properties(),
        "overrides": {},
        "endpoints": ENDPOINTS,
    });
    answer(caller(&app, &headers).map(|_| ok(&body)))
}

async fn namespaces(State(app): State<App>, UrlQuery(page): UrlQuery<PageQuery>, headers: HeaderMap) -> Response {
    answer(children(&app, &page, &headers).await)
}

async fn namespace(State(app): State<App>, path: Segments<String>, headers: HeaderMap) -> Response {
    answer(load_namespace(&app, path, &headers).await)
}

async fn namespace_exists(State(app): State<App>, path: Segments<String>, headers: HeaderMap) -> Response {
    exists(load_namespace(&app, path, &headers).await)
}

async fn list_tables(
    State(app): State<App>,
    path: Segments<String>,
    UrlQuery(page): UrlQuery<PageQuery>,
    headers: HeaderMap,
) -> Response {
    answer(names_of_tables(&app, path, &page, &headers).await)
}

async fn table(
    State(app): State<App>,
    path: Segments<(String, String)>,
    UrlQuery(query): UrlQuery<TableQuery>,
    headers: HeaderMap,
) -> Response {
    answer(load_table(&app, path, &query, &headers).await)
}

async fn table_exists(State(app): State<App>, path: Segments<(String, String)>, headers: HeaderMap) -> Response {
    exists(find_table(&app, path, &headers).await)
}

/// There are none; some clients ask with every list of tables.
async fn views(State(app): State<App>, path: Segments<String>, headers: HeaderMap) -> Response {
    let none = ok(&json!({"identifiers": []}));
    answer(load_namespace(&app, path, &headers).await.map(|_| none))
}

/// Reports of scans are taken, as the specification wants, and not kept.
async fn metrics(State(app): State<App>, path: Segments<(String, String)>, headers: HeaderMap) -> Response {
    let known = caller(&app, &headers).and_then(|identity| {
        let (namespace, _) = segments(path)?;
        Namespace::parse(&namespace, &identity)
    });
    answer(known.map(|_| StatusCode::NO_CONTENT.into_response()))
}

async fn refuse(State(app): State<App>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    answer(caller(&app, &headers).and_then(|_| Err(refusal(&method, uri.path()))))
}

fn refusal(method: &Method, path: &str) -> ApiError {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => {
            ApiError::new(Kind::NotFound, format!("this catalog does not answer {method} {path}"))
        }
        _ => ApiError::new(Kind::ReadOnly, format!("this catalog is read-only: {method} {path} is refused"))
            .with_hint("rows come in over OTLP; tables are made and maintained by SignalDB"),
    }
}

/// Who asks; their first request makes their tables, here as on every other path.
fn caller(app: &App, headers: &HeaderMap) -> Result<Identity, ApiError> {
    let identity = identify(app, headers)?;
    app.prepare(&identity);
    Ok(identity)
}

/// A namespace that the caller may know of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Namespace {
    Tenant(String),
    /// The namespace of tables, as the SQL catalog stores it: `<tenant>.<dataset>`.
    Dataset(String),
}

impl Namespace {
    /// Reads a namespace from a URL. Its levels come apart at the separator; clients that know one level only write the
    /// dotted name, which is no less clear, for names have no dots.
    ///
    /// # Errors
    /// Whatever is not the caller's does not exist, whether it does or not.
    fn parse(text: &str, identity: &Identity) -> Result<Self, ApiError> {
        let levels: Vec<&str> = text.split([LEVEL_SEPARATOR, '.']).collect();
        let tenant = identity.tenant.as_str();
        match levels[..] {
            [first] if first == tenant => Ok(Self::Tenant(first.to_owned())),
            [first, dataset] if first == tenant && !dataset.is_empty() => {
                Ok(Self::Dataset(format!("{first}.{dataset}")))
            }
            _ => Err(no_namespace(text)),
        }
    }

    fn levels(&self) -> Vec<&str> {
        match self {
            Self::Tenant(name) | Self::Dataset(name) => name.split('.').collect(),
        }
    }
}

fn no_namespace(text: &str) -> ApiError {
    let name: String = text.replace(LEVEL_SEPARATOR, ".").chars().take(200).collect();
    ApiError::new(Kind::NoSuchNamespace, format!("there is no namespace {name:?}"))
}

/// The caller's tables and their namespaces, by name.
async fn tables_of(app: &App, identity: &Identity) -> Result<Vec<TablePointer>, ApiError> {
    let found = app.lake.catalog().tables_of(identity.tenant.as_str()).await;
    Ok(found.map_err(LakeError::from)?)
}

async fn children(app: &App, page: &PageQuery, headers: &HeaderMap) -> Result<Response, ApiError> {
    let identity = caller(app, headers)?;
    let parent = page.parent.as_deref().filter(|parent| !parent.is_empty());
    let names: Vec<String> = match parent.map(|parent| Namespace::parse(parent, &identity)).transpose()? {
        None => vec![identity.tenant.to_string()],
        Some(Namespace::Tenant(_)) => {
            let tables = tables_of(app, &identity).await?;
            tables.into_iter().map(|table| table.namespace).collect::<BTreeSet<_>>().into_iter().collect()
        }
        Some(Namespace::Dataset(name)) => {
            check_dataset(app, &identity, &name).await?;
            Vec::new()
        }
    };
    let (names, next) = page_of(names, page)?;
    let names: Vec<Vec<&str>> = names.iter().map(|name| name.split('.').collect()).collect();
    Ok(list("namespaces", json!(names), next))
}

/// A dataset's namespace exists as soon as it has a table.
async fn check_dataset(app: &App, identity: &Identity, name: &str) -> Result<(), ApiError> {
    let tables = tables_of(app, identity).await?;
    if tables.iter().any(|table| table.namespace == name) { Ok(()) } else { Err(no_namespace(name)) }
}

async fn load_namespace(app: &App, path: Segments<String>, headers: &HeaderMap) -> Result<Response, ApiError> {
    let identity = caller(app, headers)?;
    let namespace = Namespace::parse(&segments(path)?, &identity)?;
    if let Namespace::Dataset(name) = &namespace {
        check_dataset(app, &identity, name).await?;
    }
    Ok(ok(&json!({"namespace": namespace.levels(), "properties": {}})))
}

async fn names_of_tables(
    app: &App,
    path: Segments<String>,
    page: &PageQuery,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let identity = caller(app, headers)?;
    let namespace = Namespace::parse(&segments(path)?, &identity)?;
    let names: Vec<String> = match &namespace {
        Namespace::Tenant(_) => Vec::new(),
        Namespace::Dataset(name) => {
            let mut tables = tables_of(app, &identity).await?;
            tables.retain(|table| table.namespace == *name);
            if tables.is_empty() {
                return Err(no_namespace(name));
            }
            tables.into_iter().map(|table| table.table).collect()
        }
    };
    let (names, next) = page_of(names, page)?;
    let levels = namespace.levels();
    let identifiers: Value = names.iter().map(|name| json!({"namespace": levels, "name": name})).collect();
    Ok(list("identifiers", identifiers, next))
}

/// The part of a list that was asked for, and the token of the next. A token is the last name of the page before it, so
/// that names which come and go in between neither repeat nor hide others.
fn page_of(mut names: Vec<String>, page: &PageQuery) -> Result<(Vec<String>, Option<String>), ApiError> {
    names.sort_unstable();
    let size = match &page.page_size {
        Some(text) => match text.parse::<usize>() {
            Ok(size) if size > 0 => Some(size),
            _ => return Err(ApiError::invalid(format!("pageSize {text:?} is not a number above 0"))),
        },
        None => page.page_token.is_some().then_some(PAGE_NAMES),
    };
    if let Some(token) = &page.page_token {
        names.retain(|name| name > token);
    }
    let Some(size) = size.filter(|size| *size < names.len()) else { return Ok((names, None)) };
    names.truncate(size);
    let next = names.last().cloned();
    Ok((names, next))
}

async fn find_table(app: &App, path: Segments<(String, String)>, headers: &HeaderMap) -> Result<Response, ApiError> {
    let identity = caller(app, headers)?;
    let (namespace, table) = segments(path)?;
    let namespace = dataset(&namespace, &table, &identity)?;
    let found = app.lake.catalog().load(&namespace, &table).await.map_err(LakeError::from)?;
    found.map(|_| StatusCode::OK.into_response()).ok_or_else(|| no_table(&namespace, &table))
}

async fn load_table(
    app: &App,
    path: Segments<(String, String)>,
    query: &TableQuery,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let identity = caller(app, headers)?;
    let (namespace, table) = segments(path)?;
    let referenced_only = match query.snapshots.as_deref() {
        None | Some("all") => false,
        Some("refs") => true,
        Some(other) => return Err(ApiError::invalid(format!("snapshots {other:?} is not all or refs"))),
    };
    let namespace = dataset(&namespace, &table, &identity)?;
    let found = app.lake.current_table(&namespace, &table).await?;
    let (location, metadata) = found.ok_or_else(|| no_table(&namespace, &table))?;
    let mut metadata = serde_json::to_value(&*metadata)
        .map_err(|error| ApiError::new(Kind::Internal, format!("the table's metadata is no JSON: {error}")))?;
    if referenced_only {
        keep_referenced(&mut metadata);
    }
    Ok(ok(&json!({"metadata-location": location, "metadata": metadata, "config": {}})))
}

/// The dataset's namespace that a table is looked for in.
fn dataset(namespace: &str, table: &str, identity: &Identity) -> Result<String, ApiError> {
    match Namespace::parse(namespace, identity)? {
        Namespace::Dataset(name) => Ok(name),
        Namespace::Tenant(name) => Err(no_table(&name, table)),
    }
}

fn no_table(namespace: &str, table: &str) -> ApiError {
    let table: String = table.chars().take(200).collect();
    ApiError::new(Kind::NoSuchTable, format!("there is no table {table:?} in {namespace:?}"))
}

/// Leaves only those snapshots that a branch or a tag names, for clients that fetch the others when they need them.
fn keep_referenced(metadata: &mut Value) {
    let refs = metadata.get("refs").and_then(Value::as_object).into_iter().flatten();
    let referenced: HashSet<i64> = refs.filter_map(|(_, branch)| branch.get("snapshot-id")?.as_i64()).collect();
    let wanted = |snapshot: &Value| {
        let id = snapshot.get("snapshot-id").and_then(Value::as_i64);
        id.is_some_and(|id| referenced.contains(&id))
    };
    if let Some(snapshots) = metadata.get_mut("snapshots").and_then(Value::as_array_mut) {
        snapshots.retain(wanted);
    }
}

#[cfg(test)]
mod tests {
    use signaldb_model::{DatasetId, TenantId};

    use super::*;

    fn acme() -> Identity {
        Identity {
            tenant: TenantId::new("acme").expect("valid"),
            dataset: DatasetId::new("production").expect("valid"),
        }
    }

    #[test]
    fn only_the_callers_namespaces_exist() {
        let parse = |text: &str| Namespace::parse(text, &acme());
        assert_eq!(parse("acme").expect("is there").levels(), ["acme"]);
        for text in ["acme\u{1f}production", "acme.production"] {
            assert_eq!(parse(text).expect("is there").levels(), ["acme", "production"]);
        }
        for text in ["", "other", "other\u{1f}main", "acme.", "acme\u{1f}a\u{1f}b", "acmeproduction", "ACME"] {
            let error = parse(text).expect_err("does not exist");
            assert_eq!(error.kind, Kind::NoSuchNamespace, "{text}");
        }
    }

    #[test]
    fn pages_hold_every_name_once() {
        let names = || ["b", "a", "d", "c"].map(str::to_owned).to_vec();
        let query = |token: Option<&str>, size: Option<&str>| PageQuery {
            page_token: token.map(str::to_owned),
            page_size: size.map(str::to_owned),
            parent: None,
        };
        assert_eq!(page_of(names(), &query(None, None)).expect("pages").1, None, "not asked for pages");
        let (mut seen, mut token) = (Vec::new(), Some(String::new()));
        while let Some(at) = token {
            let (page, next) = page_of(names(), &query(Some(&at), Some("3"))).expect("pages");
            assert!(page.len() <= 3);
            seen.extend(page);
            token = next;
        }
        assert_eq!(seen, ["a", "b", "c", "d"]);
        for size in ["0", "-1", "x"] {
            assert_eq!(page_of(names(), &query(None, Some(size))).expect_err("refused").kind, Kind::Invalid);
        }
    }

    #[test]
    fn what_would_write_is_forbidden_and_says_why() {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let error = refusal(&method, "/iceberg/v1/namespaces");
            assert_eq!(error.kind, Kind::ReadOnly);
            assert!(error.message.contains("read-only"), "{}", error.message);
        }
        assert_eq!(refusal(&Method::GET, "/iceberg/v1/x").kind, Kind::NotFound);
    }

    #[test]
    fn snapshots_without_a_reference_can_be_left_out() {
        let big = 9_007_199_254_740_993_i64;
        let mut metadata = json!({
            "refs": {"main": {"snapshot-id": big, "type": "branch"}},
            "snapshots": [{"snapshot-id": big}, {"snapshot-id": big - 1}],
        });
        keep_referenced(&mut metadata);
        assert_eq!(metadata["snapshots"], json!([{"snapshot-id": big}]));
        let mut empty = json!({});
        keep_referenced(&mut empty);
        assert_eq!(empty, json!({}));
    }
}
