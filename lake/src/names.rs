//! Names of the files that we write, and what they say: whose they are and when they were written.
//!
//! | file, below the table's location | written by |
//! |---|---|
//! | `data/timestamp_day=D/<group>-<commit>-<n>.parquet` | a flush |
//! | `data/timestamp_day=D/c-<commit>-<n>.parquet` | a compaction |
//! | `data/timestamp_day=D/c-<commit>.tidx` | the same, over all its files |
//! | `metadata/<commit>-m<n>.avro`, `metadata/snap-<id>-0-<commit>.avro` | any commit, ours or not |
//! | `metadata/<version>-<uuid>.metadata.json` | any commit, ours or not |
//!
//! The `<commit>` of a data file, and of the trace index beside it, is a UUID of version 7: it holds the time at which the first of its files was begun.

use uuid::Uuid;

/// Location of file `n` of a commit; `writer` is the number of a group, or [`COMPACTION`].
pub(crate) fn data_file(root: &str, writer: &str, commit: Uuid, n: usize, day: i32) -> String {
    format!("{root}/data/timestamp_day={}/{writer}-{commit}-{n}.parquet", date(day))
}

/// A day since 1970 as people write it: `2023-11-14`.
pub(crate) fn date(day: i32) -> String {
    let date = chrono::DateTime::from_timestamp(i64::from(day) * 86_400, 0).unwrap_or_default();
    date.format("%Y-%m-%d").to_string()
}

/// The writer in names of compacted files.
pub(crate) const COMPACTION: &str = "c";

/// When the commit of a data file of ours was begun, milliseconds since 1970; `None` for files of others.
pub(crate) fn data_file_ms(location: &str) -> Option<i64> {
    let name = location.rsplit('/').next()?.strip_suffix(".parquet")?;
    let (writer, rest) = name.split_once('-')?;
    let (commit, n) = rest.rsplit_once('-')?;
    if (writer != COMPACTION && !is_number(writer)) || !is_number(n) {
        return None;
    }
    commit_ms(commit_of(commit)?)
}

/// Location of the trace index of a compaction's commit.
pub(crate) fn trace_index(root: &str, commit: Uuid, day: i32) -> String {
    format!("{root}/data/timestamp_day={}/{COMPACTION}-{commit}.tidx", date(day))
}

/// Where the trace index of a compaction's commit is, and which of its files this data file is; `None` for files of flushes
/// and of others.
pub(crate) fn trace_index_of(location: &str) -> Option<(String, u32)> {
    let (dir, name) = location.rsplit_once('/')?;
    let (commit, n) = name.strip_prefix(COMPACTION)?.strip_prefix('-')?.strip_suffix(".parquet")?.rsplit_once('-')?;
    commit_ms(commit_of(commit)?)?;
    let n = n.parse().ok().filter(|_| is_number(n))?;
    Some((format!("{dir}/{COMPACTION}-{commit}.tidx"), n))
}

/// When the commit of a data file or of a trace index of ours was begun, milliseconds since 1970.
pub(crate) fn commit_begun_ms(location: &str) -> Option<i64> {
    let trace_index = || {
        let name = location.rsplit('/').next()?.strip_suffix(".tidx")?;
        commit_ms(commit_of(name.strip_prefix(COMPACTION)?.strip_prefix('-')?)?)
    };
    data_file_ms(location).or_else(trace_index)
}

/// Whether a file below a table's location has a name that we give: the rest is somebody else's, or unknown.
pub(crate) fn is_ours(location: &str) -> bool {
    let Some((dir, name)) = location.rsplit_once('/') else { return false };
    if name.strip_prefix(".tmp-").and_then(commit_of).is_some() || commit_begun_ms(location).is_some() {
        return true;
    }
    dir.ends_with("/metadata") && is_metadata(name)
}

fn is_metadata(name: &str) -> bool {
    if let Some(name) = name.strip_suffix(".metadata.json") {
        return name.split_once('-').is_some_and(|(version, uuid)| is_number(version) && commit_of(uuid).is_some());
    }
    let Some(name) = name.strip_suffix(".avro") else { return false };
    if let Some(list) = name.strip_prefix("snap-") {
        let mut parts = list.splitn(3, '-');
        let numbers = parts.by_ref().take(2).all(is_number);
        return numbers && parts.next().and_then(commit_of).is_some();
    }
    name.rsplit_once("-m").is_some_and(|(commit, n)| commit_of(commit).is_some() && is_number(n))
}

/// When a commit was begun, milliseconds since 1970.
pub(crate) fn commit_ms(commit: Uuid) -> Option<i64> {
    let (seconds, nanos) = commit.get_timestamp()?.to_unix();
    i64::try_from(seconds * 1000 + u64::from(nanos / 1_000_000)).ok()
}

fn commit_of(text: &str) -> Option<Uuid> {
    // Without hyphens, or in braces, it is not one of ours.
    Uuid::try_parse(text).ok().filter(|uuid| uuid.to_string() == text)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_tell_when_they_were_given() {
        let at = uuid::Timestamp::from_unix(uuid::NoContext, 1_700_000_000, 123_000_000);
        let commit = Uuid::new_v7(at);
        for writer in ["0", "63", COMPACTION] {
            let name = data_file("s3://b/t", writer, commit, 7, 19_675);
            assert!(name.starts_with("s3://b/t/data/timestamp_day=2023-11-14/"), "{name}");
            assert_eq!(data_file_ms(&name), Some(1_700_000_000_123), "{name}");
            assert!(is_ours(&name), "{name}");
        }
    }

    #[test]
    fn a_trace_index_is_found_by_the_data_files_of_its_commit() {
        let commit = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 1_700_000_000, 0));
        let index = trace_index("s3://b/t", commit, 19_675);
        let file = |writer: &str, n| data_file("s3://b/t", writer, commit, n, 19_675);
        assert_eq!(trace_index_of(&file(COMPACTION, 12)), Some((index.clone(), 12)));
        assert_eq!(trace_index_of(&file("3", 0)), None, "a flush has none");
        assert_eq!(trace_index_of(&index), None);
        assert_eq!(trace_index_of(&format!("file:///t/c-{}-0.parquet", Uuid::nil())), None, "has no time");
        assert!(is_ours(&index));
        assert_eq!((commit_begun_ms(&index), data_file_ms(&index)), (Some(1_700_000_000_000), None));
    }

    #[test]
    fn names_of_others_are_left_alone() {
        let uuid = Uuid::nil();
        for ours in [
            format!("file:///t/metadata/{uuid}-m0.avro"),
            format!("file:///t/metadata/snap-123-0-{uuid}.avro"),
            format!("file:///t/metadata/00012-{uuid}.metadata.json"),
            format!("file:///t/data/timestamp_day=2023-11-14/.tmp-{uuid}"),
        ] {
            assert!(is_ours(&ours), "{ours}");
        }
        for other in [
            "file:///t/data/00000-0-6a3c1a54-3cf5-4c8e-9d5c-2b8d3d0e5a11.parquet".to_owned(),
            format!("file:///t/data/3-{uuid}-0.parquet"),
            format!("file:///t/data/x-{uuid}-0.parquet"),
            format!("file:///t/data/c-{uuid}.tidx"),
            format!("file:///t/data/3-{uuid}.tidx"),
            format!("file:///t/{uuid}-m0.avro"),
            format!("file:///t/metadata/{uuid}-m0.puffin"),
            format!("file:///t/metadata/snap-x-0-{uuid}.avro"),
            "file:///t/metadata/version-hint.text".to_owned(),
            String::new(),
        ] {
            assert!(!is_ours(&other), "{other}");
        }
    }
}
