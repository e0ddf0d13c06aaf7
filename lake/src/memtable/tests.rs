use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use signaldb_model::{DatasetId, TenantId, UnixNanos};
use signaldb_raft::{Compression, TableStats};
use signaldb_signals::{SignalKind, SignalTable};

use super::*;

fn append(spans: usize) -> Append {
    let scope = ScopeSpans { spans: vec![Span::default(); spans], ..ScopeSpans::default() };
    let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
    let body = ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec();
    Append {
        kind: SignalKind::Traces as u8,
        tenant: TenantId::new("t").expect("name"),
        dataset: DatasetId::new("d").expect("name"),
        at: UnixNanos(0),
        dedup: None,
        tables: vec![TableStats {
            table: SignalTable::Traces.code(),
            rows: spans as u32,
            time_min: UnixNanos(0),
            time_max: UnixNanos(0),
        }],
        compression: Compression::Lz4,
        raw_len: body.len() as u32,
        payload: Bytes::from(lz4_flex::block::compress(&body)),
    }
}

const ROOM: &dyn Fn() -> bool = &|| true;
const NO_ROOM: &dyn Fn() -> bool = &|| false;

fn rows(view: &TableView) -> usize {
    view.batches.iter().map(|batch| batch.rows.num_rows()).sum()
}

#[tokio::test]
async fn rows_can_be_read_up_to_the_built_index_and_go_when_flushed() {
    let table = GroupMemtable::new(true);
    let id = append(1).table_ids().next().expect("one table");
    for index in 1..=40 {
        table.append(index, append(2), true);
        table.applied(index);
        table.build(Duration::from_nanos(index), None, ROOM).expect("builds");
    }
    let epoch = table.wait_built(40).await.expect("active");
    let view = table.view(&id, epoch).expect("exists");
    assert_eq!((rows(&view), view.version), (80, -1));
    assert!(view.batches.len() < 8, "small batches are merged: {}", view.batches.len());
    let kept: usize =
        view.batches.iter().filter_map(|batch| batch.above(30)?.upto(35)).map(|b| b.rows.num_rows()).sum();
    assert_eq!(kept, 10);
    assert_eq!(table.loads()[&id].since, Duration::from_nanos(1));
    table.flushed(&id, 33, 1, "v1");
    let view = table.view(&id, table.epoch()).expect("exists");
    assert_eq!((rows(&view), view.watermark, view.location.as_str()), (14, 33, "v1"));
    table.flushed(&id, 40, 2, "v2");
    assert!(table.loads().is_empty());
    assert_eq!(table.bytes(), 0);
}

#[tokio::test]
async fn rows_at_or_below_the_watermark_are_not_built_again() {
    let table = GroupMemtable::new(true);
    let id = append(1).table_ids().next().expect("one table");
    table.flushed(&id, 5, 1, "v1");
    for index in 4..=7 {
        table.append(index, append(1), true);
    }
    table.applied(7);
    table.build(Duration::from_nanos(1), None, ROOM).expect("builds");
    assert_eq!(rows(&table.view(&id, table.epoch()).expect("exists")), 2);
}

#[tokio::test]
async fn a_table_that_was_clean_needs_only_its_own_rows() {
    let table = GroupMemtable::new(false);
    let busy = append(1).table_ids().next().expect("one table");
    let sparse = TableId { tenant: TenantId::new("sparse").expect("name"), ..busy.clone() };
    table.append(10, Append { tenant: sparse.tenant.clone(), ..append(1) }, true);
    table.flushed(&sparse, 10, 1, "v1");
    for index in 11..=2000 {
        table.append(index, append(1), true);
    }
    table.append(2001, Append { tenant: sparse.tenant.clone(), ..append(1) }, true);
    // The cut at 2000 is complete: everything up to it may be purged from the log.
    table.flushed(&busy, 2000, 1, "v1");
    let left: Vec<u64> = table.state().entries.iter().map(|entry| entry.index).collect();
    assert_eq!(left, [2001]);
}

/// A log of one kind of append, index for index.
#[derive(Debug)]
struct Log;

impl LogReader for Log {
    fn read_appends(&self, from: u64, to: u64, _bytes_max: usize) -> Result<(Vec<(u64, Append)>, u64), String> {
        if from <= 3 {
            return Err("purged".to_owned());
        }
        let upto = to.min(from + 2);
        Ok(((from..=upto).map(|index| (index, append(1))).collect(), upto + 1))
    }

    fn purged(&self) -> u64 {
        3
    }
}

#[tokio::test]
async fn what_the_log_no_longer_holds_is_not_read_back() {
    let table = GroupMemtable::new(false);
    let id = append(1).table_ids().next().expect("one table");
    for index in [2, 3, 4, 5] {
        table.append(index, append(1), true);
        table.applied(index);
    }
    table.activate();
    table.build(Duration::from_nanos(1), Some(&Log), ROOM).expect("goes on with what is left");
    let epoch = table.wait_built(5).await.expect("active");
    assert_eq!(rows(&table.view(&id, epoch).expect("exists")), 2);
}

#[tokio::test]
async fn a_new_leader_reads_back_what_is_not_flushed_and_no_repeats() {
    let table = GroupMemtable::new(false);
    let id = append(1).table_ids().next().expect("one table");
    // Entry 7 was a repeat: nobody told us of it.
    for index in [4, 5, 6, 8, 9] {
        table.append(index, append(1), true);
        table.applied(index);
    }
    table.build(Duration::from_nanos(1), None, ROOM).expect("a follower decodes nothing");
    assert_eq!((table.bytes(), table.wait_built(1).await), (0, Err(NotBuilt::Moved)));
    table.flushed(&id, 5, 1, "v1");
    table.activate();
    table.append(10, append(1), true);
    table.applied(10);
    table.build(Duration::from_nanos(1), Some(&Log), ROOM).expect("loads and decodes");
    let epoch = table.wait_built(10).await.expect("active");
    assert_eq!(rows(&table.view(&id, epoch).expect("exists")), 4, "6, 8, 9 and 10");
    table.deactivate();
    assert_eq!(table.bytes(), 0);
    assert!(table.view(&id, epoch).is_none(), "what was seen under one leadership is not mixed with another");
    table.activate();
    table.build(Duration::from_nanos(1), Some(&Log), ROOM).expect("loads");
    let epoch = table.wait_built(10).await.expect("active again");
    assert_eq!(rows(&table.view(&id, epoch).expect("exists")), 4);
    table.flushed(&id, 10, 2, "v2");
    table.deactivate();
    table.activate();
    table.build(Duration::from_nanos(1), None, ROOM).expect("nothing is left to load");
}

/// Entries 4 to 9 come while memory is full after entry 5.
#[tokio::test]
async fn rows_that_memory_has_no_room_for_are_flushed_in_steps() {
    let table = GroupMemtable::new(true);
    let id = append(1).table_ids().next().expect("one table");
    for index in 4..=9 {
        table.append(index, append(1), index <= 5);
        table.applied(index);
        table.build(Duration::from_nanos(index), Some(&Log), NO_ROOM).expect("builds");
    }
    assert_eq!(table.wait_built(5).await, Ok(table.epoch()));
    assert_eq!(table.wait_built(6).await, Err(NotBuilt::InLog), "a strong read does not wait for the store");
    let in_log = table.log_bytes();
    assert!(table.has_backlog() && in_log > 0);
    assert_eq!(table.wait_flushable(9).await, Ok((table.epoch(), 5)), "what is here goes first");
    table.flushed(&id, 5, 1, "v1");
    assert_eq!((table.bytes(), table.loads().len()), (0, 0));
    assert_eq!(table.log_bytes(), in_log / 3 * 2);
    table.append(10, append(1), true);
    table.applied(10);
    table.build(Duration::from_nanos(10), Some(&Log), ROOM).expect("reads back");
    assert_eq!(table.wait_flushable(9).await, Ok((table.epoch(), 9)));
    let view = table.view(&id, table.wait_built(10).await.expect("active")).expect("exists");
    assert_eq!(rows(&view), 5, "6 to 9 from the log, 10 behind them, each once");
    assert!(!table.has_backlog());
    table.flushed(&id, 10, 2, "v2");
    assert_eq!(table.log_bytes(), 0);
}

/// Entries 4 to 9 come while memory is full after entry 5; those of another table are 4 and, at first, 7.
#[tokio::test]
async fn a_table_without_rows_in_the_backlog_is_whole() {
    let table = GroupMemtable::new(true);
    let busy = append(1).table_ids().next().expect("one table");
    let quiet = TableId { tenant: TenantId::new("quiet").expect("name"), ..busy.clone() };
    let never = TableId { tenant: TenantId::new("never").expect("name"), ..busy.clone() };
    let of_quiet = || Append { tenant: quiet.tenant.clone(), ..append(1) };
    let see = |id: &TableId, index| {
        let (view, whole) = table.view_beside_backlog(id, index).expect("active");
        (view.map(|view| rows(&view)), whole)
    };
    for index in 4..=9 {
        let append = if matches!(index, 4 | 7) { of_quiet() } else { append(1) };
        table.append(index, append, index <= 5);
        table.applied(index);
        table.build(Duration::from_nanos(index), Some(&Log), NO_ROOM).expect("builds");
    }
    assert_eq!(table.wait_built(9).await, Err(NotBuilt::InLog));
    assert_eq!(see(&busy, 9), (Some(1), false), "6, 8 and 9 are in the log");
    assert_eq!(see(&quiet, 9), (Some(1), false), "7 is");
    assert_eq!(see(&never, 9), (None, true));
    assert_eq!(see(&never, 10), (None, false), "nobody knows yet whose entry 10 is");
    // Somebody else flushed that.
    table.flushed(&quiet, 7, 1, "v1");
    assert_eq!(see(&quiet, 9), (Some(0), true));
    assert_eq!(see(&busy, 9), (Some(1), false));
    table.deactivate();
    assert!(table.view_beside_backlog(&busy, 9).is_none(), "another node leads");
}

/// Entries 4 to 9 of a table in quarantine come while memory is full after entry 5.
#[tokio::test]
async fn rows_that_are_put_aside_make_room_for_those_in_the_log() {
    let table = GroupMemtable::new(true);
    let id = append(1).table_ids().next().expect("one table");
    for index in 4..=9 {
        table.append(index, append(1), index <= 5);
        table.applied(index);
        table.build(Duration::from_nanos(index), Some(&Log), NO_ROOM).expect("builds");
    }
    assert_eq!(table.wait_flushable(9).await, Ok((table.epoch(), 5)));
    let in_log = table.log_bytes();
    let aside = |watermark| TableState {
        watermark,
        last_append: 9,
        version: 1,
        quarantined: Some("gone".to_owned()),
        ..TableState::default()
    };
    // A step's range ends at the step's watermark: the rows behind it are not in its files.
    table.quarantine(&id, &aside(5));
    assert_eq!((table.bytes(), table.loads().len()), (0, 0));
    assert_eq!(table.log_bytes(), in_log / 3 * 2);
    let (view, _) = table.view_beside_backlog(&id, 9).expect("active");
    assert_eq!(view.and_then(|view| view.quarantined).as_deref(), Some("gone"));
    table.build(Duration::from_nanos(10), Some(&Log), ROOM).expect("reads back");
    assert_eq!(table.wait_flushable(9).await, Ok((table.epoch(), 9)));
    let view = table.view(&id, table.epoch()).expect("exists");
    assert_eq!((rows(&view), view.watermark), (4, 5), "6 to 9");
    table.quarantine(&id, &aside(9));
    assert_eq!((table.bytes(), table.log_bytes()), (0, 0));
    assert!(!table.has_backlog());
}

#[tokio::test]
async fn a_log_that_is_not_open_yet_is_read_later() {
    let table = GroupMemtable::new(true);
    table.append(4, append(1), false);
    table.applied(4);
    table.build(Duration::from_nanos(1), None, ROOM).expect("waits for the log");
    assert_eq!(table.wait_built(4).await, Err(NotBuilt::InLog));
    table.build(Duration::from_nanos(1), Some(&Log), ROOM).expect("reads it");
    table.wait_built(4).await.expect("active");
}

#[tokio::test]
async fn what_is_read_back_at_a_time_is_bounded() {
    let table = GroupMemtable::new(true);
    let large = |index| (index, Append { raw_len: 3 << 20, ..append(1) });
    for (index, append) in (4..=9).map(large) {
        table.append(index, append, false);
    }
    table.applied(9);
    let (_, step) = table.next_step(true);
    let Step::Load(entries) = step else { panic!("there is something to load") };
    assert_eq!(entries.len(), 1, "one is more than enough");
    assert_eq!(table.bytes(), ROW_BYTES_A_REQUEST_BYTE * (3 << 20), "what is being read counts");
    assert_eq!(table.backlog_bytes(), 5 * ROW_BYTES_A_REQUEST_BYTE * (3 << 20));
}
