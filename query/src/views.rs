//! Texts inside queries are views: a value of 16 bytes that holds a short text, or says where a long one is.
//!
//! | where | a column of texts |
//! |---|---|
//! | data files, memtables, rows between nodes | `Utf8` |
//! | scans, filters and everything above them | `Utf8View` |
//! | TraceQL, which keeps rows for long, and what leaves the node | `Utf8` |
//!
//! The Parquet reader makes views of the pages that it read, without a copy, and grouping and filters compare the first
//! bytes of two texts without looking further. Texts in maps, lists and structs stay as they are: so does what
//! `attributes['key']` yields, and with it `signaldb_attribute`.
//!
//! A view keeps alive all of the buffer that its text is in, and memory that is counted batch by batch counts the buffer
//! with each of them.

use std::sync::{Arc, LazyLock};

use arrow::array::{AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::{Result, exec_err};
use signaldb_signals::SignalTable;
use signaldb_signals::schema::{self, TableSchema};

/// The schema of `table` as queries see it.
pub(crate) fn of(table: SignalTable) -> &'static TableSchema {
    static SCHEMAS: LazyLock<Vec<TableSchema>> =
        LazyLock::new(|| SignalTable::ALL.map(|table| in_queries(schema::of(table))).into());
    &SCHEMAS[table as usize - 1]
}

/// A table as queries see it.
pub(crate) fn in_queries(stored: &TableSchema) -> TableSchema {
    let fields = stored.arrow.fields().iter().map(|field| match view_of(field.data_type()) {
        Some(kind) => Arc::new(field.as_ref().clone().with_data_type(kind)),
        None => Arc::clone(field),
    });
    let arrow: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    TableSchema { arrow, ..stored.clone() }
}

/// Stored rows as queries see them. Texts stay where they are.
///
/// # Errors
/// None that is known.
pub(crate) fn with_views(batch: &RecordBatch) -> Result<RecordBatch> {
    retyped(batch, view_of)
}

/// Rows of a query with their texts in buffers of their own, which have nothing else in them.
///
/// # Errors
/// When a column has more than 2 GiB.
pub(crate) fn without_views(batch: &RecordBatch) -> Result<RecordBatch> {
    // The kernel would panic.
    let texts = batch.columns().iter().filter_map(|column| column.as_string_view_opt());
    if texts.map(|texts| texts.lengths().map(u64::from).sum::<u64>()).any(|bytes| bytes > i32::MAX as u64) {
        return exec_err!("the texts of a column are larger than 2 GiB");
    }
    retyped(batch, plain_of)
}

fn view_of(kind: &DataType) -> Option<DataType> {
    match kind {
        DataType::Utf8 => Some(DataType::Utf8View),
        DataType::Binary => Some(DataType::BinaryView),
        _ => None,
    }
}

fn plain_of(kind: &DataType) -> Option<DataType> {
    match kind {
        DataType::Utf8View => Some(DataType::Utf8),
        DataType::BinaryView => Some(DataType::Binary),
        _ => None,
    }
}

fn retyped(batch: &RecordBatch, other: fn(&DataType) -> Option<DataType>) -> Result<RecordBatch> {
    let schema = batch.schema();
    if schema.fields().iter().all(|field| other(field.data_type()).is_none()) {
        return Ok(batch.clone());
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        match other(field.data_type()) {
            Some(kind) => {
                columns.push(cast(column, &kind)?);
                fields.push(Arc::new(field.as_ref().clone().with_data_type(kind)));
            }
            None => {
                columns.push(Arc::clone(column));
                fields.push(Arc::clone(field));
            }
        }
    }
    let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, ArrayRef, Int64Array, StringArray};

    use super::*;

    #[test]
    fn columns_of_texts_are_views_and_nothing_else_changes() {
        for table in SignalTable::ALL {
            let (stored, seen) = (schema::of(table), of(table));
            assert_eq!(seen.table, table);
            assert_eq!(seen.columns, stored.columns);
            for (stored, seen) in stored.arrow.fields().iter().zip(seen.arrow.fields()) {
                let expected = match stored.data_type() {
                    DataType::Utf8 => &DataType::Utf8View,
                    other => other,
                };
                assert_eq!((seen.name(), seen.data_type()), (stored.name(), expected));
                assert_eq!(seen.metadata(), stored.metadata(), "field ids stay");
            }
        }
        let traces = &of(SignalTable::Traces).arrow;
        assert_eq!(traces.field_with_name("name").expect("exists").data_type(), &DataType::Utf8View);
        let stored = &schema::of(SignalTable::Traces).arrow;
        assert_eq!(
            traces.field_with_name("attributes").expect("exists"),
            stored.field_with_name("attributes").expect("exists")
        );
    }

    #[test]
    fn rows_become_views_and_texts_again() {
        let long = "a text of more than twelve bytes";
        let texts = StringArray::from(vec![Some("cut off"), Some("short"), None, Some(long), Some("")]);
        let stored = RecordBatch::try_from_iter_with_nullable([
            ("text", Arc::new(texts) as ArrayRef, true),
            ("number", Arc::new(Int64Array::from_iter_values(0..5)) as ArrayRef, true),
        ]);
        // A part, as memtables have them.
        let stored = stored.expect("a batch").slice(1, 4);
        let seen = with_views(&stored).expect("casts");
        assert_eq!(
            seen.column(0).as_string_view().iter().collect::<Vec<_>>(),
            [Some("short"), None, Some(long), Some("")]
        );
        assert_eq!(seen.column(1), stored.column(1));
        let buffer = stored.column(0).as_string::<i32>().values();
        assert!(seen.column(0).as_string_view().data_buffers()[0].ptr_eq(buffer), "texts are not copied");
        assert_eq!(with_views(&seen).expect("is done"), seen);
        assert_eq!(without_views(&seen).expect("casts"), stored);
        assert!(without_views(&seen).expect("casts").column(0).to_data().buffers()[1].len() < buffer.len());
        let none = stored.project(&[]).expect("no columns");
        assert_eq!(with_views(&none).expect("casts").num_rows(), 4);
    }
}
