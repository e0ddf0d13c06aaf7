//! Which data files are too old to keep: no disk, network, clock or randomness.
//!
//! Rows go by whole files: a file goes when the newest of its rows is older than its table's policy says. A file holds
//! rows of one day, so a row stays a day longer than it must, at most. Bytes go later, with the last snapshot that shows
//! them ([`crate::orphans`]).

use std::time::Duration;

use iceberg::spec::{DataFile, PrimitiveLiteral};
use signaldb_model::{TableId, UnixNanos};
use signaldb_signals::{SignalTable, schema};

use crate::config::RetentionConfig;
use crate::table::day_of;

const MICROS_A_DAY: i64 = 86_400_000_000;

/// How long rows of a table are kept; `None` is for ever. Of the rules that fit, the one that says most decides, and of
/// equals the first.
pub(crate) fn keep(config: &RetentionConfig, id: &TableId, table: SignalTable) -> Option<Duration> {
    let fits = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let rules = config.rules.iter().filter(|rule| {
        fits(&rule.tenant, id.tenant.as_str())
            && fits(&rule.dataset, id.dataset.as_str())
            && fits(&rule.table, table.name())
    });
    let says =
        |rule: &&crate::config::RetentionRule| (rule.tenant.is_some(), rule.dataset.is_some(), rule.table.is_some());
    // The last of the largest; hence backwards.
    rules.rev().max_by_key(says).map_or(config.keep, |rule| rule.keep)
}

/// Files all of whose rows are older than `keep`.
pub(crate) fn plan<'a>(
    files: impl IntoIterator<Item = &'a DataFile>,
    table: SignalTable,
    keep: Duration,
    now: UnixNanos,
) -> Vec<DataFile> {
    let keep_micros = i64::try_from(keep.as_micros()).unwrap_or(i64::MAX);
    let limit = i64::try_from(now.0 / 1000).unwrap_or(i64::MAX).saturating_sub(keep_micros);
    files.into_iter().filter(|file| newest_micros(file, table).is_some_and(|at| at < limit)).cloned().collect()
}

/// No row of the file is newer; `None` when nobody can say.
fn newest_micros(file: &DataFile, table: SignalTable) -> Option<i64> {
    let column = schema::of(table).column("timestamp")?;
    match file.upper_bounds().get(&column.id).map(|bound| bound.literal()) {
        Some(PrimitiveLiteral::Long(at)) => Some(*at),
        _ => day_of(file).map(|day| (i64::from(day) + 1) * MICROS_A_DAY - 1),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, Datum, Literal, Struct};
    use signaldb_model::{DatasetId, TenantId};

    use super::*;
    use crate::config::RetentionRule;

    const DAY: Duration = Duration::from_secs(86_400);

    fn rule(tenant: &str, dataset: &str, table: &str, days: Option<u32>) -> RetentionRule {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let keep = days.map(|days| DAY * days);
        RetentionRule { tenant: some(tenant), dataset: some(dataset), table: some(table), keep }
    }

    #[test]
    fn the_rule_that_says_most_decides() {
        let rules = vec![
            rule("", "", "traces", Some(3)),
            rule("acme", "", "", Some(30)),
            rule("acme", "", "logs", None),
            rule("acme", "prod", "", Some(90)),
            rule("acme", "prod", "", Some(91)),
        ];
        let config = RetentionConfig { keep: Some(DAY * 7), rules, ..RetentionConfig::default() };
        let check = |tenant: &str, dataset: &str, table: SignalTable, days: Option<u32>| {
            let (tenant, dataset) = (TenantId::new(tenant).expect("name"), DatasetId::new(dataset).expect("name"));
            let id = TableId { tenant, dataset, code: table.code() };
            assert_eq!(keep(&config, &id, table), days.map(|days| DAY * days), "{id}");
        };
        check("other", "d", SignalTable::Logs, Some(7));
        check("other", "d", SignalTable::Traces, Some(3));
        check("acme", "d", SignalTable::Traces, Some(30));
        check("acme", "d", SignalTable::Logs, None);
        check("acme", "prod", SignalTable::Logs, Some(90));
        let none = RetentionConfig::default();
        let id = TableId {
            tenant: TenantId::new("t").expect("name"),
            dataset: DatasetId::new("d").expect("name"),
            code: SignalTable::Logs.code(),
        };
        assert_eq!(keep(&none, &id, SignalTable::Logs), None, "nothing is deleted unless somebody asked for it");
    }

    fn file(day: i32, newest_micros: Option<i64>) -> DataFile {
        let id = schema::of(SignalTable::Logs).column("timestamp").expect("exists").id;
        let bounds: HashMap<i32, Datum> =
            newest_micros.map(|at| (id, Datum::timestamptz_micros(at))).into_iter().collect();
        let mut builder = DataFileBuilder::default();
        builder
            .content(DataContentType::Data)
            .file_path(format!("{day}"))
            .file_format(DataFileFormat::Parquet)
            .partition(Struct::from_iter([Some(Literal::date(day))]))
            .record_count(1)
            .file_size_in_bytes(1)
            .upper_bounds(bounds);
        builder.build().expect("builds")
    }

    #[test]
    fn a_file_goes_when_its_newest_row_is_too_old() {
        let check = |file: DataFile, now_hours: u64| {
            let now = UnixNanos(now_hours * 3_600_000_000_000);
            !plan([&file], SignalTable::Logs, DAY * 2, now).is_empty()
        };
        let six = Some(6 * 3_600_000_000);
        assert!(!check(file(0, six), 54), "the newest row is of hour 6");
        assert!(check(file(0, six), 55));
        assert!(!check(file(0, None), 71), "without bounds the day's end counts");
        assert!(check(file(0, None), 72));
        assert!(!check(file(5, None), 0), "long before everything");
    }
}
