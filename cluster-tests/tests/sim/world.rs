//! What the nodes of a simulation have around them: one order of events, chance, the network, and what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use signaldb_catalog::Swap;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::net::Network;
use crate::os;

pub(crate) const MILLI: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MILLI;

/// Numbers of a seed.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        os::next_random(&mut self.0) % limit.max(1)
    }

    /// From `low` to `high`, without the latter.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low))
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        let at = self.below(of.len() as u64);
        of.get(usize::try_from(at).unwrap_or(0)).copied()
    }
}

/// Everything that happens, as a digest, and in words for whoever wants to read it.
pub(crate) struct Trace {
    digest: Xxh3,
    events: u64,
    print: bool,
}

impl Trace {
    fn note(&mut self, words: std::fmt::Arguments<'_>) {
        let line = format!("{:>12.6} {words}", os::elapsed().as_secs_f64());
        self.digest.update(line.as_bytes());
        self.events += 1;
        if self.print {
            println!("{line}");
        }
    }
}

/// What happens next.
#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes come to an end of a connection.
    Deliver {
        connection: u64,
        to_called: bool,
    },
    /// A call to connect comes to the node that is called.
    Connect {
        connection: u64,
    },
    /// It comes back to the caller.
    Connected {
        connection: u64,
        accepted: bool,
    },
    /// A client goes on.
    Client(usize),
    /// A reader goes on.
    Reader,
    /// A transaction of the catalog whose caller gave up is carried out.
    LateSwap(Vec<Swap>),
    Start(u64),
    /// The next fault is due.
    Fault,
    /// Something that lasts is over.
    End(Lasting),
    /// Looks at all nodes.
    Look,
}

/// A fault that lasts for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    Partition,
    SlowDisk(u64),
    /// Operations that did not fail by then do not fail any more.
    FailingDisk(u64),
    FullDisk(u64),
    Catalog,
    Store,
}

/// What the log asks of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Sync,
    /// Writes, creations, removals, and syncs of directories.
    Change,
    Open,
    Read,
}

/// A disk that answers an operation with EIO, so many times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FailingDisk {
    pub(crate) operation: Operation,
    pub(crate) left: u64,
}

/// What goes wrong at the moment.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// Syncs of these nodes take this long, nanoseconds.
    pub(crate) slow_disks: BTreeMap<u64, u64>,
    pub(crate) failing_disks: BTreeMap<u64, FailingDisk>,
    pub(crate) full_disks: BTreeSet<u64>,
    /// Calls of the catalog that fail, in a hundred.
    pub(crate) catalog: u64,
    pub(crate) store: u64,
}

pub(crate) struct State {
    pub(crate) chance: Chance,
    trace: Trace,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    pub(crate) network: Network,
    pub(crate) trouble: Trouble,
    /// The first thing that must not be.
    violation: Option<String>,
    /// What was done to the nodes, by kind,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// and what else is worth a number.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Dropped or woken once nobody looks at the state.
    pub(crate) stale: Vec<Waker>,
    pub(crate) woken: Vec<Waker>,
    /// Nodes that have something to do now because of what another one did.
    pub(crate) touched: BTreeSet<u64>,
}

/// Shared by all nodes; every look at it is short. Cheap to clone.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<State>>);

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

impl World {
    pub(crate) fn new(seed: u64, print: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            chance: Chance::new(seed ^ 0x5349_4d55_4c41_5445),
            trace: Trace { digest: Xxh3::new(), events: 0, print },
            events: BTreeMap::new(),
            scheduled: 0,
            network: Network::default(),
            trouble: Trouble::default(),
            violation: None,
            faults: BTreeMap::new(),
            counts: BTreeMap::new(),
            stale: Vec::new(),
            woken: Vec::new(),
            touched: BTreeSet::new(),
        })))
    }

    /// Looks at the state, or changes it. Whoever is woken by that runs later; what a dropped waker ends may come here.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut state);
        let (woken, stale) = (std::mem::take(&mut state.woken), std::mem::take(&mut state.stale));
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        drop(stale);
        result
    }

    pub(crate) fn note(&self, words: std::fmt::Arguments<'_>) {
        self.with(|state| state.note(words));
    }

    /// What must not be is there: the first such thing ends the simulation.
    pub(crate) fn violate(&self, what: String) {
        self.with(|state| {
            state.note(format_args!("VIOLATION {what}"));
            state.violation.get_or_insert(what);
        });
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.with(|state| state.violation.clone())
    }

    pub(crate) fn after(&self, nanos: u64, event: Event) {
        self.with(|state| state.after(nanos, event));
    }

    /// When the next event is due.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.with(|state| state.events.first_key_value().map(|((at, _), _)| *at))
    }

    pub(crate) fn take_event(&self) -> Option<Event> {
        self.with(|state| state.events.pop_first().map(|(_, event)| event))
    }

    /// Digest and number of all events so far.
    pub(crate) fn trace(&self) -> (u64, u64) {
        self.with(|state| (state.trace.digest.digest(), state.trace.events))
    }

    pub(crate) fn count(&self, what: &'static str) {
        self.with(|state| state.count(what));
    }
}

impl State {
    pub(crate) fn note(&mut self, words: std::fmt::Arguments<'_>) {
        self.trace.note(words);
    }

    pub(crate) fn after(&mut self, nanos: u64, event: Event) {
        self.at(os::now() + nanos, event);
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((at, self.scheduled), event);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Whether this operation of a node fails.
    pub(crate) fn fails(&mut self, node: u64, operation: Operation) -> bool {
        let Some(disk) = self.trouble.failing_disks.get_mut(&node).filter(|disk| disk.operation == operation) else {
            return false;
        };
        // One bad sector among good ones.
        if operation == Operation::Read && self.chance.percent(50) {
            return false;
        }
        disk.left = disk.left.saturating_sub(1);
        if disk.left == 0 {
            self.trouble.failing_disks.remove(&node);
        }
        self.note(format_args!("disk {node} EIO {operation:?}"));
        self.count("I/O errors");
        true
    }

    /// Whether a disk may take from a node what it acknowledged, or keep it from starting.
    pub(crate) fn is_disk_bad(&self, node: u64) -> bool {
        self.trouble.failing_disks.contains_key(&node) || self.trouble.full_disks.contains(&node)
    }
}

/// Names bytes in the trace.
pub(crate) fn digest_of(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}
