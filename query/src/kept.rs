//! Parts of files that queries keep in memory, within one budget of bytes: footers with their page indexes, bloom filters,
//! and trace indexes. The files never change, so a part is good for as long as anybody wants it; those that nobody wanted
//! for longest go first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use datafusion::parquet::file::metadata::ParquetMetaData;
use signaldb_lake::trace_index::TraceIndex;
use tokio::sync::OnceCell;

use crate::metrics;

/// About what a part costs beside its bytes.
const ENTRY_BYTES: usize = 512;

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PartKey {
    location: String,
    /// Where it is; `None` for what is known of the file as a whole.
    range: Option<(u64, u64)>,
}

/// What a part holds.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    /// With its page index.
    Footer(Arc<ParquetMetaData>),
    /// The directory of a trace index; `None` when there is none that can be read.
    TraceIndex(Option<Arc<TraceIndex>>),
    Bytes(Bytes),
}

/// The parts. Each is read once, however many want it at the same time.
#[derive(Debug)]
pub(crate) struct KeptParts {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<PartKey, Entry>,
    /// Keys by their last use.
    by_use: BTreeMap<u64, PartKey>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    /// Empty while it is read.
    part: Arc<OnceCell<Part>>,
    used: u64,
    bytes: usize,
}

impl PartKey {
    pub(crate) fn whole(location: impl Into<String>) -> Self {
        Self { location: location.into(), range: None }
    }

    pub(crate) fn range(location: impl Into<String>, range: &std::ops::Range<u64>) -> Self {
        Self { location: location.into(), range: Some((range.start, range.end)) }
    }
}

impl Part {
    fn bytes(&self) -> usize {
        match self {
            Self::Footer(footer) => footer.memory_size(),
            Self::TraceIndex(index) => index.as_ref().map_or(0, |index| index.memory_bytes()),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

impl KeptParts {
    /// `bytes_max` of zero keeps nothing.
    pub(crate) fn new(bytes_max: usize) -> Self {
        metrics::record_kept(0, bytes_max);
        Self { bytes_max, state: Mutex::default() }
    }

    /// The part, and whether it was in memory; `load` reads it if not.
    ///
    /// # Errors
    /// What `load` says; the next one who wants the part tries again.
    pub(crate) async fn get<E>(
        &self,
        key: PartKey,
        load: impl Future<Output = Result<Part, E>>,
    ) -> Result<(Part, bool), E> {
        let slot = self.slot(&key);
        if let Some(part) = slot.get() {
            metrics::note_kept(true);
            return Ok((part.clone(), true));
        }
        metrics::note_kept(false);
        match slot.get_or_try_init(|| load).await {
            Ok(part) => {
                let part = part.clone();
                self.note_read(&key, &slot, part.bytes());
                Ok((part, false))
            }
            Err(error) => Err(error),
        }
    }

    /// The footer of a file, if it is in memory.
    pub(crate) fn footer(&self, location: &str) -> Option<Arc<ParquetMetaData>> {
        let state = self.state();
        match state.entries.get(&PartKey::whole(location))?.part.get()? {
            Part::Footer(footer) => Some(Arc::clone(footer)),
            _ => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the part is or will be. It was used now.
    fn slot(&self, key: &PartKey) -> Arc<OnceCell<Part>> {
        let mut state = self.state();
        state.uses += 1;
        let now = state.uses;
        state.by_use.insert(now, key.clone());
        if let Some(entry) = state.entries.get_mut(key) {
            let (before, part) = (std::mem::replace(&mut entry.used, now), Arc::clone(&entry.part));
            state.by_use.remove(&before);
            return part;
        }
        let part = Arc::<OnceCell<Part>>::default();
        let bytes = ENTRY_BYTES + key.location.len();
        state.bytes += bytes;
        state.entries.insert(key.clone(), Entry { part: Arc::clone(&part), used: now, bytes });
        part
    }

    /// A part was read. Of all who waited for it, one counts it.
    fn note_read(&self, key: &PartKey, slot: &Arc<OnceCell<Part>>, bytes: usize) {
        let mut state = self.state();
        let expected = ENTRY_BYTES + key.location.len();
        let Some(entry) = state.entries.get_mut(key) else { return };
        if Arc::ptr_eq(&entry.part, slot) && entry.bytes == expected {
            entry.bytes += bytes;
            state.bytes += bytes;
        }
        while state.bytes > self.bytes_max {
            let Some((_, oldest)) = state.by_use.pop_first() else { break };
            let gone = state.entries.remove(&oldest).map_or(0, |entry| entry.bytes);
            state.bytes -= gone;
        }
        metrics::record_kept(state.bytes, self.bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn key(name: &str) -> PartKey {
        PartKey::range(name, &(0..1))
    }

    /// Whether the part was in memory; it has so many bytes.
    async fn get(kept: &KeptParts, name: &str, bytes: usize) -> bool {
        let load = async { Ok::<_, Infallible>(Part::Bytes(vec![0; bytes].into())) };
        let Ok((part, hit)) = kept.get(key(name), load).await;
        assert!(matches!(part, Part::Bytes(content) if content.len() == bytes));
        hit
    }

    #[tokio::test]
    async fn what_was_not_wanted_for_longest_goes() {
        let kept = KeptParts::new(3 * (ENTRY_BYTES + 1 + 1000));
        for name in ["a", "b"] {
            assert!(!get(&kept, name, 1000).await);
        }
        assert!(get(&kept, "a", 1000).await);
        assert!(!get(&kept, "c", 1000).await);
        assert!(!get(&kept, "d", 900).await, "b makes room");
        assert!(get(&kept, "a", 1000).await && get(&kept, "c", 1000).await && get(&kept, "d", 900).await);
        assert!(!get(&kept, "b", 1000).await);
        let state = kept.state();
        assert!(state.bytes <= kept.bytes_max && state.by_use.len() == state.entries.len());
        assert_eq!(state.bytes, state.entries.values().map(|entry| entry.bytes).sum::<usize>());
    }

    #[tokio::test]
    async fn what_is_larger_than_the_budget_is_read_each_time() {
        for bytes_max in [0, 1000] {
            let kept = KeptParts::new(bytes_max);
            assert!(!get(&kept, "a", 2000).await && !get(&kept, "a", 2000).await);
            let state = kept.state();
            assert_eq!((state.bytes, state.by_use.len()), (0, 0));
        }
    }

    #[tokio::test]
    async fn a_part_is_read_once_for_all_who_want_it_at_the_same_time_and_again_after_a_failure() {
        let kept = KeptParts::new(1 << 20);
        let failed = kept.get(key("a"), async { Err::<Part, _>("no") }).await;
        assert_eq!(failed.map(|_| ()), Err("no"));
        let reads = std::sync::atomic::AtomicUsize::new(0);
        let load = async || {
            tokio::task::yield_now().await;
            reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok::<_, Infallible>(Part::Bytes(Bytes::from_static(b"part")))
        };
        let (first, second) = tokio::join!(kept.get(key("a"), load()), kept.get(key("a"), load()));
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(reads.into_inner(), 1);
        assert!(get(&kept, "a", 4).await);
    }
}
