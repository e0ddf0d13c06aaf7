//! Parameters that a client binds to a prepared statement: Arrow data like any other that comes from outside.
//!
//! Nothing is kept here. What was bound goes back to the client in the statement's next handle, as it came, and is read
//! again where the statement runs.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::ipc::{MessageHeader, root_as_message};
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use tonic::Status;

use super::statement::Bound;
use crate::error::{ApiError, Kind};

/// What may be bound at once: it travels in handles and tickets, and a statement runs once for each row.
const BOUND_BYTES_MAX: usize = 1 << 20;
const BOUND_ROWS_MAX: usize = 1000;
const BOUND_COLUMNS_MAX: usize = 1000;
/// How long a client may take to send them.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the client sends after the command, as far as it is Arrow data.
pub(super) async fn receive(sent: impl Stream<Item = Result<FlightData, Status>> + Unpin) -> Result<Bound, ApiError> {
    let received = tokio::time::timeout(TIMEOUT, receive_all(sent)).await;
    let late = |_| ApiError::new(Kind::Deadline, "the parameters did not arrive in time");
    let bound = received.map_err(late)??;
    // Refused now rather than when the statement runs.
    rows(&bound).await?;
    Ok(bound)
}

async fn receive_all(mut sent: impl Stream<Item = Result<FlightData, Status>> + Unpin) -> Result<Bound, ApiError> {
    let (mut messages, mut bytes) = (Vec::new(), 0_usize);
    while let Some(message) = sent.next().await {
        let message = message.map_err(|status| ApiError::invalid(format!("the parameters broke off: {status}")))?;
        // The command may come alone, before the data.
        if message.data_header.is_empty() {
            continue;
        }
        bytes = bytes.saturating_add(message.data_header.len()).saturating_add(message.data_body.len());
        if bytes > BOUND_BYTES_MAX {
            let message = format!("the parameters are larger than {BOUND_BYTES_MAX} bytes");
            return Err(ApiError::new(Kind::TooLarge, message));
        }
        messages.push(FlightData {
            data_header: message.data_header,
            data_body: message.data_body,
            ..FlightData::default()
        });
    }
    Ok(Bound { messages })
}

/// The parameters as rows.
///
/// # Errors
/// 400 for what is no Arrow data, or more than is taken.
pub(super) async fn rows(bound: &Bound) -> Result<RecordBatch, ApiError> {
    if let Some(message) = bound.messages.iter().find(|message| !plain(message)) {
        let kind = root_as_message(&message.data_header).map(|message| message.header_type());
        return Err(unreadable(format!("a message of kind {kind:?} is broken, compressed or not expected here")));
    }
    let messages = stream::iter(bound.messages.clone().into_iter().map(Ok::<_, FlightError>));
    // What nobody would write, such as buffers beyond the end of the data, makes the decoder panic.
    let decoded = AssertUnwindSafe(decode(messages)).catch_unwind().await;
    decoded.unwrap_or_else(|_| Err(unreadable("they are damaged")))
}

/// Whether a message is one that clients bind parameters with. What is compressed could be of any size.
fn plain(message: &FlightData) -> bool {
    let Ok(message) = root_as_message(&message.data_header) else { return false };
    match message.header_type() {
        MessageHeader::Schema => true,
        MessageHeader::RecordBatch => {
            message.header_as_record_batch().is_some_and(|batch| batch.compression().is_none())
        }
        MessageHeader::DictionaryBatch => {
            let data = message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data());
            data.is_some_and(|batch| batch.compression().is_none())
        }
        _ => false,
    }
}

async fn decode(
    messages: impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static,
) -> Result<RecordBatch, ApiError> {
    let mut decoder = FlightRecordBatchStream::new_from_flight_data(messages);
    let (mut batches, mut count) = (Vec::new(), 0_usize);
    while let Some(batch) = decoder.try_next().await.map_err(unreadable)? {
        count = count.saturating_add(batch.num_rows());
        batches.push(batch);
    }
    let schema: SchemaRef = decoder.schema().cloned().unwrap_or_else(|| Arc::new(Schema::empty()));
    if count > BOUND_ROWS_MAX || schema.fields().len() > BOUND_COLUMNS_MAX {
        return Err(ApiError::invalid(format!(
            "a statement takes at most {BOUND_ROWS_MAX} rows of {BOUND_COLUMNS_MAX} parameters at once"
        )));
    }
    if let Some(field) = schema.fields().iter().find(|field| !is_taken(field.data_type())) {
        let message = format!("parameter {:?} has type {}, which none may have", field.name(), field.data_type());
        return Err(ApiError::invalid(message));
    }
    concat_batches(&schema, &batches).map_err(unreadable)
}

/// Types whose values take up as much room as they say, so that a small message cannot hold a large one.
fn is_taken(kind: &DataType) -> bool {
    let is_plain = |kind: &DataType| {
        kind.is_primitive()
            || matches!(kind, DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
            || matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
    };
    match kind {
        DataType::Null | DataType::FixedSizeBinary(_) => true,
        DataType::Dictionary(_, values) => is_plain(values),
        DataType::List(element) | DataType::LargeList(element) => is_plain(element.data_type()),
        other => is_plain(other),
    }
}

fn unreadable(error: impl std::fmt::Display) -> ApiError {
    ApiError::invalid(format!("the parameters cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, DictionaryArray, Int32Array, NullArray, RecordBatchOptions, StringArray};
    use arrow::datatypes::{Field, Int32Type};
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::IpcWriteOptions;
    use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};

    use super::*;

    async fn messages(batch: RecordBatch, options: IpcWriteOptions) -> Vec<FlightData> {
        let encoder = FlightDataEncoderBuilder::new()
            .with_options(options)
            .with_dictionary_handling(DictionaryHandling::Resend)
            .with_schema(batch.schema())
            .build(stream::iter([Ok(batch)]));
        encoder.try_collect().await.expect("encodes")
    }

    fn batch(rows: i32) -> RecordBatch {
        let values = Arc::new(StringArray::from(vec!["x", "y"]));
        let keys = Int32Array::from_iter_values((0..rows).map(|row| row % 2));
        let numbers: Arc<dyn Array> = Arc::new(Int32Array::from_iter_values(0..rows));
        let texts: Arc<dyn Array> = Arc::new(DictionaryArray::<Int32Type>::new(keys, values));
        RecordBatch::try_from_iter([("0", numbers), ("1", texts)]).expect("a batch")
    }

    async fn received(messages: Vec<FlightData>) -> Result<Bound, ApiError> {
        receive(stream::iter(messages.into_iter().map(Ok))).await
    }

    #[tokio::test]
    async fn rows_come_back_as_they_were_bound() {
        let sent = batch(3);
        let mut messages = messages(sent.clone(), IpcWriteOptions::default()).await;
        messages.insert(0, FlightData::default());
        let bound = received(messages).await.expect("reads");
        let read = rows(&bound).await.expect("reads");
        assert_eq!(read.num_rows(), 3);
        assert_eq!(read.column(0).as_primitive::<Int32Type>().values(), &[0, 1, 2]);
        assert_eq!(read.schema().field(1).data_type(), sent.schema().field(1).data_type());
    }

    #[tokio::test]
    async fn more_than_is_taken_is_refused_before_it_is_held() {
        let too_many = messages(batch(1001), IpcWriteOptions::default()).await;
        assert_eq!(received(too_many).await.expect_err("refused").kind, Kind::Invalid);
        let body =
            FlightData { data_header: vec![1].into(), data_body: vec![0; 1 << 20].into(), ..FlightData::default() };
        assert_eq!(received(vec![body]).await.expect_err("refused").kind, Kind::TooLarge);
        // Rows without bytes.
        let schema = Arc::new(Schema::new(vec![Field::new("0", DataType::Null, true)]));
        let options = RecordBatchOptions::new().with_row_count(Some(1 << 30));
        let nulls: Arc<dyn Array> = Arc::new(NullArray::new(1 << 30));
        let nulls = RecordBatch::try_new_with_options(schema, vec![nulls], &options).expect("a batch");
        let nulls = messages(nulls, IpcWriteOptions::default()).await;
        assert_eq!(received(nulls).await.expect_err("refused").kind, Kind::Invalid);
        let compressed = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD));
        // Where the library can compress at all.
        if let Ok(options) = compressed {
            let compressed = messages(batch(1000), options).await;
            assert_eq!(received(compressed).await.expect_err("refused").kind, Kind::Invalid);
        }
    }

    #[tokio::test]
    async fn types_that_could_hide_their_size_are_refused() {
        let nothing = Arc::new(Field::new("item", DataType::Null, true));
        for kind in [DataType::List(nothing), DataType::Struct(vec![Field::new("a", DataType::Int8, true)].into())] {
            let schema = Arc::new(Schema::new(vec![Field::new("0", kind, true)]));
            let sent = messages(RecordBatch::new_empty(schema), IpcWriteOptions::default()).await;
            let refused = received(sent).await.expect_err("refused");
            assert!(refused.message.contains("which none may have"), "{}", refused.message);
        }
    }

    /// Scenario: each byte of good messages changed in turn, and messages cut short or left out.
    /// Guarantees: rows or a 400, never a panic.
    #[tokio::test]
    async fn damaged_parameters_are_refused_or_read() {
        let good = messages(batch(2), IpcWriteOptions::default()).await;
        for at in 0..good.len() {
            for byte in 0..good[at].data_header.len() {
                let mut damaged = good.clone();
                let mut header = damaged[at].data_header.to_vec();
                header[byte] ^= 0x55;
                damaged[at].data_header = header.into();
                if let Err(error) = received(damaged).await {
                    assert_eq!(error.kind, Kind::Invalid, "message {at}, byte {byte}");
                }
            }
            let mut short = good.clone();
            short[at].data_body = short[at].data_body.slice(..short[at].data_body.len() / 2);
            let mut missing = good.clone();
            missing.remove(at);
            for damaged in [short, missing] {
                if let Err(error) = received(damaged).await {
                    assert_eq!(error.kind, Kind::Invalid, "message {at}");
                }
            }
        }
        assert!(received(vec![]).await.is_ok_and(|bound| bound.messages.is_empty()));
    }
}
