//! The log engine: one segmented log a disk, shared by all Raft groups (DESIGN section 5).
//!
//! It stores opaque bytes under (group, index) and knows nothing of Raft messages, tenants or Arrow. A write
//! thread appends, a sync thread calls fdatasync once for everything that was written since the last time; each
//! request says which of the two completes it. Truncation is a record, bytes are never overwritten, so what a
//! crash leaves behind is always a prefix of history.
//!
//! Start with [`Wal`]; [`record`] is the persisted format, `recovery.rs` what a start reads, `start.rs` what it does then.

mod config;
mod error;
mod found;
mod index;
mod inspect;
mod io;
pub mod metrics;
mod readable;
pub mod record;
mod recovery;
mod segment;
mod shared;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
mod start;
mod suspects;
mod votes;
mod wal;
mod workers;
mod writer;

pub use config::WalConfig;
pub use error::{OpenError, WalError};
pub use found::{Damage, Found, FoundGroup, Quarantined, TailKind, TornTail, keep_trust};
pub use index::GroupState;
pub use inspect::{GroupInfo, Inspection, RepairReport, SegmentInfo, inspect, repair};
pub use io::{LogFile, LogIo, RealIo};
pub use readable::{Readable, readable_entries};
pub use shared::POISON_FILE;
pub use start::disk_id;
pub use wal::{AppendEntry, Callback, Durability, Wal, WalStats};
pub use workers::{Step, Wake, Worker, Workers};
