//! Faults that last for a while: when one is over, only that one is.

use std::collections::{BTreeMap, BTreeSet};

/// What a fault that lasts is about, and the node that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lasting {
    Partition,
    SlowDisk(u64),
    /// Operations that did not fail by then do not fail any more.
    FailingDisk(u64),
    FullDisk(u64),
    Catalog,
    Store,
}

/// Which faults last. Of two about the same thing the newer one takes the place of the older; partitions are beside each other.
#[derive(Debug, Default)]
pub(crate) struct Lastings {
    begun: u64,
    newest: BTreeMap<Lasting, u64>,
    wires: BTreeMap<Wire, BTreeSet<u64>>,
}

/// From one node to another.
pub(crate) type Wire = (u64, u64);

impl Lastings {
    /// Something begins; returns the number to end it with.
    pub(crate) fn begin(&mut self, lasting: Lasting) -> u64 {
        self.begun += 1;
        self.newest.insert(lasting, self.begun);
        self.begun
    }

    /// Whether what began under this number is over with that: nothing newer took its place.
    pub(crate) fn end(&mut self, lasting: Lasting, number: u64) -> bool {
        let newest = self.newest.get(&lasting) == Some(&number);
        if newest {
            self.newest.remove(&lasting);
        }
        newest
    }

    /// A partition holds a wire: nothing moves on it before all that hold it are over.
    pub(crate) fn hold(&mut self, partition: u64, wire: Wire) {
        self.wires.entry(wire).or_default().insert(partition);
    }

    pub(crate) fn is_held(&self, wire: Wire) -> bool {
        self.wires.contains_key(&wire)
    }

    /// A partition is over; returns the wires on which something moves again.
    pub(crate) fn release(&mut self, partition: u64) -> BTreeSet<Wire> {
        let mut free = BTreeSet::new();
        self.wires.retain(|wire, by| {
            if by.remove(&partition) && by.is_empty() {
                free.insert(*wire);
            }
            !by.is_empty()
        });
        free
    }

    /// Everything is over, whatever ends later; returns the wires on which something moves again.
    pub(crate) fn end_all(&mut self) -> BTreeSet<Wire> {
        self.newest.clear();
        std::mem::take(&mut self.wires).into_keys().collect()
    }
}
