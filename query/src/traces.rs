//! Which rows a search for traces has to look at, by the trace indexes of compacted data files (ADR 17).
//!
//! What an index leads to is filtered as ever. A file without an index, or with one that cannot be read, is scanned with the
//! help of its bloom filters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::ScalarValue;
use datafusion::datasource::physical_plan::parquet::{ParquetAccessPlan, RowGroupAccess};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use datafusion::parquet::arrow::arrow_reader::RowSelection;
use futures::{StreamExt, stream};
use iceberg::spec::DataFile;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore};
use signaldb_lake::trace_index::{self, Blocks, HEAD_BYTES, Head, RowGroups, TraceIndex};

use crate::kept::{KeptParts, Part, PartKey};

const TRACE_ID: &str = "trace_id";
/// A filter with more ids looks for most of what there is.
const IDS_MAX: usize = 64;
/// Indexes that are read at the same time.
const READS_AT_ONCE: usize = 16;

/// A data file, and the rows of it to look at.
pub(crate) struct Place<'a> {
    pub(crate) file: &'a DataFile,
    /// `None`: all.
    pub(crate) rows: Option<RowGroups>,
}

/// Where to look for traces.
#[derive(Default)]
pub(crate) struct Places<'a> {
    /// Files that an index has, with the row groups and rows that it names.
    pub(crate) indexed: Vec<Place<'a>>,
    pub(crate) others: Vec<Place<'a>>,
    pub(crate) pruned: Pruned,
}

/// What indexes were good for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pruned {
    pub(crate) files: usize,
    /// Of files that are left.
    pub(crate) row_groups: usize,
    pub(crate) index_reads: usize,
    pub(crate) index_hits: usize,
}

/// Reads trace indexes.
pub(crate) struct TraceIndexes {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) kept: Arc<KeptParts>,
}

/// What an index said, and how it was reached.
#[derive(Default)]
struct Answer {
    found: Option<(Arc<TraceIndex>, Blocks)>,
    reads: usize,
    hits: usize,
}

/// The ids of which a row must have one for the filters to keep it; `None` when they do not say, or name too many.
pub(crate) fn wanted(filters: &[Expr]) -> Option<BTreeSet<Vec<u8>>> {
    let ids = filters.iter().flat_map(split_conjunction).filter_map(ids);
    ids.min_by_key(BTreeSet::len).filter(|ids| ids.len() <= IDS_MAX)
}

fn ids(filter: &Expr) -> Option<BTreeSet<Vec<u8>>> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            let id = if is_trace_id(left) { id(right) } else { id(left).filter(|_| is_trace_id(right)) };
            Some(BTreeSet::from([id?]))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut either = ids(left)?;
            either.extend(ids(right)?);
            Some(either)
        }
        Expr::InList(InList { expr, list, negated: false }) if is_trace_id(expr) => list.iter().map(id).collect(),
        _ => None,
    }
}

fn is_trace_id(expression: &Expr) -> bool {
    matches!(expression, Expr::Column(column) if column.name == TRACE_ID)
}

fn id(literal: &Expr) -> Option<Vec<u8>> {
    match literal {
        Expr::Literal(ScalarValue::FixedSizeBinary(16, Some(id)), _) => Some(id.clone()),
        _ => None,
    }
}

impl<'a> Places<'a> {
    /// Everywhere.
    pub(crate) fn all(files: Vec<&'a DataFile>) -> Self {
        let others = files.into_iter().map(|file| Place { file, rows: None }).collect();
        Self { others, ..Self::default() }
    }

    fn add(&mut self, number: u32, file: &'a DataFile, found: Option<&(Arc<TraceIndex>, Blocks)>) {
        let groups = file.split_offsets().map(<[i64]>::len);
        let covered = found.filter(|(index, _)| groups.is_some() && index.covers(number, file.record_count(), groups));
        let Some(rows) = covered.and_then(|(index, blocks)| index.rows(number, blocks)) else {
            return self.others.push(Place { file, rows: None });
        };
        let left_out = rows.groups.iter().filter(|group| group.ranges.is_empty()).count();
        if left_out == rows.groups.len() {
            self.pruned.files += 1;
        } else {
            self.pruned.row_groups += left_out;
            self.indexed.push(Place { file, rows: Some(rows) });
        }
    }
}

impl Pruned {
    pub(crate) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.row_groups += other.row_groups;
        self.index_reads += other.index_reads;
        self.index_hits += other.index_hits;
    }
}

impl TraceIndexes {
    /// Where rows of the traces may be in `files`; `path` says where the store has a location.
    pub(crate) async fn places<'a>(
        &self,
        files: Vec<&'a DataFile>,
        ids: &BTreeSet<Vec<u8>>,
        path: impl Fn(&str) -> Option<Path>,
    ) -> Places<'a> {
        let mut places = Places::default();
        let mut indexed: BTreeMap<String, Vec<(u32, &'a DataFile)>> = BTreeMap::new();
        for file in files {
            match trace_index::trace_index_of(file.file_path()) {
                Some((index, number)) => indexed.entry(index).or_default().push((number, file)),
                None => places.others.push(Place { file, rows: None }),
            }
        }
        let paths: Vec<Option<Path>> = indexed.keys().map(|index| path(index)).collect();
        let answers = stream::iter(paths).map(|path| async move {
            match path {
                Some(path) => self.ask(&path, ids).await,
                None => Answer::default(),
            }
        });
        let answers: Vec<Answer> = answers.buffered(READS_AT_ONCE).collect().await;
        for (answer, files) in answers.into_iter().zip(indexed.into_values()) {
            places.pruned.index_reads += answer.reads;
            places.pruned.index_hits += answer.hits;
            for (number, file) in files {
                places.add(number, file, answer.found.as_ref());
            }
        }
        places
    }

    async fn ask(&self, path: &Path, ids: &BTreeSet<Vec<u8>>) -> Answer {
        let mut answer = Answer::default();
        match self.look_up(path, ids, &mut answer).await {
            Ok(found) => answer.found = found,
            Err(error) => tracing::warn!(%path, %error, "trace index cannot be read; bloom filters serve instead"),
        }
        answer
    }

    async fn look_up(
        &self,
        path: &Path,
        ids: &BTreeSet<Vec<u8>>,
        answer: &mut Answer,
    ) -> Result<Option<(Arc<TraceIndex>, Blocks)>, object_store::Error> {
        let (part, hit) = self.kept.get(PartKey::whole(path.as_ref()), self.directory(path)).await?;
        answer.note(hit);
        let Part::TraceIndex(Some(index)) = part else { return Ok(None) };
        let mut blocks = Blocks::new();
        for id in ids {
            let Some(leaf) = index.leaf(id) else { continue };
            let load = async { Ok(Part::Bytes(Bytes::copy_from_slice(&self.read(path, leaf.range.clone()).await?))) };
            let (part, hit) =
                self.kept.get::<object_store::Error>(PartKey::range(path.as_ref(), &leaf.range), load).await?;
            answer.note(hit);
            let Part::Bytes(content) = part else { return Ok(None) };
            if let Err(error) = index.find(leaf, &content, id, &mut blocks) {
                tracing::warn!(%path, %error, "bloom filters serve instead of a trace index");
                return Ok(None);
            }
        }
        Ok(Some((index, blocks)))
    }

    async fn directory(&self, path: &Path) -> Result<Part, object_store::Error> {
        let mut length = HEAD_BYTES;
        // The second time with as much as the first one said.
        for _ in 0..2 {
            let head = match self.read(path, 0..length).await {
                // It comes before the data files that it is of, or never.
                Err(object_store::Error::NotFound { .. }) => return Ok(Part::TraceIndex(None)),
                head => head?,
            };
            match TraceIndex::read(&head) {
                Ok(Head::Read(index)) => return Ok(Part::TraceIndex(Some(Arc::new(index)))),
                Ok(Head::Needs(needed)) => length = needed,
                Err(error) => {
                    tracing::warn!(%path, %error, "bloom filters serve instead of a trace index");
                    return Ok(Part::TraceIndex(None));
                }
            }
        }
        tracing::warn!(%path, "bloom filters serve instead of a trace index, which ends too early");
        Ok(Part::TraceIndex(None))
    }

    /// As much of the range as there is.
    async fn read(&self, path: &Path, range: std::ops::Range<u64>) -> Result<Bytes, object_store::Error> {
        let options = GetOptions::new().with_range(Some(range));
        self.store.get_opts(path, options).await?.bytes().await
    }
}

impl Answer {
    fn note(&mut self, hit: bool) {
        self.hits += usize::from(hit);
        self.reads += usize::from(!hit);
    }
}

/// How to read these rows and no others.
pub(crate) fn access_plan(rows: &RowGroups) -> ParquetAccessPlan {
    let access = |group: &trace_index::GroupRows| match group.ranges.is_empty() {
        true => RowGroupAccess::Skip,
        false => {
            let ranges = group.ranges.iter().cloned();
            RowGroupAccess::Selection(RowSelection::from_consecutive_ranges(ranges, group.rows))
        }
    };
    ParquetAccessPlan::new(rows.groups.iter().map(access).collect())
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{col, lit};

    use super::*;

    fn literal(byte: u8) -> Expr {
        Expr::Literal(ScalarValue::FixedSizeBinary(16, Some(vec![byte; 16])), None)
    }

    fn check(filters: &[Expr], expected: Option<&[u8]>) {
        let expected: Option<BTreeSet<Vec<u8>>> =
            expected.map(|bytes| bytes.iter().map(|byte| vec![*byte; 16]).collect());
        assert_eq!(wanted(filters), expected, "{filters:?}");
    }

    #[test]
    fn the_ids_that_a_row_must_have_one_of_are_found() {
        let trace = || col("trace_id");
        check(&[trace().eq(literal(1))], Some(&[1]));
        check(&[literal(1).eq(trace()).and(col("name").eq(lit("x")))], Some(&[1]));
        check(&[col("name").eq(lit("x")), trace().in_list(vec![literal(1), literal(2)], false)], Some(&[1, 2]));
        check(&[trace().eq(literal(1)).or(trace().eq(literal(2)))], Some(&[1, 2]));
        check(&[trace().in_list(vec![literal(1), literal(2)], false), trace().eq(literal(2))], Some(&[2]));
    }

    #[test]
    fn other_filters_say_nothing() {
        let trace = || col("trace_id");
        for filter in [
            trace().not_eq(literal(1)),
            trace().in_list(vec![literal(1)], true),
            trace().eq(literal(1)).or(col("name").eq(lit("x"))),
            trace().eq(col("span_id")),
            col("span_id").eq(literal(1)),
            col("trace_id").is_null(),
        ] {
            check(&[filter], None);
        }
        check(&[], None);
        let many = (0..=IDS_MAX).map(|n| literal(n as u8)).collect();
        check(&[trace().in_list(many, false)], None);
    }

    #[test]
    fn row_groups_without_rows_are_skipped() {
        let group = |rows, ranges: &[(usize, usize)]| trace_index::GroupRows {
            rows,
            ranges: ranges.iter().map(|(start, end)| *start..*end).collect(),
        };
        let rows = RowGroups { groups: vec![group(10, &[]), group(10, &[(0, 4), (4, 8)]), group(3, &[(0, 3)])] };
        let plan = access_plan(&rows);
        assert_eq!(plan.row_group_indexes(), [1, 2]);
        let RowGroupAccess::Selection(selection) = &plan.inner()[1] else { panic!("some rows") };
        assert_eq!((selection.row_count(), selection.skipped_row_count()), (8, 2));
    }
}
