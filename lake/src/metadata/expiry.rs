//! Which snapshots a commit drops (DESIGN section 6): all are kept for an hour, one an hour for a week, 500 at most.

use std::collections::{HashMap, HashSet};

use iceberg::Result;
use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention, TableMetadata};
use serde::Deserialize;

/// With their summaries these stay below 1 MB of metadata.
const SNAPSHOTS_MAX: usize = 500;
pub(super) const HOUR_MS: i64 = 3_600_000;
const KEEP_ALL_MS: i64 = HOUR_MS;
const KEEP_HOURLY_MS: i64 = 7 * 24 * HOUR_MS;

/// A snapshot as expiry sees it.
#[derive(Debug, Clone, Copy)]
struct Age {
    id: i64,
    sequence: i64,
    at_ms: i64,
}

/// Snapshots that a commit at `now_ms` drops: the current one never, nor what a tag or a branch names.
///
/// # Errors
/// When the metadata cannot be written as JSON, which is the only way to its references.
pub(crate) fn expired_snapshots(metadata: &TableMetadata, now_ms: i64) -> Result<Vec<i64>> {
    let ages = metadata.snapshots().map(|snapshot| Age {
        id: snapshot.snapshot_id(),
        sequence: snapshot.sequence_number(),
        at_ms: snapshot.timestamp_ms(),
    });
    let ages: Vec<Age> = ages.collect();
    let mut pinned: HashSet<i64> = metadata.current_snapshot_id().into_iter().collect();
    let expired = expired(ages.clone(), &pinned, now_ms);
    // Most commits have nothing to expire and need not look at the references.
    if expired.is_empty() {
        return Ok(expired);
    }
    pinned.extend(referenced(metadata, &ages, now_ms)?);
    Ok(self::expired(ages, &pinned, now_ms))
}

/// Snapshots that tags and branches other than main name, unless the reference is too old by its own rule.
fn referenced(metadata: &TableMetadata, ages: &[Age], now_ms: i64) -> Result<HashSet<i64>> {
    #[derive(Deserialize)]
    struct References {
        #[serde(default)]
        refs: HashMap<String, SnapshotReference>,
    }
    let References { refs } = serde_json::from_slice(&serde_json::to_vec(metadata)?)?;
    let named = refs.into_iter().filter(|(name, _)| name != MAIN_BRANCH).map(|(_, reference)| reference);
    let kept = named.filter(|reference| {
        let (SnapshotRetention::Branch { max_ref_age_ms, .. } | SnapshotRetention::Tag { max_ref_age_ms }) =
            &reference.retention;
        let age = ages.iter().find(|age| age.id == reference.snapshot_id).map_or(0, |age| now_ms - age.at_ms);
        max_ref_age_ms.is_none_or(|max| age <= max)
    });
    Ok(kept.map(|reference| reference.snapshot_id).collect())
}

fn expired(mut ages: Vec<Age>, pinned: &HashSet<i64>, now_ms: i64) -> Vec<i64> {
    ages.sort_by_key(|age| std::cmp::Reverse(age.sequence));
    let (recent, older): (Vec<Age>, Vec<Age>) = ages.into_iter().partition(|age| now_ms - age.at_ms <= KEEP_ALL_MS);
    let mut hours = HashSet::new();
    let hourly: HashSet<i64> = older
        .iter()
        .filter(|age| now_ms - age.at_ms <= KEEP_HOURLY_MS && hours.insert(age.at_ms.div_euclid(HOUR_MS)))
        .map(|age| age.id)
        .collect();
    // The snapshot that is being made counts. A busy hour must not cost the week, nor the last of the hour before it: readers
    // of the past rely on each hour's last.
    let recent_max = SNAPSHOTS_MAX.saturating_sub(3 + hourly.len()).min(recent.len());
    let (kept, rest) = recent.split_at(recent_max);
    let mut hours: HashSet<i64> = kept.iter().map(|age| age.at_ms.div_euclid(HOUR_MS)).collect();
    let crowded = rest.iter().filter(|age| !hours.insert(age.at_ms.div_euclid(HOUR_MS)));
    let goes = crowded.chain(older.iter().filter(|age| !hourly.contains(&age.id)));
    goes.map(|age| age.id).filter(|id| !pinned.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Snapshots by their ages in minutes, the newest first; their ids are their places.
    fn check(ages_min: impl IntoIterator<Item = i64>, pinned: &[i64]) -> Vec<i64> {
        let now_ms = 100 * 24 * HOUR_MS;
        let age = |(id, minutes): (i64, i64)| Age { id, sequence: 100_000 - id, at_ms: now_ms - minutes * 60_000 };
        let ages: Vec<Age> = (0..).zip(ages_min).map(age).collect();
        let mut out = expired(ages, &pinned.iter().copied().collect(), now_ms);
        out.sort_unstable();
        out
    }

    #[test]
    fn an_hour_of_all_then_one_an_hour_for_a_week() {
        assert_eq!(check([0, 1, 59, 60], &[]), Vec::<i64>::new());
        assert_eq!(check([61, 70, 100, 119, 121, 130], &[]), [1, 2, 3, 5], "the newest of each hour stays");
        assert_eq!(check([7 * 24 * 60, 7 * 24 * 60 + 1], &[]), [1]);
        assert_eq!(check([8 * 24 * 60, 9 * 24 * 60], &[1]), [0], "what is pinned stays however old it is");
    }

    #[test]
    fn a_busy_hour_costs_itself_and_not_the_week() {
        let busy = std::iter::repeat_n(1, 1000);
        let week = (1..=100).map(|hour| hour * 60 + 30);
        let gone = check(busy.chain(week), &[]);
        assert_eq!(gone.len(), 1100 - (SNAPSHOTS_MAX - 3));
        assert!(gone.iter().all(|id| *id < 1000), "only of the busy hour");
    }

    /// Flushes every 6 s for a while, then every minute, then rarely, as a busy table that calms down.
    #[test]
    fn five_thousand_commits_never_keep_more_than_five_hundred_snapshots() {
        let (mut kept, mut now_ms): (Vec<Age>, i64) = (Vec::new(), 0);
        for n in 0..5000 {
            now_ms += [6_000, 60_000, HOUR_MS / 4][(n / 2000) as usize];
            let current = kept.last().map(|age| age.id).into_iter().collect();
            let gone = expired(kept.clone(), &current, now_ms);
            kept.retain(|age| !gone.contains(&age.id));
            kept.push(Age { id: n, sequence: n, at_ms: now_ms });
            assert!(kept.len() <= SNAPSHOTS_MAX, "{} at {n}", kept.len());
        }
        let oldest = now_ms - kept.first().map_or(0, |age| age.at_ms);
        assert!(oldest > KEEP_HOURLY_MS - 2 * HOUR_MS, "a week can be looked back");
    }
}
