//! Columns, types and field ids of every table: the one source for memtables, Parquet files and Iceberg metadata.
//!
//! Top-level columns have ids 1 to 999 in order of definition; what is nested in column `c` has ids from
//! `1000 + 100 * c`. So a column that is appended to a definition never moves another's id. Columns are appended, never
//! renamed, retyped or removed.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use crate::promoted::{self, Promoted, PromotedType};
use crate::table::SignalTable;

/// Metadata key under which Parquet readers find a field id.
pub const FIELD_ID_KEY: &str = "PARQUET:field_id";

/// A column or a nested field; everything is optional.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub id: i32,
    pub kind: ColumnKind,
}

impl Column {
    /// Whether the column only serves the way back to OTLP; the logical view leaves it out.
    pub fn is_helper(&self) -> bool {
        const HELPERS: &[&str] =
            &["attribute_types", "resource_attribute_types", "scope_attribute_types", "metadata_types", "body_type"];
        HELPERS.contains(&self.name.as_str())
    }
}

/// Type of a column, in Iceberg's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnKind {
    Boolean,
    Int,
    Long,
    Double,
    String,
    /// Microseconds, UTC.
    Timestamp,
    /// So many bytes.
    Fixed(i32),
    /// Text to text.
    Map {
        key_id: i32,
        value_id: i32,
    },
    List {
        element_id: i32,
        element: Box<ColumnKind>,
    },
    Struct(Vec<Column>),
}

/// A table's columns.
#[derive(Debug, Clone)]
pub struct TableSchema {
    pub table: SignalTable,
    pub columns: Vec<Column>,
    pub arrow: SchemaRef,
}

/// The schema of `table`.
pub fn of(table: SignalTable) -> &'static TableSchema {
    static SCHEMAS: LazyLock<Vec<TableSchema>> = LazyLock::new(|| SignalTable::ALL.map(build).into());
    &SCHEMAS[table as usize - 1]
}

impl TableSchema {
    /// Id of a top-level column.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The same with `more` columns behind its own.
    #[must_use]
    pub fn with(&self, more: impl IntoIterator<Item = Column>) -> Self {
        let columns: Vec<Column> = self.columns.iter().cloned().chain(more).collect();
        let arrow = Arc::new(Schema::new(columns.iter().map(arrow_field).collect::<Fields>()));
        Self { table: self.table, columns, arrow }
    }
}

/// Shapes before ids are given.
enum Shape {
    Boolean,
    Int,
    Long,
    Double,
    String,
    Timestamp,
    Fixed(i32),
    Map,
    Longs,
    Doubles,
    Structs(Vec<(&'static str, Shape)>),
}

type Definition = Vec<(&'static str, Shape)>;

fn build(table: SignalTable) -> TableSchema {
    let columns: Vec<Column> = definition(table)
        .into_iter()
        .zip(1..)
        .map(|((name, shape), id)| Column { name: name.to_owned(), id, kind: shape.number(&mut (1000 + 100 * id)) })
        .collect();
    let arrow = Arc::new(Schema::new(columns.iter().map(arrow_field).collect::<Fields>()));
    TableSchema { table, columns, arrow }
}

impl Shape {
    /// Gives nested fields their ids, counting `next` up.
    fn number(self, next: &mut i32) -> ColumnKind {
        let mut id = || {
            *next += 1;
            *next - 1
        };
        match self {
            Self::Boolean => ColumnKind::Boolean,
            Self::Int => ColumnKind::Int,
            Self::Long => ColumnKind::Long,
            Self::Double => ColumnKind::Double,
            Self::String => ColumnKind::String,
            Self::Timestamp => ColumnKind::Timestamp,
            Self::Fixed(bytes) => ColumnKind::Fixed(bytes),
            Self::Map => ColumnKind::Map { key_id: id(), value_id: id() },
            Self::Longs => ColumnKind::List { element_id: id(), element: Box::new(ColumnKind::Long) },
            Self::Doubles => ColumnKind::List { element_id: id(), element: Box::new(ColumnKind::Double) },
            Self::Structs(fields) => {
                let element_id = id();
                let ids: Vec<i32> = fields.iter().map(|_| id()).collect();
                let fields = fields.into_iter().zip(ids);
                let columns = fields
                    .map(|((name, shape), id)| Column { name: name.to_owned(), id, kind: shape.number(next) })
                    .collect();
                ColumnKind::List { element_id, element: Box::new(ColumnKind::Struct(columns)) }
            }
        }
    }
}

fn definition(table: SignalTable) -> Definition {
    let mut columns = vec![("timestamp", Shape::Timestamp), ("time_unix_nano", Shape::Long)];
    columns.extend(match table {
        SignalTable::Traces => span_columns(),
        SignalTable::Logs => log_columns(),
        _ => metric_columns(table),
    });
    columns.extend([
        ("attributes", Shape::Map),
        ("attribute_types", Shape::String),
        ("resource_attributes", Shape::Map),
        ("resource_attribute_types", Shape::String),
        ("resource_dropped_attributes_count", Shape::Long),
        ("resource_entity_refs", Shape::String),
        ("resource_schema_url", Shape::String),
        ("scope_name", Shape::String),
        ("scope_version", Shape::String),
        ("scope_attributes", Shape::Map),
        ("scope_attribute_types", Shape::String),
        ("scope_dropped_attributes_count", Shape::Long),
        ("scope_schema_url", Shape::String),
    ]);
    columns.extend(promoted::RESOURCE.iter().map(promoted_column));
    columns.extend(record_promoted(table).iter().map(promoted_column));
    columns
}

/// Attributes of the table's records that have their own columns.
pub fn record_promoted(table: SignalTable) -> &'static [Promoted] {
    match table {
        SignalTable::Traces | SignalTable::Logs => promoted::RECORD,
        _ => promoted::NONE,
    }
}

fn promoted_column(promoted: &Promoted) -> (&'static str, Shape) {
    let shape = match promoted.kind {
        PromotedType::Text => Shape::String,
        PromotedType::Integer => Shape::Long,
    };
    (promoted.column, shape)
}

fn span_columns() -> Definition {
    vec![
        ("end_time_unix_nano", Shape::Long),
        ("duration_nano", Shape::Long),
        ("trace_id", Shape::Fixed(16)),
        ("span_id", Shape::Fixed(8)),
        ("parent_span_id", Shape::Fixed(8)),
        ("trace_state", Shape::String),
        ("flags", Shape::Long),
        ("name", Shape::String),
        ("kind", Shape::String),
        ("status_code", Shape::String),
        ("status_message", Shape::String),
        ("dropped_attributes_count", Shape::Long),
        (
            "events",
            Shape::Structs(vec![
                ("time_unix_nano", Shape::Long),
                ("name", Shape::String),
                ("attributes", Shape::Map),
                ("attribute_types", Shape::String),
                ("dropped_attributes_count", Shape::Long),
            ]),
        ),
        ("dropped_events_count", Shape::Long),
        (
            "links",
            Shape::Structs(vec![
                ("trace_id", Shape::Fixed(16)),
                ("span_id", Shape::Fixed(8)),
                ("trace_state", Shape::String),
                ("attributes", Shape::Map),
                ("attribute_types", Shape::String),
                ("dropped_attributes_count", Shape::Long),
                ("flags", Shape::Long),
            ]),
        ),
        ("dropped_links_count", Shape::Long),
    ]
}

fn log_columns() -> Definition {
    vec![
        ("observed_time_unix_nano", Shape::Long),
        ("severity_number", Shape::Int),
        ("severity_text", Shape::String),
        ("body", Shape::String),
        ("body_type", Shape::String),
        ("event_name", Shape::String),
        ("trace_id", Shape::Fixed(16)),
        ("span_id", Shape::Fixed(8)),
        ("flags", Shape::Long),
        ("dropped_attributes_count", Shape::Long),
    ]
}

fn metric_columns(table: SignalTable) -> Definition {
    let mut columns = vec![
        ("start_time_unix_nano", Shape::Long),
        ("metric_name", Shape::String),
        ("description", Shape::String),
        ("unit", Shape::String),
        ("metadata", Shape::Map),
        ("metadata_types", Shape::String),
        ("flags", Shape::Long),
    ];
    let distribution =
        || vec![("count", Shape::Long), ("sum", Shape::Double), ("min", Shape::Double), ("max", Shape::Double)];
    let temporality = ("aggregation_temporality", Shape::String);
    match table {
        SignalTable::MetricsSum => columns.extend([
            ("value_int", Shape::Long),
            ("value_double", Shape::Double),
            temporality,
            ("is_monotonic", Shape::Boolean),
        ]),
        SignalTable::MetricsHistogram => {
            columns.extend(distribution());
            columns.extend([("bucket_counts", Shape::Longs), ("explicit_bounds", Shape::Doubles), temporality]);
        }
        SignalTable::MetricsExponentialHistogram => {
            columns.extend(distribution());
            columns.extend([
                ("scale", Shape::Int),
                ("zero_count", Shape::Long),
                ("zero_threshold", Shape::Double),
                ("positive_offset", Shape::Int),
                ("positive_bucket_counts", Shape::Longs),
                ("negative_offset", Shape::Int),
                ("negative_bucket_counts", Shape::Longs),
                temporality,
            ]);
        }
        SignalTable::MetricsSummary => columns.extend([
            ("count", Shape::Long),
            ("sum", Shape::Double),
            ("quantile_values", Shape::Structs(vec![("quantile", Shape::Double), ("value", Shape::Double)])),
        ]),
        _ => columns.extend([("value_int", Shape::Long), ("value_double", Shape::Double)]),
    }
    if table != SignalTable::MetricsSummary {
        columns.push((
            "exemplars",
            Shape::Structs(vec![
                ("time_unix_nano", Shape::Long),
                ("value_int", Shape::Long),
                ("value_double", Shape::Double),
                ("trace_id", Shape::Fixed(16)),
                ("span_id", Shape::Fixed(8)),
                ("filtered_attributes", Shape::Map),
                ("filtered_attribute_types", Shape::String),
            ]),
        ));
    }
    columns
}

fn with_id(field: Field, id: i32) -> Field {
    field.with_metadata(HashMap::from([(FIELD_ID_KEY.to_owned(), id.to_string())]))
}

fn arrow_field(column: &Column) -> Field {
    with_id(Field::new(&column.name, arrow_type(&column.kind), true), column.id)
}

/// The Arrow type that `iceberg` reads the column as.
fn arrow_type(kind: &ColumnKind) -> DataType {
    match kind {
        ColumnKind::Boolean => DataType::Boolean,
        ColumnKind::Int => DataType::Int32,
        ColumnKind::Long => DataType::Int64,
        ColumnKind::Double => DataType::Float64,
        ColumnKind::String => DataType::Utf8,
        ColumnKind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        ColumnKind::Fixed(bytes) => DataType::FixedSizeBinary(*bytes),
        ColumnKind::Map { key_id, value_id } => DataType::Map(Arc::new(map_entries(*key_id, *value_id)), false),
        ColumnKind::List { element_id, element } => {
            DataType::List(Arc::new(with_id(Field::new("element", arrow_type(element), true), *element_id)))
        }
        ColumnKind::Struct(columns) => DataType::Struct(columns.iter().map(arrow_field).collect()),
    }
}

fn map_entries(key_id: i32, value_id: i32) -> Field {
    let key = with_id(Field::new("key", DataType::Utf8, false), key_id);
    let value = with_id(Field::new("value", DataType::Utf8, true), value_id);
    Field::new("key_value", DataType::Struct(Fields::from(vec![key, value])), false)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ids(columns: &[Column], into: &mut Vec<i32>) {
        for column in columns {
            into.push(column.id);
            nested(&column.kind, into);
        }
    }

    fn nested(kind: &ColumnKind, into: &mut Vec<i32>) {
        match kind {
            ColumnKind::Map { key_id, value_id } => into.extend([*key_id, *value_id]),
            ColumnKind::List { element_id, element } => {
                into.push(*element_id);
                nested(element, into);
            }
            ColumnKind::Struct(columns) => ids(columns, into),
            _ => {}
        }
    }

    #[test]
    fn ids_and_names_are_unique() {
        for table in SignalTable::ALL {
            let schema = of(table);
            assert_eq!(schema.table, table);
            let mut all = Vec::new();
            ids(&schema.columns, &mut all);
            assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "{table:?}");
            let names: HashSet<_> = schema.columns.iter().map(|column| &column.name).collect();
            assert_eq!(names.len(), schema.columns.len(), "{table:?}");
        }
    }

    /// Field ids are in every data file: a change here needs a new column, not a new number.
    #[test]
    fn golden_ids_of_format_1() {
        let line = |table, names: &[&str]| -> Vec<i32> {
            names.iter().map(|name| of(table).column(name).map_or(0, |column| column.id)).collect()
        };
        let spans = ["timestamp", "trace_id", "events", "links", "attributes", "service_name", "session_id"];
        assert_eq!(line(SignalTable::Traces, &spans), [1, 5, 15, 17, 19, 32, 66]);
        assert_eq!(line(SignalTable::Logs, &["body", "attributes", "service_name"]), [6, 13, 26]);
        assert_eq!(line(SignalTable::MetricsSum, &["metric_name", "value_int", "exemplars"]), [4, 10, 14]);
    }
}
