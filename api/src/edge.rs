//! The types that leave the node: those that clients of every age read, and a flat form for those that read few. Over HTTP
//! only views become what they are of ([`plain`]); the table is that of Flight SQL.
//!
//! | in the engine | sent | sent flat |
//! |---|---|---|
//! | text and binary views, large text, binary and lists, at any depth | their plain forms | as below |
//! | dictionary | the same | its values |
//! | list, struct, map, binary | the same | JSON text |
//! | decimal | the same | double |
//! | date | the same | timestamp in milliseconds |
//! | interval, time, null | the same | text |

use std::sync::Arc;

use arrow::array::{ArrayData, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::error::{ApiError, Kind};
use crate::format::json_texts;

/// The schema of a table as it is sent.
pub(crate) fn compatible(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|of| field(of));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The schema of a result as it is sent. Any column may be null: whether one can be depends on where its rows are at the
/// moment, and drivers compare what was announced with what comes.
pub(crate) fn result(schema: &Schema, flat: bool) -> SchemaRef {
    let compatible = compatible(schema);
    let fields = compatible.fields().iter().map(|of| {
        let kind = if flat { flat_kind(of.data_type()) } else { of.data_type().clone() };
        Field::new(of.name(), kind, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The schema of a result, or of some of its rows, as it is written over HTTP: the same without views.
pub(crate) fn plain(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|of| match of.data_type() {
        viewed if has_views(viewed) => Arc::new(of.as_ref().clone().with_data_type(kind(viewed))),
        _ => Arc::clone(of),
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

/// Rows as `schema`, which [`result`] or [`plain`] made of theirs, says.
///
/// # Errors
/// When a column of 32-bit offsets cannot hold the values.
pub(crate) fn convert(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ApiError> {
    if batch.num_columns() != schema.fields().len() {
        return Err(ApiError::new(Kind::Internal, "the rows have other columns than were announced"));
    }
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| as_kind(column, field.data_type()));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(internal)
}

fn as_kind(column: &ArrayRef, kind: &DataType) -> Result<ArrayRef, ApiError> {
    if column.data_type() == kind {
        return Ok(Arc::clone(column));
    }
    if *kind == DataType::Utf8 && is_json(column.data_type()) {
        return Ok(Arc::new(json_texts(column)?));
    }
    // Of views the kernel would panic.
    if viewed_bytes_max(&column.to_data()) > i32::MAX as u64 {
        return Err(internal("the values of a column are larger than 2 GiB"));
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, kind, &strict).map_err(internal)
}

/// Bytes that the values of views take up without them: of the largest such array, at any depth. Views may share a buffer, so
/// that is not what they hold.
fn viewed_bytes_max(data: &ArrayData) -> u64 {
    match data.data_type() {
        // The lowest 32 bits of a view are the length.
        DataType::Utf8View | DataType::BinaryView => {
            data.buffer::<u128>(0).iter().map(|view| u64::from(*view as u32)).sum()
        }
        _ => data.child_data().iter().map(viewed_bytes_max).max().unwrap_or(0),
    }
}

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Kind::Internal, format!("the result cannot be sent: {error}"))
}

fn has_views(of: &DataType) -> bool {
    match of {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::Dictionary(_, values) => has_views(values),
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::ListView(element)
        | DataType::LargeListView(element)
        | DataType::FixedSizeList(element, _)
        | DataType::Map(element, _) => has_views(element.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        _ => false,
    }
}

fn field(of: &Field) -> Field {
    Field::new(of.name(), kind(of.data_type()), of.is_nullable())
}

fn kind(of: &DataType) -> DataType {
    let inner = |of: &Field| Arc::new(field(of));
    match of {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(keys, values) => DataType::Dictionary(keys.clone(), Box::new(kind(values))),
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::ListView(element)
        | DataType::LargeListView(element) => DataType::List(inner(element)),
        DataType::FixedSizeList(element, length) => DataType::FixedSizeList(inner(element), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|of| field(of)).collect()),
        DataType::Map(entries, sorted) => DataType::Map(inner(entries), *sorted),
        other => other.clone(),
    }
}

fn flat_kind(of: &DataType) -> DataType {
    match of {
        DataType::Dictionary(_, values) => flat_kind(values),
        nested if is_json(nested) => DataType::Utf8,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            DataType::Float64
        }
        DataType::Float16 => DataType::Float32,
        DataType::Date32 | DataType::Date64 => DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::Interval(_) | DataType::Time32(_) | DataType::Time64(_) | DataType::Null => DataType::Utf8,
        other => other.clone(),
    }
}

/// What has no flat form but JSON.
fn is_json(of: &DataType) -> bool {
    match of {
        DataType::Dictionary(_, values) => is_json(values),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        other => other.is_nested(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Array, AsArray, BinaryViewArray, Date32Array, Decimal128Array, DictionaryArray, Int32Array, LargeStringArray,
        ListArray, MapArray, StringArray, StringViewArray, StringViewBuilder, StructArray,
    };
    use arrow::buffer::{Buffer, OffsetBuffer};
    use arrow::datatypes::{Fields, Float64Type, Int32Type, TimestampMillisecondType};

    use super::*;

    fn list() -> ListArray {
        let element = Arc::new(Field::new("item", DataType::Utf8View, true));
        let values = Arc::new(StringViewArray::from(vec![Some("a"), None, Some("a text of more than twelve bytes")]));
        ListArray::new(element, OffsetBuffer::from_lengths([2, 1]), values, None)
    }

    fn map() -> MapArray {
        let fields = Fields::from(vec![
            Field::new("keys", DataType::Utf8View, false),
            Field::new("values", DataType::BinaryView, true),
        ]);
        let keys: ArrayRef = Arc::new(StringViewArray::from(vec!["k", "l"]));
        let values: ArrayRef = Arc::new(BinaryViewArray::from(vec![Some(b"v".as_slice()), None]));
        let entries = StructArray::new(fields.clone(), vec![keys, values], None);
        let entry = Arc::new(Field::new("entries", DataType::Struct(fields), false));
        MapArray::new(entry, OffsetBuffer::from_lengths([1, 1]), entries, None, false)
    }

    fn dictionary() -> DictionaryArray<Int32Type> {
        let values = Arc::new(StringViewArray::from(vec!["x", "y"]));
        DictionaryArray::new(Int32Array::from(vec![Some(1), None]), values)
    }

    fn batch() -> RecordBatch {
        let decimal = Decimal128Array::from(vec![150, 25]).with_precision_and_scale(5, 2).expect("a decimal");
        RecordBatch::try_from_iter_with_nullable([
            ("view", Arc::new(StringViewArray::from(vec!["a", "b"])) as ArrayRef, false),
            ("large", Arc::new(LargeStringArray::from(vec!["a", "b"])) as ArrayRef, true),
            ("list", Arc::new(list()) as ArrayRef, true),
            ("map", Arc::new(map()) as ArrayRef, true),
            ("dictionary", Arc::new(dictionary()) as ArrayRef, true),
            ("decimal", Arc::new(decimal) as ArrayRef, true),
            ("date", Arc::new(Date32Array::from(vec![1, 2])) as ArrayRef, true),
        ])
        .expect("a batch")
    }

    #[test]
    fn views_are_cast_at_any_depth_and_the_rest_stays() {
        let batch = batch();
        let schema = result(&batch.schema(), false);
        let sent = convert(&batch, &schema).expect("converts");
        assert_eq!(sent.schema(), schema);
        assert!(schema.fields().iter().all(|field| !has_views(field.data_type()) && field.is_nullable()), "{schema}");
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        assert_eq!(schema.field(4).data_type(), &dictionary);
        assert_eq!(schema.field(5).data_type(), &DataType::Decimal128(5, 2));
        let list = sent.column(2).as_list::<i32>();
        let values = list.values().as_string::<i32>();
        assert_eq!(values.iter().collect::<Vec<_>>(), [Some("a"), None, Some("a text of more than twelve bytes")]);
        let map = sent.column(3).as_map();
        assert_eq!(map.keys().as_string::<i32>().value(1), "l");
        assert!(map.values().as_binary::<i32>().is_null(1));
        assert!(!compatible(&batch.schema()).field(0).is_nullable());
    }

    #[test]
    fn flat_rows_have_types_that_every_client_knows() {
        let batch = batch();
        let schema = result(&batch.schema(), true);
        let sent = convert(&batch, &schema).expect("converts");
        let text = |column: usize, row: usize| sent.column(column).as_string::<i32>().value(row).to_owned();
        assert_eq!(text(2, 0), r#"["a",null]"#);
        assert_eq!(text(3, 0), r#"{"k":"76"}"#);
        assert_eq!((text(4, 0), sent.column(4).is_null(1)), ("y".to_owned(), true));
        assert!((sent.column(5).as_primitive::<Float64Type>().value(0) - 1.5).abs() < 1e-9);
        assert_eq!(sent.column(6).as_primitive::<TimestampMillisecondType>().value(0), 86_400_000);
        let plain = StringArray::from(vec!["a", "b"]);
        assert_eq!(sent.column(0).as_string::<i32>(), &plain);
    }

    #[test]
    fn over_http_views_are_cast_and_nothing_else() {
        let batch = batch();
        let batch_schema = batch.schema();
        let id = batch_schema.field(0).clone().with_metadata([("id".to_owned(), "7".to_owned())].into());
        let fields: Vec<Field> = std::iter::once(id)
            .chain(batch_schema.fields().iter().skip(1).map(|field| field.as_ref().clone()))
            .collect();
        let schema = plain(&Schema::new(fields.clone()));
        assert!(schema.fields().iter().all(|field| !has_views(field.data_type())), "{schema}");
        assert_eq!(
            schema.field(0),
            &fields[0].clone().with_data_type(DataType::Utf8),
            "what else the field says stays"
        );
        assert_eq!(schema.field(1).data_type(), &DataType::LargeUtf8);
        let sent = convert(&batch, &schema).expect("converts");
        assert_eq!(sent.schema(), schema);
        let plain_text = StringArray::from(vec!["a", "b"]);
        assert_eq!(sent.column(0).as_string::<i32>(), &plain_text);
        assert_eq!(sent.column(5), batch.column(5));
    }

    #[test]
    fn views_of_more_than_offsets_can_say_are_refused_wherever_they_are() {
        let mut texts = StringViewBuilder::new();
        // 2 GiB, of which one MiB is there.
        let block = texts.append_block(Buffer::from_vec(vec![b'x'; 1 << 20]));
        (0..2048).for_each(|_| texts.try_append_view(block, 0, 1 << 20).expect("a view"));
        let texts = texts.finish();
        let element = Arc::new(Field::new("item", DataType::Utf8View, true));
        let whole = OffsetBuffer::from_lengths([texts.len()]);
        let list = ListArray::new(element, whole, Arc::new(texts.clone()), None);
        let keys = Int32Array::from(vec![0]);
        let dictionary = DictionaryArray::<Int32Type>::new(keys, Arc::new(texts.clone()));
        let columns: [ArrayRef; 4] =
            [Arc::new(texts.clone()), Arc::new(texts.to_binary_view()), Arc::new(list), Arc::new(dictionary)];
        for column in columns {
            let batch = RecordBatch::try_from_iter([("c", column)]).expect("a batch");
            for schema in [result(&batch.schema(), false), plain(&batch.schema())] {
                let refused = convert(&batch, &schema).expect_err("refused");
                assert_eq!(refused.kind, Kind::Internal);
                assert!(refused.message.contains("2 GiB"), "{}", refused.message);
            }
        }
    }

    #[test]
    fn rows_without_columns_keep_their_number() {
        let options = RecordBatchOptions::new().with_row_count(Some(3));
        let none = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).expect("a batch");
        assert_eq!(convert(&none, &result(&none.schema(), false)).expect("converts").num_rows(), 3);
    }
}
