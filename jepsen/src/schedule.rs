//! Which fault comes next, and on which node: decided here, made by [`crate::nemesis`].
//!
//! The promise is about a damaged *minority*. So no disk is damaged while another one is not whole again, which it is once
//! its node is ready, none of its groups recovers, and the damage was noticed or has gone with its segment. Beyond that
//! a node has one fault at a time, and only one fault at a time disturbs links, moves clocks, takes catalog or store, or
//! moves leaderships. If the scenario wants a majority, faults that overlap leave two nodes that run and reach each other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::checker::majority::{self, Parted};
use crate::cluster::NODES;
use crate::fault::{Fault, Target};
use crate::random::Random;

/// Of the faults that do one of these there is one at a time.
const ALONE: [fn(Fault) -> bool; 4] =
    [Fault::takes_links, Fault::moves_clocks, Fault::takes_tables, Fault::moves_leaders];
/// Nodes that may be damaged at the same time.
const MINORITY: usize = (NODES - 1) / 2;

/// A fault and its node; what is made on all nodes has one too, and need not look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) fault: Fault,
    pub(crate) node: usize,
}

impl Plan {
    /// Whose process or disk it takes.
    fn nodes(self) -> BTreeSet<usize> {
        match self.fault.target() {
            _ if !self.fault.takes_nodes() => BTreeSet::new(),
            Target::All => (0..NODES).collect(),
            Target::Leader | Target::One => BTreeSet::from([self.node]),
        }
    }

    /// Which pairs of nodes it parts, as far as that is known before it is made.
    fn parted(self) -> Parted {
        let anywhere = self.fault.target() == Target::All || self.fault == Fault::ClockJumpBeforeRetry;
        majority::parted(self.fault, (!anywhere).then_some(self.node))
    }
}

/// What runs, and what may come.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// Each fault comes once, in this order as far as it fits, before chance decides.
    first: VecDeque<Fault>,
    weights: Vec<(Fault, u32)>,
    running: BTreeMap<u64, Plan>,
    begun: u64,
    /// Nodes with damage that outlived its fault.
    damaged: BTreeSet<usize>,
    /// Faults that overlap leave one.
    majority: bool,
}

impl Schedule {
    pub(crate) fn new(weights: Vec<(Fault, u32)>, majority: bool) -> Self {
        let first = weights.iter().map(|(fault, _)| *fault).collect();
        Self { first, weights, running: BTreeMap::new(), begun: 0, damaged: BTreeSet::new(), majority }
    }

    /// Begins the next fault; `None` while nothing fits beside what runs.
    pub(crate) fn begin(&mut self, random: &Random, leader: Option<usize>) -> Option<(u64, Plan)> {
        let mut turns = self.first.iter().enumerate();
        let turn = turns.find_map(|(at, fault)| Some((at, self.place(*fault, random, leader)?)));
        let plan = match turn {
            Some((at, plan)) => {
                self.first.remove(at);
                plan
            }
            None => self.draw(random, leader)?,
        };
        self.begun += 1;
        self.running.insert(self.begun, plan);
        Some((self.begun, plan))
    }

    /// A fault is over, and its node whole again unless [`Schedule::set_damaged`] says that it is not.
    pub(crate) fn end(&mut self, id: u64) {
        self.running.remove(&id);
    }

    /// The nodes that still hold damage which nobody noticed.
    pub(crate) fn set_damaged(&mut self, nodes: BTreeSet<usize>) {
        self.damaged = nodes;
    }

    /// Whether a fault that runs took this node.
    pub(crate) fn takes(&self, node: usize) -> bool {
        self.running.values().any(|plan| plan.nodes().contains(&node))
    }

    fn draw(&self, random: &Random, leader: Option<usize>) -> Option<Plan> {
        let fits = |(fault, weight): &(Fault, u32)| Some((self.place(*fault, random, leader)?, *weight as usize));
        let fitting: Vec<(Plan, usize)> = self.weights.iter().filter_map(fits).collect();
        let mut left = random.below(fitting.iter().map(|(_, weight)| weight).sum());
        for (plan, weight) in fitting {
            if left < weight {
                return Some(plan);
            }
            left -= weight;
        }
        None
    }

    /// Where a fault may be made now.
    fn place(&self, fault: Fault, random: &Random, leader: Option<usize>) -> Option<Plan> {
        let some = random.below(NODES);
        let nodes: Vec<usize> = match fault.target() {
            Target::Leader => vec![leader.unwrap_or(some)],
            Target::All => vec![some],
            Target::One => (0..NODES).map(|n| (some + n) % NODES).collect(),
        };
        nodes.into_iter().map(|node| Plan { fault, node }).find(|plan| self.admits(*plan))
    }

    fn admits(&self, plan: Plan) -> bool {
        if self.majority && !self.leaves_majority(plan) {
            return false;
        }
        let (fault, nodes) = (plan.fault, plan.nodes());
        let mut damaged = self.damaged.clone();
        for other in self.running.values() {
            let both = |takes: &fn(Fault) -> bool| takes(fault) && takes(other.fault);
            if !nodes.is_disjoint(&other.nodes()) || ALONE.iter().any(both) {
                return false;
            }
            if other.fault.damages() {
                damaged.extend(other.nodes());
            }
        }
        if fault == Fault::PowerLossAll {
            // It leaves what was synced on every node: nothing else may be missing.
            return damaged.is_empty();
        }
        damaged.extend(nodes);
        !fault.damages() || damaged.len() <= MINORITY
    }

    /// Whether two nodes run and reach each other beside all that runs. What leaves no such pair by itself is meant to, and
    /// may come as long as nothing else parts any.
    fn leaves_majority(&self, plan: Plan) -> bool {
        let here = plan.parted();
        let others: Vec<Parted> = self.running.values().map(|other| other.parted()).filter(parts).collect();
        others.is_empty() || !parts(&here) || (0..NODES).any(|pair| !here[pair] && others.iter().all(|one| !one[pair]))
    }
}

fn parts(parted: &Parted) -> bool {
    parted.contains(&true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::ALL;
    use crate::scenario::Scenario;

    fn schedule(faults: &[Fault]) -> Schedule {
        Schedule::new(faults.iter().map(|fault| (*fault, 1)).collect(), false)
    }

    /// Nodes whose disks lack something.
    fn damaged(schedule: &Schedule) -> BTreeSet<usize> {
        let running = schedule.running.values().filter(|plan| plan.fault.damages());
        running.flat_map(|plan| plan.nodes()).chain(schedule.damaged.iter().copied()).collect()
    }

    #[test]
    fn a_second_disk_is_never_damaged_before_the_first_is_whole() {
        for seed in 0..200 {
            let (random, mut schedule, mut seen) = (Random::new(seed), schedule(&ALL), BTreeSet::new());
            for step in 1..=600 {
                let leader = (random.below(4) > 0).then(|| random.below(NODES));
                let begun = schedule.begin(&random, leader);
                seen.extend(begun.map(|(_, plan)| plan.fault));
                let all = schedule.running.values().any(|plan| plan.fault == Fault::PowerLossAll);
                let (most, alone) = (damaged(&schedule).len(), schedule.damaged.is_empty());
                assert!(if all { alone } else { most <= MINORITY }, "seed {seed}: {schedule:?}");
                let mut nodes = BTreeSet::new();
                assert!(schedule.running.values().flat_map(|plan| plan.nodes()).all(|node| nodes.insert(node)));
                let count =
                    |takes: &fn(Fault) -> bool| schedule.running.values().filter(|plan| takes(plan.fault)).count();
                assert!(ALONE.iter().all(|takes| count(takes) <= 1), "{schedule:?}");
                // As many end as begin, now and then all; one in three flipped bits is not noticed at once.
                let calm = step % 40 == 0;
                let ends = if calm { ALL.len() } else { random.below(3) };
                for _ in 0..ends {
                    let ids: Vec<u64> = schedule.running.keys().copied().collect();
                    let Some(id) = ids.get(random.below(ids.len())) else { continue };
                    let flipped = schedule.running[id].fault == Fault::BitFlip;
                    let left = (flipped && random.below(3) == 0).then(|| schedule.running[id].node);
                    schedule.end(*id);
                    if left.is_some() || random.below(3) == 0 {
                        schedule.set_damaged(left.into_iter().collect());
                    }
                }
                if calm {
                    schedule.set_damaged(BTreeSet::new());
                }
            }
            assert_eq!(seen.len(), ALL.len(), "seed {seed}: everything has its turn");
        }
    }

    #[test]
    fn damage_that_is_left_confines_further_damage_to_its_node() {
        let random = Random::new(1);
        let mut schedule = schedule(&[Fault::PowerLoss, Fault::PowerLossAll, Fault::KillAll]);
        schedule.set_damaged(BTreeSet::from([2]));
        for _ in 0..20 {
            let (id, plan) = schedule.begin(&random, Some(0)).expect("kills lose nothing");
            assert!(plan.fault == Fault::KillAll || plan == Plan { fault: Fault::PowerLoss, node: 2 }, "{plan:?}");
            schedule.end(id);
        }
        schedule.set_damaged(BTreeSet::new());
        let (_, plan) = schedule.begin(&random, Some(0)).expect("all are whole");
        assert_eq!(plan.fault, Fault::PowerLossAll, "its turn had to wait");
        assert_eq!(schedule.begin(&random, Some(0)), None, "every node is taken");
    }

    #[test]
    fn each_fault_comes_once_in_order_and_then_by_weight() {
        let random = Random::new(7);
        let mut schedule = Schedule::new(vec![(Fault::Kill, 1), (Fault::Ring, 9)], false);
        let mut order = Vec::new();
        for _ in 0..1000 {
            let (id, plan) = schedule.begin(&random, None).expect("nothing else runs");
            order.push(plan.fault);
            schedule.end(id);
        }
        assert_eq!(order[..2], [Fault::Kill, Fault::Ring]);
        let kills = order.iter().filter(|fault| **fault == Fault::Kill).count();
        assert!((50..200).contains(&kills), "{kills} of 1000");
    }

    #[test]
    fn a_fault_of_the_leader_waits_while_the_leader_has_another() {
        let random = Random::new(3);
        let mut schedule = schedule(&[Fault::PauseLeader, Fault::KillLeader, Fault::Kill]);
        let paused = schedule.begin(&random, Some(1)).expect("the first");
        assert_eq!(paused.1, Plan { fault: Fault::PauseLeader, node: 1 });
        let (_, killed) = schedule.begin(&random, Some(1)).expect("another node");
        assert!(killed.fault == Fault::Kill && killed.node != 1);
        schedule.end(paused.0);
        let (_, last) = schedule.begin(&random, Some(1)).expect("the leader is free");
        assert_eq!(last, Plan { fault: Fault::KillLeader, node: 1 });
    }

    #[test]
    fn where_a_majority_is_wanted_faults_that_overlap_leave_one() {
        for seed in 0..200 {
            let (random, mut together) = (Random::new(seed), 0);
            let mut schedule = Schedule::new(ALL.map(|fault| (fault, 1)).to_vec(), true);
            for _ in 0..400 {
                schedule.begin(&random, Some(random.below(NODES)));
                let taken: Vec<Parted> = schedule.running.values().map(|plan| plan.parted()).filter(parts).collect();
                let some = (0..NODES).any(|pair| taken.iter().all(|parted| !parted[pair]));
                assert!(some || taken.len() == 1, "seed {seed}: {:?}", schedule.running);
                together = together.max(schedule.running.len());
                let ids: Vec<u64> = schedule.running.keys().copied().collect();
                if ids.len() > random.below(4) {
                    schedule.end(ids[random.below(ids.len())]);
                }
            }
            assert!(together > 1, "seed {seed}: nothing ever overlapped");
        }
    }

    #[test]
    fn a_node_that_is_cut_off_may_die_beside_it_and_no_other() {
        let random = Random::new(5);
        let mut schedule = Schedule::new(vec![(Fault::IsolateLeader, 1), (Fault::Kill, 1), (Fault::KillAll, 1)], true);
        let (cut, _) = schedule.begin(&random, Some(2)).expect("the first");
        let (killed, plan) = schedule.begin(&random, Some(0)).expect("the same node");
        assert_eq!(plan, Plan { fault: Fault::Kill, node: 2 });
        assert_eq!(schedule.begin(&random, Some(0)), None, "all at once is for another time");
        schedule.end(cut);
        schedule.end(killed);
        assert_eq!(schedule.begin(&random, Some(0)).map(|(_, plan)| plan.fault), Some(Fault::KillAll));
    }

    /// Faults by kind that the scenario makes in its time, as the run makes them, if each takes as long as in a slow run.
    fn made(scenario: &Scenario, can: fn(Fault) -> bool, seed: u64) -> BTreeMap<Fault, usize> {
        let random = Random::new(seed);
        let faults = scenario.faults.iter().filter(|one| can(one.fault));
        let weights = faults.map(|one| (one.fault, one.weight)).collect();
        let (mut schedule, mut made) = (Schedule::new(weights, scenario.majority), BTreeMap::new());
        for (round, seconds) in scenario.rounds(scenario.seconds).into_iter().enumerate() {
            // Ends by time, milliseconds.
            let (mut running, mut now): (BTreeSet<(u64, u64)>, u64) = (BTreeSet::new(), 0);
            loop {
                while running.len() >= scenario.at_once.of(round) {
                    let Some((ended, id)) = running.pop_first() else { break };
                    schedule.end(id);
                    now = now.max(ended);
                }
                now += random.between(scenario.pause_ms);
                if now > seconds * 1000 {
                    break;
                }
                while let Some((_, id)) = running.first().copied().filter(|(ended, _)| *ended <= now) {
                    schedule.end(id);
                    running.pop_first();
                }
                let Some((id, plan)) = schedule.begin(&random, Some(random.below(NODES))) else { continue };
                *made.entry(plan.fault).or_default() += 1;
                running.insert((now + slow_ms(plan.fault) + random.between(scenario.hold_ms), id));
            }
            running.into_iter().for_each(|(_, id)| schedule.end(id));
        }
        made
    }

    /// How much longer than it is held a fault takes on a busy machine, milliseconds: nodes start, read their logs and are
    /// refilled, and clocks are looked at.
    fn slow_ms(fault: Fault) -> u64 {
        match fault {
            Fault::RollingRestart => 40_000,
            fault if fault.damages() => 20_000,
            fault if fault.moves_clocks() => 15_000,
            _ => 5_000,
        }
    }

    #[test]
    fn an_hour_of_everything_has_at_least_200_faults_of_at_least_12_kinds() -> anyhow::Result<()> {
        let scenario = Scenario::load("full")?;
        // Between two rounds everything heals, and is read once more.
        let between = 30 * scenario.rounds(scenario.seconds).len() as u64;
        let everywhere: fn(Fault) -> bool = |_| true;
        let without_root: fn(Fault) -> bool = |fault| !fault.needs_disks() && !fault.needs_namespaces();
        for (can, where_) in [(everywhere, "with all that can be"), (without_root, "without root")] {
            for seed in 0..20 {
                let by_kind = made(&scenario, can, seed);
                let faults = by_kind.values().sum::<usize>() as u64;
                let an_hour = faults * 3600 / (scenario.seconds + between);
                assert!(an_hour >= 200, "{where_}, seed {seed}: {an_hour}");
                assert!(by_kind.len() >= 12, "{where_}, seed {seed}: {by_kind:?}");
                assert_eq!(by_kind, made(&scenario, can, seed), "the same seed makes the same faults");
            }
        }
        Ok(())
    }
}
