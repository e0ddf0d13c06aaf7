//! Segments in which a read found damage while the log was open.
//!
//! File `suspects.json` beside `segments/`: an array of segment numbers. The next start reads these in full, where it
//! would otherwise trust their footers, and removes the file once what it made of them is on disk.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::io::LogIo;

const NAME: &str = "suspects.json";

/// A file that cannot be understood suspects nothing: it is only a hint where to look.
pub(crate) fn read(io: &dyn LogIo, dir: &Path) -> io::Result<BTreeSet<u64>> {
    let content = io.read(&dir.join(NAME))?.unwrap_or_default();
    Ok(serde_json::from_slice(&content).unwrap_or_default())
}

/// Durable on return.
pub(crate) fn save(io: &dyn LogIo, dir: &Path, segments: &BTreeSet<u64>) -> io::Result<()> {
    io.replace(&dir.join(NAME), &serde_json::to_vec(segments).map_err(io::Error::other)?)
}

pub(crate) fn clear(io: &dyn LogIo, dir: &Path) -> io::Result<()> {
    if io.read(&dir.join(NAME))?.is_some() {
        io.remove(&dir.join(NAME))?;
        io.sync_dir(dir)?;
    }
    Ok(())
}
