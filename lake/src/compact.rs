//! Compaction: many small data files of a day become few large ones with the same rows, in the table's order.
//!
//! [`plan`] decides, [`execute`] reads, merges and writes; the commit is [`crate::commit`]'s, as for every change that is
//! not a flush.

pub(crate) mod execute;
mod merge;
pub(crate) mod plan;
mod read;

#[cfg(test)]
mod tests;
