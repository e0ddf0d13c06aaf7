//! The operating system as the log sees it, behind a trait so that tests can lose power.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::workers::Workers;

/// A directory tree that holds a log. Blocking; called from the log's own threads and at start.
pub trait LogIo: Send + Sync + fmt::Debug + 'static {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;
    /// File names in `dir`, unordered.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Creates or replaces a file, durably, so that after any crash either the old content (or no file) or the new is there.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;

    /// Who runs the workers of a log on this disk. `None`: threads, for calls block. A simulated disk, whose calls do not,
    /// has everything done on one thread.
    fn workers(&self) -> Option<Box<dyn Workers>> {
        None
    }
}

/// An open file of the log. One writer, any number of readers.
pub trait LogFile: Send + Sync + fmt::Debug {
    /// Appends all buffers at the end of the file, or fails; a failure may leave a part behind.
    fn append(&self, buffers: &[&[u8]]) -> io::Result<()>;
    /// fdatasync.
    fn sync_data(&self) -> io::Result<()>;
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Length of the file, bytes.
    fn size(&self) -> io::Result<u64>;
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// The real file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealIo;

#[derive(Debug)]
struct RealFile(File);

impl LogIo for RealIo {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.as_os_str().is_empty() || dir.is_dir() {
            return Ok(());
        }
        // Each new level is made durable in its parent.
        let parent = dir.parent().unwrap_or(Path::new(""));
        self.create_dir_all(parent)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).append(true).open(path)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = temporary_beside(path);
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new(".")))
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

impl LogFile for RealFile {
    fn append(&self, buffers: &[&[u8]]) -> io::Result<()> {
        append_all(&self.0, buffers)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// Writes all buffers, however little the file takes at a time.
fn append_all(mut file: impl Write, buffers: &[&[u8]]) -> io::Result<()> {
    // Linux takes at most 1024 slices a call (IOV_MAX).
    for chunk in buffers.chunks(1024) {
        let mut slices: Vec<IoSlice<'_>> = chunk.iter().map(|buffer| IoSlice::new(buffer)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes at a time, every other call is interrupted, and there is an end to its room.
    #[derive(Debug, Default)]
    struct Trickle {
        taken: Vec<u8>,
        room: usize,
        interrupted: bool,
    }

    impl Write for Trickle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let taken = bytes.len().min(3).min(self.room - self.taken.len());
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn short_writes_are_continued_where_they_ended() {
        let buffers: [&[u8]; 4] = [b"header", b"", b"payload", b"next header"];
        let whole = buffers.concat();
        for room in 0..=whole.len() {
            let mut file = Trickle { room, ..Trickle::default() };
            let written = append_all(&mut file, &buffers);
            assert_eq!(file.taken, whole[..room], "a prefix and nothing else");
            assert_eq!(written.is_ok(), room == whole.len(), "{room}");
            if let Err(error) = written {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            }
        }
    }
}
