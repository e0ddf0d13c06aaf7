//! What data files of a table hold.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use iceberg::spec::TableMetadata;
use signaldb_signals::SignalTable;
use signaldb_signals::copies::{CopiedAttribute, CopyKind};
use signaldb_signals::schema::{self, Column, TableSchema};

use super::{PromotedSet, copies_of};
use crate::error::LakeError;

/// The table's own columns, and the copies of attributes that a writer makes from its maps.
#[derive(Debug, Clone)]
pub(crate) struct FileSchema {
    table: SignalTable,
    schema: Cow<'static, TableSchema>,
    /// Of the schema's last columns.
    copies: Vec<CopiedAttribute>,
    /// Names of columns that files may have, and that are as good as not there: a copy is made anew, or is not needed.
    replaceable: Vec<String>,
}

impl FileSchema {
    /// Without copies.
    pub(crate) fn plain(table: SignalTable) -> Self {
        Self { table, schema: Cow::Borrowed(schema::of(table)), copies: Vec::new(), replaceable: Vec::new() }
    }

    /// As this version of the table wants them.
    pub(crate) fn of(table: SignalTable, metadata: &TableMetadata) -> Self {
        let set = PromotedSet::of(metadata).unwrap_or_else(|error| {
            tracing::warn!(location = metadata.location(), %error, "promoted attributes are left in the maps");
            PromotedSet::default()
        });
        let copies = copies_of(metadata);
        let schema = match copies.is_empty() {
            true => Cow::Borrowed(schema::of(table)),
            false => Cow::Owned(schema::of(table).with(copies.iter().map(|copy| copy.column.clone()))),
        };
        let replaceable = set.entries().iter().map(|entry| entry.copy.column.name.clone()).collect();
        Self { table, schema, copies, replaceable }
    }

    pub(crate) fn table(&self) -> SignalTable {
        self.table
    }

    pub(crate) fn columns(&self) -> &[Column] {
        &self.schema.columns
    }

    pub(crate) fn arrow(&self) -> &SchemaRef {
        &self.schema.arrow
    }

    /// The copies that can be whole and have bounds. Doubles compare in more than one way, and one is written in many.
    pub(crate) fn ordered_copies(&self) -> impl Iterator<Item = &Column> {
        self.copies.iter().filter(|copy| copy.kind != CopyKind::Double).map(|copy| &copy.column)
    }

    pub(crate) fn is_replaceable(&self, column: &str) -> bool {
        self.replaceable.iter().any(|name| name == column)
    }

    /// Puts the copies behind the table's own columns. Returns the ids of those that lack a value of the map, too.
    pub(crate) fn fill(&self, rows: &RecordBatch) -> Result<(RecordBatch, Vec<i32>), LakeError> {
        if self.copies.is_empty() {
            return Ok((rows.clone(), Vec::new()));
        }
        let (mut columns, mut partial) = (rows.columns().to_vec(), Vec::new());
        for copy in &self.copies {
            let map = rows.column(rows.schema_ref().index_of(copy.level.map())?);
            let (values, whole) = copy.fill(map.as_map());
            columns.push(values);
            if !whole {
                partial.push(copy.column.id);
            }
        }
        Ok((RecordBatch::try_new(Arc::clone(self.arrow()), columns)?, partial))
    }
}
