//! Bounds of DESIGN section 2. Each says what happens when it is reached.

/// Largest request after decompression; beyond it 413 / RESOURCE_EXHAUSTED without RetryInfo.
pub const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Largest payload of one log entry before compression; a larger request is split into parts.
pub const ENTRY_BYTES_TARGET: usize = 4 << 20;

/// Hard bound of one encoded log entry; an entry beyond it is refused, never written.
pub const ENTRY_BYTES_MAX: usize = 8 << 20;

/// Proposed but not yet applied bytes a group; beyond it writes are throttled with a retry hint.
pub const GROUP_UNCOMMITTED_BYTES_MAX: usize = 64 << 20;

/// Proposed but not yet applied bytes of all groups of a node; beyond it writes are throttled with a retry hint.
pub const NODE_UNCOMMITTED_BYTES_MAX: usize = 256 << 20;
