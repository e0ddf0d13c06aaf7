//! What this node knows of the starts of the others: the newest of each, and which one ended with a failed fsync.
//!
//! It is told with every call and every answer between nodes, and the meta group agrees on it. It is kept in the state
//! store as well: after a restart of all nodes the first vote may be asked for before the meta group is replayed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use signaldb_proto::peer;
use tokio::sync::Notify;

use crate::error::OpenError;
use crate::recovery::{KnownMember, OwnIdentity, Refusal, StartEpoch, admit};
use crate::state_store::{StateStore, StateStoreError};

const KEY: &[u8] = b"known-starts";
/// Version of what is stored under [`KEY`].
const FORMAT: u32 = 1;

/// What is known of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) disk_id: String,
    /// The newest start that was seen.
    pub(crate) epoch: Option<StartEpoch>,
    /// The newest start that ended with a failed write or fsync.
    pub(crate) poisoned: Option<StartEpoch>,
}

/// By node id.
pub(crate) type Starts = BTreeMap<u64, Known>;

/// [`KEY`].
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    nodes: Starts,
}

/// Takes in news of a node; says whether it was any. Of two starts with one number the first that was heard of stays:
/// who comes later is the copy. News of another disk is none, since ids are never reused.
pub(crate) fn learn(starts: &mut Starts, node: u64, news: Known) -> bool {
    let known = match starts.entry(node) {
        Entry::Vacant(slot) => {
            slot.insert(news);
            return true;
        }
        Entry::Occupied(slot) => slot.into_mut(),
    };
    if known.disk_id != news.disk_id {
        return false;
    }
    let epoch = raise(&mut known.epoch, news.epoch);
    let poisoned = raise(&mut known.poisoned, news.poisoned);
    epoch || poisoned
}

fn raise(known: &mut Option<StartEpoch>, news: Option<StartEpoch>) -> bool {
    let number = |epoch: Option<StartEpoch>| epoch.map_or(0, |epoch| epoch.number);
    let newer = number(*known) < number(news);
    if newer {
        *known = news;
    }
    newer
}

/// Whether a disk may go on under its node id, by what is known of it; the number of a poisoned start of it that came
/// after `settled`, the last one that it has drawn the consequences of.
///
/// # Errors
/// As [`admit`].
pub(crate) fn judge(own: &OwnIdentity, settled: u64, known: Option<&Known>) -> Result<Option<u64>, Refusal> {
    let Some(known) = known else { return Ok(None) };
    admit(Some(own), Some(&KnownMember { disk_id: known.disk_id.clone(), epoch: known.epoch }))?;
    let poisoned = known.poisoned.filter(|start| start.number > settled && own.starts.remembers(*start));
    Ok(poisoned.map(|start| start.number))
}

pub(crate) fn known_out(known: Option<Known>) -> peer::KnownResponse {
    let out = |start: StartEpoch| peer::StartEpoch { number: start.number, token: start.token };
    known.map_or_else(peer::KnownResponse::default, |known| peer::KnownResponse {
        disk_id: Some(known.disk_id),
        epoch: known.epoch.map(out),
        poisoned: known.poisoned.map(out),
    })
}

pub(crate) fn known_in(message: peer::KnownResponse) -> Option<Known> {
    let (epoch, poisoned) = (message.epoch.map(epoch_in), message.poisoned.map(epoch_in));
    message.disk_id.map(|disk_id| Known { disk_id, epoch, poisoned })
}

pub(crate) fn epoch_in(epoch: peer::StartEpoch) -> StartEpoch {
    StartEpoch { number: epoch.number, token: epoch.token }
}

/// What is known now, shared by all who hear something.
#[derive(Debug, Default)]
pub(crate) struct KnownStarts {
    starts: Mutex<Starts>,
    /// One task waits: it stores the news and tells the meta group.
    changed: Notify,
}

impl KnownStarts {
    /// What the last run stored. Blocking.
    ///
    /// # Errors
    /// The store fails, or holds what a newer version wrote.
    pub(crate) fn load(store: &dyn StateStore) -> Result<Self, OpenError> {
        let failed = |reason: String| OpenError::Group { group: 0, reason: format!("known starts: {reason}") };
        let Some(bytes) = store.get(KEY)? else { return Ok(Self::default()) };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        if stored.format != FORMAT {
            return Err(failed(format!("format {} is not supported, this build reads format {FORMAT}", stored.format)));
        }
        Ok(Self { starts: Mutex::new(stored.nodes), changed: Notify::new() })
    }

    /// Blocking.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn store(store: &dyn StateStore, starts: Starts) -> Result<(), StateStoreError> {
        let stored = Stored { format: FORMAT, nodes: starts };
        store.put(&[(KEY, &serde_json::to_vec(&stored).expect("starts are plain JSON"))])
    }

    fn lock(&self) -> MutexGuard<'_, Starts> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, node: u64) -> Option<Known> {
        self.lock().get(&node).cloned()
    }

    pub(crate) fn all(&self) -> Starts {
        self.lock().clone()
    }

    pub(crate) fn learn(&self, node: u64, news: Known) {
        if learn(&mut self.lock(), node, news) {
            self.changed.notify_one();
        }
    }

    /// Waits for news. One waiter at a time. Cancel safety: safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Number of a poisoned start of this node's own disk that it was told of before, later than `settled`.
    pub(crate) fn poisoned(&self, node: u64, own: &OwnIdentity, settled: u64) -> Option<u64> {
        judge(own, settled, self.lock().get(&node)).ok().flatten()
    }

    /// Whether the disk that speaks for `node` may.
    ///
    /// # Errors
    /// As [`admit`].
    pub(crate) fn admit(&self, node: u64, speaker: &OwnIdentity) -> Result<(), Refusal> {
        judge(speaker, 0, self.lock().get(&node)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::StartHistory;
    use crate::state_store::MemoryStateStore;

    fn epoch(number: u64) -> Option<StartEpoch> {
        Some(StartEpoch { number, token: u32::try_from(number).expect("small") })
    }

    fn known(disk: &str, seen: u64, poisoned: Option<u64>) -> Known {
        Known { disk_id: disk.to_owned(), epoch: epoch(seen), poisoned: poisoned.and_then(epoch) }
    }

    #[test]
    fn what_is_known_only_rises() {
        let mut starts = Starts::new();
        assert!(learn(&mut starts, 3, known("a", 2, None)));
        assert!(!learn(&mut starts, 3, known("a", 1, None)), "late news");
        assert!(!learn(&mut starts, 3, known("b", 9, None)), "another disk");
        let copy = Known { epoch: Some(StartEpoch { number: 2, token: 77 }), ..known("a", 2, None) };
        assert!(!learn(&mut starts, 3, copy), "a copy that came later");
        assert!(learn(&mut starts, 3, known("a", 1, Some(2))));
        assert_eq!(starts[&3], known("a", 2, Some(2)));
        assert!(learn(&mut starts, 3, known("a", 4, None)));
        assert_eq!(starts[&3], known("a", 4, Some(2)));
    }

    #[test]
    fn a_poisoned_start_counts_until_its_consequences_are_drawn() {
        let starts = (1..=3).fold(StartHistory::default(), |starts, token| starts.with_start(token));
        let own = OwnIdentity { disk_id: Some("a".to_owned()), starts };
        for (settled, poisoned, expected) in
            [(0, None, None), (0, Some(3), Some(3)), (2, Some(3), Some(3)), (3, Some(3), None)]
        {
            assert_eq!(judge(&own, settled, Some(&known("a", 3, poisoned))), Ok(expected), "{settled} {poisoned:?}");
        }
        assert_eq!(judge(&own, 0, None), Ok(None));
        judge(&own, 0, Some(&known("a", 4, None))).expect_err("an old copy");
    }

    #[test]
    fn what_is_known_survives_and_a_newer_format_is_named() {
        let store = MemoryStateStore::default();
        assert_eq!(KnownStarts::load(&store).expect("loads").all(), Starts::new());
        let starts = Starts::from([(3, known("a", 2, Some(1)))]);
        KnownStarts::store(&store, starts.clone()).expect("stores");
        let node = r#"{"disk_id":"a","epoch":{"number":2,"token":2},"poisoned":{"number":1,"token":1}}"#;
        let golden = format!(r#"{{"format":1,"nodes":{{"3":{node}}}}}"#);
        assert_eq!(store.get(KEY).expect("reads").as_deref(), Some(golden.as_bytes()), "format 1 is frozen");
        assert_eq!(KnownStarts::load(&store).expect("loads").all(), starts);
        store.put(&[(KEY, br#"{"format":9,"nodes":{}}"#)]).expect("puts");
        assert!(KnownStarts::load(&store).expect_err("refuses").to_string().contains("format 9"));
    }
}
