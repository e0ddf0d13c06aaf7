//! `GET /api/v1/tables/{table}/view`: the logical view as SQL for Spark, Trino or DuckDB.

use axum::extract::{Path, Query as UrlQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use signaldb_signals::{SignalTable, ViewDialect, view_ddl};

use crate::app::App;
use crate::error::{ApiError, Kind};
use crate::identity::identify;

#[derive(Debug, Default, Deserialize)]
pub(crate) struct ViewQuery {
    dialect: Option<String>,
    /// The stored table in that SQL; default: as the REST catalog shows it, attached as `signaldb`.
    source: Option<String>,
    /// Name of the view; default: the table's.
    view: Option<String>,
}

pub(crate) async fn view(
    State(app): State<App>,
    Path(table): Path<String>,
    UrlQuery(query): UrlQuery<ViewQuery>,
    headers: HeaderMap,
) -> Response {
    match ddl(&app, &table, &query, &headers) {
        Ok(ddl) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], ddl).into_response(),
        Err(error) => error.into_response(),
    }
}

fn ddl(app: &App, table: &str, query: &ViewQuery, headers: &HeaderMap) -> Result<String, ApiError> {
    let identity = identify(app, headers)?;
    let table = SignalTable::from_name(table)
        .ok_or_else(|| ApiError::new(Kind::NotFound, format!("there is no table {table:?}")))?;
    let dialects = ViewDialect::NAMES.join(", ");
    let dialect = query.dialect.as_deref().unwrap_or_default();
    let dialect = ViewDialect::from_name(dialect)
        .ok_or_else(|| ApiError::invalid(format!("dialect {dialect:?} is not one of {dialects}")))?;
    let source = query
        .source
        .clone()
        .unwrap_or_else(|| dialect.source(identity.tenant.as_str(), identity.dataset.as_str(), table));
    let view = query.view.as_deref().unwrap_or(table.name());
    Ok(format!("{};\n", view_ddl(dialect, table, &source, view)))
}
