//! The time of a group: what the dedup window ages by.
//!
//! Wall clocks jump: a leader whose clock is an hour ahead would end everybody's dedup window, and the retry of an
//! unconfirmed write would become a second row. So the leader stamps commands with the latest time that its log
//! carries plus what has passed since on its monotonic clock. Between leaders this time stands still, which only makes
//! the window longer. Source: Ongaro, Consensus: Bridging Theory and Practice, section 6.3 (the cluster clock).

use std::time::Duration;

use signaldb_model::UnixNanos;

use super::Group;

/// The time of one leadership: its term, the log's time at its first command, and the monotonic clock then.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LeaderTime {
    term: u64,
    base: UnixNanos,
    begun: Duration,
}

impl LeaderTime {
    /// The time now, when the log of `term` had come to `logged` and the monotonic clock shows `elapsed`.
    fn at(&mut self, term: u64, logged: UnixNanos, elapsed: Duration) -> UnixNanos {
        if self.term != term {
            *self = Self { term, base: logged, begun: elapsed };
        }
        let since = u64::try_from(elapsed.saturating_sub(self.begun).as_nanos()).unwrap_or(u64::MAX);
        UnixNanos(self.base.0.saturating_add(since))
    }
}

impl Group {
    /// The group's time, as its leader tells it.
    pub(super) fn leader_time(&self) -> UnixNanos {
        let (term, elapsed) = (self.leadership().term, self.clock.elapsed());
        let logged = self.with_state(|state| state.now);
        let mut time = self.time.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        time.at(term, logged, elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_within_a_leadership_and_stands_still_between() {
        let mut time = LeaderTime::default();
        let second = |n: u64| UnixNanos(n * 1_000_000_000);
        let at = |time: &mut LeaderTime, term, logged, elapsed| time.at(term, logged, Duration::from_secs(elapsed));
        assert_eq!(at(&mut time, 1, second(100), 50), second(100));
        assert_eq!(at(&mut time, 1, second(100), 53), second(103));
        assert_eq!(at(&mut time, 1, second(103), 53), second(103), "what the log says does not count twice");
        // Another node led until its log said 110; an hour passed here.
        assert_eq!(at(&mut time, 3, second(110), 3600), second(110));
        assert_eq!(at(&mut time, 3, second(110), 3601), second(111));
    }
}
