//! What a run was about, and how to make it again.

use std::process::Command;

use serde::Serialize;

use crate::command::run;
use crate::scenario::Scenario;
use crate::{Args, store};

/// All of it for people.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct About {
    pub(crate) started: String,
    pub(crate) scenario: String,
    /// What the scenario is for.
    pub(crate) what: String,
    pub(crate) seed: u64,
    /// How long faults were to go on.
    pub(crate) seconds: u64,
    pub(crate) catalog: String,
    /// What holds the tables.
    pub(crate) store: String,
    /// Over what nodes reach each other; empty until that is known.
    pub(crate) network: String,
    /// What the binary under test says of itself.
    pub(crate) version: String,
    /// Of the working copy in which the run was started.
    pub(crate) commit: String,
    pub(crate) machine: String,
    pub(crate) command: String,
    /// The same choices again.
    pub(crate) again: String,
}

impl About {
    /// `now` is in seconds since 1970. Blocking.
    pub(crate) fn gather(args: &Args, scenario: &Scenario, seed: u64, now: u64) -> Self {
        let catalog = args.catalog.name();
        let seconds = args.seconds.unwrap_or(scenario.seconds);
        let version =
            run(Command::new(&args.node).arg("--version")).unwrap_or_else(|_| "of unknown version".to_owned());
        let commit = run(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]));
        let commit = commit.unwrap_or_else(|_| "unknown".to_owned()).trim().to_owned();
        Self {
            started: store::utc(now),
            scenario: scenario.name.clone(),
            what: scenario.about.clone(),
            seed,
            seconds,
            catalog: catalog.to_owned(),
            store: if scenario.bucket { "an S3 server of this test" } else { "local files" }.to_owned(),
            network: String::new(),
            version: version.trim().to_owned(),
            again: again(&commit, &args.scenario, seconds, seed, catalog),
            commit,
            machine: machine(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
        }
    }
}

fn again(commit: &str, scenario: &str, seconds: u64, seed: u64, catalog: &str) -> String {
    // What was changed but not committed is nowhere.
    let checkout = match commit.strip_suffix("-dirty").unwrap_or(commit) {
        "unknown" => String::new(),
        commit => format!("git checkout {commit}\n"),
    };
    format!("{checkout}make jepsen-full SCENARIO={scenario} SECONDS={seconds} SEED={seed} CATALOG={catalog}")
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|value| value.parse().ok()).unwrap_or(0);
    let kernel = run(Command::new("uname").arg("-sr")).unwrap_or_default();
    format!("{cores} x {}, {} GiB, {}", model.unwrap_or("unknown CPU"), kib >> 20, kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_repeat_names_commit_scenario_length_and_seed() {
        assert_eq!(
            again("79e22c2", "full", 600, 7, "sqlite"),
            "git checkout 79e22c2\nmake jepsen-full SCENARIO=full SECONDS=600 SEED=7 CATALOG=sqlite"
        );
        assert!(again("v1-4-g79e22c2-dirty", "full", 1, 1, "sqlite").starts_with("git checkout v1-4-g79e22c2\n"));
        assert!(again("unknown", "a.toml", 1, 1, "sqlite").starts_with("make jepsen-full SCENARIO=a.toml "));
    }
}
