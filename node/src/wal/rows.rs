//! Whose rows the entries of a log hold, and whose are lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use signaldb_model::{DatasetId, TableCode, TableId, TenantId};
use signaldb_signals::SignalTable;
use signaldb_wal::Readable;

use super::report::{Report, table};

/// An entry, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Rows(Rows),
    /// Rows of `table` up to and including index `hi` are in Iceberg.
    Flushed {
        table: TableId,
        hi: u64,
    },
    /// The cut of a flush: rows up to here may be in Iceberg, whether or not the log came to know.
    Cut,
    Other,
}

/// Rows of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) tenant: TenantId,
    pub(super) dataset: DatasetId,
    /// Of the entry in the log.
    pub(super) bytes: u64,
    pub(super) tables: Vec<(TableCode, u32)>,
    /// What it is recognized by when it is sent again, unless it opted out.
    pub(super) request: Option<String>,
}

/// Entries by group and index.
pub(super) type Entries = Readable<Entry>;

/// Which rows to list; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    pub(super) tenant: Option<TenantId>,
    pub(super) dataset: Option<DatasetId>,
    /// `traces`, `logs` or `metrics`.
    pub(super) signal: Option<String>,
}

/// What one group holds, or held, of one dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Share {
    tenant: TenantId,
    dataset: DatasetId,
    group: u32,
    entries: u64,
    bytes: u64,
    first: u64,
    last: u64,
    rows: u64,
    /// Rows that the log knows to be in Iceberg; there may be more.
    rows_in_iceberg: u64,
    tables: BTreeSet<String>,
}

/// What a repair took away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Loss {
    groups: Vec<GroupLoss>,
    /// Of the lost entries that could still be read.
    tenants: Vec<Share>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct GroupLoss {
    group: u32,
    first: u64,
    /// The last index that the log is known to have held.
    last: u64,
    /// Entries among them whose bytes are damaged.
    unreadable: u64,
}

impl Filter {
    fn takes(&self, rows: &Rows) -> bool {
        let is = |table: &(TableCode, u32), signal: &String| table_name(table.0).starts_with(signal.as_str());
        self.tenant.as_ref().is_none_or(|tenant| *tenant == rows.tenant)
            && self.dataset.as_ref().is_none_or(|dataset| *dataset == rows.dataset)
            && self.signal.as_ref().is_none_or(|signal| rows.tables.iter().any(|table| is(table, signal)))
    }
}

pub(super) fn table_name(code: TableCode) -> String {
    SignalTable::from_code(code).map_or_else(|| format!("table {}", code.0), |table| table.name().to_owned())
}

/// The last index that the tables may hold, of a group that has lost what comes from `first_lost` on; `None` when that is
/// all in the log that is left.
pub(super) fn flushed_beyond(entries: &Entries, group: u32, first_lost: u64) -> Option<u64> {
    let reaches = |(index, entry): (&u64, &Entry)| match entry {
        Entry::Flushed { hi, .. } => Some(*hi),
        Entry::Cut => Some(*index),
        Entry::Rows(_) | Entry::Other => None,
    };
    entries.get(&group)?.iter().filter_map(reaches).max().filter(|flushed| *flushed >= first_lost)
}

/// Lists what the entries hold, by tenant, dataset and group.
pub(super) fn by_dataset(entries: &Entries, filter: &Filter) -> Vec<Share> {
    shares(entries, &watermarks(entries), |_, _, rows| filter.takes(rows))
}

fn shares(
    entries: &Entries,
    watermarks: &BTreeMap<(u32, TableId), u64>,
    takes: impl Fn(u32, u64, &Rows) -> bool,
) -> Vec<Share> {
    let mut out: BTreeMap<(TenantId, DatasetId, u32), Share> = BTreeMap::new();
    for (group, entries) in entries {
        for (index, entry) in entries {
            let Entry::Rows(rows) = entry else { continue };
            if !takes(*group, *index, rows) {
                continue;
            }
            let (tenant, dataset) = (rows.tenant.clone(), rows.dataset.clone());
            let share = out.entry((tenant.clone(), dataset.clone(), *group)).or_insert_with(|| Share {
                tenant: tenant.clone(),
                dataset: dataset.clone(),
                group: *group,
                entries: 0,
                bytes: 0,
                first: *index,
                last: *index,
                rows: 0,
                rows_in_iceberg: 0,
                tables: BTreeSet::new(),
            });
            share.entries += 1;
            share.bytes += rows.bytes;
            share.last = *index;
            for (code, count) in &rows.tables {
                let table = TableId { tenant: tenant.clone(), dataset: dataset.clone(), code: *code };
                share.rows += u64::from(*count);
                if watermarks.get(&(*group, table)).is_some_and(|hi| index <= hi) {
                    share.rows_in_iceberg += u64::from(*count);
                }
                share.tables.insert(table_name(*code));
            }
        }
    }
    out.into_values().collect()
}

/// How far each table is in Iceberg, by what the log says of it.
fn watermarks(entries: &Entries) -> BTreeMap<(u32, TableId), u64> {
    let mut out: BTreeMap<(u32, TableId), u64> = BTreeMap::new();
    for (group, entries) in entries {
        for entry in entries.values() {
            if let Entry::Flushed { table, hi } = entry {
                let known = out.entry((*group, table.clone())).or_default();
                *known = (*known).max(*hi);
            }
        }
    }
    out
}

pub(super) fn describe(shares: &[Share]) -> String {
    if shares.is_empty() {
        return "the log holds no rows of it; what was flushed is in the tables".to_owned();
    }
    let lines: Vec<[String; 10]> = shares
        .iter()
        .map(|share| {
            [
                share.tenant.to_string(),
                share.dataset.to_string(),
                share.group.to_string(),
                share.entries.to_string(),
                share.bytes.to_string(),
                share.first.to_string(),
                share.last.to_string(),
                share.rows.to_string(),
                share.rows_in_iceberg.to_string(),
                share.tables.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    let head = ["tenant", "dataset", "group", "entries", "bytes", "first", "last", "rows", "in Iceberg", "tables"];
    table(head, &lines)
}

impl Loss {
    /// Compares a log before and after its repair: what it is in the report's eyes, and what could be read of it.
    pub(super) fn between(before: (&Report, &Entries), after: (&Report, &Entries)) -> Self {
        let numbers: BTreeSet<u32> =
            before.0.groups.iter().map(|group| group.group).chain(before.1.keys().copied()).collect();
        let groups = numbers.into_iter().filter_map(|group| GroupLoss::of(group, before, after.0)).collect();
        let mut watermarks = watermarks(after.1);
        for (table, hi) in self::watermarks(before.1) {
            let known = watermarks.entry(table).or_default();
            *known = (*known).max(hi);
        }
        let kept = |group: u32, index: u64| after.1.get(&group).is_some_and(|entries| entries.contains_key(&index));
        let tenants = shares(before.1, &watermarks, |group, index, _| !kept(group, index));
        Self { groups, tenants }
    }
}

impl GroupLoss {
    fn of(group: u32, (report, entries): (&Report, &Entries), after: &Report) -> Option<Self> {
        let readable = entries.get(&group);
        let last_readable = readable.and_then(|entries| entries.last_key_value()).map(|(index, _)| *index);
        let before = report.group(group);
        let (first, last) = (after.group(group).end(), before.last.max(before.last_lost).max(last_readable)?);
        let held = readable.map_or(0, |entries| entries.range(first..=last.max(first)).count() as u64);
        (first <= last).then(|| Self { group, first, last, unreadable: last + 1 - first - held })
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.groups.is_empty() {
            return f.write_str("repaired; no entry of any group is known to be lost");
        }
        let groups: Vec<[String; 4]> = self
            .groups
            .iter()
            .map(|loss| {
                [u64::from(loss.group), loss.first, loss.last, loss.unreadable].map(|number| number.to_string())
            })
            .collect();
        writeln!(f, "repaired; lost are\n")?;
        writeln!(f, "{}", table(["group", "first", "last", "unreadable"], &groups))?;
        if !self.tenants.is_empty() {
            writeln!(f, "{}", describe(&self.tenants))?;
        }
        f.write_str(
            "Unreadable entries do not tell whose they were. Rows that are in Iceberg stay there; the others are gone: \
             clients that still have them may send them again.\nThe node can be started; it serves all the rest.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Group;
    use super::*;

    fn rows(tenant: &str, table: SignalTable, count: u32) -> Entry {
        Entry::Rows(Rows {
            tenant: TenantId::new(tenant).expect("name"),
            dataset: DatasetId::new("default").expect("name"),
            bytes: 10,
            tables: vec![(table.code(), count)],
            request: None,
        })
    }

    #[test]
    fn what_the_tables_may_hold_behind_the_damage_is_seen() {
        let spans = || rows("acme", SignalTable::Traces, 1);
        let log = |entries: Vec<(u64, Entry)>| Entries::from([(1, entries.into_iter().collect())]);
        let before =
            log(vec![(1, spans()), (2, Entry::Cut), (3, flushed("acme", SignalTable::Traces, 2)), (5, spans())]);
        assert_eq!(flushed_beyond(&before, 1, 4), None);
        assert_eq!(flushed_beyond(&before, 1, 2), Some(2), "the cut itself is lost");
        let behind = log(vec![(1, spans()), (6, Entry::Cut)]);
        assert_eq!(flushed_beyond(&behind, 1, 4), Some(6), "nobody knows whether the flush came to its end");
        assert_eq!(flushed_beyond(&behind, 2, 1), None);
    }

    fn flushed(tenant: &str, table: SignalTable, hi: u64) -> Entry {
        let (tenant, dataset) = (TenantId::new(tenant).expect("name"), DatasetId::new("default").expect("name"));
        Entry::Flushed { table: TableId { tenant, dataset, code: table.code() }, hi }
    }

    /// Group 1: acme's traces are flushed up to 2; 4 is damaged.
    fn log() -> Entries {
        let group = [
            (1, rows("acme", SignalTable::Traces, 3)),
            (2, rows("acme", SignalTable::Logs, 4)),
            (3, flushed("acme", SignalTable::Traces, 2)),
            (5, rows("acme", SignalTable::Traces, 5)),
            (6, rows("globex", SignalTable::MetricsSum, 6)),
        ];
        Entries::from([(1, BTreeMap::from(group)), (2, BTreeMap::from([(1, Entry::Other)]))])
    }

    fn report(lasts: &[(u32, u64)]) -> Report {
        let group =
            |(group, last): &(u32, u64)| Group { group: *group, first: Some(1), last: Some(*last), ..Group::default() };
        Report {
            dir: String::new(),
            sound: true,
            unlisted: None,
            segments: vec![],
            groups: lasts.iter().map(group).collect(),
            torn_tail: None,
            damages: vec![],
        }
    }

    #[test]
    fn rows_are_counted_by_dataset_and_those_in_iceberg_apart() {
        let acme = Filter { tenant: Some(TenantId::new("acme").expect("name")), ..Filter::default() };
        let shares = by_dataset(&log(), &acme);
        let [share] = shares.as_slice() else { panic!("{shares:?}") };
        assert_eq!((share.group, share.entries, share.bytes), (1, 3, 30));
        assert_eq!((share.first, share.last), (1, 5));
        assert_eq!((share.rows, share.rows_in_iceberg), (12, 3));
        assert_eq!(share.tables.iter().collect::<Vec<_>>(), ["logs", "traces"]);
        let logs = by_dataset(&log(), &Filter { signal: Some("logs".to_owned()), ..acme });
        assert_eq!(logs.iter().map(|share| share.rows).collect::<Vec<_>>(), [4]);
        let metrics = by_dataset(&log(), &Filter { signal: Some("metrics".to_owned()), ..Filter::default() });
        assert_eq!(metrics.iter().map(|share| share.tenant.as_str()).collect::<Vec<_>>(), ["globex"]);
    }

    #[test]
    fn a_loss_is_what_lies_behind_the_cut() {
        let mut kept = log();
        kept.get_mut(&1).expect("group 1").retain(|index, _| *index < 4);
        let loss = Loss::between((&report(&[(1, 6), (2, 1)]), &log()), (&report(&[(1, 3), (2, 1)]), &kept));
        assert_eq!(loss.groups, [GroupLoss { group: 1, first: 4, last: 6, unreadable: 1 }]);
        let tenants: Vec<(&str, u64, u64)> =
            loss.tenants.iter().map(|share| (share.tenant.as_str(), share.rows, share.rows_in_iceberg)).collect();
        assert_eq!(tenants, [("acme", 5, 0), ("globex", 6, 0)]);
        let text = loss.to_string();
        assert!(text.contains("globex") && text.contains("Unreadable"), "{text}");
        let whole = report(&[(1, 6), (2, 1)]);
        let none = Loss::between((&whole, &log()), (&whole, &log()));
        assert_eq!(none, Loss { groups: vec![], tenants: vec![] });
    }
}
