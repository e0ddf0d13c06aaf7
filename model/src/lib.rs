//! The vocabulary that two or more crates share: ids, log positions, acknowledgment levels, limits and the clock.
//!
//! Nothing here does I/O, but for the helper of [`mutation`] that only test builds have. A type that only one crate needs
//! lives beside its user instead.
//! Start with [`ids`] for names and [`position`] for what an acknowledgment carries.

mod ack;
mod clock;
mod ids;
pub mod limits;
pub mod mutation;
mod position;

pub use ack::{AckLevel, ParseAckLevelError};
pub use clock::{Clock, ManualClock, SystemClock, UnixNanos};
pub use ids::{DatasetId, GroupId, InvalidName, NodeId, TableCode, TableId, TenantId};
pub use position::{ParsePositionError, Position};
