//! What the server says of itself: SQL info, types, and the schemas of keys, of which there are none.
//!
//! JDBC asks for most of these without looking whether they came, so what it asks for is all here. Types are those of the
//! protocol: the Go driver panics on another one.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{
    Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity,
    SqlSupportedGroupBy, SqlSupportedResultSetConcurrency, SqlSupportedResultSetType, SqlSupportedSubqueries,
    SqlSupportedTransaction, SqlSupportedUnions, SqlTransactionIsolationLevel, SupportedSqlGrammar, XdbcDataType,
    XdbcDatetimeSubcode,
};

/// Columns of the answer about primary keys.
pub(super) static PRIMARY_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
});

/// Columns of the answers about exported keys, imported keys and cross references.
pub(super) static FOREIGN_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
});

const DATASET_NAME_CHARS_MAX: i64 = 63;
/// Keywords beyond those of SQL-92.
const KEYWORDS: &[&str] = &["ANALYZE", "EXPLAIN", "ILIKE", "LIMIT", "OFFSET", "QUALIFY", "TRY_CAST", "UNNEST"];
const NUMERIC_FUNCTIONS: &[&str] = &[
    "abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "cot", "degrees", "exp", "floor", "ln", "log", "log10",
    "log2", "pi", "power", "radians", "random", "round", "signum", "sin", "sqrt", "tan", "trunc",
];
const STRING_FUNCTIONS: &[&str] = &[
    "ascii",
    "bit_length",
    "btrim",
    "character_length",
    "chr",
    "concat",
    "concat_ws",
    "ends_with",
    "left",
    "lower",
    "lpad",
    "ltrim",
    "octet_length",
    "repeat",
    "replace",
    "reverse",
    "right",
    "rpad",
    "rtrim",
    "split_part",
    "starts_with",
    "strpos",
    "substr",
    "translate",
    "upper",
];
const SYSTEM_FUNCTIONS: &[&str] = &[];
const DATETIME_FUNCTIONS: &[&str] =
    &["current_date", "current_time", "date_bin", "date_part", "date_trunc", "now", "to_timestamp"];

fn bits(values: impl IntoIterator<Item = i32>) -> i32 {
    values.into_iter().fold(0, |mask, bit| mask | (1 << bit))
}

pub(super) fn sql_info() -> Result<SqlInfoData, FlightError> {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "SignalDB");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    // Of the format, not of a library.
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    // Handles are the statements themselves: they do not time out.
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
    info.append(SqlInfo::FlightSqlServerTransactionTimeout, 0_i32);
    for (name, value) in FLAGS {
        info.append(*name, *value);
    }
    for name in UNLIMITED {
        info.append(*name, 0_i64);
    }
    info.append(SqlInfo::SqlDbSchemaNameLength, DATASET_NAME_CHARS_MAX);
    info.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32);
    // They are kept as they are written, for which there is no name.
    info.append(SqlInfo::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityUnknown as i32);
    info.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
    info.append(SqlInfo::SqlOuterJoinsSupportLevel, SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32);
    info.append(SqlInfo::SqlDefaultTransactionIsolation, SqlTransactionIsolationLevel::SqlTransactionNone as i32);
    for (name, value) in [
        (SqlInfo::SqlIdentifierQuoteChar, "\""),
        (SqlInfo::SqlSearchStringEscape, "\\"),
        (SqlInfo::SqlExtraNameCharacters, ""),
        (SqlInfo::SqlCatalogTerm, "catalog"),
        (SqlInfo::SqlSchemaTerm, "dataset"),
        (SqlInfo::SqlProcedureTerm, "procedure"),
    ] {
        info.append(name, value);
    }
    for (name, values) in [
        (SqlInfo::SqlKeywords, KEYWORDS),
        (SqlInfo::SqlNumericFunctions, NUMERIC_FUNCTIONS),
        (SqlInfo::SqlStringFunctions, STRING_FUNCTIONS),
        (SqlInfo::SqlSystemFunctions, SYSTEM_FUNCTIONS),
        (SqlInfo::SqlDatetimeFunctions, DATETIME_FUNCTIONS),
    ] {
        info.append(name, values);
    }
    let read_only = bits([
        SqlSupportedResultSetConcurrency::SqlResultSetConcurrencyUnspecified as i32,
        SqlSupportedResultSetConcurrency::SqlResultSetConcurrencyReadOnly as i32,
    ]);
    for (name, mask) in [
        (
            SqlInfo::SqlSupportedGroupBy,
            bits([SqlSupportedGroupBy::SqlGroupByUnrelated as i32, SqlSupportedGroupBy::SqlGroupByBeyondSelect as i32]),
        ),
        (
            SqlInfo::SqlSupportedGrammar,
            bits([SupportedSqlGrammar::SqlMinimumGrammar as i32, SupportedSqlGrammar::SqlCoreGrammar as i32]),
        ),
        // Entry level has INSERT, UPDATE and DELETE: not even that.
        (SqlInfo::SqlAnsi92SupportedLevel, 0),
        // Names of datasets and the catalog in queries alone.
        (SqlInfo::SqlSchemasSupportedActions, 0),
        (SqlInfo::SqlCatalogsSupportedActions, 0),
        (SqlInfo::SqlSupportedPositionedCommands, 0),
        (
            SqlInfo::SqlSupportedSubqueries,
            bits([
                SqlSupportedSubqueries::SqlSubqueriesInComparisons as i32,
                SqlSupportedSubqueries::SqlSubqueriesInExists as i32,
                SqlSupportedSubqueries::SqlSubqueriesInIns as i32,
            ]),
        ),
        (
            SqlInfo::SqlSupportedUnions,
            bits([SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32]),
        ),
        (
            SqlInfo::SqlSupportedTransactionsIsolationLevels,
            bits([SqlTransactionIsolationLevel::SqlTransactionNone as i32]),
        ),
        (
            SqlInfo::SqlSupportedResultSetTypes,
            bits([
                SqlSupportedResultSetType::SqlResultSetTypeUnspecified as i32,
                SqlSupportedResultSetType::SqlResultSetTypeForwardOnly as i32,
            ]),
        ),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetUnspecified, read_only),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly, read_only),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0),
    ] {
        info.append(name, mask);
    }
    info.build()
}

const FLAGS: &[(SqlInfo, bool)] = &[
    (SqlInfo::FlightSqlServerReadOnly, true),
    (SqlInfo::FlightSqlServerSql, true),
    (SqlInfo::FlightSqlServerSubstrait, false),
    (SqlInfo::FlightSqlServerCancel, true),
    (SqlInfo::FlightSqlServerBulkIngestion, false),
    (SqlInfo::FlightSqlServerIngestTransactionsSupported, false),
    (SqlInfo::SqlDdlCatalog, false),
    (SqlInfo::SqlDdlSchema, false),
    (SqlInfo::SqlDdlTable, false),
    (SqlInfo::SqlAllTablesAreSelectable, true),
    (SqlInfo::SqlSupportsColumnAliasing, true),
    (SqlInfo::SqlNullPlusNullIsNull, true),
    (SqlInfo::SqlSupportsTableCorrelationNames, true),
    (SqlInfo::SqlSupportsDifferentTableCorrelationNames, false),
    (SqlInfo::SqlSupportsExpressionsInOrderBy, true),
    (SqlInfo::SqlSupportsOrderByUnrelated, true),
    (SqlInfo::SqlSupportsLikeEscapeClause, false),
    (SqlInfo::SqlSupportsNonNullableColumns, true),
    (SqlInfo::SqlSupportsIntegrityEnhancementFacility, false),
    (SqlInfo::SqlCatalogAtStart, true),
    (SqlInfo::SqlSelectForUpdateSupported, false),
    (SqlInfo::SqlStoredProceduresSupported, false),
    (SqlInfo::SqlCorrelatedSubqueriesSupported, true),
    (SqlInfo::SqlMaxRowSizeIncludesBlobs, false),
    (SqlInfo::SqlTransactionsSupported, false),
    (SqlInfo::SqlDataDefinitionCausesTransactionCommit, false),
    (SqlInfo::SqlDataDefinitionsInTransactionsIgnored, false),
    (SqlInfo::SqlBatchUpdatesSupported, false),
    (SqlInfo::SqlSavepointsSupported, false),
    (SqlInfo::SqlNamedParametersSupported, false),
    (SqlInfo::SqlLocatorsUpdateCopy, false),
    (SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported, false),
];

/// Zero says that there is no limit, or none that has a number.
const UNLIMITED: &[SqlInfo] = &[
    SqlInfo::SqlMaxBinaryLiteralLength,
    SqlInfo::SqlMaxCharLiteralLength,
    SqlInfo::SqlMaxColumnNameLength,
    SqlInfo::SqlMaxColumnsInGroupBy,
    SqlInfo::SqlMaxColumnsInIndex,
    SqlInfo::SqlMaxColumnsInOrderBy,
    SqlInfo::SqlMaxColumnsInSelect,
    SqlInfo::SqlMaxColumnsInTable,
    SqlInfo::SqlMaxConnections,
    SqlInfo::SqlMaxCursorNameLength,
    SqlInfo::SqlMaxIndexLength,
    SqlInfo::SqlMaxProcedureNameLength,
    SqlInfo::SqlMaxCatalogNameLength,
    SqlInfo::SqlMaxRowSize,
    SqlInfo::SqlMaxStatementLength,
    SqlInfo::SqlMaxStatements,
    SqlInfo::SqlMaxTableNameLength,
    SqlInfo::SqlMaxTablesInSelect,
    SqlInfo::SqlMaxUsernameLength,
];

/// The types that columns have or that a statement may cast to.
pub(super) fn types() -> Result<XdbcTypeInfoData, FlightError> {
    use XdbcDataType::*;
    let mut types = XdbcTypeInfoDataBuilder::new();
    for (name, kind, size) in [
        ("TINYINT", XdbcTinyint, 8),
        ("SMALLINT", XdbcSmallint, 16),
        ("INTEGER", XdbcInteger, 32),
        ("BIGINT", XdbcBigint, 64),
        ("REAL", XdbcReal, 24),
        ("DOUBLE", XdbcDouble, 53),
    ] {
        types.append(XdbcTypeInfo {
            unsigned_attribute: Some(false),
            auto_increment: Some(false),
            num_prec_radix: Some(2),
            ..plain(name, kind, Some(size))
        });
    }
    types.append(XdbcTypeInfo {
        create_params: Some(vec!["precision".to_owned(), "scale".to_owned()]),
        unsigned_attribute: Some(false),
        auto_increment: Some(false),
        minimum_scale: Some(0),
        maximum_scale: Some(76),
        num_prec_radix: Some(10),
        ..plain("DECIMAL", XdbcDecimal, Some(76))
    });
    types.append(plain("BOOLEAN", XdbcBit, Some(1)));
    types.append(XdbcTypeInfo { case_sensitive: true, ..quoted("VARCHAR", XdbcVarchar) });
    types.append(XdbcTypeInfo { literal_prefix: Some("X'".to_owned()), ..quoted("BYTEA", XdbcVarbinary) });
    for (name, kind, subcode) in [
        ("DATE", XdbcDate, XdbcDatetimeSubcode::XdbcSubcodeYear),
        ("TIME", XdbcTime, XdbcDatetimeSubcode::XdbcSubcodeTime),
        ("TIMESTAMP", XdbcTimestamp, XdbcDatetimeSubcode::XdbcSubcodeTimestamp),
    ] {
        types.append(XdbcTypeInfo {
            literal_prefix: Some(format!("{name} '")),
            sql_data_type: XdbcDatetime,
            datetime_subcode: Some(subcode),
            ..quoted(name, kind)
        });
    }
    types.append(XdbcTypeInfo { literal_prefix: Some("INTERVAL '".to_owned()), ..quoted("INTERVAL", XdbcInterval) });
    types.build()
}

fn plain(name: &str, kind: XdbcDataType, size: Option<i32>) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type: kind,
        column_size: size,
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        local_type_name: Some(name.to_owned()),
        sql_data_type: kind,
        ..XdbcTypeInfo::default()
    }
}

fn quoted(name: &str, kind: XdbcDataType) -> XdbcTypeInfo {
    XdbcTypeInfo {
        literal_prefix: Some("'".to_owned()),
        literal_suffix: Some("'".to_owned()),
        ..plain(name, kind, None)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int32Type, UInt32Type};

    use super::*;

    #[test]
    fn every_info_is_there_once_and_has_the_type_of_the_protocol() {
        let batch = sql_info().expect("builds").record_batch(None).expect("a batch");
        let names = batch.column(0).as_primitive::<UInt32Type>();
        let (texts, flags, numbers, masks, lists) = (0, 1, 2, 3, 4);
        for at in 0..batch.num_rows() {
            let name = names.value(at);
            // Only what means nothing without Substrait, and the conversions between types, are left out.
            let expected = match name {
                0..=2 | 504 | 513 | 514 | 529..=531 => texts,
                8
                | 100
                | 101
                | 503
                | 505
                | 507
                | 522
                | 525
                | 526
                | 528
                | 533..=535
                | 538
                | 540
                | 562
                | 564
                | 567..=571 => masks,
                508..=512 => lists,
                541..=555 | 557..=561 => numbers,
                _ => flags,
            };
            let value = batch.column(1).as_any().downcast_ref::<arrow::array::UnionArray>().expect("a union");
            assert_eq!(value.type_id(at), expected, "info {name}");
        }
        let found: Vec<u32> = names.values().to_vec();
        let all = (0..=5).chain(8..=11).chain(100..=101).chain(500..=516).chain(518..=576);
        assert_eq!(found, all.collect::<Vec<u32>>());
    }

    #[test]
    fn types_are_sorted_and_can_be_asked_for_one_by_one() {
        let types = types().expect("builds");
        let all = types.record_batch(None).expect("a batch");
        let kinds: Vec<i32> = all.column(1).as_primitive::<Int32Type>().values().to_vec();
        assert!(kinds.is_sorted(), "{kinds:?}");
        assert_eq!(all.num_rows(), 14);
        let one = types.record_batch(XdbcDataType::XdbcVarchar as i32).expect("a batch");
        assert_eq!((one.num_rows(), one.column(0).as_string::<i32>().value(0)), (1, "VARCHAR"));
    }
}
