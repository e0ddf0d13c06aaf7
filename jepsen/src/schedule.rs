//! Which fault comes next, and on which node: decided here, made by [`crate::nemesis`].
//!
//! The promise is about a damaged *minority*. So no disk is damaged while another one is not whole again, which it is once
//! its node is ready, none of its groups recovers, and the damage was noticed or has gone with its segment. Beyond that
//! a node has one fault at a time, and only one fault at a time disturbs links, moves clocks, takes catalog or store, or
//! moves leaderships.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
}

impl Schedule {
    pub(crate) fn new(weights: Vec<(Fault, u32)>) -> Self {
        let first = weights.iter().map(|(fault, _)| *fault).collect();
        Self { first, weights, running: BTreeMap::new(), begun: 0, damaged: BTreeSet::new() }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::ALL;

    fn schedule(faults: &[Fault]) -> Schedule {
        Schedule::new(faults.iter().map(|fault| (*fault, 1)).collect())
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
        let mut schedule = Schedule::new(vec![(Fault::Kill, 1), (Fault::Ring, 9)]);
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
}
