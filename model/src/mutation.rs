//! What the server does wrong on purpose, one thing at a time, so that the tests can be tested: a mutation that no test
//! notices is a promise that no test checks (docs/testing.md).
//!
//! A place of the server asks [`active`] and is right where that is false. In builds without the feature `mutations`, every
//! release among them, it is false by definition, and neither the wrong branches nor the names are in the binary. With
//! it the environment of the process chooses, `SIGNALDB_MUTATION=name`; test builds have it, by dev-dependencies.

#[cfg(feature = "mutations")]
mod caught;
#[cfg(feature = "mutations")]
mod switch;

#[cfg(feature = "mutations")]
pub use caught::assert_caught;
#[cfg(feature = "mutations")]
pub use switch::{UnknownMutation, VARIABLE, active, warning};

/// Whether this build has mutations.
pub const BUILT_IN: bool = cfg!(feature = "mutations");

/// One thing that is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A leader acknowledges rows once they are in its own log.
    AckBeforeQuorum,
    /// A replica that may have lost acknowledged entries votes and campaigns like any other.
    SkipRecoveryGate,
    /// The dedup window recognizes no repeat.
    DedupOff,
    /// A flush commits what it takes for unflushed, whatever the watermark in the table says.
    FlushWithoutWatermark,
    /// A cut counts as complete before its tables are committed: the snapshot goes past their watermarks, and the log
    /// behind it is purged.
    PurgePastWatermark,
    /// A strong read goes by what this node has applied, without a proof that it leads.
    StaleStrongRead,
    /// A start resumes the leadership of before.
    LeaderRestore,
    /// A COMMIT that was not answered counts as done.
    CommitErrorIsSuccess,
    /// A query takes the metadata first and the views of the memtables second.
    ViewAfterMetadata,
}

/// Whether the server is to do this wrong.
#[cfg(not(feature = "mutations"))]
#[inline]
pub const fn active(_mutation: Mutation) -> bool {
    false
}

/// What a node has to say at its start about its mutation; nothing in this build.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "mutations"))]
#[inline]
pub const fn warning() -> Result<Option<String>, std::convert::Infallible> {
    Ok(None)
}
