//! What a run leaves behind that was killed by SIGKILL: its nodes, and whatever else it started. Their namespaces, cables, rules
//! and mounts are nobody else's and go with the last of them.
//!
//! Nodes end with the run where `setpriv` can see to that ([`mortal`]). And whatever a run starts bears its name ([`mark`]), so
//! that the next run ends what bears the name of one that is gone.
//! Source: setpriv(1), prctl(2) PR_SET_PDEATHSIG, proc(5).

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::command::{behind, run};

/// The environment of a process names its run here.
const MARK: &str = "SIGNALDB_JEPSEN_RUN";
/// How long processes may take to end after SIGKILL.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// A run: its process, and when that began, in ticks since the boot; numbers of processes come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    process: u32,
    begun: u64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.process, self.begun)
    }
}

impl Run {
    fn this() -> Option<Self> {
        let process = std::process::id();
        Some(Self { process, begun: begun(&stat(process)?)? })
    }

    fn parse(text: &str) -> Option<Self> {
        let (process, begun) = text.split_once(':')?;
        Some(Self { process: process.parse().ok()?, begun: begun.parse().ok()? })
    }

    fn is_alive(self) -> bool {
        stat(self.process).and_then(|stat| begun(&stat)) == Some(self.begun)
    }
}

/// Gives what `command` starts, and what that starts, the name of this run.
pub(crate) fn mark(command: &mut Command) {
    if let Some(run) = Run::this() {
        command.env(MARK, run.to_string());
    }
}

/// The same command, whose process is killed when the thread that starts it ends: it must be one that lives as long as this
/// process. `None` where that cannot be.
pub(crate) fn mortal(command: &Command) -> Option<Command> {
    let front = || {
        let mut front = Command::new("setpriv");
        front.args(["--pdeathsig", "KILL", "--"]);
        front
    };
    run(front().arg("true")).is_ok().then(|| behind(front(), command))
}

/// Kills what runs left that are gone, and waits for its end; how many processes that were. Blocking.
pub(crate) fn end_all() -> anyhow::Result<usize> {
    let until = Instant::now() + END_TIMEOUT;
    let found = left()?.len();
    loop {
        let left = left()?;
        if left.is_empty() {
            return Ok(found);
        }
        if Instant::now() > until {
            bail!("processes of an earlier run do not end: {left:?}");
        }
        // Some may have ended since.
        let _ = run(Command::new("kill").arg("-KILL").args(left.iter().map(u32::to_string)));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Processes that bear the name of a run that is gone.
fn left() -> anyhow::Result<Vec<u32>> {
    // Elsewhere processes have other numbers: nobody here can tell whether their run is gone.
    let here = std::fs::read_link("/proc/self/ns/pid").context("look at the namespace of processes")?;
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list processes")?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // What ended meanwhile, and what is somebody else's, cannot be read.
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let gone = run_of(&environment).is_some_and(|run| !run.is_alive());
        if gone && std::fs::read_link(entry.path().join("ns/pid")).is_ok_and(|there| there == here) {
            left.push(process);
        }
    }
    Ok(left)
}

/// The run that an environment (`/proc/<process>/environ`) names.
fn run_of(environment: &[u8]) -> Option<Run> {
    let variables = environment.split(|byte| *byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok());
    let mut named = variables.filter_map(|variable| variable.split_once('=')).filter(|(name, _)| *name == MARK);
    named.next().and_then(|(_, run)| Run::parse(run))
}

fn stat(process: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{process}/stat")).ok()
}

/// When a process began, by `/proc/<process>/stat`; `None` if it has ended and only waits for its parent to see that.
fn begun(stat: &str) -> Option<u64> {
    // The name before may have spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // The third field was the state, the 22nd is the start.
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};

    use super::*;

    const STAT: &str =
        "4711 (a) b (c) S 1 4711 4711 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 5 0 8154711 9 9 9 18446744073709551615 1";

    #[test]
    fn a_process_is_known_by_its_number_and_its_begin() {
        assert_eq!(begun(STAT), Some(8_154_711));
        assert_eq!(begun(&STAT.replace(") S ", ") Z ")), None, "it has ended");
        assert_eq!(begun("4711 (short) S 1"), None);
        let this = Run::this().expect("this process");
        assert!(this.is_alive());
        assert!(!Run { begun: this.begun + 1, ..this }.is_alive(), "another process had the number");
        assert_eq!(Run::parse(&this.to_string()), Some(this));
    }

    #[test]
    fn the_run_is_read_from_an_environment() {
        let run = Some(Run { process: 7, begun: 9 });
        assert_eq!(run_of(b"A=1\0SIGNALDB_JEPSEN_RUN=7:9\0B=\xff\0"), run);
        for none in [&b""[..], b"A=SIGNALDB_JEPSEN_RUN=7:9\0", b"SIGNALDB_JEPSEN_RUN=7\0", b"SIGNALDB_JEPSEN_RUN=:9\0"]
        {
            assert_eq!(run_of(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_command_that_ends_with_us_is_the_same_otherwise() {
        let mut command = Command::new("/bin/node");
        command.arg("server").env("LD_PRELOAD", "/lib/x.so");
        // Where there is no setpriv, nodes are left to the next run.
        let Some(mortal) = mortal(&command) else { return };
        let words: Vec<String> = mortal.get_args().map(|word| word.display().to_string()).collect();
        let expected = ["--pdeathsig", "KILL", "--", "env", "LD_PRELOAD=/lib/x.so", "/bin/node", "server"];
        assert_eq!(
            (mortal.get_program().display().to_string(), words),
            ("setpriv".to_owned(), expected.map(str::to_owned).to_vec())
        );
        assert_eq!(mortal.get_envs().count(), 0, "nothing is loaded into the programs in front");
    }

    /// Something that runs for long, as this run or another one starts it.
    fn sleeper(named: impl FnOnce(&mut Command)) -> anyhow::Result<Child> {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        named(&mut command);
        let child = command.spawn()?;
        // For a moment it is there, and its environment is not.
        let environment = format!("/proc/{}/environ", child.id());
        while std::fs::read(&environment)?.is_empty() {
            std::thread::yield_now();
        }
        Ok(child)
    }

    #[test]
    fn what_a_run_left_that_is_gone_is_ended_and_what_others_run_is_not() -> anyhow::Result<()> {
        let mut gone = Command::new("true").spawn()?;
        gone.wait()?;
        let run = Run { process: gone.id(), begun: 1 };
        let mut left = sleeper(|command| {
            command.env(MARK, run.to_string());
        })?;
        let (mut ours, mut nobodys) = (sleeper(mark)?, sleeper(|_| ())?);
        let ended = end_all();
        // Whatever came of it, nothing of this test stays.
        let status = |child: &mut Child| -> anyhow::Result<bool> {
            let runs = child.try_wait()?.is_none();
            if runs {
                child.kill()?;
                child.wait()?;
            }
            Ok(runs)
        };
        let run = (status(&mut left)?, status(&mut ours)?, status(&mut nobodys)?);
        assert!(ended? >= 1);
        assert_eq!(run, (false, true, true));
        Ok(())
    }
}
