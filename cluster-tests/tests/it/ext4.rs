//! Small file systems of their own for nodes: an ext4 in a file, mounted through a loop device.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::sync::{Mutex, MutexGuard};

const IMAGE_BYTES: u64 = 256 << 20;
/// A killed process may hold the mount for a moment longer.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(10);
/// EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH, on several file systems as much at once as it gets: nothing
/// reaches the disk any more, what was not synced is lost, every call fails with EIO.
const SHUTDOWN: &str = "import fcntl, os, struct, sys
files = [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]
for file in files:
    fcntl.ioctl(file, 0x8004587d, struct.pack('I', 2))";

/// A mounted file system. Dropping it unmounts it: what uses it must be gone by then.
pub(crate) struct Disk {
    image: PathBuf,
    pub(crate) mount: PathBuf,
}

/// Keeps other tests off the loop devices, of which there are few; `None`, and a line, where there are none at all.
pub(crate) async fn loop_devices() -> anyhow::Result<Option<MutexGuard<'static, ()>>> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let guard = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir()?;
    let probed = Disk::new(dir.path(), &dir.path().join("probe"));
    if let Err(error) = probed.and_then(|disk| disk.free()) {
        println!(
            "skipped: no ext4 on a loop device here (root, mkfs.ext4, mount and /dev/loop* are needed): {error:#}"
        );
        return Ok(None);
    }
    Ok(Some(guard))
}

impl Disk {
    /// Makes a file system in a file below `dir` and mounts it at `mount`.
    pub(crate) fn new(dir: &Path, mount: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(mount)?;
        let image = dir.join(format!("disk-{}.img", uuid::Uuid::new_v4()));
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        run("mkfs.ext4", [OsStr::new("-q"), "-m".as_ref(), "0".as_ref(), image.as_ref()])?;
        mount_at(&image, mount)?;
        Ok(Self { image, mount: mount.to_owned() })
    }

    /// What a reboot does: only what is in the image is there.
    pub(crate) fn remount(&self) -> anyhow::Result<()> {
        let until = Instant::now() + UNMOUNT_TIMEOUT;
        while let Err(error) = run("umount", [&self.mount]) {
            ensure!(Instant::now() < until, "{error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        mount_at(&self.image, &self.mount)
    }

    /// Bytes that are free.
    pub(crate) fn free(&self) -> anyhow::Result<u64> {
        let said = run("df", [OsStr::new("-B1"), "--output=avail".as_ref(), self.mount.as_ref()])?;
        let free = said.lines().last().context("df says nothing")?;
        free.trim().parse().with_context(|| format!("df says {said:?}"))
    }

    /// Takes all blocks but `left` bytes for a file, which is returned: to remove it is to heal.
    pub(crate) fn fill(&self, left: u64) -> anyhow::Result<PathBuf> {
        let bytes = self.free()?.checked_sub(left).context("less is free already")?;
        let path = self.mount.join(format!("filler-{}", uuid::Uuid::new_v4()));
        run("fallocate", [OsStr::new("-l"), bytes.to_string().as_ref(), path.as_ref()])?;
        Ok(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if run("umount", [&self.mount]).is_err() {
            // Somebody still uses it: it goes when they do.
            let _ = run("umount", [OsStr::new("-l"), self.mount.as_ref()]);
        }
    }
}

/// The file systems are shut down at once, in the middle of whatever is written.
pub(crate) fn shut_down<'a>(disks: impl IntoIterator<Item = &'a Disk>) -> anyhow::Result<()> {
    let python = std::env::var_os("SIGNALDB_PYTHON").unwrap_or_else(|| "python3".into());
    let mounts = disks.into_iter().map(|disk| disk.mount.as_os_str());
    run(&python, [OsStr::new("-c"), SHUTDOWN.as_ref()].into_iter().chain(mounts)).map(drop)
}

fn mount_at(image: &Path, mount: &Path) -> anyhow::Result<()> {
    run("mount", [OsStr::new("-o"), "loop".as_ref(), image.as_ref(), mount.as_ref()]).map(drop)
}

/// Runs a command; returns what it printed.
fn run<A: AsRef<OsStr>>(command: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> anyhow::Result<String> {
    let command = command.as_ref();
    let name = command.to_string_lossy();
    // Those of the system are not on everybody's path.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(command).args(arguments).env("PATH", path).output();
    let output = output.with_context(|| format!("run {name}"))?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
