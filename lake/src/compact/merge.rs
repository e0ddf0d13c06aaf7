//! Sorted rows of several files to one sorted sequence, a few rows of each in memory.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::{SortOptions, interleave_record_batch};
use arrow::row::{OwnedRow, Row, RowConverter, Rows, SortField};
use signaldb_signals::SignalTable;
use signaldb_signals::schema;

use crate::datafile::SPREAD_ROWS_MIN;
use crate::error::LakeError;

/// Rows of a batch that goes out.
const OUTPUT_ROWS: usize = 4096;
/// Largest column of the batches that are held, bytes; beyond it only [`SPREAD_ROWS_MIN`] rows go out at a time, so that
/// no column passes the 2 GiB that Arrow's offsets can address.
const COLUMN_BYTES_MAX: usize = 1 << 30;

/// Rows of one file in the table's order, with the table's columns.
pub(super) trait Source: Send {
    /// The next rows, at least one; `None` after the last.
    fn next(&mut self) -> Result<Option<RecordBatch>, LakeError>;
}

/// Merges `sources`; every batch goes to `out` before more is read.
///
/// # Errors
/// [`LakeError::Unsorted`] when a source is not in the table's order, or what a source or `out` say.
pub(super) fn merge(
    table: SignalTable,
    sources: Vec<Box<dyn Source>>,
    out: &mut dyn FnMut(RecordBatch) -> Result<(), LakeError>,
) -> Result<(), LakeError> {
    let mut merger = Merger::new(table)?;
    for source in sources {
        merger.add(source)?;
    }
    merger.run(out)
}

struct Merger {
    converter: RowConverter,
    /// Positions of the sort columns.
    sort_columns: Vec<usize>,
    cursors: Vec<Cursor>,
    /// Cursors that have rows, by their next row.
    order: Vec<usize>,
    /// Batches that `picked` or a cursor points into.
    held: Vec<RecordBatch>,
    /// Sum of the largest column of each held batch, bytes.
    held_bytes: usize,
    /// Rows that go out next: batch and row.
    picked: Vec<(usize, usize)>,
}

/// Where the merge is in one source.
struct Cursor {
    source: Box<dyn Source>,
    /// Of the held batches.
    batch: usize,
    keys: Rows,
    at: usize,
}

impl Cursor {
    fn key(&self) -> Row<'_> {
        self.keys.row(self.at)
    }
}

impl Merger {
    fn new(table: SignalTable) -> Result<Self, LakeError> {
        let schema = &schema::of(table).arrow;
        let positions = table.sort_columns().iter().map(|name| schema.index_of(name));
        let sort_columns = positions.collect::<Result<Vec<usize>, _>>()?;
        // As in the flush's sort.
        let options = SortOptions { descending: false, nulls_first: true };
        let field = |at: &usize| SortField::new_with_options(schema.field(*at).data_type().clone(), options);
        let converter = RowConverter::new(sort_columns.iter().map(field).collect())?;
        Ok(Self {
            converter,
            sort_columns,
            cursors: Vec::new(),
            order: Vec::new(),
            held: Vec::new(),
            held_bytes: 0,
            picked: Vec::new(),
        })
    }

    fn add(&mut self, mut source: Box<dyn Source>) -> Result<(), LakeError> {
        let Some(batch) = source.next()? else { return Ok(()) };
        let keys = self.keys(&batch)?;
        let batch = self.hold(batch);
        self.cursors.push(Cursor { source, batch, keys, at: 0 });
        Ok(())
    }

    fn run(mut self, out: &mut dyn FnMut(RecordBatch) -> Result<(), LakeError>) -> Result<(), LakeError> {
        let cursors = &self.cursors;
        self.order = (0..cursors.len()).collect();
        self.order.sort_by(|a, b| (cursors[*a].key(), a).cmp(&(cursors[*b].key(), b)));
        while let Some(first) = self.order.first().copied() {
            let cursor = &mut self.cursors[first];
            self.picked.push((cursor.batch, cursor.at));
            cursor.at += 1;
            if cursor.at < cursor.keys.num_rows() {
                if cursor.keys.row(cursor.at) < cursor.keys.row(cursor.at - 1) {
                    return Err(LakeError::Unsorted);
                }
                self.sink_first();
            } else if self.refill(first, out)? {
                self.sink_first();
            } else {
                self.order.remove(0);
            }
            let most = if self.held_bytes > COLUMN_BYTES_MAX { SPREAD_ROWS_MIN } else { OUTPUT_ROWS };
            if self.picked.len() >= most {
                self.send(out)?;
            }
        }
        self.send(out)
    }

    /// Brings the first cursor to its place; equal rows stay in the order of the sources.
    fn sink_first(&mut self) {
        let Some((first, others)) = self.order.split_first() else { return };
        let key = (self.cursors[*first].key(), *first);
        let before = others.partition_point(|other| (self.cursors[*other].key(), *other) < key);
        self.order[..=before].rotate_left(1);
    }

    /// Reads on behind the last row of a cursor's batch; whether there was more.
    fn refill(
        &mut self,
        at: usize,
        out: &mut dyn FnMut(RecordBatch) -> Result<(), LakeError>,
    ) -> Result<bool, LakeError> {
        let Some(batch) = self.cursors[at].source.next()? else { return Ok(false) };
        let keys = self.keys(&batch)?;
        let cursor = &self.cursors[at];
        let last: OwnedRow = cursor.keys.row(cursor.at - 1).owned();
        if keys.row(0) < last.row() {
            return Err(LakeError::Unsorted);
        }
        if self.held_bytes + largest_column(&batch) > COLUMN_BYTES_MAX {
            self.send(out)?;
        }
        let batch = self.hold(batch);
        let cursor = &mut self.cursors[at];
        (cursor.batch, cursor.keys, cursor.at) = (batch, keys, 0);
        Ok(true)
    }

    fn keys(&self, batch: &RecordBatch) -> Result<Rows, LakeError> {
        let columns: Vec<ArrayRef> = self.sort_columns.iter().map(|at| Arc::clone(batch.column(*at))).collect();
        Ok(self.converter.convert_columns(&columns)?)
    }

    fn hold(&mut self, batch: RecordBatch) -> usize {
        self.held_bytes += largest_column(&batch);
        self.held.push(batch);
        self.held.len() - 1
    }

    /// Sends what is picked, and lets go of batches that no cursor needs.
    fn send(&mut self, out: &mut dyn FnMut(RecordBatch) -> Result<(), LakeError>) -> Result<(), LakeError> {
        if !self.picked.is_empty() {
            let held: Vec<&RecordBatch> = self.held.iter().collect();
            out(interleave_record_batch(&held, &self.picked)?)?;
            self.picked.clear();
        }
        let before = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        for at in self.order.clone() {
            let batch = before[self.cursors[at].batch].clone();
            self.cursors[at].batch = self.hold(batch);
        }
        Ok(())
    }
}

fn largest_column(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| column.get_buffer_memory_size()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, StringArray, new_null_array};
    use arrow::datatypes::Int64Type;

    use super::*;

    /// Batches that were given in advance.
    struct Given(std::vec::IntoIter<RecordBatch>);

    impl Source for Given {
        fn next(&mut self) -> Result<Option<RecordBatch>, LakeError> {
            Ok(self.0.next())
        }
    }

    type Key = (Option<String>, i64);

    fn batch(keys: &[Key]) -> RecordBatch {
        let schema = &schema::of(SignalTable::Traces).arrow;
        let columns = schema.fields().iter().map(|field| match field.name().as_str() {
            "service_name" => Arc::new(StringArray::from_iter(keys.iter().map(|key| key.0.as_deref()))) as ArrayRef,
            "time_unix_nano" => Arc::new(Int64Array::from_iter_values(keys.iter().map(|key| key.1))) as ArrayRef,
            _ => new_null_array(field.data_type(), keys.len()),
        });
        RecordBatch::try_new(Arc::clone(schema), columns.collect()).expect("fits")
    }

    fn keys(batch: &RecordBatch) -> Vec<Key> {
        let column = |name: &str| Arc::clone(batch.column_by_name(name).expect("exists"));
        let (services, times) = (column("service_name"), column("time_unix_nano"));
        let services = services.as_string::<i32>().iter().map(|service| service.map(str::to_owned));
        services.zip(times.as_primitive::<Int64Type>().values().iter().copied()).collect()
    }

    fn merged(sources: Vec<Vec<Vec<Key>>>) -> Result<Vec<Key>, LakeError> {
        let source = |batches: Vec<Vec<Key>>| {
            let batches: Vec<RecordBatch> = batches.iter().map(|keys| batch(keys)).collect();
            Box::new(Given(batches.into_iter())) as Box<dyn Source>
        };
        let mut out = Vec::new();
        let mut keep = |batch: RecordBatch| {
            assert!(batch.num_rows() <= OUTPUT_ROWS);
            out.extend(keys(&batch));
            Ok(())
        };
        merge(SignalTable::Traces, sources.into_iter().map(source).collect(), &mut keep)?;
        Ok(out)
    }

    fn key(service: &str, time: i64) -> Key {
        (Some(service.to_owned()), time)
    }

    #[test]
    fn rows_come_by_service_then_time_and_nulls_come_first() {
        let out = merged(vec![
            vec![vec![(None, 5), key("a", 1)], vec![key("a", 7), key("c", 0)]],
            vec![],
            vec![vec![(None, 2), key("a", 3), key("b", 9)]],
        ]);
        let expected = vec![(None, 2), (None, 5), key("a", 1), key("a", 3), key("a", 7), key("b", 9), key("c", 0)];
        assert_eq!(out.expect("merges"), expected);
        assert_eq!(merged(vec![]).expect("merges"), vec![]);
    }

    #[test]
    fn a_source_out_of_order_is_refused() {
        for source in [vec![vec![key("b", 1), key("a", 1)]], vec![vec![key("b", 1)], vec![key("a", 1)]]] {
            let error = merged(vec![source, vec![vec![key("a", 0)]]]).expect_err("refuses");
            assert!(matches!(error, LakeError::Unsorted), "{error}");
        }
    }

    /// Many sources in batches of many sizes: the result is what sorting all rows gives.
    #[test]
    fn merging_is_sorting() {
        let mut state: u64 = 7;
        let mut draw = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut all: Vec<Key> = Vec::new();
        let mut sources = Vec::new();
        for _ in 0..9 {
            let mut rows: Vec<Key> = (0..700).map(|_| key(&format!("s{}", draw(20)), draw(1000) as i64)).collect();
            rows.sort();
            all.extend(rows.iter().cloned());
            let mut batches = Vec::new();
            while !rows.is_empty() {
                let rest = rows.split_off((1 + draw(200) as usize).min(rows.len()));
                batches.push(std::mem::replace(&mut rows, rest));
            }
            sources.push(batches);
        }
        all.sort();
        assert_eq!(merged(sources).expect("merges"), all);
    }
}
