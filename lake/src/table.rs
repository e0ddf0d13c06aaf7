//! Iceberg tables as we make them: schema, partitioning, sort order and names.

use iceberg::spec::{
    DataFile, ListType, Literal, MapType, NestedField, NestedFieldRef, NullOrder, PartitionSpec, PrimitiveLiteral,
    PrimitiveType, Schema, SortDirection, SortField, SortOrder, StructType, TableMetadata, Transform, Type,
    UnboundPartitionField,
};
use serde_json::json;
use signaldb_model::TableId;
use signaldb_signals::SignalTable;
use signaldb_signals::schema::{self, Column, ColumnKind};

/// Sort order of data files; 0 would mean unsorted.
pub(crate) const SORT_ORDER_ID: i64 = 1;

/// Property of a table that says which version of ours its columns and files have.
pub(crate) const FORMAT_PROPERTY: &str = "signaldb.format";
pub(crate) const FORMAT: &str = "1";

/// Version in a metadata file's name, `.../metadata/00012-<uuid>.metadata.json`; 0 for names that are not ours.
pub fn version_of(location: &str) -> i64 {
    let name = location.rsplit('/').next().unwrap_or_default();
    name.split('-').next().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Day since 1970 of the file's partition; `None` for partitioning that is not ours.
pub fn day_of(file: &DataFile) -> Option<i32> {
    match file.partition().fields() {
        [Some(Literal::Primitive(PrimitiveLiteral::Int(day)))] => Some(*day),
        _ => None,
    }
}

/// Where a table lives in the store.
pub(crate) fn table_location(root: &str, id: &TableId, table: SignalTable) -> String {
    format!("{root}/{}/{}/{}", id.tenant, id.dataset, table.name())
}

/// Metadata of a new, empty table. Field ids are those of [`schema`]; the crate's own builder would renumber them.
pub(crate) fn new_table(
    table: SignalTable,
    location: &str,
    uuid: uuid::Uuid,
    now_ms: i64,
) -> iceberg::Result<TableMetadata> {
    let schema = iceberg_schema(table)?;
    let timestamp = field_id(table, "timestamp");
    let day = UnboundPartitionField::builder()
        .source_id(timestamp)
        .field_id(1000)
        .name("timestamp_day".to_owned())
        .transform(Transform::Day)
        .build();
    let spec = PartitionSpec::builder(schema.clone()).with_spec_id(0).add_unbound_field(day)?.build()?;
    let mut order = SortOrder::builder();
    order.with_order_id(SORT_ORDER_ID);
    for column in table.sort_columns() {
        let field = SortField::builder()
            .source_id(field_id(table, column))
            .transform(Transform::Identity)
            .direction(SortDirection::Ascending)
            .null_order(NullOrder::First)
            .build();
        order.with_sort_field(field);
    }
    let order = order.build(&schema)?;
    let metadata = json!({
        "format-version": 2,
        "table-uuid": uuid.to_string(),
        "location": location,
        "last-sequence-number": 0,
        "last-updated-ms": now_ms,
        "last-column-id": schema.highest_field_id(),
        "schemas": [&schema],
        "current-schema-id": 0,
        "partition-specs": [&spec],
        "default-spec-id": 0,
        "last-partition-id": 1000,
        "properties": {"write.metadata.previous-versions-max": "20", FORMAT_PROPERTY: FORMAT},
        "sort-orders": [&order],
        "default-sort-order-id": SORT_ORDER_ID,
        "refs": {},
    });
    Ok(serde_json::from_value(metadata)?)
}

/// `metadata` with those of `columns` that its schema lacks, as a new schema; `None` when it lacks none. The files that
/// are there stay as they are: what a file does not have reads as null.
///
/// A name that somebody else gave to another field stays theirs.
pub(crate) fn with_columns(metadata: &TableMetadata, columns: &[Column]) -> iceberg::Result<Option<TableMetadata>> {
    let current = metadata.current_schema();
    let lacks =
        |column: &&Column| current.field_by_id(column.id).is_none() && current.field_by_name(&column.name).is_none();
    let missing: Vec<NestedFieldRef> = columns.iter().filter(lacks).map(|column| nested_field(column).into()).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let id = metadata.schemas_iter().map(|schema| schema.schema_id()).max().unwrap_or(0) + 1;
    let schema = current.as_ref().clone().into_builder().with_schema_id(id).with_fields(missing).build()?;
    // Not by the crate's builder: it asks the machine's clock.
    let mut json = serde_json::to_value(metadata)?;
    json["current-schema-id"] = id.into();
    json["last-column-id"] = metadata.last_column_id().max(schema.highest_field_id()).into();
    if let Some(schemas) = json["schemas"].as_array_mut() {
        schemas.push(serde_json::to_value(&schema)?);
    }
    Ok(Some(serde_json::from_value(json)?))
}

fn field_id(table: SignalTable, column: &str) -> i32 {
    schema::of(table).column(column).map_or(0, |column| column.id)
}

pub(crate) fn iceberg_schema(table: SignalTable) -> iceberg::Result<Schema> {
    let fields = schema::of(table).columns.iter().map(|column| nested_field(column).into());
    Schema::builder().with_schema_id(0).with_fields(fields).build()
}

pub(crate) fn nested_field(column: &Column) -> NestedField {
    NestedField::optional(column.id, &column.name, iceberg_type(&column.kind))
}

fn iceberg_type(kind: &ColumnKind) -> Type {
    let primitive = match kind {
        ColumnKind::Boolean => PrimitiveType::Boolean,
        ColumnKind::Int => PrimitiveType::Int,
        ColumnKind::Long => PrimitiveType::Long,
        ColumnKind::Double => PrimitiveType::Double,
        ColumnKind::String => PrimitiveType::String,
        ColumnKind::Timestamp => PrimitiveType::Timestamptz,
        ColumnKind::Fixed(bytes) => PrimitiveType::Fixed(u64::try_from(*bytes).unwrap_or(0)),
        ColumnKind::Map { key_id, value_id } => {
            let text = || Type::Primitive(PrimitiveType::String);
            let key = NestedField::map_key_element(*key_id, text());
            let value = NestedField::map_value_element(*value_id, text(), false);
            return Type::Map(MapType::new(key.into(), value.into()));
        }
        ColumnKind::List { element_id, element } => {
            let element = NestedField::list_element(*element_id, iceberg_type(element), false);
            return Type::List(ListType::new(element.into()));
        }
        ColumnKind::Struct(columns) => {
            return Type::Struct(StructType::new(columns.iter().map(|column| nested_field(column).into()).collect()));
        }
    };
    Type::Primitive(primitive)
}

#[cfg(test)]
mod tests {
    use iceberg::arrow::schema_to_arrow_schema;

    use super::*;

    #[test]
    fn metadata_keeps_our_field_ids_and_reads_as_our_arrow_schema() {
        for table in SignalTable::ALL {
            let metadata = new_table(table, "file:///x/t", uuid::Uuid::nil(), 1).expect("builds");
            let arrow = schema_to_arrow_schema(metadata.current_schema()).expect("converts");
            assert_eq!(&arrow, schema::of(table).arrow.as_ref(), "{table:?}");
            assert_eq!(metadata.default_sort_order_id(), SORT_ORDER_ID);
            assert_eq!(metadata.default_partition_spec().fields()[0].name, "timestamp_day");
        }
    }

    #[test]
    fn versions_are_in_names() {
        assert_eq!(version_of("file:///a/metadata/00012-x-y.metadata.json"), 12);
        assert_eq!(version_of("elsewhere"), 0);
    }
}
