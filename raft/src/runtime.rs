//! Tokio as openraft's runtime, with deadlines on a common grid.
//!
//! Every group ticks ten times a second. Left alone, the ticks of nine groups wake an idle process ninety times a
//! second; on a grid they share their wake-ups, and the heartbeats that they cause share segments on the wire.

use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use openraft::OptionalSend;
use openraft_rt::{AsyncRuntime, Instant};
use openraft_rt_tokio::{TokioInstant, TokioRuntime};

/// Deadlines are rounded up to multiples of it: an election or a heartbeat comes at most this much later.
const GRID: Duration = Duration::from_millis(50);

/// Where the grid begins: any moment does, the same for all groups of the process.
static ORIGIN: LazyLock<TokioInstant> = LazyLock::new(TokioInstant::now);

/// [`TokioRuntime`], whose `sleep_until` ends on the grid.
#[derive(Debug)]
pub(crate) struct GridRuntime(TokioRuntime);

/// The first moment of the grid that is not before `deadline`.
fn on_grid(deadline: TokioInstant) -> TokioInstant {
    let since = deadline - *ORIGIN;
    let steps = since.as_nanos().div_ceil(GRID.as_nanos());
    *ORIGIN + GRID.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

impl AsyncRuntime for GridRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(on_grid(deadline))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_end_on_the_grid_and_never_early() {
        let origin = *ORIGIN;
        for (after_ms, expected_ms) in [(0, 0), (1, 50), (50, 50), (51, 100), (10_049, 10_050)] {
            let expected = origin + Duration::from_millis(expected_ms);
            assert_eq!(on_grid(origin + Duration::from_millis(after_ms)), expected, "{after_ms}");
        }
    }
}
