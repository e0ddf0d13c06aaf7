//! Makes faults. Which and when is decided in [`crate::schedule`].

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::bucket::Mode;
use crate::clock;
use crate::cluster::{Cluster, Cut, NODES, Progress, Watched, pairs};
use crate::damage::{self, Damage};
use crate::fault::{Fault, Target};
use crate::link;
use crate::namespace::Service;
use crate::schedule::Plan;
use crate::span::Span;
use crate::workload::Test;

/// What is left free of a disk that is nearly full: less than the reserve of [`crate::cluster`], 64 MiB.
const NEARLY_FULL_BYTES: u64 = 32 << 20;
/// How long a flush that is under way may still end after catalog or store are gone.
const FLUSHES_END: Duration = Duration::from_secs(2);
/// Pause between two accounts of what gets into the tables.
const ACCOUNT_INTERVAL: Duration = Duration::from_millis(500);
/// How much longer than others a storm of transfers lasts.
const STORM: Duration = Duration::from_secs(3);
/// How many of a hundred packets a lossy link loses: from, below.
const LOSS_PERCENT: (u64, u64) = (2, 21);
/// How long a cable that flaps is out, and how long it is in, milliseconds: from, below.
const FLAP_MS: (u64, u64) = (200, 1500);
/// How much longer than others those faults last that peers notice by their silence.
const SILENCE: Duration = Duration::from_secs(2);
/// What nodes say, by their documentation, when they notice damage.
const NOTICED: [&str; 2] = ["WAL corruption", "WAL tail was torn"];

/// A fault as it was made; times are those of the history, nanoseconds since the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Strike {
    pub(crate) fault: Fault,
    /// Where it was made, in files counted from 1; `None` if on all nodes.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "from_one")]
    pub(crate) node: Option<usize>,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    pub(crate) effective: bool,
    /// What exactly was done, and what came of it; empty when there is no more to say.
    pub(crate) detail: String,
    /// Damage that nobody noticed yet, and whose.
    #[serde(skip)]
    pub(crate) left: Option<(usize, Damage)>,
}

impl Strike {
    pub(crate) fn span(&self) -> Span {
        Span { begun: self.begun, ended: self.ended }
    }
}

fn from_one<S: Serializer>(node: &Option<usize>, to: S) -> Result<S::Ok, S::Error> {
    node.map(|node| node + 1).serialize(to)
}

/// What came of a fault.
#[derive(Debug, Default)]
struct Outcome {
    effective: bool,
    detail: String,
    left: Option<(usize, Damage)>,
}

impl From<bool> for Outcome {
    fn from(effective: bool) -> Self {
        Self { effective, ..Self::default() }
    }
}

/// Makes a fault, holds it, and ends it. One that damaged a disk ends when its node is whole again. A node that has got a
/// reason to end by itself keeps it: whoever knows that nothing is left takes it away.
pub(crate) async fn strike(test: &Test, plan: Plan, hold: Duration) -> anyhow::Result<Strike> {
    let fault = plan.fault;
    let node = match fault {
        // The leader goes on: it is one of the others that hears nobody.
        Fault::ClockJumpBeforeRetry => (plan.node + 1 + test.random.below(NODES - 1)) % NODES,
        _ => plan.node,
    };
    let plan = Plan { fault, node };
    let begun = test.history.now();
    let outcome = match fault {
        Fault::PowerLoss | Fault::PowerLossLeader => lose_power(test, &[node], hold).await?,
        Fault::PowerLossAll => lose_power(test, &(0..NODES).collect::<Vec<_>>(), hold).await?,
        Fault::DiskNearlyFull => nearly_fill(&test.cluster, node, hold).await?,
        Fault::DiskFull => fill(&test.cluster, node, hold).await?,
        Fault::SlowDisk => stutter(test, node, hold).await?,
        Fault::BitFlip | Fault::TruncateSegment => damage_log(test, plan, hold).await?,
        Fault::RollingRestart => restart_all(&test.cluster).await?,
        Fault::CatalogDown
        | Fault::StoreDown
        | Fault::StoreLies
        | Fault::StoreCut
        | Fault::StoreCutLeader
        | Fault::CatalogCut => take_tables(&test.cluster, plan, hold).await?,
        Fault::TransferStorm => move_leaders(test, hold).await,
        Fault::ClockJump | Fault::ClockJumpBeforeRetry => {
            let moved = move_clocks(test, plan, hold).await;
            if fault.takes_links() {
                test.cluster.network.heal().await?;
            }
            test.cluster.reset_clocks()?;
            moved?.into()
        }
        Fault::Kill | Fault::KillLeader | Fault::KillAll | Fault::Pause | Fault::PauseLeader => {
            stop(&test.cluster, plan, hold).await?.into()
        }
        Fault::IsolateLeader | Fault::IsolateOne | Fault::OneWay | Fault::Ring | Fault::Slow | Fault::Reset => {
            let disturbed = cut_links(test, plan, hold).await;
            test.cluster.network.heal().await?;
            disturbed?.into()
        }
        Fault::Unplug | Fault::UnplugLeader | Fault::Flap | Fault::Lossy => {
            let lost = lose_packets(test, plan, hold).await;
            test.cluster.network.heal().await?;
            lost?
        }
    };
    let Outcome { effective, detail, left } = outcome;
    let node = (fault.target() != Target::All).then_some(node);
    Ok(Strike { fault, node, begun, ended: test.history.now(), effective, detail, left })
}

/// Kills or pauses.
async fn stop(cluster: &Cluster, plan: Plan, hold: Duration) -> anyhow::Result<bool> {
    Ok(match plan.fault {
        Fault::KillAll => {
            let killed = (0..NODES).filter(|node| cluster.kill(*node)).count();
            tokio::time::sleep(Duration::from_millis(500)).await;
            (0..NODES).try_for_each(|node| cluster.revive(node))?;
            tokio::time::sleep(hold).await;
            killed > 0
        }
        Fault::Pause | Fault::PauseLeader => {
            let paused = cluster.signal(plan.node, "-STOP");
            tokio::time::sleep(hold).await;
            cluster.signal(plan.node, "-CONT");
            paused
        }
        _ => {
            let killed = cluster.kill(plan.node);
            tokio::time::sleep(hold).await;
            cluster.revive(plan.node)?;
            killed
        }
    })
}

/// Holds, delays or cuts what nodes say to each other.
async fn cut_links(test: &Test, plan: Plan, hold: Duration) -> anyhow::Result<bool> {
    let (cluster, random, node) = (&test.cluster, &test.random, plan.node);
    match plan.fault {
        Fault::OneWay => {
            let deaf = random.below(2) == 0;
            let cut = |from: usize, to: usize| if deaf { to == node } else { from == node };
            disturb(cluster, hold + SILENCE, |from, to| cut(from, to).then_some(link::Mode::Hold)).await
        }
        Fault::Ring => {
            disturb(cluster, hold, |from, to| (from != node && to != node).then_some(link::Mode::Hold)).await
        }
        Fault::Slow => {
            let delay = Duration::from_millis(20 + random.next() % 150);
            disturb(cluster, hold, |from, _| (from == node).then_some(link::Mode::Delay(delay))).await
        }
        Fault::Reset => {
            let mut disturbed = false;
            for _ in 0..5 {
                disturbed |= disturb(cluster, Duration::from_millis(150), |_, _| Some(link::Mode::Reset)).await?;
                cluster.network.heal().await?;
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            Ok(disturbed)
        }
        _ => {
            let cut = |from: usize, to: usize| (from == node || to == node).then_some(link::Mode::Hold);
            disturb(cluster, hold + SILENCE, cut).await
        }
    }
}

/// Loses packets of one node. It had an effect if some were lost.
async fn lose_packets(test: &Test, plan: Plan, hold: Duration) -> anyhow::Result<Outcome> {
    let (network, node) = (&test.cluster.network, plan.node);
    let before = network.disturbed().await?;
    let what = match plan.fault {
        Fault::Flap => return flap(test, node, hold).await,
        Fault::Lossy => {
            let percent = test.random.between(LOSS_PERCENT);
            let rate = u8::try_from(percent)?;
            network.act(move |namespaces| namespaces.lose(node, rate)).await?;
            format!("{percent} of a hundred packets")
        }
        _ => {
            network.act(move |namespaces| namespaces.silence(node)).await?;
            "everything".to_owned()
        }
    };
    tokio::time::sleep(hold + SILENCE).await;
    let lost = network.disturbed().await?.saturating_sub(before);
    let detail = format!("node {}: {what}, {lost} packets were lost", node + 1);
    Ok(Outcome { effective: lost > 0, detail, ..Outcome::default() })
}

/// Pulls the cable of a node and puts it back, again and again. It had an effect if the node was not reached meanwhile.
async fn flap(test: &Test, node: usize, hold: Duration) -> anyhow::Result<Outcome> {
    let network = &test.cluster.network;
    let until = tokio::time::Instant::now() + hold + SILENCE;
    let (mut pulled, mut missed) = (0, 0);
    while tokio::time::Instant::now() < until {
        for out in [true, false] {
            network.act(move |namespaces| namespaces.pull(node, out)).await?;
            if out {
                pulled += 1;
                missed += u32::from(test.cluster.reasons(node).await.is_none());
            }
            tokio::time::sleep(Duration::from_millis(test.random.between(FLAP_MS))).await;
        }
    }
    let detail = format!("node {}: out {pulled} times, not reached {missed} times", node + 1);
    Ok(Outcome { effective: missed > 0, detail, ..Outcome::default() })
}

async fn move_clocks(test: &Test, plan: Plan, hold: Duration) -> anyhow::Result<bool> {
    let (cluster, random) = (&test.cluster, &test.random);
    if plan.fault == Fault::ClockJump {
        let nodes = 1 + random.below(NODES);
        let mut shown = false;
        for _ in 0..2 {
            let jumps: Vec<(usize, i64)> = (0..nodes).map(|n| ((plan.node + n) % NODES, clock::jump(random))).collect();
            shown |= jump(cluster, &jumps, hold / 2).await?;
        }
        return Ok(shown);
    }
    let deaf = plan.node;
    let ahead = clock::jump(random).abs();
    let jumps: Vec<(usize, i64)> = (0..NODES).filter(|node| *node != deaf).map(|node| (node, ahead)).collect();
    let cut = |_: usize, to: usize| (to == deaf).then_some(link::Mode::Hold);
    let disturbed = disturb(cluster, Duration::from_secs(3), cut).await?;
    // Longer than clients wait for an answer.
    let shown = jump(cluster, &jumps, Duration::from_secs(7)).await?;
    Ok(disturbed && shown)
}

/// Puts links into a mode and waits; returns whether anything met it.
async fn disturb(
    cluster: &Cluster,
    hold: Duration,
    mode: impl Fn(usize, usize) -> Option<link::Mode>,
) -> anyhow::Result<bool> {
    let before = cluster.network.disturbed().await?;
    let modes = pairs().filter_map(|(from, to)| Some(((from, to), mode(from, to)?)));
    cluster.network.set(modes.collect()).await?;
    tokio::time::sleep(hold).await;
    Ok(cluster.network.disturbed().await? > before)
}

/// Moves the clocks of nodes and waits; returns whether any of them shows it.
async fn jump(cluster: &Cluster, jumps: &[(usize, i64)], hold: Duration) -> anyhow::Result<bool> {
    for (node, offset) in jumps {
        cluster.set_clock(*node, *offset)?;
    }
    tokio::time::sleep(hold).await;
    let mut shown = false;
    for (node, offset) in jumps {
        shown |= cluster.shows_clock(*node, *offset).await;
    }
    Ok(shown)
}

/// Stops one node after the other with SIGTERM, each once all of them are ready.
async fn restart_all(cluster: &Cluster) -> anyhow::Result<Outcome> {
    let (mut restarted, mut slowest) = (0, Duration::ZERO);
    for node in 0..NODES {
        for other in 0..NODES {
            cluster.wait_ready(other).await?;
        }
        if let Some(took) = cluster.terminate(node).await? {
            restarted += 1;
            slowest = slowest.max(took);
        }
        cluster.revive(node)?;
    }
    for node in 0..NODES {
        cluster.wait_ready(node).await?;
    }
    let detail = format!("the slowest stop took {:.1} s", slowest.as_secs_f64());
    Ok(Outcome { effective: restarted == NODES, detail, ..Outcome::default() })
}

/// Takes what holds the tables. It had an effect if a store refused or lied, or packets to the service that was cut off were
/// lost; of a catalog that is down, if rows waited at a leader for a while although it committed others.
async fn take_tables(cluster: &Cluster, plan: Plan, hold: Duration) -> anyhow::Result<Outcome> {
    let (fault, all) = (plan.fault, (0..NODES).collect());
    let before = tables_disturbed(cluster, fault).await?;
    match fault {
        Fault::CatalogDown => cluster.set_catalog(false).await?,
        Fault::StoreDown => cluster.set_store(Mode::Down),
        Fault::StoreCut => cluster.network.cut(Service::Store, all).await?,
        Fault::StoreCutLeader => cluster.network.cut(Service::Store, vec![plan.node]).await?,
        Fault::CatalogCut => cluster.network.cut(Service::Catalog, all).await?,
        _ => cluster.set_store(Mode::Lies),
    }
    // What was on its way is through.
    tokio::time::sleep(FLUSHES_END).await;
    let watched = watch_tables(cluster, hold).await;
    let held = fault != Fault::CatalogDown || cluster.catalog_is_held().await?;
    cluster.set_store(Mode::Works);
    cluster.network.connect_services().await?;
    cluster.set_catalog(true).await?;
    let disturbed = tables_disturbed(cluster, fault).await?.saturating_sub(before);
    let effective = match fault {
        Fault::CatalogDown => held && watched.shows_outage(),
        // Packets that are lost while rows get through are somebody else's.
        Fault::CatalogCut => disturbed > 0 && watched.whole().flushed == 0,
        _ => disturbed > 0,
    };
    let Progress { committed, flushed, withheld } = watched.whole();
    let requests = match fault {
        Fault::CatalogDown if !held => ", but the catalog was not held".to_owned(),
        Fault::CatalogDown if effective && withheld == 0 => {
            "; at one that stayed for a part of the time they waited as long as it did".to_owned()
        }
        Fault::CatalogDown => String::new(),
        fault if fault.needs_namespaces() => format!(", {disturbed} packets lost"),
        _ => format!(", {disturbed} requests disturbed"),
    };
    let detail = format!(
        "{committed} entries were committed meanwhile at leaders that stayed; rows that waited got into the tables in \
         {flushed} groups, and not in {withheld}{requests}"
    );
    Ok(Outcome { effective, detail, ..Outcome::default() })
}

/// Waits for `hold`, and takes accounts from its begin to its end.
async fn watch_tables(cluster: &Cluster, hold: Duration) -> Watched {
    let begun = tokio::time::Instant::now();
    let mut watched = Watched::default();
    let accounts = cluster.accounts().await;
    let first = begun.elapsed();
    watched.add(Duration::ZERO..first, accounts);
    let until = first + hold;
    loop {
        tokio::time::sleep(ACCOUNT_INTERVAL.min(until.saturating_sub(begun.elapsed()))).await;
        let from = begun.elapsed();
        let accounts = cluster.accounts().await;
        watched.add(from..begun.elapsed(), accounts);
        if from >= until {
            return watched;
        }
    }
}

/// What a fault of catalog or store disturbed so far, and others like it: packets, or requests.
async fn tables_disturbed(cluster: &Cluster, fault: Fault) -> anyhow::Result<u64> {
    match fault {
        Fault::StoreCut | Fault::StoreCutLeader => cluster.network.lost_of(Service::Store).await,
        Fault::CatalogCut => cluster.network.lost_of(Service::Catalog).await,
        _ => Ok(cluster.store_disturbed()),
    }
}

/// Gives the leadership of the busiest group away as often as it goes. It had an effect if it moved again and again.
async fn move_leaders(test: &Test, hold: Duration) -> Outcome {
    let until = tokio::time::Instant::now() + hold + STORM;
    let (mut moved, mut refused) = (0, 0);
    while tokio::time::Instant::now() < until {
        match test.cluster.move_leader().await {
            Some(true) => moved += 1,
            Some(false) => refused += 1,
            None => {}
        }
        tokio::time::sleep(Duration::from_millis(test.random.between((20, 300)))).await;
    }
    let detail = format!("it was given away {moved} times, and refused {refused} times");
    Outcome { effective: moved > 2, detail, ..Outcome::default() }
}

/// Takes the power from machines. It had an effect if bytes of a log are gone: else a kill would have done the same.
async fn lose_power(test: &Test, nodes: &[usize], hold: Duration) -> anyhow::Result<Outcome> {
    let (cluster, random) = (&test.cluster, &test.random);
    let cut = match random.below(2) {
        0 => Cut::ProcessFirst,
        _ => Cut::DiskFirst(Duration::from_millis(random.between((0, 300)))),
    };
    let all = nodes.len() == NODES;
    if all {
        test.begin_blackout();
    }
    let ran = cluster.cut_power(nodes, cut).await?;
    tokio::time::sleep(hold / 2).await;
    let gone = cluster.restore_power(nodes, random).await?;
    if all {
        test.end_blackout();
    }
    for node in nodes {
        cluster.revive(*node)?;
    }
    for node in nodes {
        cluster.wait_whole(*node).await?;
    }
    let detail = format!("{}, {cut:?}: {gone} bytes of the log are gone", named(nodes));
    Ok(Outcome { effective: ran && gone > 0, detail, left: None })
}

fn named(nodes: &[usize]) -> String {
    match nodes {
        [node] => format!("node {}", node + 1),
        _ => "all nodes".to_owned(),
    }
}

/// Leaves less room than the reserve. It had an effect if the node said so.
async fn nearly_fill(cluster: &Cluster, node: usize, hold: Duration) -> anyhow::Result<Outcome> {
    let disk = cluster.disk(node)?;
    let filled = disk.clone();
    tokio::task::spawn_blocking(move || filled.fill(NEARLY_FULL_BYTES)).await??;
    let refused = says(cluster, node, "disk reserve", hold).await;
    tokio::task::spawn_blocking(move || disk.free()).await??;
    // It has no reason to end; if it does, that is held against it, and it is started again all the same.
    cluster.wait_whole(node).await?;
    let said = if refused { "it stopped ingest" } else { "it did not say so" };
    let detail = format!("node {}: {said}", node + 1);
    Ok(Outcome { effective: refused, detail, ..Outcome::default() })
}

/// Leaves no room at all. It had an effect if the node stopped ingest, or ended because a write failed.
async fn fill(cluster: &Cluster, node: usize, hold: Duration) -> anyhow::Result<Outcome> {
    let disk = cluster.disk(node)?;
    let ends = cluster.excused_deaths();
    cluster.excuse(node, true);
    let filled = disk.clone();
    tokio::task::spawn_blocking(move || filled.fill(0)).await??;
    let refused = says(cluster, node, "disk reserve", hold).await;
    tokio::task::spawn_blocking(move || disk.free()).await??;
    cluster.wait_whole(node).await?;
    let ended = cluster.excused_deaths() > ends;
    let said = match (refused, ended) {
        (_, true) => "it ended, and came back",
        (true, false) => "it stopped ingest",
        (false, false) => "it did not say so",
    };
    let detail = format!("node {}: {said}", node + 1);
    Ok(Outcome { effective: refused || ended, detail, ..Outcome::default() })
}

/// Whether a node gives this reason for not being ready at any time of `hold`, which is waited for.
async fn says(cluster: &Cluster, node: usize, reason: &str, hold: Duration) -> bool {
    let until = tokio::time::Instant::now() + hold;
    let mut said = false;
    while tokio::time::Instant::now() < until {
        let reasons = cluster.reasons(node).await.unwrap_or_default();
        said |= reasons.iter().any(|given| given.contains(reason));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    said
}

/// The disk answers in bursts.
async fn stutter(test: &Test, node: usize, hold: Duration) -> anyhow::Result<Outcome> {
    let (disk, random) = (test.cluster.disk(node)?, std::sync::Arc::clone(&test.random));
    let stalls = tokio::task::spawn_blocking(move || disk.stutter(&random, hold)).await??;
    let detail = format!("node {}: {stalls} stalls of up to 0.4 s", node + 1);
    Ok(Outcome { effective: stalls > 0, detail, ..Outcome::default() })
}

/// Damages the log of a node. It had an effect if the node noticed.
async fn damage_log(test: &Test, plan: Plan, hold: Duration) -> anyhow::Result<Outcome> {
    let (cluster, node) = (&test.cluster, plan.node);
    cluster.excuse(node, true);
    cluster.kill(node);
    let said_before = cluster.said_bytes(node);
    let (wal, random) = (cluster.wal(node), std::sync::Arc::clone(&test.random));
    let work = move || match plan.fault {
        Fault::TruncateSegment => damage::truncate(&wal, &random),
        _ => damage::flip_bit(&wal, &random),
    };
    let done = tokio::task::spawn_blocking(work).await??;
    tokio::time::sleep(hold / 2).await;
    cluster.revive(node)?;
    cluster.wait_whole(node).await?;
    let Some(damage) = done else {
        return Ok(Outcome { detail: format!("node {}: there was no such segment", node + 1), ..Outcome::default() });
    };
    let said = cluster.said(node, said_before);
    let noticed = damage.was_put_aside() || damage.newest && NOTICED.iter().any(|words| said.contains(words));
    let left = damage.is_left();
    let came_of_it = match (noticed, left) {
        (true, _) => "noticed",
        (false, true) => "not noticed yet",
        (false, false) => "gone before anybody looked",
    };
    let detail = format!("node {}: {}: {came_of_it}", node + 1, damage.what);
    Ok(Outcome { effective: noticed, detail, left: left.then_some((node, damage)) })
}
