//! Which mutation the environment chooses.

use std::env::VarError;
use std::sync::LazyLock;

use thiserror::Error;

use super::Mutation;

/// Names the mutation of this process; without it there is none.
pub const VARIABLE: &str = "SIGNALDB_MUTATION";

/// Read once: a process is wrong in one way from its start to its end.
static CHOSEN: LazyLock<Result<Option<Mutation>, UnknownMutation>> = LazyLock::new(|| match std::env::var(VARIABLE) {
    Ok(name) => parse(&name).map(Some),
    Err(VarError::NotPresent) => Ok(None),
    Err(VarError::NotUnicode(name)) => Err(UnknownMutation(name.to_string_lossy().into_owned())),
});

/// A name that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{variable}={0:?} is no mutation; there are: {names}", variable = VARIABLE, names = names())]
pub struct UnknownMutation(String);

impl Mutation {
    /// In the order of their definition.
    pub const ALL: [Self; 9] = [
        Self::AckBeforeQuorum,
        Self::SkipRecoveryGate,
        Self::DedupOff,
        Self::FlushWithoutWatermark,
        Self::PurgePastWatermark,
        Self::StaleStrongRead,
        Self::LeaderRestore,
        Self::CommitErrorIsSuccess,
        Self::ViewAfterMetadata,
    ];

    /// What [`VARIABLE`] says.
    pub fn name(self) -> &'static str {
        match self {
            Self::AckBeforeQuorum => "ack-before-quorum",
            Self::SkipRecoveryGate => "skip-recovery-gate",
            Self::DedupOff => "dedup-off",
            Self::FlushWithoutWatermark => "flush-without-watermark",
            Self::PurgePastWatermark => "purge-past-watermark",
            Self::StaleStrongRead => "stale-strong-read",
            Self::LeaderRestore => "leader-restore",
            Self::CommitErrorIsSuccess => "commit-error-is-success",
            Self::ViewAfterMetadata => "view-after-metadata",
        }
    }
}

fn names() -> String {
    Mutation::ALL.map(Mutation::name).join(", ")
}

fn parse(name: &str) -> Result<Mutation, UnknownMutation> {
    let found = Mutation::ALL.into_iter().find(|mutation| mutation.name() == name);
    found.ok_or_else(|| UnknownMutation(name.to_owned()))
}

/// Whether the server is to do this wrong. No mutation is active under a name that is none: see [`warning`].
pub fn active(mutation: Mutation) -> bool {
    matches!(&*CHOSEN, Ok(Some(chosen)) if *chosen == mutation)
}

/// What a node has to say at its start about its mutation, `None` without one.
///
/// # Errors
/// The environment names a mutation that there is not: the node must not start, somebody would take it for a mutated one.
pub fn warning() -> Result<Option<String>, UnknownMutation> {
    let chosen = CHOSEN.clone()?;
    Ok(chosen
        .map(|mutation| format!("THIS NODE IS MUTATED ({}): it is wrong on purpose, for tests only", mutation.name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_has_a_name_of_its_own_and_others_are_refused() {
        assert_eq!(Mutation::ALL.len(), Mutation::ViewAfterMetadata as usize + 1, "the list has all of them");
        for mutation in Mutation::ALL {
            assert_eq!(parse(mutation.name()), Ok(mutation));
        }
        let refused = parse("nonsense").expect_err("is none").to_string();
        assert!(refused.contains("\"nonsense\""), "{refused}");
        assert!(Mutation::ALL.iter().all(|mutation| refused.contains(mutation.name())), "{refused}");
        parse("").expect_err("is none");
    }
}
