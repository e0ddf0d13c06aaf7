//! Where calls run that may block.

use tokio::task::JoinError;

/// Runs `act` on a blocking thread if it `blocks`; else here and now: a simulation has one thread.
///
/// # Errors
/// When it panicked on its thread, or the runtime ends.
pub(crate) async fn run<T: Send + 'static>(
    blocks: bool,
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if blocks { tokio::task::spawn_blocking(act).await } else { Ok(act()) }
}
