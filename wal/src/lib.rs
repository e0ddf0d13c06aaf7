//! The log engine: one segmented log a disk, shared by all Raft groups (DESIGN section 5).
//!
//! It stores opaque bytes under (group, index) and knows nothing of Raft messages, tenants or Arrow. A write
//! thread appends, a sync thread calls fdatasync once for everything that was written since the last time; each
//! request says which of the two completes it. Truncation is a record, bytes are never overwritten, so what a
//! crash leaves behind is always a prefix of history.
//!
//! Start with [`Wal`]; [`record`] is the persisted format, [`recovery`] what a start does with it.

mod config;
mod error;
mod index;
mod io;
mod readable;
pub mod record;
pub mod recovery;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
mod wal;
mod writer;

pub use config::WalConfig;
pub use error::{OpenError, WalError};
pub use index::GroupState;
pub use io::{LogFile, LogIo, RealIo};
pub use readable::{Readable, readable_entries};
pub use wal::{AppendEntry, Callback, Durability, Wal, WalStats};
