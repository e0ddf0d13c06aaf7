//! The nodes as processes and machines: how they end, lose their power, boot, and who is held to account for an end.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::checker::majority::Absence;
use crate::clock;
use crate::disk::{self, Disk};
use crate::listing::Log;
use crate::random::Random;
use crate::span::Span;

use super::{Cluster, Cut, NODES, name};

/// How long a node may take to end after SIGTERM: thrice what it promises, as tests share two cores.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

impl Cluster {
    /// Starts a node that is not running.
    pub(crate) fn revive(&self, node: usize) -> anyhow::Result<()> {
        self.look(node);
        let gone = self.children.lock().unwrap_or_else(PoisonError::into_inner)[node].is_none();
        if !gone {
            return Ok(());
        }
        self.launch(node)?;
        let mut absences = self.absences.lock().unwrap_or_else(PoisonError::into_inner);
        let open = absences.iter_mut().filter(|(of, _, started)| *of == node && started.is_none());
        open.for_each(|(_, _, started)| *started = Some(Instant::now()));
        Ok(())
    }

    /// Which life of its process a node is in: how often it was started.
    pub(crate) fn life(&self, node: usize) -> u64 {
        self.lives[node].load(Ordering::Relaxed)
    }

    /// Notes a process that ended although nobody killed it, and forgets it.
    fn look(&self, node: usize) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = &mut children[node]
            && let Ok(Some(status)) = child.try_wait()
        {
            clock::forget(child.id());
            let log = self.dir.join(name(node)).join("node.log");
            children[node] = None;
            if self.excused.lock().unwrap_or_else(PoisonError::into_inner)[node] {
                self.excused_deaths.fetch_add(1, Ordering::Relaxed);
                let absence = (node, Instant::now(), None);
                self.absences.lock().unwrap_or_else(PoisonError::into_inner).push(absence);
            } else {
                self.accuse(format!("node {} ended by itself with {status}; its log is {}", node + 1, log.display()));
            }
        }
    }

    fn accuse(&self, what: String) {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// From now on a node has a reason to end by itself, or none any more.
    pub(crate) fn excuse(&self, node: usize, has_reason: bool) {
        // What happened before counts as it was then.
        self.look(node);
        self.excused.lock().unwrap_or_else(PoisonError::into_inner)[node] = has_reason;
    }

    /// How often a node ended that had a reason to.
    pub(crate) fn excused_deaths(&self) -> u64 {
        (0..NODES).for_each(|node| self.look(node));
        self.excused_deaths.load(Ordering::Relaxed)
    }

    /// When nodes that had a reason to end were away, nanoseconds since `begun`.
    pub(crate) fn absences(&self, begun: Instant) -> Vec<Absence> {
        (0..NODES).for_each(|node| self.look(node));
        let since = |at: Instant| u64::try_from(at.saturating_duration_since(begun).as_nanos()).unwrap_or(u64::MAX);
        let absences = self.absences.lock().unwrap_or_else(PoisonError::into_inner);
        let absence = |&(node, ended, started): &(usize, Instant, Option<Instant>)| Absence {
            node,
            span: Span { begun: since(ended), ended: started.map_or(u64::MAX, since) },
        };
        absences.iter().map(absence).collect()
    }

    /// What ended by itself so far.
    pub(crate) fn deaths(&self) -> Vec<String> {
        (0..NODES).for_each(|node| self.look(node));
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a signal; whether there was a process to get it.
    pub(crate) fn signal(&self, node: usize, name: &str) -> bool {
        self.look(node);
        let children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = &children[node] else { return false };
        let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
        sent.is_ok_and(|status| status.success())
    }

    /// The process of a node, which from now on may end as it likes.
    fn take(&self, node: usize) -> Option<Child> {
        self.look(node);
        self.children.lock().unwrap_or_else(PoisonError::into_inner)[node].take()
    }

    /// `kill -9`; whether there was a process.
    pub(crate) fn kill(&self, node: usize) -> bool {
        kill_all(self.take(node).into_iter().collect()) > 0
    }

    /// SIGTERM, and waits for the end; how long that took. Anything but a good end is held against the node.
    pub(crate) async fn terminate(&self, node: usize) -> anyhow::Result<Option<Duration>> {
        let Some(mut child) = self.take(node) else { return Ok(None) };
        let begun = Instant::now();
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().context("send SIGTERM")?;
        while begun.elapsed() < STOP_TIMEOUT {
            if let Some(status) = child.try_wait()? {
                clock::forget(child.id());
                if !status.success() {
                    self.accuse(format!("node {} answered SIGTERM with {status}", node + 1));
                }
                return Ok(Some(begun.elapsed()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        kill_all(vec![child]);
        self.accuse(format!("node {} did not end within {STOP_TIMEOUT:?} of SIGTERM", node + 1));
        Ok(Some(begun.elapsed()))
    }

    /// The log of a node that does not run, as its own tool lists it. Blocking.
    pub(crate) fn log(&self, node: usize) -> anyhow::Result<Log> {
        let mut command = Command::new(&self.binary);
        command.current_dir(self.dir.join(name(node))).args(["wal", "inspect", "--entries", "--format", "json"]);
        let output = command.args(["--data-dir", "data"]).output().context("run signaldb wal inspect")?;
        // 1 is damage, of which the listing tells.
        let said = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(matches!(output.status.code(), Some(0 | 1)), "signaldb wal inspect: {}", said());
        Log::parse(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("the log of node {}", node + 1))
    }

    /// Takes the power from nodes, which stay down; whether all of them ran.
    pub(crate) async fn cut_power(&self, nodes: &[usize], cut: Cut) -> anyhow::Result<bool> {
        let disks = nodes.iter().map(|node| self.disk(*node)).collect::<anyhow::Result<Vec<Disk>>>()?;
        let children: Vec<Child> = nodes.iter().filter_map(|node| self.take(*node)).collect();
        let ran = children.len() == nodes.len();
        let work = move || match cut {
            Cut::ProcessFirst => {
                kill_all(children);
                disk::cut_power(&disks)
            }
            Cut::DiskFirst(moment) => {
                let outcome = disk::cut_power(&disks);
                std::thread::sleep(moment);
                kill_all(children);
                outcome
            }
        };
        tokio::task::spawn_blocking(work).await??;
        Ok(ran)
    }

    /// The machines of nodes have power again, and boot; how many bytes of their logs are gone.
    pub(crate) async fn restore_power(&self, nodes: &[usize], random: &Random) -> anyhow::Result<u64> {
        let disks = nodes.iter().map(|node| self.disk(*node)).collect::<anyhow::Result<Vec<Disk>>>()?;
        let work = move || disks.iter().map(Disk::restart).sum::<anyhow::Result<u64>>();
        let gone = tokio::task::spawn_blocking(work).await??;
        nodes.iter().try_for_each(|node| self.reboot(*node, random))?;
        Ok(gone)
    }

    /// The machine of a node gets another boot id.
    pub(super) fn reboot(&self, node: usize, random: &Random) -> anyhow::Result<()> {
        let path = self.boot_id(node);
        std::fs::create_dir_all(self.dir.join(name(node)))?;
        let id = format!("{:016x}{:016x}\n", random.next(), random.next());
        std::fs::write(&path, id).with_context(|| format!("write {}", path.display()))
    }

    /// Not on the node's disk: it is the machine's.
    pub(super) fn boot_id(&self, node: usize) -> PathBuf {
        self.dir.join(name(node)).join("boot_id")
    }
}

/// Kills processes, all before waiting for any; how many there were.
fn kill_all(mut children: Vec<Child>) -> usize {
    let killed = children.iter_mut().filter_map(|child| child.kill().ok()).count();
    for mut child in children {
        // Reaped, so that its ports are free.
        let _ = child.wait();
        clock::forget(child.id());
    }
    killed
}
