//! Query results as JSON, NDJSON, CSV or Arrow IPC.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::csv;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{JsonArray, LineDelimited, WriterBuilder};
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde_json::{Value, json};
use signaldb_query::RunningQuery;

use crate::error::{ApiError, Kind};

/// Header of an eventual answer that lacks the newest rows of these groups (HTTP, and Flight metadata).
pub(crate) const PARTIAL: &str = "x-signaldb-missing-groups";

/// A way to write rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Ndjson,
    Csv,
    Arrow,
}

impl Format {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "json" => Self::Json,
            "ndjson" => Self::Ndjson,
            "csv" => Self::Csv,
            "arrow" => Self::Arrow,
            _ => return None,
        })
    }

    pub(crate) fn from_media_type(name: &str) -> Option<Self> {
        Some(match name {
            "application/json" => Self::Json,
            "application/x-ndjson" | "application/jsonl" => Self::Ndjson,
            "text/csv" => Self::Csv,
            "application/vnd.apache.arrow.stream" => Self::Arrow,
            _ => return None,
        })
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }
}

/// Writes a result. JSON is one document and is gathered first; the others stream. An error before the first row is a
/// status; one after it ends the body short, which every client notices.
pub(crate) async fn respond(mut running: RunningQuery, format: Format, begun: Instant) -> Result<Response, ApiError> {
    if format == Format::Json {
        let missing = running.missing_groups.clone();
        let (schema, batches) = running.collect().await?;
        let body = Bytes::from(json_document(&schema, &batches, &missing, begun)?);
        let response = ([(header::CONTENT_TYPE, format.media_type())], body).into_response();
        return Ok(say_missing(response, &missing));
    }
    let (schema, missing) = (Arc::clone(&running.schema), running.missing_groups.clone());
    let first = running.next().await.transpose()?;
    let head = encode(&schema, first.as_ref(), format, true)?;
    if first.is_none() {
        // No rows; nothing comes after the end.
        let end = if format == Format::Arrow { end_of_stream() } else { Bytes::new() };
        let body = Bytes::from([head, end].concat());
        return Ok(say_missing(([(header::CONTENT_TYPE, format.media_type())], body).into_response(), &missing));
    }
    let rest = stream::unfold((running, schema, false), move |(mut running, schema, ended)| async move {
        if ended {
            return None;
        }
        let item = match running.next().await {
            Some(Ok(batch)) => encode(&schema, Some(&batch), format, false).map_err(|error| error.message),
            Some(Err(error)) => Err(error.to_string()),
            None if format == Format::Arrow => return Some((Ok(end_of_stream()), (running, schema, true))),
            None => return None,
        };
        let ended = item.is_err();
        Some((item.map_err(std::io::Error::other), (running, schema, ended)))
    });
    let body = Body::from_stream(futures::StreamExt::chain(stream::iter([Ok(head)]), rest));
    let response = ([(header::CONTENT_TYPE, format.media_type())], body).into_response();
    Ok(say_missing(response, &missing))
}

/// What every format can carry: that the newest rows of some groups are not in the answer.
fn say_missing(mut response: Response, missing: &[u32]) -> Response {
    if let Some(groups) = missing_groups(missing) {
        response.headers_mut().insert(HeaderName::from_static(PARTIAL), groups);
    }
    response
}

/// The groups as a header; `None` when the answer is whole.
pub(crate) fn missing_groups(missing: &[u32]) -> Option<HeaderValue> {
    let groups: Vec<String> = missing.iter().map(ToString::to_string).collect();
    (!groups.is_empty()).then(|| HeaderValue::from_str(&groups.join(",")).ok()).flatten()
}

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Kind::Internal, format!("the result cannot be written: {error}"))
}

fn encode(schema: &SchemaRef, batch: Option<&RecordBatch>, format: Format, first: bool) -> Result<Bytes, ApiError> {
    let mut out = Vec::new();
    match (format, batch) {
        (Format::Arrow, batch) => {
            let mut writer = StreamWriter::try_new(Vec::new(), schema).map_err(internal)?;
            let head = writer.get_ref().len();
            if let Some(batch) = batch {
                writer.write(batch).map_err(internal)?;
            }
            // Without finish: the stream goes on in the next chunk.
            let written = writer.get_ref();
            out.extend_from_slice(&written[if first { 0 } else { head }..]);
        }
        (Format::Csv, batch) => {
            let flat = flatten(&batch.cloned().unwrap_or_else(|| RecordBatch::new_empty(Arc::clone(schema))))?;
            csv::WriterBuilder::new().with_header(first).build(&mut out).write(&flat).map_err(internal)?;
        }
        (_, Some(batch)) => {
            let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut out);
            writer.write(batch).map_err(internal)?;
        }
        (_, None) => {}
    }
    Ok(out.into())
}

/// The Arrow IPC end-of-stream marker.
fn end_of_stream() -> Bytes {
    Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])
}

/// CSV has no nested values: they become JSON text.
fn flatten(batch: &RecordBatch) -> Result<RecordBatch, ApiError> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if field.data_type().is_nested() || matches!(field.data_type(), DataType::Binary | DataType::FixedSizeBinary(_))
        {
            let values = json_values(column)?;
            let text: StringArray = values.iter().map(|value| (!value.is_null()).then(|| value.to_string())).collect();
            fields.push(Field::new(field.name(), DataType::Utf8, true));
            columns.push(Arc::new(text));
        } else {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(internal)
}

/// A column as JSON values. Each goes under a key of its own, so that columns may share a name.
fn json_values(column: &ArrayRef) -> Result<Vec<Value>, ApiError> {
    let schema = Arc::new(Schema::new(vec![Field::new("v", column.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(column)]).map_err(internal)?;
    let mut out = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(&mut out);
    writer.write(&batch).and_then(|()| writer.finish()).map_err(internal)?;
    drop(writer);
    if out.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<serde_json::Map<String, Value>> = serde_json::from_slice(&out).map_err(internal)?;
    Ok(rows.into_iter().map(|mut row| row.remove("v").unwrap_or(Value::Null)).collect())
}

fn json_document(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    missing: &[u32],
    begun: Instant,
) -> Result<Vec<u8>, ApiError> {
    let columns: Vec<Value> = schema
        .fields()
        .iter()
        .map(|field| json!({"name": field.name(), "type": field.data_type().to_string()}))
        .collect();
    let mut rows: Vec<Value> = Vec::new();
    for batch in batches {
        let columns = batch.columns().iter().map(json_values).collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column[row].clone()).collect());
        }
    }
    let elapsed = begun.elapsed().as_secs_f64() * 1000.0;
    let mut stats = json!({"rows": rows.len(), "elapsed_ms": (elapsed * 1000.0).round() / 1000.0});
    if !missing.is_empty() {
        stats["partial"] = true.into();
        stats["missing_groups"] = json!(missing);
    }
    serde_json::to_vec(&json!({"columns": columns, "rows": rows, "stats": stats})).map_err(internal)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array};

    use super::*;

    fn batch() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("n", DataType::Int64, true),
            Field::new("n", DataType::Utf8, true),
            Field::new("d", DataType::Float64, true),
        ]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![Some(i64::MAX), None])),
            Arc::new(StringArray::from(vec!["a,\"b\"", "é"])),
            Arc::new(Float64Array::from(vec![f64::NAN, 0.5])),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).expect("valid")
    }

    #[test]
    fn json_keeps_large_integers_and_equal_names() {
        let batch = batch();
        let document = json_document(&batch.schema(), &[batch], &[], Instant::now()).expect("writes");
        let text = String::from_utf8(document).expect("UTF-8");
        assert!(text.contains("[9223372036854775807,\"a,\\\"b\\\"\",null],[null,\"é\",0.5]"), "{text}");
    }

    #[test]
    fn streams_have_one_head() {
        let batch = batch();
        let schema = batch.schema();
        let csv = encode(&schema, Some(&batch), Format::Csv, true).expect("writes");
        assert!(csv.starts_with(b"n,n,d\n"));
        assert!(!encode(&schema, Some(&batch), Format::Csv, false).expect("writes").starts_with(b"n,n,d\n"));
        let arrow: Vec<u8> = [
            encode(&schema, Some(&batch), Format::Arrow, true).expect("writes"),
            encode(&schema, Some(&batch), Format::Arrow, false).expect("writes"),
            end_of_stream(),
        ]
        .concat();
        let reader = arrow::ipc::reader::StreamReader::try_new(arrow.as_slice(), None).expect("reads");
        assert_eq!(reader.map(|batch| batch.expect("reads").num_rows()).sum::<usize>(), 4);
    }
}
