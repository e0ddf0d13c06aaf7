//! The end of a share of the work. Rows travel with one more column, which has no value; after the last of them comes a row
//! that has one there and nowhere else. Who reads the rows without seeing that one has not seen all: a worker that stops,
//! or whose task dies, may end a stream as if there was no more.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, RecordBatchOptions, UInt64Array, new_null_array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
};
use datafusion_proto::physical_plan::PhysicalExtensionCodec;
use futures::{StreamExt, stream};

use super::worker::Guest;
use crate::budget::Budget;
use crate::error::{QueryError, QueryErrorKind, unavailable};
use crate::queries::Record;

/// The name of the column: bytes that were read of the store.
const END: &str = "signaldb_end";
/// What stands before the kind of a failure.
const TAG: &str = "signaldb:";
/// How [`SealExec`] is written: it has nothing but its input.
const SEAL: &[u8] = b"signaldb_seal_1";

/// The query that asks for shares, in the session's configuration.
#[derive(Debug)]
pub(super) struct Asker(pub(super) Arc<Record>);

/// Top of a share: adds the column, the last row, and the kind of a failure.
#[derive(Debug)]
pub(super) struct SealExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl SealExec {
    pub(super) fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = properties(&input, sealed(&input.schema()));
        Self { input, properties }
    }
}

/// Takes them away again.
#[derive(Debug)]
pub(super) struct UnsealExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl UnsealExec {
    /// `schema`: of the rows before they were sealed.
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Self {
        let properties = properties(&input, schema);
        Self { input, properties }
    }
}

fn properties(input: &Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
        input.pipeline_behavior(),
        input.boundedness(),
    ))
}

/// The last row has no values.
fn sealed(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(fields.chain([Field::new(END, DataType::UInt64, true)]).collect::<Vec<_>>()))
}

impl DisplayAs for SealExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealExec")
    }
}

impl ExecutionPlan for SealExec {
    fn name(&self) -> &str {
        "SealExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input))),
            _ => internal_err!("SealExec has one input"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let share = context.session_config().get_extension::<Guest>().map(|guest| guest.begin());
        let schema = self.schema();
        let rows = stream::unfold(Some((input, share)), {
            let schema = Arc::clone(&schema);
            move |state| {
                let schema = Arc::clone(&schema);
                async move {
                    let (mut input, share) = state?;
                    let next = async { input.next().await.transpose().map_err(QueryError::from) };
                    let next = match &share {
                        Some(share) => share.within(next).await,
                        None => next.await,
                    };
                    Some(match next {
                        Ok(Some(batch)) => (with_end(&schema, &batch), Some((input, share))),
                        Ok(None) => (end(&schema, share.map_or(0, |share| share.unreported_bytes())), None),
                        Err(error) => (Err(said(error)), None),
                    })
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// Rows, none of which is the last.
fn with_end(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch> {
    let mut columns = batch.columns().iter().map(compacted).collect::<Result<Vec<ArrayRef>>>()?;
    columns.push(new_null_array(&DataType::UInt64, batch.num_rows()));
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// Lists of texts without anything else in their buffers. Columns of texts are sent so in any case; but several
/// `count(DISTINCT ..)` keep lists, and a batch of those is a slice of the lists of all groups.
fn compacted(column: &ArrayRef) -> Result<ArrayRef> {
    let DataType::List(field) = column.data_type() else { return Ok(Arc::clone(column)) };
    let lists = column.as_list::<i32>();
    let Some(texts) = lists.values().as_string_view_opt() else { return Ok(Arc::clone(column)) };
    let (first, last) = (lists.value_offsets()[0] as usize, lists.value_offsets()[lists.len()] as usize);
    let texts: ArrayRef = Arc::new(texts.slice(first, last - first).gc());
    let offsets = OffsetBuffer::from_lengths(lists.offsets().lengths());
    Ok(Arc::new(ListArray::try_new(Arc::clone(field), offsets, texts, lists.nulls().cloned())?))
}

/// The last row.
fn end(schema: &SchemaRef, scanned_bytes: u64) -> Result<RecordBatch> {
    let own = schema.fields().len() - 1;
    let mut columns: Vec<ArrayRef> =
        schema.fields()[..own].iter().map(|field| new_null_array(field.data_type(), 1)).collect();
    columns.push(Arc::new(UInt64Array::from(vec![scanned_bytes])));
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

impl DisplayAs for UnsealExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnsealExec")
    }
}

impl ExecutionPlan for UnsealExec {
    fn name(&self) -> &str {
        "UnsealExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, self.schema()))),
            _ => internal_err!("UnsealExec has one input"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let asker = context.session_config().get_extension::<Asker>();
        let schema = self.schema();
        let rows = stream::unfold(Some(input), {
            let schema = Arc::clone(&schema);
            move |state| {
                let (schema, asker) = (Arc::clone(&schema), asker.clone());
                async move {
                    let mut input = state?;
                    let read = match input.next().await {
                        Some(Ok(batch)) => read(&schema, &batch),
                        Some(Err(error)) => Err(heard(&error).into()),
                        None => {
                            Err(unavailable("a node stopped in the middle of its share of the query".to_owned()).into())
                        }
                    };
                    match read {
                        Ok(Read::Rows(rows)) => Some((Ok(rows), Some(input))),
                        // What other nodes read counts where the query was asked, too.
                        Ok(Read::End(bytes)) => match asker.map_or(Ok(()), |asker| asker.0.scan_elsewhere(bytes)) {
                            Ok(()) => None,
                            Err(error) => Some((Err(error.into()), None)),
                        },
                        Err(error) => Some((Err(error), None)),
                    }
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// What comes of a share.
enum Read {
    Rows(RecordBatch),
    /// After the last row: bytes that were read of the store.
    End(u64),
}

fn read(schema: &SchemaRef, batch: &RecordBatch) -> Result<Read> {
    let Some((end, columns)) = batch.columns().split_last() else {
        return internal_err!("rows of a share without a seal");
    };
    let Some(end) = end.as_primitive_opt::<UInt64Type>() else {
        return internal_err!("rows of a share with another seal");
    };
    if batch.num_rows() == 1 && end.is_valid(0) {
        return Ok(Read::End(end.value(0)));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(Read::Rows(RecordBatch::try_new_with_options(Arc::clone(schema), columns.to_vec(), &options)?))
}

/// A failure of a worker's, as it is sent: its kind would not arrive otherwise.
fn said(error: QueryError) -> DataFusionError {
    let kind = format!("{TAG}{}", name(error.kind));
    DataFusionError::Context(kind, Box::new(DataFusionError::Execution(error.message)))
}

/// The same where it arrives. What no worker said happened on the way: the query may be asked again.
pub(super) fn heard(error: &DataFusionError) -> QueryError {
    let Some((kind, message)) = tagged(error) else {
        return unavailable(format!("a share of the query was lost: {}", error.strip_backtrace()));
    };
    let budget = matches!(kind, QueryErrorKind::Resources | QueryErrorKind::Deadline);
    let budget = budget.then(|| Budget::of_text(message)).flatten();
    QueryError { budget, ..QueryError::new(kind, message) }
}

/// What a worker said.
pub(super) fn tagged(error: &DataFusionError) -> Option<(QueryErrorKind, &str)> {
    match error {
        DataFusionError::Context(tag, inner) => match (tag.strip_prefix(TAG), inner.as_ref()) {
            (Some(kind), DataFusionError::Execution(message)) => Some((kind_of(kind), message.as_str())),
            (_, inner) => tagged(inner),
        },
        DataFusionError::Shared(inner) => tagged(inner),
        DataFusionError::Diagnostic(_, inner) => tagged(inner),
        _ => None,
    }
}

/// Kinds that a query may end with after it began.
const KINDS: [(QueryErrorKind, &str); 6] = [
    (QueryErrorKind::Invalid, "invalid"),
    (QueryErrorKind::Unsupported, "unsupported"),
    (QueryErrorKind::Resources, "resources"),
    (QueryErrorKind::Cancelled, "cancelled"),
    (QueryErrorKind::Deadline, "deadline"),
    (QueryErrorKind::Internal, "internal"),
];

fn name(kind: QueryErrorKind) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("unavailable", |(_, name)| *name)
}

fn kind_of(name: &str) -> QueryErrorKind {
    KINDS.iter().find(|(_, known)| *known == name).map_or(QueryErrorKind::Unavailable, |(kind, _)| *kind)
}

/// How a share is written, beyond what DataFusion writes.
#[derive(Debug)]
pub(super) struct SealCodec;

impl PhysicalExtensionCodec for SealCodec {
    fn try_decode(
        &self,
        content: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        _context: &TaskContext,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match inputs {
            [input] if content == SEAL => Ok(Arc::new(SealExec::new(Arc::clone(input)))),
            _ => plan_err!("this node does not know a part of the plan"),
        }
    }

    fn try_encode(&self, plan: Arc<dyn ExecutionPlan>, content: &mut Vec<u8>) -> Result<()> {
        if !plan.is::<SealExec>() {
            return plan_err!("{} runs on one node", plan.name());
        }
        content.extend_from_slice(SEAL);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::builder::{ListBuilder, StringViewBuilder};
    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn rows() -> RecordBatch {
        let schema =
            Schema::new(vec![Field::new("service", DataType::Utf8, false), Field::new("count", DataType::Int64, true)]);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(vec!["a", "b"])), Arc::new(Int64Array::from(vec![Some(1), None]))];
        RecordBatch::try_new(Arc::new(schema), columns).expect("fits")
    }

    #[test]
    fn rows_come_back_as_they_were_and_the_last_one_is_none_of_them() {
        let rows = rows();
        let schema = sealed(&rows.schema());
        let sent = with_end(&schema, &rows).expect("fits");
        assert!(matches!(read(&rows.schema(), &sent).expect("reads"), Read::Rows(got) if got == rows));
        for row in [sent.slice(0, 1), sent.slice(0, 0)] {
            let read = read(&rows.schema(), &row).expect("reads");
            assert!(matches!(read, Read::Rows(got) if got == rows.slice(0, row.num_rows())));
        }
        let last = end(&schema, 7).expect("fits");
        assert!(matches!(read(&rows.schema(), &last).expect("reads"), Read::End(7)));
    }

    #[test]
    fn lists_of_texts_travel_without_the_texts_of_others() {
        let mut lists = ListBuilder::new(StringViewBuilder::new());
        for group in 0..100 {
            lists.append_value([Some(format!("a long text of group {group}")), None, Some("short".to_owned())]);
        }
        lists.append_null();
        let all: ArrayRef = Arc::new(lists.finish());
        for part in [all.slice(98, 3), all.slice(0, 1), all.slice(5, 0), Arc::clone(&all)] {
            let alone = compacted(&part).expect("fits");
            assert_eq!(&alone, &part);
            let texts = alone.as_list::<i32>().values().as_string_view();
            let (held, used) = (texts.data_buffers().iter().map(|buffer| buffer.len()).sum::<usize>(), part.len() * 30);
            assert!(held <= used, "{held} bytes for {} lists", part.len());
        }
    }

    #[test]
    fn a_failure_keeps_its_kind_and_budget_and_whatever_else_happens_may_be_tried_again() {
        for (kind, _) in KINDS.into_iter().chain([(QueryErrorKind::Unavailable, "")]) {
            let sent = said(QueryError::new(kind, "query.memory allows 1 MiB")).context("on the way");
            let got = heard(&DataFusionError::Shared(Arc::new(sent)));
            assert_eq!((got.kind, got.message.as_str()), (kind, "query.memory allows 1 MiB"));
            assert_eq!(got.budget.is_some(), matches!(kind, QueryErrorKind::Resources | QueryErrorKind::Deadline));
        }
        let lost = heard(&DataFusionError::Execution("connection reset".to_owned()));
        assert_eq!(lost.kind, QueryErrorKind::Unavailable);
    }
}
