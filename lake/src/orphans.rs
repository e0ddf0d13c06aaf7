//! Files that no version of a table needs any more: no disk, network, clock or randomness.
//!
//! There is no ledger. A file below the table's location may go when all of this holds:
//!
//! 1. Its name is one that we give ([`names::is_ours`]).
//! 2. No snapshot, manifest list, manifest or metadata file that the table's current metadata reaches has it, and it is not
//!    the trace index of a data file that one has.
//! 3. It was written longer than the grace ago, and this process has known it for an orphan for the grace, as leader of the
//!    table's owner group, in which the `TableAdvanced` of a version without the file is applied: no query reads it.
//! 4. **The table was committed to after that.** A writer that was held up between writing and committing gave the file up
//!    unless it looked at the table, and at the age of its files, within [`COMMIT_WITHIN`] of writing it; so it looked
//!    before that commit, and its swap fails. This needs no clocks that agree. (A metadata file whose version the table
//!    has passed can never be swapped in.)

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::names;
use crate::storage::Listed;
use crate::table::version_of;

/// A commit gives up data files that were begun longer ago; the grace is at least twice this.
pub(crate) const COMMIT_WITHIN: Duration = Duration::from_secs(15 * 60);

/// Orphans by location.
pub(crate) type Seen = HashMap<String, Sighting>;

/// How long an orphan has been known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sighting {
    /// By the process's clock.
    since: Duration,
    /// The table's version when it had been known for the grace.
    version: Option<i64>,
}

/// What is known of a table at one moment.
#[derive(Debug)]
pub(crate) struct Moment<'a> {
    pub(crate) reachable: &'a HashSet<String>,
    /// The table's, which `reachable` is of.
    pub(crate) version: i64,
    pub(crate) now_ms: i64,
    /// Before the table was looked at, by the process's clock.
    pub(crate) begun: Duration,
    /// After its files were listed.
    pub(crate) listed: Duration,
    pub(crate) grace: Duration,
}

/// What to do with a table's orphans.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) delete: Vec<String>,
    /// Orphans that stay for now.
    pub(crate) waiting: usize,
    /// Some of them could go once the table is committed to.
    pub(crate) needs_commit: bool,
}

/// Plans what to delete of what is `listed`; `seen` follows.
pub(crate) fn plan(listed: Vec<Listed>, seen: &mut Seen, moment: &Moment<'_>) -> Plan {
    let grace_ms = i64::try_from(moment.grace.as_millis()).unwrap_or(i64::MAX);
    let mut before = std::mem::take(seen);
    let mut plan = Plan::default();
    for file in listed {
        if !names::is_ours(&file.location) || moment.reachable.contains(&file.location) {
            continue;
        }
        let written_ms = names::commit_begun_ms(&file.location).unwrap_or(i64::MIN).max(file.modified_ms);
        let new = Sighting { since: moment.listed, version: None };
        let mut sighting = before.remove(&file.location).unwrap_or(new);
        let old = moment.now_ms.saturating_sub(written_ms) >= grace_ms
            && moment.begun.saturating_sub(sighting.since) >= moment.grace;
        if old && (was_passed(&file.location, moment) || sighting.version.is_some_and(|then| moment.version > then)) {
            plan.delete.push(file.location);
            continue;
        }
        if old {
            sighting.version = sighting.version.or(Some(moment.version));
            plan.needs_commit |= !was_passed(&file.location, moment);
        }
        plan.waiting += 1;
        seen.insert(file.location, sighting);
    }
    plan
}

/// Whether this is the metadata of a version that the table is at or behind.
fn was_passed(location: &str, moment: &Moment<'_>) -> bool {
    location.ends_with(".metadata.json") && version_of(location) <= moment.version
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;
    const HOUR: Duration = Duration::from_secs(3600);

    fn file(name: &str, modified_ms: i64) -> Listed {
        Listed { location: format!("file:///t/metadata/{name}"), modified_ms, bytes: 1 }
    }

    fn manifest(n: u128) -> String {
        format!("{}-m0.avro", Uuid::from_u128(n))
    }

    /// Looks at `listed` at the hours 10 to 13; the table has the version that belongs to the hour.
    fn check(listed: &[Listed], reachable: &[&Listed], versions: [i64; 4]) -> Vec<(i64, Plan)> {
        let reachable: HashSet<String> = reachable.iter().map(|file| file.location.clone()).collect();
        let mut seen = Seen::new();
        let plan_at = |hour: i64| {
            let moment = Moment {
                reachable: &reachable,
                version: versions[hour as usize - 10],
                now_ms: hour * HOUR_MS,
                begun: HOUR * hour as u32,
                listed: HOUR * hour as u32,
                grace: HOUR,
            };
            (hour, plan(listed.to_vec(), &mut seen, &moment))
        };
        (10..14).map(plan_at).collect()
    }

    #[test]
    fn an_orphan_goes_when_it_was_known_for_the_grace_and_the_table_was_committed_to_since() {
        let orphan = file(&manifest(1), 5 * HOUR_MS);
        let plans = check(std::slice::from_ref(&orphan), &[], [7, 8, 9, 9]);
        assert_eq!(plans[0].1, Plan { waiting: 1, ..Plan::default() });
        assert_eq!(plans[1].1, Plan { waiting: 1, needs_commit: true, ..Plan::default() });
        assert_eq!(plans[2].1.delete, [orphan.location]);
    }

    #[test]
    fn live_files_and_files_of_others_never_go() {
        let live = file(&manifest(1), 0);
        let other = file("something.avro", 0);
        for (hour, plan) in check(&[live.clone(), other], &[&live], [1, 2, 3, 4]) {
            assert_eq!(plan, Plan::default(), "hour {hour}");
        }
    }

    #[test]
    fn a_young_file_stays() {
        for (hour, plan) in check(&[file(&manifest(1), 12 * HOUR_MS + 1)], &[], [1, 2, 3, 4]) {
            assert!(plan.delete.is_empty() && plan.waiting == 1, "hour {hour}");
        }
    }

    /// A flush that was held up after writing could still win the swap.
    #[test]
    fn nothing_goes_before_the_table_was_committed_to() {
        for (hour, plan) in check(&[file(&manifest(1), 5 * HOUR_MS)], &[], [7, 7, 7, 7]) {
            let expected = Plan { waiting: 1, needs_commit: hour > 10, ..Plan::default() };
            assert_eq!(plan, expected, "hour {hour}");
        }
    }

    /// Else each commit that lets a file go would leave one that needs another.
    #[test]
    fn metadata_that_the_table_has_passed_needs_no_commit() {
        let metadata = |version: u32| file(&format!("{version:05}-{}.metadata.json", Uuid::nil()), 5 * HOUR_MS);
        let plans = check(&[metadata(6), metadata(8)], &[], [7, 7, 7, 7]);
        assert_eq!(plans[1].1.delete, [metadata(6).location]);
        assert!(plans[1].1.needs_commit, "version 8 may still come");
    }

    #[test]
    fn the_name_of_a_data_file_counts_even_if_the_store_says_otherwise() {
        let at = uuid::Timestamp::from_unix(uuid::NoContext, 12 * 3600 + 1, 0);
        let location = names::data_file("file:///t", "1", Uuid::new_v7(at), 0, 0);
        let file = Listed { location, modified_ms: 0, bytes: 1 };
        for (hour, plan) in check(&[file], &[], [1, 2, 3, 4]) {
            assert!(plan.delete.is_empty(), "hour {hour}");
        }
    }
}
