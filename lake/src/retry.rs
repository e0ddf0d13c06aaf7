//! How long to wait before something is tried again.

use std::time::Duration;

use crate::config::RetryConfig;

impl RetryConfig {
    /// The pause after failure `failures` (from 1), when the first would be `first`: it grows by the multiplier up to the
    /// longest. `draw`, any number, decides over its second half, so that those who failed together do not come together.
    pub(crate) fn pause_from(&self, first: Duration, failures: u32, draw: u64) -> Duration {
        let grown = self.backoff_multiplier.powi(i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX));
        let longest = self.max_delay.max(first);
        let full = Duration::try_from_secs_f64(first.as_secs_f64() * grown).map_or(longest, |full| full.min(longest));
        let part = (draw & u64::from(u32::MAX)) as f64 / f64::from(u32::MAX);
        full / 2 + (full / 2).mul_f64(part)
    }

    /// The same with the configured first pause.
    pub(crate) fn pause(&self, failures: u32, draw: u64) -> Duration {
        self.pause_from(self.initial_delay, failures, draw)
    }
}

/// A number that nobody can foresee.
pub(crate) fn draw() -> u64 {
    uuid::Uuid::new_v4().as_u128() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_are_at_least_half() {
        let retry = RetryConfig {
            initial_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(10),
            backoff_multiplier: 2.5,
            ..RetryConfig::default()
        };
        for (failures, full_ms) in [(1, 200), (2, 500), (3, 1250), (6, 10_000), (1000, 10_000), (u32::MAX, 10_000)] {
            let full = Duration::from_millis(full_ms);
            let (shortest, longest) = (retry.pause(failures, 0), retry.pause(failures, u64::MAX));
            assert!(shortest.abs_diff(full / 2) < Duration::from_micros(10), "{failures}: {shortest:?}");
            assert!(longest.abs_diff(full) < Duration::from_micros(10), "{failures}: {longest:?}");
        }
        let drawn: std::collections::BTreeSet<Duration> = (0..100).map(|_| retry.pause(1, draw())).collect();
        assert!(drawn.len() > 90, "those who failed together come apart: {}", drawn.len());
        assert_eq!(retry.pause_from(Duration::from_secs(60), 1, u64::MAX).as_secs(), 60, "nothing shortens the first");
    }
}
