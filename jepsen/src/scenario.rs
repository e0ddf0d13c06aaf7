//! What a run does: a small TOML file (`jepsen/scenarios/`) that says which faults come, how often and how close together.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// Those that are part of the program, by name.
const BUILT_IN: [(&str, &str); 7] = [
    ("default", include_str!("../scenarios/default.toml")),
    ("full", include_str!("../scenarios/full.toml")),
    ("overlap", include_str!("../scenarios/overlap.toml")),
    ("power-loss-all", include_str!("../scenarios/power-loss-all.toml")),
    ("damage", include_str!("../scenarios/damage.toml")),
    ("outages", include_str!("../scenarios/outages.toml")),
    ("network", include_str!("../scenarios/network.toml")),
];

/// One scenario.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    /// What it is for, in a sentence.
    pub(crate) about: String,
    /// How long faults go on, unless the command line says otherwise.
    pub(crate) seconds: u64,
    /// A run is cut into rounds of about this length, each with tenants of its own and a judgment at its end: reads of
    /// whole sets must not grow without bound. One round by default.
    #[serde(default)]
    pub(crate) round_seconds: Option<u64>,
    /// Each node has a disk of its own, which needs root. Where that cannot be, the faults that need it are left out.
    #[serde(default)]
    pub(crate) disks: bool,
    /// The tables are in a bucket that can fail, not on local files.
    #[serde(default)]
    pub(crate) bucket: bool,
    /// The level that clients ask for.
    #[serde(default)]
    pub(crate) ack: Ask,
    /// What clients do, all at the same time. Beside it single spans are always added, for the time between them.
    #[serde(default = "ingest")]
    pub(crate) workloads: Vec<Workload>,
    /// Faults at the same time, at most. One by default.
    #[serde(default)]
    pub(crate) at_once: AtOnce,
    /// However faults overlap, two nodes run and reach each other all the time, except in a fault that is there to take that
    /// away: it then comes without another one that takes a node or a link. By default faults may take a majority together.
    #[serde(default)]
    pub(crate) majority: bool,
    /// Between two beginnings, or with one fault at a time between an end and a beginning: from, below.
    pub(crate) pause_ms: (u64, u64),
    /// How long a fault is held: from, below.
    pub(crate) hold_ms: (u64, u64),
    /// Each comes once in this order, as far as it fits, then by weight.
    pub(crate) faults: Vec<Weighted>,
}

/// A fault and how often it comes, compared with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weighted {
    pub(crate) fault: Fault,
    #[serde(default = "one")]
    pub(crate) weight: u32,
}

/// How many faults there may be at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum AtOnce {
    Always(usize),
    /// In the first round, in the second, and so on; after the last it begins anew.
    InTurn(Vec<usize>),
}

impl Default for AtOnce {
    fn default() -> Self {
        Self::Always(1)
    }
}

impl AtOnce {
    fn all(&self) -> &[usize] {
        match self {
            Self::Always(count) => std::slice::from_ref(count),
            Self::InTurn(counts) => counts,
        }
    }

    /// In a round, counted from 0.
    pub(crate) fn of(&self, round: usize) -> usize {
        let all = self.all();
        all[round % all.len()]
    }
}

/// What clients ask for with `X-SignalDB-Ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ask {
    /// Nothing.
    #[default]
    Default,
    QuorumFsync,
    /// Every other time `quorum-fsync`.
    Mixed,
}

/// What clients do, and what is checked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Unique spans, and reads of whole sets.
    Ingest,
    /// Requests whose positions matter, sent once, twice, late or half; reads up to a position.
    Log,
    /// Versions of a key, and reads of the newest.
    Register,
    /// The same rows in several tenants and datasets.
    Isolation,
}

fn ingest() -> Vec<Workload> {
    vec![Workload::Ingest]
}

fn one<T: From<u8>>() -> T {
    T::from(1)
}

impl Scenario {
    /// One that is built in, by its name, or a file.
    pub(crate) fn load(name: &str) -> anyhow::Result<Self> {
        let built_in = BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
        let text = match built_in {
            Some(text) => text,
            None => {
                let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                let known = || format!("scenario {name} is neither a file nor one of {}", names.join(", "));
                std::fs::read_to_string(Path::new(name)).with_context(known)?
            }
        };
        Self::parse(&text).with_context(|| format!("scenario {name}"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        for (name, (from, below)) in [("pause_ms", scenario.pause_ms), ("hold_ms", scenario.hold_ms)] {
            ensure!(from < below, "{name} = [{from}, {below}] is empty: give a first and a larger second number");
        }
        let at_once = scenario.at_once.all();
        ensure!(!at_once.is_empty() && !at_once.contains(&0), "at_once = 0, or an empty list, would make no fault");
        ensure!(scenario.round_seconds != Some(0), "round_seconds = 0 is no round");
        ensure!(scenario.faults.iter().any(|one| one.weight > 0), "no fault has a weight");
        ensure!(!scenario.workloads.is_empty(), "without workloads nothing is tested");
        let mut faults: Vec<Fault> = scenario.faults.iter().map(|one| one.fault).collect();
        faults.sort_unstable();
        faults.dedup();
        ensure!(faults.len() == scenario.faults.len(), "a fault comes twice");
        if let Some(fault) = faults.iter().find(|fault| fault.needs_disks() && !scenario.disks) {
            bail!("{fault:?} needs disks = true");
        }
        if let Some(fault) = faults.iter().find(|fault| fault.needs_bucket() && !scenario.bucket) {
            bail!("{fault:?} needs bucket = true");
        }
        Ok(scenario)
    }

    /// The lengths of the rounds, seconds.
    pub(crate) fn rounds(&self, seconds: u64) -> Vec<u64> {
        let count = self.round_seconds.map_or(1, |round| (seconds / round).max(1));
        (0..count).map(|n| seconds * (n + 1) / count - seconds * n / count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(line: &str) -> anyhow::Result<Scenario> {
        let start = "name = \"t\"\nabout = \"t\"\nseconds = 10\n";
        Scenario::parse(&format!("{start}{line}"))
    }

    const TIMES: &str = "pause_ms = [1, 2]\nhold_ms = [1, 2]\n";

    #[test]
    fn built_in_scenarios_are_sound_and_named_as_they_are_called() {
        for (name, _) in BUILT_IN {
            let scenario = Scenario::load(name).expect("is sound");
            assert_eq!(scenario.name, name);
            assert!(!scenario.about.is_empty());
        }
        let elsewhere = Scenario::load("nowhere").expect_err("is not there").to_string();
        assert!(elsewhere.contains("power-loss-all"), "{elsewhere}");
    }

    #[test]
    fn the_default_needs_no_root_and_makes_one_fault_at_a_time() {
        let scenario = Scenario::load("default").expect("is sound");
        assert!(!scenario.disks && scenario.at_once == AtOnce::Always(1) && scenario.ack == Ask::Default);
        assert_eq!(scenario.rounds(scenario.seconds), [100]);
        assert_eq!(scenario.faults.len(), 13);
    }

    #[test]
    fn only_a_scenario_of_its_own_takes_the_power_from_all() {
        for (name, _) in BUILT_IN {
            let scenario = Scenario::load(name).expect("is sound");
            let all = scenario.faults.iter().any(|one| one.fault == Fault::PowerLossAll);
            assert_eq!(all, name == "power-loss-all", "elsewhere nothing at all may be lost");
        }
    }

    #[test]
    fn an_hour_of_everything_has_every_kind_but_the_one_that_may_lose() {
        let scenario = Scenario::load("full").expect("is sound");
        let missing =
            crate::fault::ALL.into_iter().filter(|fault| scenario.faults.iter().all(|one| one.fault != *fault));
        assert_eq!(missing.collect::<Vec<_>>(), [Fault::PowerLossAll]);
        assert_eq!(scenario.seconds, 3600);
        assert!(
            scenario.majority && scenario.at_once.of(0) == 1 && scenario.at_once.of(1) > 1,
            "they overlap at times"
        );
    }

    #[test]
    fn mistakes_are_refused_and_named() {
        for (lines, part) in [
            (format!("{TIMES}faults = []"), "weight"),
            (format!("{TIMES}faults = [{{ fault = \"kill\" }}, {{ fault = \"kill\" }}]"), "twice"),
            (format!("{TIMES}faults = [{{ fault = \"power-loss\" }}]"), "disks = true"),
            (format!("{TIMES}faults = [{{ fault = \"store-lies\" }}]"), "bucket = true"),
            (format!("{TIMES}faults = [{{ fault = \"earthquake\" }}]"), "earthquake"),
            (format!("{TIMES}workloads = []\nfaults = [{{ fault = \"kill\" }}]"), "workloads"),
            (format!("{TIMES}workloads = [\"chess\"]\nfaults = [{{ fault = \"kill\" }}]"), "chess"),
            (format!("{TIMES}at_once = 0\nfaults = [{{ fault = \"kill\" }}]"), "at_once"),
            (format!("{TIMES}at_once = [2, 0]\nfaults = [{{ fault = \"kill\" }}]"), "at_once"),
            (format!("{TIMES}at_once = []\nfaults = [{{ fault = \"kill\" }}]"), "at_once"),
            (format!("{TIMES}at_once = \"often\"\nfaults = [{{ fault = \"kill\" }}]"), "at_once"),
            (format!("{TIMES}colour = 1\nfaults = [{{ fault = \"kill\" }}]"), "colour"),
            ("pause_ms = [2, 2]\nhold_ms = [1, 2]\nfaults = [{ fault = \"kill\" }]".to_owned(), "pause_ms"),
        ] {
            let refusal = format!("{:#}", with(&lines).expect_err("is a mistake"));
            assert!(refusal.contains(part), "{lines}: {refusal}");
        }
    }

    #[test]
    fn rounds_take_turns_in_how_many_faults_there_may_be() {
        let of = |line: &str| {
            let scenario = with(&format!("{TIMES}{line}\nfaults = [{{ fault = \"kill\" }}]")).expect("is sound");
            [0, 1, 2, 3, 4].map(|round| scenario.at_once.of(round))
        };
        assert_eq!(of(""), [1; 5]);
        assert_eq!(of("at_once = 3"), [3; 5]);
        assert_eq!(of("at_once = [1, 3, 2]"), [1, 3, 2, 1, 3]);
    }

    #[test]
    fn workloads_run_together_and_ingest_is_what_there_is_by_default() {
        let faults = "faults = [{ fault = \"kill\" }]";
        assert_eq!(with(&format!("{TIMES}{faults}")).expect("is sound").workloads, [Workload::Ingest]);
        let together = with(&format!("{TIMES}workloads = [\"log\", \"register\", \"isolation\"]\n{faults}"));
        assert_eq!(together.expect("is sound").workloads, [Workload::Log, Workload::Register, Workload::Isolation]);
    }

    #[test]
    fn rounds_add_up() {
        let mut scenario = with(&format!("{TIMES}faults = [{{ fault = \"kill\", weight = 3 }}]")).expect("is sound");
        assert_eq!(scenario.faults[0].weight, 3);
        assert_eq!(scenario.rounds(100), [100]);
        scenario.round_seconds = Some(120);
        assert_eq!(scenario.rounds(60), [60]);
        assert_eq!(scenario.rounds(300), [150, 150]);
        let rounds = scenario.rounds(3600);
        assert_eq!((rounds.len(), rounds.iter().sum::<u64>()), (30, 3600));
    }
}
