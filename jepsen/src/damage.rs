//! Damage to the log of a node that does not run: a flipped bit, a segment that is shorter than it was.
//!
//! A start reads the newest segment whole and of the others their footers, so that a bit in a sealed segment may be
//! noticed late, or never because the segment was purged first. Until then the damage is *left*.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::random::Random;

/// What was done to which segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    segment: PathBuf,
    /// Where the node puts a copy once it has noticed.
    aside: PathBuf,
    /// It was the newest segment, which the next start reads whole.
    pub(crate) newest: bool,
    /// For people.
    pub(crate) what: String,
}

impl Damage {
    /// The node noticed and keeps a copy. A torn end leaves none.
    pub(crate) fn was_put_aside(&self) -> bool {
        self.aside.exists()
    }

    /// After a start: nobody noticed, and the segment is still part of the log.
    pub(crate) fn is_left(&self) -> bool {
        !self.newest && self.segment.exists() && !self.was_put_aside()
    }
}

/// Flips a bit anywhere in the log that lies in `wal`; `None` when there is none. Blocking.
pub(crate) fn flip_bit(wal: &Path, random: &Random) -> anyhow::Result<Option<Damage>> {
    let segments = segments(wal)?;
    let Some((at, offset)) = choose(&lens(&segments)?, random) else { return Ok(None) };
    let (bit, mut byte) = (random.below(8), [0]);
    let file = File::options().read(true).write(true).open(&segments[at])?;
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ (1_u8 << bit)], offset)?;
    file.sync_data()?;
    Ok(Some(damage(wal, &segments, at, format!("bit {bit} of byte {offset}"))?))
}

/// Cuts a sealed segment off anywhere; `None` when there is none. Blocking.
pub(crate) fn truncate(wal: &Path, random: &Random) -> anyhow::Result<Option<Damage>> {
    let segments = segments(wal)?;
    let sealed = &segments[..segments.len().saturating_sub(1)];
    let Some((at, len)) = choose(&lens(sealed)?, random) else { return Ok(None) };
    let file = File::options().write(true).open(&segments[at])?;
    let before = file.metadata()?.len();
    file.set_len(len)?;
    file.sync_all()?;
    Ok(Some(damage(wal, &segments, at, format!("{before} bytes cut to {len}"))?))
}

fn damage(wal: &Path, segments: &[PathBuf], at: usize, done: String) -> anyhow::Result<Damage> {
    let segment = segments[at].clone();
    let name = segment.file_name().context("a file's name")?;
    let what = format!("{done}, in {} ({} of {})", name.display(), at + 1, segments.len());
    Ok(Damage { aside: wal.join("quarantine").join(name), newest: at + 1 == segments.len(), what, segment })
}

/// Oldest first.
fn segments(wal: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let dir = wal.join("segments");
    let entries = std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
    paths.sort_unstable();
    Ok(paths)
}

fn lens(segments: &[PathBuf]) -> anyhow::Result<Vec<u64>> {
    segments.iter().map(|path| Ok(path.metadata()?.len())).collect()
}

/// A file, each that holds something as likely as the others, and a byte of it.
fn choose(lens: &[u64], random: &Random) -> Option<(usize, u64)> {
    let full: Vec<(usize, u64)> = lens.iter().copied().enumerate().filter(|(_, len)| *len > 0).collect();
    let (at, len) = *full.get(random.below(full.len()))?;
    Some((at, random.between((0, len))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(contents: &[(&str, usize)]) -> anyhow::Result<tempfile::TempDir> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir_all(dir.path().join("segments"))?;
        for (name, len) in contents {
            std::fs::write(dir.path().join("segments").join(name), vec![0_u8; *len])?;
        }
        Ok(dir)
    }

    fn content(dir: &tempfile::TempDir, name: &str) -> anyhow::Result<Vec<u8>> {
        Ok(std::fs::read(dir.path().join("segments").join(name))?)
    }

    #[test]
    fn every_byte_of_every_file_may_be_chosen_and_no_other() {
        let random = Random::new(1);
        let chosen: std::collections::BTreeSet<(usize, u64)> =
            (0..1000).filter_map(|_| choose(&[2, 0, 3], &random)).collect();
        assert_eq!(chosen.into_iter().collect::<Vec<_>>(), [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]);
        assert_eq!(choose(&[0, 0], &random), None);
    }

    #[test]
    fn exactly_one_bit_differs_and_is_left_until_the_segment_is_put_aside_or_gone() -> anyhow::Result<()> {
        let dir = log(&[("000001.wal", 10), ("000002.wal", 0), ("notes.txt", 10)])?;
        let damage = flip_bit(dir.path(), &Random::new(5))?.context("a segment")?;
        let bits = |name| Ok::<u32, anyhow::Error>(content(&dir, name)?.iter().map(|byte| byte.count_ones()).sum());
        assert_eq!((bits("000001.wal")?, bits("notes.txt")?), (1, 0), "{}", damage.what);
        assert!(damage.is_left());
        assert!(!Damage { newest: true, ..damage.clone() }.is_left(), "a start read it");
        std::fs::create_dir_all(dir.path().join("quarantine"))?;
        std::fs::copy(&damage.segment, &damage.aside)?;
        assert!(!damage.is_left(), "it was noticed");
        std::fs::remove_file(&damage.aside)?;
        std::fs::remove_file(&damage.segment)?;
        assert!(!damage.is_left(), "it is gone");
        Ok(())
    }

    #[test]
    fn only_sealed_segments_are_cut() -> anyhow::Result<()> {
        let dir = log(&[("000001.wal", 100), ("000002.wal", 100)])?;
        for seed in 0..20 {
            truncate(dir.path(), &Random::new(seed))?;
        }
        assert!(content(&dir, "000001.wal")?.len() < 100);
        assert_eq!(content(&dir, "000002.wal")?.len(), 100, "the newest");
        let lone = log(&[("000001.wal", 100)])?;
        assert_eq!(truncate(lone.path(), &Random::new(1))?, None);
        Ok(())
    }
}
