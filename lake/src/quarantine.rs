//! Tables that the catalog has no more, or not as we made them: what tells, and where their rows go (ADR 14).

use iceberg::spec::{FormatVersion, NestedFieldRef, TableMetadata};
use signaldb_model::{GroupId, TableId};
use signaldb_signals::SignalTable;

use crate::storage::Store;
use crate::table;

/// Why our files do not fit into the table as it is now; `None` when they do.
///
/// Columns, properties and a sort order may be added, snapshots and files too; what we made stays.
pub(crate) fn altered(metadata: &TableMetadata, table: SignalTable) -> Option<String> {
    if metadata.properties().get(table::FORMAT_PROPERTY).is_none_or(|format| format != table::FORMAT) {
        return Some(format!("its property {} is not {}", table::FORMAT_PROPERTY, table::FORMAT));
    }
    if metadata.format_version() != FormatVersion::V2 {
        return Some(format!("its Iceberg format is {}, not v2", metadata.format_version()));
    }
    if metadata.default_partition_spec_id() != 0 {
        return Some("its partitioning was changed".to_owned());
    }
    let ours = match table::iceberg_schema(table) {
        Ok(ours) => ours,
        Err(error) => return Some(error.to_string()),
    };
    let created = metadata.schema_by_id(0);
    let kept = |field: &NestedFieldRef| match metadata.current_schema().field_by_id(field.id) {
        Some(now) => now.name == field.name && now.field_type == field.field_type && now.required == field.required,
        // A newer version of ours may have columns that the table never had.
        None => created.is_none_or(|created| created.field_by_id(field.id).is_none()),
    };
    let changed = ours.as_struct().fields().iter().find(|&field| !kept(field))?;
    Some(format!("its column {} was dropped, renamed or changed", changed.name))
}

/// Where the rows of a quarantined table are.
pub(crate) fn prefix(store: &Store, id: &TableId) -> String {
    let table = SignalTable::from_code(id.code).map_or("unknown", SignalTable::name);
    format!("{}/quarantine/{}/{}/{table}", store.root(), id.tenant, id.dataset)
}

/// File `n` of the rows of `group` after entry `from`, up to and including `hi`. Whoever writes it writes the same.
pub(crate) fn file(prefix: &str, group: GroupId, from: u64, hi: u64, n: usize) -> String {
    format!("{prefix}/{group}-{}-{hi}-{n}.parquet", from + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(change: impl Fn(&mut Value)) -> Option<String> {
        let metadata = table::new_table(SignalTable::Logs, "file:///t", uuid::Uuid::nil(), 1).expect("builds");
        let mut json = serde_json::to_value(&metadata).expect("JSON");
        change(&mut json);
        altered(&serde_json::from_value(json).expect("is metadata"), SignalTable::Logs)
    }

    #[test]
    fn what_is_added_is_welcome() {
        assert_eq!(check(|_| ()), None);
        assert_eq!(check(|table| table["properties"]["owner"] = json!("me")), None);
        let add = |table: &mut Value| {
            let mut schema = table["schemas"][0].clone();
            schema["schema-id"] = json!(1);
            let field = json!({"id": 9999, "name": "theirs", "required": false, "type": "string"});
            schema["fields"].as_array_mut().expect("fields").push(field);
            table["schemas"].as_array_mut().expect("schemas").push(schema);
            table["current-schema-id"] = json!(1);
            table["last-column-id"] = json!(9999);
        };
        assert_eq!(check(add), None);
    }

    #[test]
    fn a_table_of_before_a_column_was_there_is_ours() {
        let forget = |table: &mut Value| {
            table["schemas"][0]["fields"].as_array_mut().expect("fields").pop().expect("has columns");
        };
        assert_eq!(check(forget), None);
    }

    #[test]
    fn what_our_files_do_not_fit_into_is_named() {
        let next = |table: &mut Value| {
            let mut schema = table["schemas"][0].clone();
            schema["schema-id"] = json!(1);
            table["schemas"].as_array_mut().expect("schemas").push(schema);
            table["current-schema-id"] = json!(1);
        };
        let renamed = check(|table| {
            next(table);
            table["schemas"][1]["fields"][1]["name"] = json!("t");
        });
        assert_eq!(renamed.as_deref(), Some("its column time_unix_nano was dropped, renamed or changed"));
        let dropped = check(|table| {
            next(table);
            table["schemas"][1]["fields"].as_array_mut().expect("fields").remove(1);
        });
        assert_eq!(dropped, renamed);
        let unmarked = check(|table| table["properties"] = json!({}));
        assert_eq!(unmarked.as_deref(), Some("its property signaldb.format is not 1"));
        let partitioned = check(|table| {
            let spec = json!({"spec-id": 1, "fields": []});
            table["partition-specs"].as_array_mut().expect("specs").push(spec);
            table["default-spec-id"] = json!(1);
        });
        assert_eq!(partitioned.as_deref(), Some("its partitioning was changed"));
    }
}
