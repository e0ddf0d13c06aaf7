//! The logical view for other engines: SQL that makes a stored table look as it does in SignalDB's own SQL.
//!
//! Ids are lower-case hex, `attributes['k']` finds every key, promoted or not, and helper columns are left out. The
//! promoted columns stay beside it: only they let an engine skip files and row groups.

use crate::promoted::{self, Promoted};
use crate::schema::{self, Column, ColumnKind};
use crate::table::SignalTable;

/// Whose SQL it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewDialect {
    Spark,
    Trino,
    DuckDb,
}

impl ViewDialect {
    pub const NAMES: [&'static str; 3] = ["spark", "trino", "duckdb"];

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "spark" => Some(Self::Spark),
            "trino" => Some(Self::Trino),
            "duckdb" => Some(Self::DuckDb),
            _ => None,
        }
    }

    /// The stored table as the engine names it, with SignalDB's REST catalog attached as `signaldb`.
    pub fn source(self, tenant: &str, dataset: &str, table: SignalTable) -> String {
        let parts: Vec<String> = match self {
            Self::Spark => ["signaldb", tenant, dataset, table.name()].map(|part| self.quote(part)).into(),
            // These two have one level of schemas; with nested namespaces on, its name is dotted.
            Self::Trino | Self::DuckDb => {
                ["signaldb", format!("{tenant}.{dataset}").as_str(), table.name()].map(|part| self.quote(part)).into()
            }
        };
        parts.join(".")
    }

    /// An identifier, whatever characters it has.
    pub fn quote(self, name: &str) -> String {
        let quote = if self == Self::Spark { "`" } else { "\"" };
        format!("{quote}{}{quote}", name.replace(quote, &quote.repeat(2)))
    }

    fn create(self, view: &str) -> String {
        let view = self.quote(view);
        match self {
            // A lasting one would need a catalog that takes views; this one works in every session.
            Self::Spark => format!("CREATE OR REPLACE TEMPORARY VIEW {view} AS"),
            Self::Trino => format!("CREATE OR REPLACE VIEW {view} SECURITY INVOKER AS"),
            Self::DuckDb => format!("CREATE OR REPLACE VIEW {view} AS"),
        }
    }

    fn hex(self, column: &str) -> String {
        match self {
            Self::Spark | Self::DuckDb => format!("lower(hex({column}))"),
            Self::Trino => format!("lower(to_hex({column}))"),
        }
    }

    fn text_type(self) -> &'static str {
        if self == Self::Spark { "STRING" } else { "VARCHAR" }
    }

    /// `map` with the promoted columns that have a value; a key is never in both.
    fn merged(self, map: &str, promoted: &[Promoted]) -> String {
        let value = |one: &Promoted| format!("CAST({} AS {})", self.quote(one.column), self.text_type());
        let list = |item: &dyn Fn(&Promoted) -> String| promoted.iter().map(item).collect::<Vec<_>>().join(", ");
        let columns = match self {
            Self::Spark => {
                let entries = list(&|one| format!("'{}', {}", one.key, value(one)));
                format!("map_filter(map({entries}), (k, v) -> v IS NOT NULL)")
            }
            Self::Trino => {
                let (keys, values) = (list(&|one| format!("'{}'", one.key)), list(&value));
                format!("map_filter(map(ARRAY[{keys}], ARRAY[{values}]), (k, v) -> v IS NOT NULL)")
            }
            Self::DuckDb => {
                let entries = list(&|one| format!("{{'k': '{}', 'v': {}}}", one.key, value(one)));
                format!("map_from_entries(list_filter([{entries}], lambda entry: entry.v IS NOT NULL))")
            }
        };
        format!("map_concat({columns}, {map})")
    }

    fn column(self, table: SignalTable, column: &Column) -> String {
        let name = self.quote(&column.name);
        match &column.kind {
            ColumnKind::Fixed(_) => format!("{} AS {name}", self.hex(&name)),
            ColumnKind::Map { .. } if !promoted_into(table, column).is_empty() => {
                format!("{} AS {name}", self.merged(&name, promoted_into(table, column)))
            }
            _ => name,
        }
    }
}

/// What has columns of its own and belongs into this map.
pub fn promoted_into(table: SignalTable, map: &Column) -> &'static [Promoted] {
    match map.name.as_str() {
        "attributes" => schema::record_promoted(table),
        "resource_attributes" => promoted::RESOURCE,
        _ => promoted::NONE,
    }
}

/// A statement that makes `view` show the stored table `source`, an expression of the dialect, as SignalDB's SQL does.
pub fn view_ddl(dialect: ViewDialect, table: SignalTable, source: &str, view: &str) -> String {
    let shown = schema::of(table).columns.iter().filter(|column| !column.is_helper());
    let columns: Vec<String> = shown.map(|column| format!("  {}", dialect.column(table, column))).collect();
    format!("{}\nSELECT\n{}\nFROM {source}", dialect.create(view), columns.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [ViewDialect; 3] = [ViewDialect::Spark, ViewDialect::Trino, ViewDialect::DuckDb];

    /// The columns that are not stored as they are shown.
    fn computed(dialect: ViewDialect, table: SignalTable) -> Vec<String> {
        let ddl = view_ddl(dialect, table, "source", "v");
        ddl.lines().filter(|line| line.contains('(')).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn ids_are_hex_and_promoted_columns_are_in_the_map() {
        let lines = computed(ViewDialect::Trino, SignalTable::Logs);
        assert_eq!(
            lines[..2],
            [r#"lower(to_hex("trace_id")) AS "trace_id","#, r#"lower(to_hex("span_id")) AS "span_id","#]
        );
        assert!(lines[2].starts_with("map_concat(map_filter(map(ARRAY['http.request.method', "), "{}", lines[2]);
        assert!(lines[2].ends_with(r#"(k, v) -> v IS NOT NULL), "attributes") AS "attributes","#), "{}", lines[2]);
        assert!(lines[3].ends_with(r#""resource_attributes") AS "resource_attributes","#), "{}", lines[3]);
        let lines = computed(ViewDialect::Spark, SignalTable::Traces);
        assert_eq!(lines[0], "lower(hex(`trace_id`)) AS `trace_id`,");
        assert!(lines[3].contains("'http.response.status_code', CAST(`http_response_status_code` AS STRING)"));
        let lines = computed(ViewDialect::DuckDb, SignalTable::MetricsSum);
        assert!(
            lines[0].starts_with("map_concat(map_from_entries(list_filter([{'k': 'service.name', 'v': "),
            "{}",
            lines[0]
        );
        assert_eq!(lines.len(), 1, "nothing is promoted from data points");
    }

    #[test]
    fn every_dialect_shows_every_column_once_but_no_helpers() {
        for dialect in ALL {
            for table in SignalTable::ALL {
                let ddl = view_ddl(dialect, table, "s", "v");
                assert!(ddl.ends_with("\nFROM s"));
                let lines: Vec<&str> = ddl.lines().filter(|line| line.starts_with("  ")).collect();
                let shown: Vec<&str> = lines
                    .iter()
                    .filter_map(|line| line.trim_end_matches(',').split(' ').next_back())
                    .map(|name| name.trim_matches(['`', '"']))
                    .collect();
                let expected = schema::of(table).columns.iter().filter(|column| !column.is_helper());
                let expected: Vec<&str> = expected.map(|column| column.name.as_str()).collect();
                assert_eq!(shown, expected, "{dialect:?} {table:?}");
                assert!(!ddl.contains("attribute_types") && !ddl.contains("body_type"), "{ddl}");
            }
        }
    }

    #[test]
    fn names_are_quoted() {
        let source = |dialect: ViewDialect| dialect.source("acme", "a-b", SignalTable::Logs);
        assert_eq!(source(ViewDialect::Spark), "`signaldb`.`acme`.`a-b`.`logs`");
        assert_eq!(source(ViewDialect::Trino), r#""signaldb"."acme.a-b"."logs""#);
        assert_eq!(ViewDialect::DuckDb.quote("a\"b"), "\"a\"\"b\"");
        assert!(
            view_ddl(ViewDialect::DuckDb, SignalTable::Logs, "s", "x\" y")
                .starts_with("CREATE OR REPLACE VIEW \"x\"\" y\" AS")
        );
        for name in ViewDialect::NAMES {
            assert!(ViewDialect::from_name(name).is_some(), "{name}");
        }
    }
}
