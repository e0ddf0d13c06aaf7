//! Who runs what an open log does beside its callers: two threads, or a simulation that has none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What came of one step of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was done; there may be more.
    Again,
    /// Nothing is to be done before the worker is woken, or before this time has passed.
    Wait(Option<Duration>),
    /// The log is closed, or failed.
    Done,
}

/// Does what is due and never waits. One call at a time.
pub type Worker = Arc<dyn Fn() -> Step + Send + Sync>;

/// Tells whoever runs a worker that there may be something to do. Called with locks of the log held: it must not run
/// the worker itself.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Runs the workers of a log in place of threads, so that a simulation decides when bytes are written and synced.
pub trait Workers: fmt::Debug {
    /// Takes over a worker, which is called until it is [`Step::Done`].
    fn start(&self, name: &'static str, worker: Worker) -> Wake;
}
