//! Disks that can lose their power, fill up and stall: an ext4 image for each node, mounted through a loop device.
//!
//! A power loss is `EXT4_IOC_SHUTDOWN` without a flush of the journal: from then on nothing reaches the image, and what
//! was only in the page cache goes with the unmount. Needs root. The images are sparse files.
//! Source: Linux, fs/ext4/ext4.h and fs/ext4/ioctl.c.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::command::{python, run};
use crate::random::Random;

/// Size of an image; its log is a few segments of 256 KiB and what was not yet purged.
const IMAGE_BYTES: u64 = 512 << 20;
/// What fills a disk. Outside the directories of the node.
const FILLER: &str = "jepsen-filler";
/// Takes the power from the file systems of its arguments, all at once (flag 2: NOLOGFLUSH).
const CUT_POWER: &str = "
import fcntl, os, struct, sys
disks = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in sys.argv[1:]]
for disk in disks:
    fcntl.ioctl(disk, 0x8004587d, struct.pack('I', 2))
";
/// Attempts to unmount: whatever was killed may not have let go yet.
const UNMOUNT_ATTEMPTS: usize = 50;

/// One node's disk. Everything here blocks.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

/// The disks of all nodes. Dropping it unmounts them; processes that use them must be gone by then.
#[derive(Debug)]
pub(crate) struct Disks(Vec<Disk>);

impl Disks {
    /// Makes and mounts a disk at each of `mounts`, and sees the first one lose what was not synced. Blocking.
    pub(crate) fn make(mounts: &[PathBuf]) -> anyhow::Result<Self> {
        let mut disks = Self(Vec::new());
        for mount in mounts {
            std::fs::create_dir_all(mount).with_context(|| format!("create {}", mount.display()))?;
            let disk = Disk { image: mount.with_extension("ext4"), mount: mount.clone() };
            File::create(&disk.image)?.set_len(IMAGE_BYTES)?;
            run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&disk.image))?;
            disk.mount().context("mount an image: root can, with loop devices")?;
            disks.0.push(disk);
        }
        disks.0.first().context("a disk")?.try_out()?;
        Ok(disks)
    }

    pub(crate) fn of(&self, node: usize) -> &Disk {
        &self.0[node]
    }

    /// Ends what a fault that was interrupted left: a disk that is full, or does not answer.
    pub(crate) fn mend(&self) {
        for disk in &self.0 {
            // Refused, as it should be, unless the disk is frozen.
            let _ = disk.thaw();
            let _ = disk.free();
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.mend();
        for disk in &self.0 {
            if let Err(error) = disk.unmount() {
                eprintln!("{} stays mounted: {error:#}", disk.mount.display());
            } else {
                // It holds nothing that anybody looks at; the log of the node lies elsewhere.
                let _ = std::fs::remove_file(&disk.image);
            }
        }
    }
}

/// Takes the power from disks at once. What they were not told to sync is lost with [`Disk::restart`].
pub(crate) fn cut_power(disks: &[Disk]) -> anyhow::Result<()> {
    let mounts = disks.iter().map(|disk| &disk.mount);
    run(Command::new(python()).args(["-I", "-c", CUT_POWER]).args(mounts)).context("shut file systems down")?;
    Ok(())
}

impl Disk {
    fn mount(&self) -> anyhow::Result<()> {
        // Discards give back the room that a filler took.
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop,noatime,discard"])
            .arg(&self.image)
            .arg(&self.mount))?;
        Ok(())
    }

    fn unmount(&self) -> anyhow::Result<()> {
        for _ in 0..UNMOUNT_ATTEMPTS {
            if run(Command::new("umount").arg(&self.mount)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        run(Command::new("umount").arg(&self.mount))?;
        Ok(())
    }

    /// Whether a power loss does what it should.
    fn try_out(&self) -> anyhow::Result<()> {
        let (kept, lost) = (self.mount.join("kept"), self.mount.join("lost"));
        std::fs::write(&kept, "kept")?;
        File::open(&kept)?.sync_all()?;
        File::open(&self.mount)?.sync_all()?;
        std::fs::write(&lost, "lost")?;
        cut_power(std::slice::from_ref(self))?;
        self.restart()?;
        ensure!(kept.exists(), "a power loss takes what was synced: this disk cannot judge anybody");
        ensure!(std::fs::read(&lost).unwrap_or_default().is_empty(), "a power loss takes nothing");
        for file in [&kept, &lost] {
            let _ = std::fs::remove_file(file);
        }
        Ok(())
    }

    /// The power is back. Returns how many bytes of the log are gone.
    pub(crate) fn restart(&self) -> anyhow::Result<u64> {
        let before = self.log_files();
        self.unmount()?;
        self.mount()?;
        let after = self.log_files();
        let gone = before.iter().map(|(file, len)| len.saturating_sub(after.get(file).copied().unwrap_or(0)));
        Ok(gone.sum())
    }

    /// Sizes of the segments, by name. A disk without power still tells what it would have held. One that has no name yet is
    /// no loss.
    fn log_files(&self) -> BTreeMap<std::ffi::OsString, u64> {
        let entries = std::fs::read_dir(self.mount.join("wal/segments")).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "wal"));
        named.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?.len()))).collect()
    }

    /// Fills the disk until `left` bytes are free; with 0, until not one more can be written.
    pub(crate) fn fill(&self, left: u64) -> anyhow::Result<()> {
        let room = run(Command::new("df").args(["-B1", "--output=avail"]).arg(&self.mount))?;
        let room: u64 = room.lines().last().and_then(|line| line.trim().parse().ok()).context("what df says")?;
        let filler = self.mount.join(FILLER);
        // Some blocks go into the filler's own extents.
        if let Some(bytes) = room.checked_sub(left.max(4 << 20)).filter(|bytes| *bytes > 0) {
            run(Command::new("fallocate").args(["-l", &bytes.to_string()]).arg(&filler))?;
        }
        if left > 0 {
            return Ok(());
        }
        let mut file = File::options().create(true).append(true).open(&filler)?;
        for chunk in [1 << 20, 4 << 10, 1] {
            let bytes = vec![0_u8; chunk];
            // As much as there was, twice over: others free room meanwhile.
            for _ in 0..(8 << 20) / chunk.max(4 << 10) {
                match file.write_all(&bytes) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => bail!("fill {}: {error}", filler.display()),
                }
            }
        }
        // Delayed allocation already reserved the blocks; now they are taken.
        let _ = file.sync_all();
        Ok(())
    }

    /// Removes what filled the disk.
    pub(crate) fn free(&self) -> std::io::Result<()> {
        match std::fs::remove_file(self.mount.join(FILLER)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    /// The disk answers in bursts for about `hold`; returns how often it did not.
    pub(crate) fn stutter(&self, random: &Random, hold: Duration) -> anyhow::Result<u32> {
        let begun = std::time::Instant::now();
        let mut stalls = 0;
        while begun.elapsed() < hold {
            run(Command::new("fsfreeze").arg("-f").arg(&self.mount))?;
            std::thread::sleep(Duration::from_millis(random.between((20, 400))));
            self.thaw()?;
            stalls += 1;
            std::thread::sleep(Duration::from_millis(random.between((5, 50))));
        }
        Ok(stalls)
    }

    fn thaw(&self) -> anyhow::Result<()> {
        run(Command::new("fsfreeze").arg("-u").arg(&self.mount))?;
        Ok(())
    }
}
