//! Which files to rewrite: no disk, network, clock or randomness.
//!
//! While a day is being written, files of like size are merged eight at a time, so that each row is rewritten about once
//! for each factor of eight between the size of a flush and the target. A day that is over and quiet is brought into
//! files of the target size, whatever is left of it.

use std::collections::BTreeMap;
use std::time::Duration;

use iceberg::spec::{DataContentType, DataFile, DataFileFormat};
use signaldb_model::UnixNanos;

use crate::config::CompactionConfig;
use crate::names::data_file_ms;
use crate::table::{SORT_ORDER_ID, day_of};

/// Sizes of one class differ by less than this factor; the files of a class become one of the next.
const CLASS_FACTOR: u64 = 8;
/// Files that are merged at once, at most: each keeps a row group in memory.
const MERGED_FILES_MAX: usize = 64;
/// A rewrite reads at most this many times the target size, so that a lost one costs little.
const REWRITE_TARGETS_MAX: u64 = 8;
/// How long after its end, and after the last flush into it, a day counts as over.
const DAY_OVER_AFTER: Duration = Duration::from_secs(2 * 3600);
const DAY_MS: i64 = 86_400_000;

/// How to compact.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompactionPolicy {
    pub(crate) target_file_bytes: u64,
    /// Files of one size class that make a rewrite.
    pub(crate) min_files: usize,
    /// Compressed row groups that a merge may hold in memory.
    pub(crate) memory_bytes: u64,
}

impl From<&CompactionConfig> for CompactionPolicy {
    fn from(config: &CompactionConfig) -> Self {
        let CompactionConfig { target_file_bytes, min_files, memory_bytes, .. } = *config;
        Self { target_file_bytes, min_files, memory_bytes }
    }
}

/// Files of one day that become fewer. At least two.
#[derive(Debug, Clone)]
pub(crate) struct Rewrite {
    pub(crate) day: i32,
    pub(crate) files: Vec<DataFile>,
}

impl Rewrite {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(DataFile::file_size_in_bytes).sum()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.files.iter().map(DataFile::record_count).sum()
    }
}

/// Rewrites of `files`, the live files of a table, that do not overlap; those that save the most files come first. Only
/// files that we wrote, in the table's order, are touched.
pub(crate) fn plan<'a>(
    files: impl IntoIterator<Item = &'a DataFile>,
    policy: &CompactionPolicy,
    now: UnixNanos,
) -> Vec<Rewrite> {
    let mut days: BTreeMap<i32, Vec<Candidate<'a>>> = BTreeMap::new();
    for file in files {
        if let Some((day, candidate)) = Candidate::new(file, policy) {
            days.entry(day).or_default().push(candidate);
        }
    }
    let mut rewrites: Vec<Rewrite> =
        days.into_iter().flat_map(|(day, files)| plan_day(day, files, policy, now)).collect();
    rewrites.sort_by_key(|rewrite| std::cmp::Reverse(rewrite.files.len()));
    rewrites
}

/// Whether the file is smaller than it should be, and one that a rewrite may take.
pub(crate) fn is_small(file: &DataFile, policy: &CompactionPolicy) -> bool {
    Candidate::new(file, policy).is_some()
}

/// A file that is smaller than it should be.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    file: &'a DataFile,
    /// When it was written, milliseconds.
    at_ms: i64,
    /// 1 is just below the target; each further class is smaller by [`CLASS_FACTOR`].
    class: u32,
}

impl<'a> Candidate<'a> {
    fn new(file: &'a DataFile, policy: &CompactionPolicy) -> Option<(i32, Self)> {
        let plain = file.content_type() == DataContentType::Data && file.file_format() == DataFileFormat::Parquet;
        let sorted = file.sort_order_id().map(i64::from) == Some(SORT_ORDER_ID);
        let at_ms = data_file_ms(file.file_path()).filter(|_| plain && sorted)?;
        let class = class(file.file_size_in_bytes(), policy);
        (class > 0).then_some((day_of(file)?, Self { file, at_ms, class }))
    }
}

/// 0 for a file that is large enough: three quarters of the target. Whatever a rewrite writes, but for its last file, is
/// ([`crate::datafile::DataFileWriter::is_full`]): nothing is rewritten for ever.
pub(crate) fn class(bytes: u64, policy: &CompactionPolicy) -> u32 {
    let mut below = policy.target_file_bytes / 4 * 3;
    let mut class = 0;
    while bytes < below {
        below /= CLASS_FACTOR;
        class += 1;
    }
    class
}

fn plan_day(day: i32, mut files: Vec<Candidate<'_>>, policy: &CompactionPolicy, now: UnixNanos) -> Vec<Rewrite> {
    // Neighbours in time: what is merged is then narrow in time.
    files.sort_by(|a, b| (a.at_ms, a.file.file_path()).cmp(&(b.at_ms, b.file.file_path())));
    if is_over(day, &files, now) {
        let parts = parts(&files, policy).into_iter();
        let saves = |part: &&[Candidate<'_>]| {
            let bytes: u64 = part.iter().map(|file| file.file.file_size_in_bytes()).sum();
            bytes.div_ceil(policy.target_file_bytes.max(1)) < part.len() as u64
        };
        return parts.filter(saves).map(|part| rewrite(day, part)).collect();
    }
    let mut classes: BTreeMap<u32, Vec<Candidate<'_>>> = BTreeMap::new();
    for file in files {
        classes.entry(file.class).or_default().push(file);
    }
    let mut rewrites = Vec::new();
    for files in classes.values() {
        let parts = parts(files, policy).into_iter();
        rewrites.extend(parts.filter(|part| part.len() >= policy.min_files.max(2)).map(|part| rewrite(day, part)));
    }
    rewrites
}

/// Whether nothing more is expected of a day: it ended, and so did the late flushes into it.
fn is_over(day: i32, files: &[Candidate<'_>], now: UnixNanos) -> bool {
    let end_ms = (i64::from(day) + 1) * DAY_MS;
    let last_ms = files.iter().map(|file| file.at_ms).max().unwrap_or(i64::MIN).max(end_ms);
    now.millis().saturating_sub(last_ms) >= DAY_OVER_AFTER.as_millis() as i64
}

/// Runs of files that one merge can hold.
fn parts<'a, 'b>(files: &'b [Candidate<'a>], policy: &CompactionPolicy) -> Vec<&'b [Candidate<'a>]> {
    let mut parts = Vec::new();
    let (mut begin, mut bytes, mut memory) = (0, 0, 0);
    for (at, Candidate { file, .. }) in files.iter().enumerate() {
        let (file_bytes, file_memory) = (file.file_size_in_bytes(), row_group_bytes(file));
        let full = at - begin >= MERGED_FILES_MAX
            || bytes + file_bytes > REWRITE_TARGETS_MAX * policy.target_file_bytes
            || memory + file_memory > policy.memory_bytes;
        // At least two, even beyond the budget: alone a file is not rewritten.
        if full && at - begin >= 2 {
            parts.push(&files[begin..at]);
            (begin, bytes, memory) = (at, 0, 0);
        }
        bytes += file_bytes;
        memory += file_memory;
    }
    if files.len() - begin >= 2 {
        parts.push(&files[begin..]);
    }
    parts
}

/// About the size of the file's row groups.
fn row_group_bytes(file: &DataFile) -> u64 {
    let groups = file.split_offsets().map_or(1, <[i64]>::len).max(1);
    file.file_size_in_bytes() / groups as u64
}

fn rewrite(day: i32, files: &[Candidate<'_>]) -> Rewrite {
    Rewrite { day, files: files.iter().map(|file| file.file.clone()).collect() }
}

#[cfg(test)]
mod tests {
    use iceberg::spec::{DataFileBuilder, Literal, Struct};
    use uuid::{NoContext, Timestamp, Uuid};

    use super::*;
    use crate::names;

    const MIB: u64 = 1 << 20;
    const POLICY: CompactionPolicy =
        CompactionPolicy { target_file_bytes: 128 * MIB, min_files: 8, memory_bytes: 256 * MIB };

    struct Spec {
        bytes: u64,
        day: i32,
        /// Hours since 1970.
        hour: u64,
        groups: usize,
    }

    fn file(n: usize, spec: &Spec) -> DataFile {
        let commit = Uuid::new_v7(Timestamp::from_unix(NoContext, spec.hour * 3600 + n as u64, 0));
        let mut builder = DataFileBuilder::default();
        builder
            .content(DataContentType::Data)
            .file_path(names::data_file("file:///t", "1", commit, n, spec.day))
            .file_format(DataFileFormat::Parquet)
            .partition(Struct::from_iter([Some(Literal::date(spec.day))]))
            .record_count(1)
            .file_size_in_bytes(spec.bytes)
            .split_offsets(Some((0..spec.groups as i64).collect()))
            .sort_order_id(SORT_ORDER_ID as i32);
        builder.build().expect("builds")
    }

    /// Sizes of the files of each rewrite, in MiB, for files of `(day, MiB)` written in hour 24 and seen at `now_hour`.
    fn check(files: &[(i32, u64)], now_hour: u64) -> Vec<(i32, Vec<u64>)> {
        let spec = |(day, mib): &(i32, u64)| Spec { bytes: mib * MIB, day: *day, hour: 24, groups: 4 };
        let files: Vec<DataFile> = files.iter().map(spec).enumerate().map(|(n, spec)| file(n, &spec)).collect();
        let rewrites = plan(&files, &POLICY, UnixNanos(now_hour * 3_600_000_000_000));
        let sizes = |rewrite: &Rewrite| rewrite.files.iter().map(|file| file.file_size_in_bytes() / MIB).collect();
        rewrites.iter().map(|rewrite| (rewrite.day, sizes(rewrite))).collect()
    }

    #[test]
    fn files_of_like_size_are_merged_eight_at_a_time_while_the_day_lasts() {
        assert_eq!(check(&[(1, 2); 7], 25), []);
        assert_eq!(check(&[(1, 2); 8], 25), [(1, vec![2; 8])]);
        // 2 MiB and 90 MiB are of different classes; 100 MiB and more are done.
        assert_eq!(check(&[(1, 90), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2)], 25), []);
        assert_eq!(check(&[(1, 100); 20], 25), []);
        assert_eq!(check(&[(1, 2), (2, 2), (1, 2), (2, 2), (1, 2), (2, 2), (1, 2), (2, 2)], 25), [], "days never mix");
    }

    #[test]
    fn a_day_that_is_over_is_brought_to_the_target() {
        let files = [(0, 90), (0, 2), (0, 128), (0, 30)];
        assert_eq!(check(&files, 25), [], "files came an hour ago");
        assert_eq!(check(&files, 27), [(0, vec![90, 2, 30])]);
        assert_eq!(check(&[(0, 90), (0, 90)], 27), [], "would be two files again");
        assert_eq!(check(&[(0, 90)], 27), []);
    }

    #[test]
    fn a_rewrite_is_bounded_in_files_and_bytes_and_memory() {
        let many = check(&[(1, 1); 200], 25);
        assert_eq!(many.iter().map(|(_, files)| files.len()).collect::<Vec<_>>(), [64, 64, 64, 8]);
        // 64 MiB with four row groups hold 16 MiB each: sixteen fit into the budget and into eight targets.
        let large = check(&[(1, 64); 40], 25);
        assert_eq!(large.iter().map(|(_, files)| files.len()).collect::<Vec<_>>(), [16, 16, 8]);
        for (_, files) in check(&[(0, 64); 40], 27) {
            assert!(files.iter().sum::<u64>() <= 8 * 128);
        }
    }

    #[test]
    fn files_of_others_and_files_out_of_order_are_left_alone() {
        let spec = Spec { bytes: MIB, day: 1, hour: 24, groups: 1 };
        let rename = |n: usize, unsorted: bool| {
            let mut builder = DataFileBuilder::default();
            let ours = file(n, &spec);
            builder
                .content(DataContentType::Data)
                .file_path(if unsorted {
                    ours.file_path().to_owned()
                } else {
                    format!("file:///t/data/part-{n}.parquet")
                })
                .file_format(DataFileFormat::Parquet)
                .partition(ours.partition().clone())
                .record_count(1)
                .file_size_in_bytes(MIB);
            if !unsorted {
                builder.sort_order_id(SORT_ORDER_ID as i32);
            }
            builder.build().expect("builds")
        };
        let files: Vec<DataFile> = (0..40).map(|n| rename(n, n % 2 == 0)).collect();
        assert!(plan(&files, &POLICY, UnixNanos(u64::MAX / 2)).is_empty());
    }

    /// Repeated planning ends, and each file is in one rewrite at most.
    #[test]
    fn a_day_of_flushes_ends_in_few_files_of_the_target_size() {
        let mut files: Vec<DataFile> = Vec::new();
        let (mut n, mut written) = (0, 0);
        let mut now = UnixNanos(24 * 3_600_000_000_000);
        for hour in 24..60 {
            for _ in 0..60 {
                if hour < 48 {
                    files.push(file(n, &Spec { bytes: 4 * MIB, day: 1, hour, groups: 1 }));
                    n += 1;
                }
                now.0 += 60_000_000_000;
                while let Some(rewrite) = plan(&files, &POLICY, now).into_iter().next() {
                    let gone: Vec<&str> = rewrite.files.iter().map(DataFile::file_path).collect();
                    files.retain(|file| !gone.contains(&file.file_path()));
                    let mut bytes = rewrite.bytes();
                    written += bytes;
                    while bytes > 0 {
                        let size = bytes.min(POLICY.target_file_bytes);
                        files.push(file(
                            n,
                            &Spec { bytes: size, day: 1, hour, groups: 1 + (size / (8 * MIB)) as usize },
                        ));
                        n += 1;
                        bytes -= size;
                    }
                }
            }
        }
        let total = 24 * 60 * 4 * MIB;
        assert_eq!(files.iter().map(DataFile::file_size_in_bytes).sum::<u64>(), total);
        assert!(files.len() as u64 <= total / POLICY.target_file_bytes * 3 / 2, "{} files", files.len());
        assert!(written <= 4 * total, "each row is rewritten {} times", written / total);
    }
}
