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

use crate::edge;
use crate::error::{ApiError, Kind};

/// Header of an eventual answer that lacks the newest rows of these groups (HTTP, and Flight metadata).
pub(crate) const PARTIAL: &str = "x-signaldb-missing-groups";

/// Header that names the query, as in `system.queries`.
pub(crate) const QUERY_ID: &str = "x-signaldb-query-id";

/// Bytes of a JSON document that are held back; one that is no larger fails with a status, and has one.
const HELD_BYTES_MAX: usize = 4 << 20;

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

/// Writes a result as it comes. What comes before the first bytes leave is a status; an error after them ends the body
/// short, which every client notices. Nothing leaves of a JSON document before it is whole or large.
pub(crate) async fn respond(mut running: RunningQuery, format: Format, begun: Instant) -> Result<Response, ApiError> {
    let (id, missing) = (running.id(), running.missing_groups.clone());
    let (mut writer, head) = Writer::begin(&running, format, begun)?;
    let held_max = if format == Format::Json { HELD_BYTES_MAX } else { 0 };
    let (mut held, mut bytes) = (vec![head], 0);
    let whole = loop {
        let Some(batch) = running.next().await.transpose()? else { break true };
        let rows = writer.rows(&batch)?;
        bytes += rows.len();
        held.push(rows);
        if bytes >= held_max {
            break false;
        }
    };
    let body = if whole {
        held.push(writer.end(running.scanned_bytes())?);
        Body::from(held.concat())
    } else {
        let rest = stream::unfold(Some((running, writer)), |state| async move {
            let (mut running, mut writer) = state?;
            match running.next().await {
                Some(Ok(batch)) => match writer.rows(&batch) {
                    Ok(rows) => Some((Ok(rows), Some((running, writer)))),
                    Err(error) => Some((Err(std::io::Error::other(error.message)), None)),
                },
                Some(Err(error)) => Some((Err(std::io::Error::other(error.to_string())), None)),
                None => {
                    let end = writer.end(running.scanned_bytes());
                    Some((end.map_err(|error| std::io::Error::other(error.message)), None))
                }
            }
        });
        Body::from_stream(futures::StreamExt::chain(stream::iter(held.into_iter().map(Ok)), rest))
    };
    let mut response = ([(header::CONTENT_TYPE, format.media_type())], body).into_response();
    if let Ok(id) = HeaderValue::try_from(id.to_string()) {
        response.headers_mut().insert(HeaderName::from_static(QUERY_ID), id);
    }
    Ok(say_missing(response, &missing))
}

/// Writes one result, piece by piece.
struct Writer {
    schema: SchemaRef,
    format: Format,
    missing: Vec<u32>,
    begun: Instant,
    rows: usize,
}

impl Writer {
    /// The writer, and what comes before the first row.
    fn begin(running: &RunningQuery, format: Format, begun: Instant) -> Result<(Self, Bytes), ApiError> {
        Self::new(&running.schema, format, running.missing_groups.clone(), begun)
    }

    fn new(schema: &Schema, format: Format, missing: Vec<u32>, begun: Instant) -> Result<(Self, Bytes), ApiError> {
        let schema = edge::plain(schema);
        let head = match format {
            Format::Json => json_head(&schema)?.into(),
            _ => encode(&schema, None, format, true)?,
        };
        Ok((Self { schema, format, missing, begun, rows: 0 }, head))
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<Bytes, ApiError> {
        let first = self.rows == 0;
        self.rows += batch.num_rows();
        let batch = edge::convert(batch, &edge::plain(batch.schema_ref()))?;
        match self.format {
            Format::Json => Ok(json_rows(&batch, first)?.into()),
            _ => encode(&self.schema, Some(&batch), self.format, false),
        }
    }

    /// What comes after the last row.
    fn end(&self, scanned_bytes: u64) -> Result<Bytes, ApiError> {
        match self.format {
            Format::Json => {
                let elapsed = self.begun.elapsed().as_secs_f64() * 1000.0;
                let elapsed = (elapsed * 1000.0).round() / 1000.0;
                let mut stats = json!({"rows": self.rows, "elapsed_ms": elapsed, "scanned_bytes": scanned_bytes});
                if !self.missing.is_empty() {
                    stats["partial"] = true.into();
                    stats["missing_groups"] = json!(self.missing);
                }
                Ok(format!("],\"stats\":{stats}}}").into())
            }
            Format::Arrow => Ok(end_of_stream()),
            Format::Ndjson | Format::Csv => Ok(Bytes::new()),
        }
    }
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
            fields.push(Field::new(field.name(), DataType::Utf8, true));
            columns.push(Arc::new(json_texts(column)?));
        } else {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(internal)
}

/// A column as JSON text.
pub(crate) fn json_texts(column: &ArrayRef) -> Result<StringArray, ApiError> {
    let values = json_values(column)?;
    Ok(values.iter().map(|value| (!value.is_null()).then(|| value.to_string())).collect())
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

/// A document up to its first row.
fn json_head(schema: &SchemaRef) -> Result<String, ApiError> {
    let columns: Vec<Value> = schema
        .fields()
        .iter()
        .map(|field| json!({"name": field.name(), "type": field.data_type().to_string()}))
        .collect();
    let columns = serde_json::to_string(&columns).map_err(internal)?;
    Ok(format!("{{\"columns\":{columns},\"rows\":["))
}

/// Rows, with what separates them from those before.
fn json_rows(batch: &RecordBatch, first: bool) -> Result<Vec<u8>, ApiError> {
    let columns = batch.columns().iter().map(json_values).collect::<Result<Vec<_>, _>>()?;
    let mut out = Vec::new();
    for row in 0..batch.num_rows() {
        if row > 0 || !first {
            out.push(b',');
        }
        let values: Vec<&Value> = columns.iter().map(|column| &column[row]).collect();
        serde_json::to_writer(&mut out, &values).map_err(internal)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Float64Array, Int64Array, StringViewArray};

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
        let document = |batches: &[RecordBatch]| {
            let (mut writer, head) =
                Writer::new(&batch.schema(), Format::Json, vec![3], Instant::now()).expect("writes");
            let mut document = vec![head];
            document.extend(batches.iter().map(|batch| writer.rows(batch).expect("writes")));
            document.push(writer.end(7).expect("writes"));
            String::from_utf8(document.concat()).expect("UTF-8")
        };
        for batches in [vec![], vec![batch.clone()], vec![batch.slice(0, 0), batch.clone(), batch.clone()]] {
            let parsed: Value = serde_json::from_str(&document(&batches)).expect("JSON");
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(parsed["rows"].as_array().map(Vec::len), Some(rows));
            assert_eq!(parsed["columns"].as_array().map(Vec::len), Some(3));
            assert_eq!(parsed["stats"]["rows"], rows);
            assert_eq!(parsed["stats"]["partial"], true);
        }
        let text = document(std::slice::from_ref(&batch));
        assert!(text.contains("[9223372036854775807,\"a,\\\"b\\\"\",null],[null,\"é\",0.5]"), "{text}");
    }

    #[test]
    fn views_are_written_as_texts() {
        let long = "a text of more than twelve bytes";
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a"), None, Some(long)]));
        let batch = RecordBatch::try_from_iter_with_nullable([("t", texts, true)]).expect("valid");
        let written = |format: Format| {
            let (mut writer, head) = Writer::new(&batch.schema(), format, vec![], Instant::now()).expect("writes");
            [head, writer.rows(&batch).expect("writes"), writer.end(0).expect("writes")].concat()
        };
        let json: Value = serde_json::from_slice(&written(Format::Json)).expect("JSON");
        assert_eq!(json["columns"], json!([{"name": "t", "type": "Utf8"}]));
        assert_eq!(json["rows"], json!([["a"], [null], [long]]));
        let arrow = written(Format::Arrow);
        let mut reader = arrow::ipc::reader::StreamReader::try_new(arrow.as_slice(), None).expect("reads");
        let read = reader.next().expect("rows").expect("reads");
        assert_eq!(read.column(0).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("a"), None, Some(long)]);
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
