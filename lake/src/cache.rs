//! What was read from the store and parsed, by location: files never change, so age says only that nobody wants it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A bounded number of values; those that nobody asked for during `ttl` go, at the next insert. A `ttl` of zero keeps none.
#[derive(Debug)]
pub(crate) struct Cache<T> {
    entries_max: usize,
    ttl: Duration,
    /// With the time of the last use.
    entries: Mutex<HashMap<String, (Duration, Arc<T>)>>,
}

impl<T> Cache<T> {
    pub(crate) fn new(entries_max: usize, ttl: Duration) -> Self {
        Self { entries_max, ttl, entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, (Duration, Arc<T>)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, location: &str, now: Duration) -> Option<Arc<T>> {
        let mut entries = self.entries();
        let (used, value) = entries.get_mut(location)?;
        *used = now;
        Some(Arc::clone(value))
    }

    pub(crate) fn insert(&self, location: &str, value: Arc<T>, now: Duration) {
        if self.ttl.is_zero() {
            return;
        }
        let mut entries = self.entries();
        entries.retain(|_, (used, _)| now.saturating_sub(*used) < self.ttl);
        if entries.len() >= self.entries_max {
            entries.clear();
        }
        entries.insert(location.to_owned(), (now, value));
    }

    /// How many values are kept.
    pub(crate) fn len(&self) -> usize {
        self.entries().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_nobody_asks_for_goes() {
        let cache = Cache::new(10, secs(300));
        for (at, location) in [(0, "a"), (1, "b")] {
            cache.insert(location, Arc::new(location), secs(at));
        }
        assert_eq!(cache.get("b", secs(200)).as_deref(), Some(&"b"));
        cache.insert("c", Arc::new("c"), secs(301));
        assert_eq!(cache.get("a", secs(301)), None);
        assert_eq!(cache.get("b", secs(301)).as_deref(), Some(&"b"), "was used since");
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn the_number_is_bounded_and_zero_keeps_nothing() {
        let cache = Cache::new(2, secs(300));
        for location in ["a", "b", "c"] {
            cache.insert(location, Arc::new(()), secs(0));
        }
        assert_eq!(cache.len(), 1);
        let none = Cache::new(2, Duration::ZERO);
        none.insert("a", Arc::new(()), secs(0));
        assert_eq!(none.len(), 0);
    }
}
