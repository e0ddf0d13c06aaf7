//! Rows in memory: what many rows share (resource, scope, metric) is kept once and spread over them where it is read.
//!
//! A resource of 600 bytes over a thousand spans would otherwise be 600 kB of fresh memory for every request.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{concat_batches, filter, filter_record_batch, take, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

/// Rows of one table. Cheap to clone and to slice.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The table's columns.
    schema: SchemaRef,
    /// Where each column is.
    places: Arc<[Place]>,
    own: RecordBatch,
    shared: Vec<Shared>,
}

/// Columns that have one value for many rows.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) values: RecordBatch,
    /// Which of the values each row has.
    pub(crate) of_row: UInt32Array,
}

/// Where a column is: its position in the rows' own columns, or in one of the shared batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Own(usize),
    Shared(usize, usize),
}

impl Rows {
    pub(crate) fn new(schema: SchemaRef, places: Arc<[Place]>, own: RecordBatch, shared: Vec<Shared>) -> Self {
        debug_assert!(shared.iter().all(|shared| shared.of_row.len() == own.num_rows()));
        Self { schema, places, own, shared }
    }

    pub fn num_rows(&self) -> usize {
        self.own.num_rows()
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Memory of all columns, bytes. A slice counts as the whole that it keeps alive.
    pub fn memory_bytes(&self) -> usize {
        let of_row = self.shared.len() * self.num_rows() * size_of::<u32>();
        self.own.get_array_memory_size() + self.shared_bytes() + of_row
    }

    /// Memory of what is shared, once, bytes.
    pub fn shared_bytes(&self) -> usize {
        self.shared.iter().map(|shared| shared.values.get_array_memory_size()).sum()
    }

    pub fn slice(&self, offset: usize, length: usize) -> Self {
        self.map(self.own.slice(offset, length), |of_row| Ok(of_row.slice(offset, length)))
            .unwrap_or_else(|_| unreachable!("slicing does not fail"))
    }

    /// The rows for which `keep` is true.
    ///
    /// # Errors
    /// When `keep` has another length.
    pub fn filter(&self, keep: &BooleanArray) -> Result<Self, ArrowError> {
        self.map(filter_record_batch(&self.own, keep)?, |of_row| Ok(indices(&filter(of_row, keep)?)))
    }

    /// The rows at `at`, in that order.
    ///
    /// # Errors
    /// When a column would pass 2 GiB.
    pub fn take(&self, at: &UInt32Array) -> Result<Self, ArrowError> {
        self.map(take_record_batch(&self.own, at)?, |of_row| Ok(indices(&take(of_row, at, None)?)))
    }

    fn map(
        &self,
        own: RecordBatch,
        of_row: impl Fn(&UInt32Array) -> Result<UInt32Array, ArrowError>,
    ) -> Result<Self, ArrowError> {
        let shared = |shared: &Shared| Ok(Shared { values: shared.values.clone(), of_row: of_row(&shared.of_row)? });
        let shared = self.shared.iter().map(shared).collect::<Result<_, ArrowError>>()?;
        Ok(Self { schema: Arc::clone(&self.schema), places: Arc::clone(&self.places), own, shared })
    }

    /// All rows of parts of one table, in order; `None` without parts.
    ///
    /// # Errors
    /// When a column would pass 2 GiB.
    pub fn concat(parts: &[&Self]) -> Result<Option<Self>, ArrowError> {
        let Some(first) = parts.first() else { return Ok(None) };
        let own = concat_batches(first.own.schema_ref(), parts.iter().map(|part| &part.own))?;
        let shared = (0..first.shared.len()).map(|at| concat_shared(parts.iter().map(|part| &part.shared[at])));
        let shared = shared.collect::<Result<_, _>>()?;
        Ok(Some(Self { schema: Arc::clone(&first.schema), places: Arc::clone(&first.places), own, shared }))
    }

    /// One column, a value for each row.
    ///
    /// # Errors
    /// When the spread column would pass 2 GiB.
    pub fn column(&self, at: usize) -> Result<ArrayRef, ArrowError> {
        match self.places[at] {
            Place::Own(at) => Ok(Arc::clone(self.own.column(at))),
            Place::Shared(part, at) => {
                let shared = &self.shared[part];
                take(shared.values.column(at).as_ref(), &shared.of_row, None)
            }
        }
    }

    /// The named columns of the table's schema, a value for each row.
    ///
    /// # Errors
    /// When a spread column would pass 2 GiB, or a column does not exist.
    pub fn project(&self, columns: &[usize]) -> Result<RecordBatch, ArrowError> {
        let schema = Arc::new(self.schema.project(columns)?);
        let arrays = columns.iter().map(|at| self.column(*at)).collect::<Result<_, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.num_rows()));
        RecordBatch::try_new_with_options(schema, arrays, &options)
    }

    /// All columns, a value for each row.
    ///
    /// # Errors
    /// When a spread column would pass 2 GiB.
    pub fn to_batch(&self) -> Result<RecordBatch, ArrowError> {
        let arrays = (0..self.places.len()).map(|at| self.column(at)).collect::<Result<_, _>>()?;
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
    }
}

fn concat_shared<'a>(parts: impl Iterator<Item = &'a Shared> + Clone) -> Result<Shared, ArrowError> {
    let schema = parts.clone().next().map(|part| part.values.schema()).unwrap_or_else(|| unreachable!("has parts"));
    let values = concat_batches(&schema, parts.clone().map(|part| &part.values))?;
    let mut shift = 0;
    let mut of_row = Vec::new();
    for part in parts {
        of_row.extend(part.of_row.values().iter().map(|at| at + shift));
        shift += part.values.num_rows() as u32;
    }
    Ok(Shared { values, of_row: of_row.into() })
}

fn indices(array: &ArrayRef) -> UInt32Array {
    arrow::array::AsArray::as_primitive(array).clone()
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;

    use super::*;
    use crate::SignalKind;
    use crate::decode::decode;

    fn request(services: &[(&str, &[&str])]) -> Vec<u8> {
        let resource = |(service, names): &(&str, &[&str])| {
            let name = any_value::Value::StringValue((*service).to_owned());
            let value = Some(AnyValue { value: Some(name) });
            let attribute = KeyValue { key: "service.name".to_owned(), value, ..KeyValue::default() };
            let spans = names.iter().map(|name| Span { name: (*name).to_owned(), ..Span::default() }).collect();
            ResourceSpans {
                resource: Some(Resource { attributes: vec![attribute], ..Resource::default() }),
                scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }
        };
        ExportTraceServiceRequest { resource_spans: services.iter().map(resource).collect() }.encode_to_vec()
    }

    fn pairs(rows: &Rows) -> Vec<String> {
        let batch = rows.to_batch().expect("spreads");
        let text = |name: &str| batch.column_by_name(name).expect("exists").as_string::<i32>().clone();
        let (services, names) = (text("service_name"), text("name"));
        services.iter().zip(names.iter()).map(|(s, n)| format!("{}/{}", s.unwrap_or("-"), n.unwrap_or("-"))).collect()
    }

    #[test]
    fn shared_columns_follow_their_rows_through_every_operation() {
        let first = request(&[("shop", &["a", "b"]), ("cart", &["c"]), ("shop", &["d"])]);
        let second = request(&[("mail", &["e"]), ("shop", &["f"])]);
        let one = decode(SignalKind::Traces, [(1, first.as_slice())]).remove(0).rows;
        let two = decode(SignalKind::Traces, [(2, second.as_slice())]).remove(0).rows;
        assert_eq!(one.shared[0].values.num_rows(), 2, "a resource that comes again is kept once");
        let all = Rows::concat(&[&one, &two]).expect("fits").expect("has parts");
        assert_eq!(pairs(&all), ["shop/a", "shop/b", "cart/c", "shop/d", "mail/e", "shop/f"]);
        assert_eq!(pairs(&all.slice(2, 3)), ["cart/c", "shop/d", "mail/e"]);
        assert_eq!(pairs(&all.slice(2, 3).take(&vec![2, 0].into()).expect("takes")), ["mail/e", "cart/c"]);
        let keep = BooleanArray::from(vec![true, false, false, false, false, true]);
        assert_eq!(pairs(&all.filter(&keep).expect("filters")), ["shop/a", "shop/f"]);
        let service = all.schema().index_of("service_name").expect("exists");
        assert_eq!(all.project(&[service]).expect("projects").num_columns(), 1);
        assert_eq!(all.project(&[]).expect("projects").num_rows(), 6);
        let time = all.column(all.schema().index_of("time_unix_nano").expect("exists")).expect("own");
        assert_eq!(time.as_any().downcast_ref::<Int64Array>().map(arrow::array::Array::len), Some(6));
    }
}
