//! What requests hold in memory before their rows are anywhere else: bounded while they are read, not afterwards.
//!
//! Nobody is refused over a body that is still coming: an HTTP/1.1 client would lose its connection and with it the
//! answer, and a gRPC client in time as well, for resetting many streams counts as misbehaviour. The rest of the body is
//! read and dropped. Nor is anybody refused at once: who has to wait for the refusal cannot spend the node's CPU on
//! being refused, when the rows in memory need it to get out.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use signaldb_model::limits::REQUEST_BYTES_MAX;
use signaldb_signals::SignalKind;
use tokio::time::Instant;

use crate::app::App;
use crate::decompress::too_large;
use crate::error::{ApiError, Kind};
use crate::ingest::refusal;
use crate::metrics::note_failed_ingest;

/// How long a request waits for room before it is throttled, or for the answer that it is: many times what an
/// acknowledgment takes, and short beside the second that a throttled client is asked to wait.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often it looks.
const POLL: Duration = Duration::from_millis(10);
/// How long the next bytes of a body may take: what came so far counts meanwhile.
const SILENCE_MAX: Duration = Duration::from_secs(10);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of all requests that are being read or are on their way into the log.
#[derive(Debug)]
pub(crate) struct Intake {
    held: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// The bytes of one request, counted until it ends.
#[derive(Debug)]
pub(crate) struct Held {
    all: Arc<AtomicUsize>,
    bytes_max: usize,
    own: AtomicUsize,
}

impl Intake {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { held: Arc::default(), bytes_max }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// For a request of which nothing was read.
    pub(crate) fn hold(&self) -> Arc<Held> {
        Arc::new(Held { all: Arc::clone(&self.held), bytes_max: self.bytes_max, own: AtomicUsize::new(0) })
    }
}

impl Held {
    /// Counts at least `bytes` from now on, or says that they do not fit; a lone request always fits.
    ///
    /// # Errors
    /// 429 with a hint; the request counts as before.
    pub(crate) fn at_least(&self, bytes: usize) -> Result<(), ApiError> {
        // One task works on a request at a time.
        let own = self.own.load(Ordering::Acquire);
        let more = bytes.saturating_sub(own);
        let before = self.all.fetch_add(more, Ordering::AcqRel);
        if more > 0 && before > own && before + more > self.bytes_max {
            self.all.fetch_sub(more, Ordering::AcqRel);
            let message = format!("requests hold {before} bytes of memory, the limit is {}", self.bytes_max);
            return Err(ApiError::new(Kind::Throttled, message));
        }
        self.own.store(own + more, Ordering::Release);
        Ok(())
    }

    /// The request holds nothing any more.
    pub(crate) fn release(&self) {
        self.all.fetch_sub(self.own.swap(0, Ordering::AcqRel), Ordering::AcqRel);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

/// Waits a moment for room, then reads a body of at most `limit` bytes, its frames as they came.
///
/// # Errors
/// 413 beyond the limit, 400 when the body ends early, 504 when it stops; 429 and 503 with a retry hint once the whole
/// body was read past.
pub(crate) async fn read<B>(
    app: App,
    kind: SignalKind,
    held: Arc<Held>,
    mut body: B,
    limit: usize,
) -> Result<impl HttpBody<Data = Bytes, Error = Infallible> + Send + 'static, ApiError>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large(REQUEST_BYTES_MAX));
    }
    let until = Instant::now() + PATIENCE;
    let mut refused = room(&app, kind, until).await.err();
    let (mut frames, mut bytes) = (Vec::new(), 0);
    loop {
        let Ok(frame) = tokio::time::timeout(SILENCE_MAX, body.frame()).await else {
            return Err(ApiError::new(Kind::Deadline, format!("the request body stopped for {SILENCE_MAX:?}")));
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| {
            let error: BoxError = error.into();
            ApiError::invalid(format!("the request body ended early: {error}"))
        })?;
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > limit {
            return Err(too_large(REQUEST_BYTES_MAX));
        }
        if refused.is_none() {
            refused = held.at_least(bytes).err();
            frames.push(Ok::<_, Infallible>(frame));
        }
        if refused.is_some() {
            frames.clear();
            held.release();
        }
    }
    let Some(error) = refused else { return Ok(StreamBody::new(futures::stream::iter(frames))) };
    note_failed_ingest(error.kind);
    wait_if_throttled(&error, until).await;
    Err(error)
}

async fn room(app: &App, kind: SignalKind, until: Instant) -> Result<(), ApiError> {
    loop {
        match refusal(app, kind, app.intake().bytes()) {
            Some(error) if error.kind == Kind::Throttled && Instant::now() < until => tokio::time::sleep(POLL).await,
            Some(error) => return Err(error),
            None => return Ok(()),
        }
    }
}

/// Does what is left of a request, which holds nothing any more when this returns.
pub(crate) async fn paced<T>(held: &Held, rest: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    let until = Instant::now() + PATIENCE;
    let outcome = rest.await;
    held.release();
    if let Err(error) = &outcome {
        wait_if_throttled(error, until).await;
    }
    outcome
}

async fn wait_if_throttled(error: &ApiError, until: Instant) {
    if error.kind == Kind::Throttled {
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_share_the_bound_and_a_lone_one_always_fits() {
        let intake = Intake::new(100);
        let (one, other) = (intake.hold(), intake.hold());
        one.at_least(60).expect("fits");
        one.at_least(50).expect("is less than it holds");
        other.at_least(40).expect("fits beside it");
        assert_eq!(other.at_least(41).expect_err("refused").kind, Kind::Throttled);
        assert_eq!(intake.bytes(), 100, "a refusal changes nothing");
        drop(other);
        one.at_least(1000).expect("is alone");
        assert_eq!(intake.hold().at_least(1).expect_err("refused").kind, Kind::Throttled);
        one.release();
        assert_eq!(intake.bytes(), 0);
    }

    #[tokio::test]
    async fn a_throttled_client_waits_for_its_answer_and_holds_nothing() {
        let intake = Intake::new(100);
        let held = intake.hold();
        held.at_least(10).expect("fits");
        let begun = Instant::now();
        let outcome = paced(&held, async { Err::<(), _>(ApiError::new(Kind::Throttled, "full")) }).await;
        assert_eq!(outcome.expect_err("refused").kind, Kind::Throttled);
        assert!(begun.elapsed() >= PATIENCE);
        assert_eq!(intake.bytes(), 0);
    }
}
