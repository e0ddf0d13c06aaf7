//! A run: rounds of clients and faults around the same nodes, each judged at its end, and all of them once more at the end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

use crate::about::About;
use crate::checker::availability::Availability;
use crate::checker::entries::{self, Entries, Sent};
use crate::checker::{Blackout, Broken, Checks, Findings, examine};
use crate::cluster::{Cluster, NODES, Place};
use crate::damage::Damage;
use crate::fault::Fault;
use crate::history::{self, History, Kind, Operation, Purpose};
use crate::invariants::Invariants;
use crate::leaders::Leaders;
use crate::listing::Log;
use crate::nemesis::{self, Strike};
use crate::random::Random;
use crate::report::{self, Counts, Report};
use crate::scenario::{Scenario, Workload};
use crate::schedule::Schedule;
use crate::store::{self, Store};
use crate::timeline::Timeline;
use crate::verdict::{LeftOut, Verdict};
use crate::workload::{self, Tenants, Test, isolation, log, register};
use crate::{Args, page};

/// Whether the tables hold what was acknowledged, by another reader.
const FLUSH_AUDIT: &str = "flush-audit";
/// Why the tables were not looked at through another reader.
const NO_PYTHON: &str = "it needs PyIceberg: python3 and its venv module, with which make jepsen makes .venv and sets \
                         SIGNALDB_PYTHON";

/// How long what earlier rounds wrote is read again at the end of a run.
const AGAIN: Duration = Duration::from_secs(15 * 60);

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

/// A fault that is over, as the schedule knows it, and what came of it.
type Struck = (u64, anyhow::Result<Strike>);

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

    /// Clients with tenants of their own, faults, the last reads and a judgment.
    async fn round(
        &self,
        round: usize,
        how_long: Duration,
        schedule: &mut Schedule,
        ledger: &mut Ledger,
    ) -> anyhow::Result<()> {
        let test = self.test(workload::tenants(round));
        let mut clients = start_clients(&test, &self.scenario.workloads);
        // Whatever goes wrong from here on, the history is written and judged.
        let mut running = JoinSet::new();
        if let Err(error) = self.break_things(&test, (round, how_long), &mut running, schedule, ledger).await {
            ledger.troubles.push(format!("faults ended early: {error:#}"));
        }
        running.shutdown().await;
        if let Err(error) = self.cluster.heal().await {
            ledger.troubles.push(format!("the cluster did not come back: {error:#}"));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        test.stop.store(true, Ordering::Relaxed);
        while let Some(client) = clients.join_next().await {
            if let Err(error) = client? {
                ledger.troubles.push(format!("a client ended early: {error:#}"));
            }
        }
        let mut logs = Vec::new();
        // Before the rest of it is flushed and given up.
        if ledger.troubles.is_empty() {
            match Box::pin(self.list_logs()).await {
                Ok(listed) => logs = listed,
                Err(error) => ledger.troubles.push(format!("the logs of the nodes: {error:#}")),
            }
        }
        let keys = test.history.keys();
        match Box::pin(workload::last_reads(&test, &keys, self.python.as_deref())).await {
            Ok(missing) => ledger.troubles.extend(missing),
            Err(error) => ledger.troubles.push(format!("{error:#}")),
        }
        let tenants = test.tenants;
        let history = Arc::into_inner(test.history).context("clients are gone")?;
        let mut operations = history.into_operations();
        let (findings, checks) = (examine(&operations, &self.blackouts()), Checks::of(&operations, &self.blackouts()));
        ledger.counts.add(&operations, &ledger.strikes);
        ledger.timeline.add(&operations);
        let absences = self.cluster.absences(self.begun);
        ledger.availability.add(&operations, tenants, &ledger.strikes, &absences);
        if self.scenario.round_seconds.is_some() && findings.is_sound() && checks.is_sound() {
            // Thousands of whole sets, of which nothing more is to be learned.
            operations.retain(|one| !is_spent(&one.kind));
        }
        self.store.write_history(round, tenants, &operations)?;
        ledger.sent.extend(entries::sent(&operations, &self.blackouts()));
        ledger.entries.add(&mut ledger.sent, &logs, &self.blackouts());
        ledger.findings.add(findings);
        ledger.checks.add(checks);
        ledger.judged.push((tenants, operations));
        Ok(())
    }

    /// Makes the faults of a round for as long as there is time, and waits for the end of each; notes them in `ledger`.
    async fn break_things(
        &self,
        test: &Test,
        (round, how_long): (usize, Duration),
        running: &mut JoinSet<Struck>,
        schedule: &mut Schedule,
        ledger: &mut Ledger,
    ) -> anyhow::Result<()> {
        let until = Instant::now() + how_long;
        loop {
            while running.len() >= self.scenario.at_once.of(round) {
                let Some(ended) = running.join_next().await else { break };
                note(ended?, schedule, ledger)?;
            }
            tokio::time::sleep(Duration::from_millis(self.random.between(self.scenario.pause_ms))).await;
            if Instant::now() > until {
                break;
            }
            while let Some(ended) = running.try_join_next() {
                note(ended?, schedule, ledger)?;
            }
            self.settle(schedule, ledger).await?;
            let leader = self.cluster.leader().await;
            let Some((id, plan)) = schedule.begin(&self.random, leader) else {
                // Something runs beside which nothing fits, or damage is left that nothing goes with: a little later.
                continue;
            };
            let hold = Duration::from_millis(self.random.between(self.scenario.hold_ms));
            let test = test.clone();
            running.spawn(async move { (id, Box::pin(nemesis::strike(&test, plan, hold)).await) });
        }
        while let Some(ended) = running.join_next().await {
            note(ended?, schedule, ledger)?;
        }
        self.settle(schedule, ledger).await
    }

    /// Looks at damage that was left: a node that noticed it, or whose segment is gone, is whole again once it is ready.
    async fn settle(&self, schedule: &mut Schedule, ledger: &mut Ledger) -> anyhow::Result<()> {
        for node in left_nodes(ledger) {
            if schedule.takes(node) {
                continue;
            }
            // It may have ended as it noticed.
            self.cluster.revive(node)?;
            let whole = self.cluster.reasons(node).await.is_some_and(|reasons| reasons.is_empty());
            ledger.left.retain(|(of, damage)| *of != node || !whole || damage.is_left());
        }
        let left = left_nodes(ledger);
        for node in (0..NODES).filter(|node| !left.contains(node) && !schedule.takes(*node)) {
            self.cluster.excuse(node, false);
        }
        schedule.set_damaged(left);
        Ok(())
    }

    /// Reads what earlier rounds wrote, from the nodes and from the tables: nothing that came later may have taken it. What
    /// there was no time for is returned.
    async fn look_again(&self, ledger: &mut Ledger) -> Option<LeftOut> {
        let (blackouts, until) = (self.blackouts(), Instant::now() + AGAIN);
        let mut rounds = std::mem::take(&mut ledger.judged).into_iter().enumerate();
        let all = rounds.len();
        while Instant::now() < until {
            let Some((round, (tenants, operations))) = rounds.next() else { break };
            let test = self.test(tenants);
            let keys = history::keys(&operations);
            match Box::pin(workload::last_reads(&test, &keys, self.python.as_deref())).await {
                Ok(missing) => ledger.troubles.extend(missing),
                Err(error) => ledger.troubles.push(format!("{error:#}")),
            }
            let Some(history) = Arc::into_inner(test.history) else {
                ledger.troubles.push(format!("what was read again of round {} is not known", round + 1));
                continue;
            };
            let whole: Vec<Operation> = operations.into_iter().chain(history.into_operations()).collect();
            let (findings, checks) = (examine(&whole, &blackouts), Checks::of(&whole, &blackouts));
            if !(findings.is_sound() && checks.is_sound())
                && let Err(error) = self.store.write_history(round, tenants, &whole)
            {
                ledger.troubles.push(format!("{error:#}"));
            }
            ledger.findings.add_again(findings);
            ledger.checks.add_again(checks);
        }
        let left = rounds.len();
        println!("nodes and tables were read again of {} of {all} rounds", all - left);
        let why = format!("{left} of {all} rounds: there were {} minutes for all of them", AGAIN.as_secs() / 60);
        (left > 0).then(|| LeftOut::checker("reading earlier rounds again", &why))
    }

    /// Kills all nodes, lists their logs, and starts them again: one more kill of all, with nobody there to see it.
    async fn list_logs(&self) -> anyhow::Result<Vec<Log>> {
        let cluster = Arc::clone(&self.cluster);
        let list = move || (0..NODES).map(|node| cluster.log(node)).collect::<anyhow::Result<Vec<Log>>>();
        for node in 0..NODES {
            self.cluster.kill(node);
        }
        let logs = tokio::task::spawn_blocking(list).await?;
        for node in 0..NODES {
            self.cluster.revive(node)?;
        }
        for node in 0..NODES {
            self.cluster.wait_whole(node).await?;
        }
        logs
    }
}

/// A fault is over.
fn note((id, strike): Struck, schedule: &mut Schedule, ledger: &mut Ledger) -> anyhow::Result<()> {
    let mut strike = strike?;
    println!("{}", report::line(&strike));
    ledger.left.extend(strike.left.take());
    schedule.end(id);
    schedule.set_damaged(left_nodes(ledger));
    ledger.strikes.push(strike);
    Ok(())
}

fn left_nodes(ledger: &Ledger) -> BTreeSet<usize> {
    ledger.left.iter().map(|(node, _)| *node).collect()
}

/// Whether an operation says nothing more once its round is judged: a read under faults.
fn is_spent(kind: &Kind) -> bool {
    match kind {
        Kind::Read(_) => true,
        Kind::Query(query) => query.purpose != Purpose::Last,
        Kind::Add(_) | Kind::Write(_) | Kind::Final(_) | Kind::Audit(_) => false,
    }
}

fn start_clients(test: &Test, workloads: &[Workload]) -> JoinSet<anyhow::Result<()>> {
    let mut clients = JoinSet::new();
    for workload in workloads {
        match workload {
            Workload::Ingest => start_ingest(test, &mut clients),
            Workload::Log => start_log(test, &mut clients),
            Workload::Register => start_register(test, &mut clients),
            Workload::Isolation => start_isolation(test, &mut clients),
        }
    }
    for (n, tenant) in test.tenants.into_iter().enumerate() {
        for node in 0..NODES {
            clients.spawn(workload::probe(test.clone(), 200 + n * NODES + node, tenant, node));
        }
    }
    clients
}

fn start_ingest(test: &Test, clients: &mut JoinSet<anyhow::Result<()>>) {
    // Two for each tenant and node: those of two nodes make the load while the third is away.
    for process in 0..12 {
        clients.spawn(workload::add(test.clone(), process));
    }
    for process in 100..103 {
        clients.spawn(workload::read(test.clone(), process));
    }
}

fn start_log(test: &Test, clients: &mut JoinSet<anyhow::Result<()>>) {
    let logs = Arc::new(log::Logs::new());
    // As many: of three nodes, two tenants, and one in four of another kind.
    for process in 300..312 {
        clients.spawn(log::append(test.clone(), process, Arc::clone(&logs)));
    }
    for process in 320..322 {
        clients.spawn(log::poll(test.clone(), process, Arc::clone(&logs)));
    }
}

fn start_register(test: &Test, clients: &mut JoinSet<anyhow::Result<()>>) {
    let registers = Arc::new(register::Registers::new());
    for process in 400..406 {
        clients.spawn(register::write(test.clone(), process, Arc::clone(&registers)));
    }
    for process in 420..423 {
        clients.spawn(register::read(test.clone(), process, Arc::clone(&registers)));
    }
}

fn start_isolation(test: &Test, clients: &mut JoinSet<anyhow::Result<()>>) {
    let keys = Arc::new(isolation::keys());
    for process in 500..502 {
        clients.spawn(isolation::write(test.clone(), process, Arc::clone(&keys)));
    }
    clients.spawn(isolation::read(test.clone(), 550, keys));
}

async fn watch(cluster: Arc<Cluster>, begun: Instant, stop: Arc<AtomicBool>) -> (Invariants, Leaders) {
    let (mut invariants, mut leaders) = (Invariants::default(), Leaders::default());
    while !stop.load(Ordering::Relaxed) {
        // Soon after it happened: it is judged by the faults of that time.
        cluster.excused_deaths();
        for node in 0..NODES {
            let life = cluster.life(node);
            // An account that came while the node was started again is of nobody knows which life.
            if let Some(state) = cluster.state(node).await
                && cluster.life(node) == life
            {
                invariants.sample(&state, life);
                leaders.sample(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), &state);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (invariants, leaders)
}
