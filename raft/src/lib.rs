//! The replicated log: Raft groups (openraft) over the log engine of `wal`.
//!
//! Commands carry opaque payloads; this crate knows which table an append touches, never what is in it. What it
//! keeps of the log is small: the dedup window, and for each table how far it is in Iceberg ([`state`]). Whoever
//! needs the rows listens behind apply through [`ApplySink`].
//!
//! Start with [`group::Group`], then [`node::Groups`], which opens all groups of a process.

pub mod admission;
mod append_stream;
mod blocking;
mod codec;
pub mod command;
mod disk;
pub mod error;
mod forward;
pub mod group;
pub mod inspect;
mod known;
mod log_store;
pub mod metrics;
mod network;
pub mod node;
pub mod peers;
pub mod recovery;
mod runtime;
mod server;
pub mod sink;
pub mod state;
mod state_machine;
pub mod state_store;
mod types;
mod wire;

pub use command::{Append, Command, Compression, TableStats};
pub use disk::DiskLevel;
pub use error::{OpenError, ReadError, RejectReason, TransferError, WriteError};
pub use forward::Forwarder;
pub use group::{Group, GroupStatus, Leadership, RecoverError, Recovered, Written};
pub use node::{ClusterSecret, Groups, GroupsConfig, OpenLog};
pub use peers::{Dial, Lane, MESSAGE_BYTES_MAX, Peers, PeersConfig, Tcp};
pub use server::PeerService;
pub use sink::ApplySink;
pub use state::{Digest, FIRST_INCARNATION, GroupState, Incarnation, TableState};
