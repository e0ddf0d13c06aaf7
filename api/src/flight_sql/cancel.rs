//! Results that this node is sending, so that a client can have one given up by name.
//!
//! It holds one entry for each result that is being read, and they are bounded as queries are. A client that goes away
//! needs none of this: its query ends with its stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use signaldb_model::TenantId;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Default)]
pub(super) struct Streams(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    running: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Of the ticket. The same ticket may be read twice.
    id: Bytes,
    tenant: TenantId,
    cancelled: CancellationToken,
}

/// A result that is being read; it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Sending {
    streams: Streams,
    number: u64,
    pub(super) cancelled: CancellationToken,
}

impl Streams {
    pub(super) fn begin(&self, id: Bytes, tenant: TenantId) -> Sending {
        let cancelled = CancellationToken::new();
        let entry = Entry { id, tenant, cancelled: cancelled.clone() };
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = entries.next;
        entries.next += 1;
        entries.running.insert(number, entry);
        Sending { streams: self.clone(), number, cancelled }
    }

    /// Gives up every result of this ticket that is being read here; whether there was one.
    pub(super) fn cancel(&self, id: &[u8], tenant: &TenantId) -> bool {
        if id.is_empty() {
            return false;
        }
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = entries.running.values().filter(|entry| entry.id == id && entry.tenant == *tenant);
        named.inspect(|entry| entry.cancelled.cancel()).count() > 0
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.streams.0.lock().unwrap_or_else(PoisonError::into_inner).running.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_cancels_what_it_reads_and_nothing_else() {
        let (streams, id) = (Streams::default(), Bytes::from_static(b"1"));
        let tenant = |name| TenantId::new(name).expect("a valid name");
        let (first, again) = (streams.begin(id.clone(), tenant("acme")), streams.begin(id.clone(), tenant("acme")));
        let without_id = streams.begin(Bytes::new(), tenant("acme"));
        assert!(!streams.cancel(&id, &tenant("other")));
        assert!(!streams.cancel(b"2", &tenant("acme")));
        assert!(!streams.cancel(b"", &tenant("acme")));
        assert!(!first.cancelled.is_cancelled());
        assert!(streams.cancel(&id, &tenant("acme")));
        assert!(first.cancelled.is_cancelled() && again.cancelled.is_cancelled());
        assert!(!without_id.cancelled.is_cancelled());
        drop((first, again, without_id));
        assert!(!streams.cancel(&id, &tenant("acme")));
        assert!(streams.0.lock().expect("not poisoned").running.is_empty());
    }
}
