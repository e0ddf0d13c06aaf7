//! A run: rounds of clients and faults around the same nodes, each judged at its end ([`round`]), and all of them once more at the
//! end ([`again`]).

mod again;
mod clients;
mod faults;
mod round;
mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

use crate::about::About;
use crate::checker::availability::Availability;
use crate::checker::entries::{Entries, Sent};
use crate::checker::{Blackout, Broken, Checks, Findings};
use crate::cluster::{Cluster, Place};
use crate::damage::Damage;
use crate::fault::Fault;
use crate::history::{History, Operation};
use crate::invariants::Invariants;
use crate::nemesis::Strike;
use crate::random::Random;
use crate::report::{self, Counts, Report};
use crate::scenario::{Scenario, Workload};
use crate::schedule::Schedule;
use crate::store::{self, Store};
use crate::timeline::Timeline;
use crate::verdict::{LeftOut, Verdict};
use crate::workload::{Tenants, Test};
use crate::{Args, leftover, page};

use watch::watch;

/// Whether the tables hold what was acknowledged, by another reader.
const FLUSH_AUDIT: &str = "flush-audit";
/// Why the tables were not looked at through another reader.
const NO_PYTHON: &str = "it needs PyIceberg: python3 and its venv module, with which make jepsen makes .venv and sets \
                         SIGNALDB_PYTHON";

/// Everything that a run learned so far.
#[derive(Default)]
struct Ledger {
    strikes: Vec<Strike>,
    /// What was not as it should be with the test itself: no verdict is better than unknown then.
    troubles: Vec<String>,
    findings: Findings,
    checks: Checks,
    availability: Availability,
    counts: Counts,
    timeline: Timeline,
    /// Damage that nobody noticed yet, by node.
    left: Vec<(usize, Damage)>,
    /// The rounds that were judged: their tenants, adds and last reads.
    judged: Vec<(Tenants, Vec<Operation>)>,
    /// What was sent in all of them and is still in the logs.
    sent: Vec<Sent>,
    entries: Entries,
}

/// What the rounds of a run share.
struct Run {
    scenario: Scenario,
    cluster: Arc<Cluster>,
    random: Arc<Random>,
    begun: Instant,
    store: Store,
    python: Option<String>,
    blackouts: Arc<Mutex<Vec<Blackout>>>,
}

/// Runs a scenario, and says whether what happened may happen; `None` when that cannot be said.
pub(crate) async fn run(args: Args) -> anyhow::Result<Option<bool>> {
    let scenario = Scenario::load(&args.scenario)?;
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |now| u64::from(now.subsec_nanos()));
    let seed = args.seed.unwrap_or(clock);
    let random = Arc::new(Random::new(seed));
    let now = std::time::UNIX_EPOCH.elapsed().context("the clock is before 1970")?.as_secs();
    let store = match &args.out {
        Some(out) => Store::at(out)?,
        None => Store::make(&args.store, now)?,
    };
    let mut about = About::gather(&args, &scenario, seed, now);
    println!("scenario {}: {}", scenario.name, scenario.about);
    println!("seed {seed}, history and logs in {}", store.dir().display());
    match tokio::task::spawn_blocking(leftover::end_all).await? {
        Ok(0) => {}
        Ok(ended) => println!("an earlier run was killed: {ended} processes that it had left were ended"),
        // They have ports and disks of their own.
        Err(error) => println!("{error:#}"),
    }
    let small_log = scenario.faults.iter().any(|one| one.fault.damages());
    let place = Place {
        dir: store.dir(),
        catalog: args.catalog,
        disks: scenario.disks,
        bucket: scenario.bucket,
        small_log,
        relays: args.relays,
    };
    let cluster = Arc::new(Cluster::start(&args.node, place, &random).await?);
    about.network = cluster.network.about();
    println!("nodes reach each other over {}", about.network);
    let (weights, mut left_out) = possible(&scenario, &cluster);
    anyhow::ensure!(!weights.is_empty(), "none of the scenario's faults can be made here: {left_out:?}");
    let lengths = scenario.rounds(args.seconds.unwrap_or(scenario.seconds));
    let python = std::env::var("SIGNALDB_PYTHON").ok().filter(|python| !python.is_empty());
    if python.is_none() {
        left_out.push(LeftOut::checker(FLUSH_AUDIT, NO_PYTHON));
    }
    left_out.iter().for_each(|one| println!("left out: {}: {}", one.what, one.why));
    let run = Run { scenario, cluster, random, begun: Instant::now(), store, python, blackouts: Arc::default() };
    let stop = Arc::new(AtomicBool::new(false));
    let mut watchers = JoinSet::new();
    watchers.spawn(watch(Arc::clone(&run.cluster), run.begun, Arc::clone(&stop)));
    let (mut schedule, mut ledger) = (Schedule::new(weights, run.scenario.majority), Ledger::default());
    for (round, seconds) in lengths.into_iter().enumerate() {
        Box::pin(run.round(round, Duration::from_secs(seconds), &mut schedule, &mut ledger)).await?;
        if !ledger.troubles.is_empty() || !ledger.is_sound() {
            // Later rounds would not be about what was meant to be tested, and bury what was found.
            break;
        }
    }
    // What comes now has no faults, and no clients.
    let until = u64::try_from(run.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    if ledger.troubles.is_empty() && ledger.judged.len() > 1 {
        left_out.extend(Box::pin(run.look_again(&mut ledger)).await);
    }
    stop.store(true, Ordering::Relaxed);
    let (invariants, leaders) = watchers.join_next().await.context("a watcher")??;
    let (verdicts, reigns) = (judge(&run, &ledger, &invariants), leaders.reigns());
    let costs = ledger.availability.costs();
    let report = Report {
        about: &about,
        until,
        verdicts: &verdicts,
        left_out: &left_out,
        strikes: &ledger.strikes,
        timeline: &ledger.timeline,
        reigns: &reigns,
        counts: &ledger.counts,
        costs: &costs,
        availability: &ledger.availability,
        findings: &ledger.findings,
        broken: Broken::of(&ledger.findings, &ledger.checks),
        blackouts: run.blackouts().len(),
        excused_deaths: run.cluster.excused_deaths(),
        samples: invariants.samples(),
    };
    let store = run.store.clone();
    store.write_lines(store::FAULTS, &ledger.strikes)?;
    store.write_lines(store::LEADERS, &reigns)?;
    store.write_verdict(&report.json())?;
    store.write_page(&page::html(&report))?;
    report.print();
    println!("report: {}", store.dir().join(store::PAGE).display());
    let valid = report.valid();
    // Ends the nodes, and unmounts what is below the directory.
    drop(run);
    if valid == Some(true) && !args.keep_data {
        store.remove_data();
    }
    Ok(valid)
}

/// The faults that can be made here, with their weights, and why the others cannot.
fn possible(scenario: &Scenario, cluster: &Cluster) -> (Vec<(Fault, u32)>, Vec<LeftOut>) {
    let (mut weights, mut left_out) = (Vec::new(), Vec::new());
    for one in scenario.faults.iter().filter(|one| one.weight > 0) {
        match cluster.lacks(one.fault) {
            None => weights.push((one.fault, one.weight)),
            Some(why) => left_out.push(LeftOut::fault(one.fault.name(), &format!("it needs {why}"))),
        }
    }
    (weights, left_out)
}

/// What each checker says that had something to look at.
fn judge(run: &Run, ledger: &Ledger, invariants: &Invariants) -> Vec<Verdict> {
    let workloads = &run.scenario.workloads;
    let mut verdicts = Vec::new();
    // There are always some spans, but not always enough.
    if workloads.contains(&Workload::Ingest) || !ledger.findings.is_sound() {
        verdicts.push(ledger.findings.judgment());
    }
    let checks = ledger.checks.judgments(workloads).into_iter();
    verdicts.extend(checks.filter(|one| run.python.is_some() || one.checker != FLUSH_AUDIT));
    verdicts.push(invariants.judgment(run.cluster.deaths()));
    verdicts.push(ledger.entries.judgment());
    verdicts.push(ledger.availability.judgment());
    let nothing = (report::effective(&ledger.strikes) == 0).then(|| "no fault had an effect".to_owned());
    let anomalies: Vec<String> = ledger.troubles.iter().cloned().chain(nothing).collect();
    if !anomalies.is_empty() {
        verdicts.push(Verdict { anomalies, ..Verdict::unknown("run", "the test itself did not go as it should") });
    }
    verdicts
}

impl Ledger {
    fn is_sound(&self) -> bool {
        self.findings.is_sound() && self.checks.is_sound() && self.entries.is_sound()
    }
}

impl Run {
    fn test(&self, tenants: Tenants) -> Test {
        Test {
            cluster: Arc::clone(&self.cluster),
            history: Arc::new(History::since(self.begun)),
            random: Arc::clone(&self.random),
            stop: Arc::new(AtomicBool::new(false)),
            tenants,
            ask: self.scenario.ack,
            blackouts: Arc::clone(&self.blackouts),
        }
    }

    fn blackouts(&self) -> Vec<Blackout> {
        self.blackouts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
