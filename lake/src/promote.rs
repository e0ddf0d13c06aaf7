//! Attributes that an operator promotes to columns (ADR 13): what a table says of them, and what it says next.
//!
//! The table's property `signaldb.promoted` is JSON, `{"version": 1, "columns": [..]}`; a column is
//!
//! | field | |
//! |---|---|
//! | `key`, `level` | the attribute: its key, and `resource`, `scope` or `record` |
//! | `column`, `id`, `type` | the column that it is copied into: name, field id, and `text`, `int`, `bool` or `double` |
//! | `written` | whether writers fill the column; false once the attribute was demoted |
//!
//! Columns are never taken away, and their ids never given to others.

use std::collections::HashMap;

use iceberg::spec::TableMetadata;
use serde::{Deserialize, Serialize};
use signaldb_signals::copies::{CopiedAttribute, CopyKind, Level};
use signaldb_signals::schema::{self, Column};
use signaldb_signals::{SignalTable, promoted, promoted_into};
use thiserror::Error;

use crate::metadata::Change;
use crate::table;

mod file_schema;

#[cfg(test)]
mod tests;

pub(crate) use file_schema::FileSchema;

/// Property of a table that says which attributes have columns.
pub(crate) const PROPERTY: &str = "signaldb.promoted";
const VERSION: u32 = 1;
/// Ids of the columns count from here, far from those that our own columns will have.
const FIRST_ID: i32 = 1_000_000;
/// Attributes of one table that writers copy: each is looked for in every row.
pub const PROMOTED_MAX: usize = 32;
/// Columns that a table may ever get by promotion. Each leaves a whole schema, some 10 kB, in the metadata that every commit
/// writes.
const COLUMNS_MAX: usize = 64;
/// Longest key, bytes.
const KEY_BYTES_MAX: usize = 128;

/// Why an attribute is not promoted, or not demoted. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PromoteError {
    #[error("{0:?} is not a key: expected 1 to {KEY_BYTES_MAX} bytes without control characters")]
    Key(String),
    /// Without a dataset or a table nobody knows which columns are meant.
    #[error("dataset and table say where the attribute is promoted")]
    WhichTable,
    #[error("there is no table {0} that could be changed: nothing was written to it, or it is in quarantine")]
    NoTable(String),
    #[error("{key:?} always has a column: {column}")]
    BuiltIn { key: String, column: &'static str },
    #[error("the table has another column {column}")]
    NameTaken { column: String },
    #[error("{key:?} was promoted before, as {kind}: its column {column} keeps that type")]
    OtherType { key: String, kind: &'static str, column: String },
    #[error("the table has {PROMOTED_MAX} promoted attributes, the most that there may be; demote one first")]
    TooMany,
    #[error("the table has got {COLUMNS_MAX} columns by promotion, the most that there may ever be")]
    TooManyColumns,
    #[error("{key:?} is not promoted from {level} attributes")]
    NotPromoted { key: String, level: &'static str },
    #[error("the table's property {PROPERTY} cannot be read: {0}")]
    Unreadable(String),
}

/// An attribute of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    key: String,
    level: Level,
}

impl Attribute {
    /// # Errors
    /// [`PromoteError::Key`].
    pub fn new(key: &str, level: Level) -> Result<Self, PromoteError> {
        let valid = (1..=KEY_BYTES_MAX).contains(&key.len()) && !key.chars().any(char::is_control);
        if valid { Ok(Self { key: key.to_owned(), level }) } else { Err(PromoteError::Key(key.to_owned())) }
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn level(&self) -> Level {
        self.level
    }
}

/// What an operator wants of an attribute: a column of that type, or, with `None`, no column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    pub attribute: Attribute,
    pub kind: Option<CopyKind>,
}

/// What comes of a [`Promotion`].
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) copy: CopiedAttribute,
    pub(crate) effect: Effect,
    /// `None`: the table says so already.
    pub(crate) change: Option<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Effect {
    /// The table gets a new column.
    Promoted,
    /// Its column of before is filled again.
    Woken,
    /// Its column stays, and is filled no more.
    Demoted,
    Unchanged,
}

impl Promotion {
    /// Decides by exactly this version of the table.
    pub(crate) fn decide(&self, metadata: &TableMetadata, table: SignalTable) -> Result<Decision, PromoteError> {
        self.refuse_built_in(table)?;
        let set = PromotedSet::of(metadata)?;
        match self.kind {
            Some(kind) => set.promote(&self.attribute, kind, metadata, table),
            None => set.demote(&self.attribute),
        }
    }

    /// The values of such an attribute are not in the map, so there is nothing to copy.
    fn refuse_built_in(&self, table: SignalTable) -> Result<(), PromoteError> {
        let Attribute { key, level } = &self.attribute;
        let built_in = schema::of(table).column(level.map()).map_or(promoted::NONE, |map| promoted_into(table, map));
        match built_in.iter().find(|promoted| promoted.key == key) {
            Some(promoted) => Err(PromoteError::BuiltIn { key: key.clone(), column: promoted.column }),
            None => Ok(()),
        }
    }
}

/// The promoted attributes of a table, and those that were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PromotedSet {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) copy: CopiedAttribute,
    pub(crate) written: bool,
}

/// As in the table's property.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    columns: Vec<StoredColumn>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredColumn {
    key: String,
    level: String,
    column: String,
    id: i32,
    #[serde(rename = "type")]
    kind: String,
    written: bool,
}

impl PromotedSet {
    /// What this version of the table says.
    pub(crate) fn of(metadata: &TableMetadata) -> Result<Self, PromoteError> {
        let Some(text) = metadata.properties().get(PROPERTY) else { return Ok(Self::default()) };
        Self::parse(text)
    }

    fn parse(text: &str) -> Result<Self, PromoteError> {
        let stored: Stored = serde_json::from_str(text).map_err(|error| PromoteError::Unreadable(error.to_string()))?;
        if stored.version != VERSION {
            return Err(PromoteError::Unreadable(format!("it is of version {}", stored.version)));
        }
        let entries = stored.columns.into_iter().map(Entry::of).collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    fn to_property(&self) -> String {
        let stored = Stored { version: VERSION, columns: self.entries.iter().map(Entry::stored).collect() };
        serde_json::to_string(&stored).expect("the set is plain JSON")
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn is_of(entry: &Entry, attribute: &Attribute) -> bool {
        entry.copy.key == attribute.key && entry.copy.level == attribute.level
    }

    fn promote(
        mut self,
        attribute: &Attribute,
        kind: CopyKind,
        metadata: &TableMetadata,
        table: SignalTable,
    ) -> Result<Decision, PromoteError> {
        let written = self.entries.iter().filter(|entry| entry.written && !Self::is_of(entry, attribute)).count();
        let mut of_it = self.entries.iter_mut().filter(|entry| Self::is_of(entry, attribute));
        let known = of_it.find(|entry| has_column(metadata, &entry.copy.column));
        if let Some(known) = known {
            let (copy, effect) = (known.copy.clone(), if known.written { Effect::Unchanged } else { Effect::Woken });
            if copy.kind != kind {
                let (key, column) = (copy.key, copy.column.name);
                return Err(PromoteError::OtherType { key, kind: copy.kind.name(), column });
            }
            if effect == Effect::Woken && written >= PROMOTED_MAX {
                return Err(PromoteError::TooMany);
            }
            known.written = true;
            return Ok(self.decision(copy, effect, Vec::new()));
        }
        if written >= PROMOTED_MAX {
            return Err(PromoteError::TooMany);
        }
        let id = metadata.last_column_id().checked_add(1).map(|next| next.max(FIRST_ID));
        let id = id.filter(|_| self.entries.len() < COLUMNS_MAX).ok_or(PromoteError::TooManyColumns)?;
        let name = attribute.level.column_name(&attribute.key);
        if is_taken(&name, metadata, table) {
            return Err(PromoteError::NameTaken { column: name });
        }
        let column = Column { name, id, kind: kind.column_kind() };
        let Attribute { key, level } = attribute.clone();
        let copy = CopiedAttribute { key, level, kind, column: column.clone() };
        // Somebody dropped the column that it had.
        self.entries.iter_mut().filter(|entry| Self::is_of(entry, attribute)).for_each(|entry| entry.written = false);
        self.entries.push(Entry { copy: copy.clone(), written: true });
        Ok(self.decision(copy, Effect::Promoted, vec![column]))
    }

    fn demote(mut self, attribute: &Attribute) -> Result<Decision, PromoteError> {
        let (mut effect, mut copy) = (Effect::Unchanged, None);
        for entry in self.entries.iter_mut().filter(|entry| Self::is_of(entry, attribute)) {
            if entry.written {
                effect = Effect::Demoted;
            }
            entry.written = false;
            copy = Some(entry.copy.clone());
        }
        let Attribute { key, level } = attribute;
        let copy = copy.ok_or_else(|| PromoteError::NotPromoted { key: key.clone(), level: level.name() })?;
        Ok(self.decision(copy, effect, Vec::new()))
    }

    fn decision(&self, copy: CopiedAttribute, effect: Effect, add_columns: Vec<Column>) -> Decision {
        let change = (effect != Effect::Unchanged).then(|| Change {
            add_columns,
            set_properties: HashMap::from([(PROPERTY.to_owned(), self.to_property())]),
            ..Change::default()
        });
        Decision { copy, effect, change }
    }
}

impl Entry {
    fn of(stored: StoredColumn) -> Result<Self, PromoteError> {
        let StoredColumn { key, level, column, id, kind, written } = stored;
        let unknown = |what: &str| PromoteError::Unreadable(format!("{what} is unknown"));
        let level = Level::from_name(&level).ok_or_else(|| unknown(&level))?;
        let kind = CopyKind::from_name(&kind).ok_or_else(|| unknown(&kind))?;
        let column = Column { name: column, id, kind: kind.column_kind() };
        Ok(Self { copy: CopiedAttribute { key, level, kind, column }, written })
    }

    fn stored(&self) -> StoredColumn {
        let CopiedAttribute { key, level, kind, column } = &self.copy;
        StoredColumn {
            key: key.clone(),
            level: level.name().to_owned(),
            column: column.name.clone(),
            id: column.id,
            kind: kind.name().to_owned(),
            written: self.written,
        }
    }
}

/// The attributes that writers of the table copy now, as far as nobody dropped or changed their columns; none where the
/// table does not say it in a way that this version knows: the maps have everything.
pub fn copies_of(metadata: &TableMetadata) -> Vec<CopiedAttribute> {
    let entries = PromotedSet::of(metadata).unwrap_or_default().entries;
    let copied = |entry: Entry| (entry.written && has_column(metadata, &entry.copy.column)).then_some(entry.copy);
    entries.into_iter().filter_map(copied).collect()
}

/// Whether the table has the column as we made it.
fn has_column(metadata: &TableMetadata, column: &Column) -> bool {
    let made = table::nested_field(column);
    metadata.current_schema().field_by_id(column.id).is_some_and(|field| {
        field.name == made.name && field.field_type == made.field_type && field.required == made.required
    })
}

/// Whether a top-level column has the name, or would have it with this version's own columns; engines do not tell upper
/// from lower case.
fn is_taken(name: &str, metadata: &TableMetadata, table: SignalTable) -> bool {
    let fields = metadata.current_schema().as_struct().fields();
    fields.iter().any(|field| field.name.eq_ignore_ascii_case(name)) || schema::of(table).column(name).is_some()
}
