//! One simulation: three nodes, [`clients`] and [`readers`], and [`faults`], all of it drawn from one seed, in [`phases`].

mod clients;
mod faults;
mod phases;
mod readers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use signaldb_model::Position;
use signaldb_raft::WriteError;

use crate::ledger::Ledger;
use crate::node::{Around, Machine, NODES, Settings};
use crate::os::{self, NeverIdle};
use crate::tables::Tables;
use crate::work::{Call, Files, Write};
use crate::world::{Chance, Event, MILLI, SECOND, World};

const CLIENTS: usize = 4;
/// How often all nodes are looked at.
const LOOK_INTERVAL: u64 = 50 * MILLI;
/// How long nodes may take to form a cluster, or to become well again once nothing is wrong any more.
const PATIENCE: u64 = 90 * SECOND;
/// A simulation that takes more steps than this within a second is going round in circles: it takes thousands.
const STEPS_A_SECOND_MAX: u64 = 1_000_000;

/// What is asked of a simulation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// How long things go wrong, in simulated time.
    pub(crate) seconds: u64,
    /// Prints every event.
    pub(crate) print: bool,
}

/// What a simulation came to.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) digest: u64,
    pub(crate) events: u64,
    pub(crate) steps: u64,
    pub(crate) acknowledged: usize,
    pub(crate) attempted: usize,
    pub(crate) elapsed: Duration,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) violation: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Until a cluster serves.
    Forming,
    Faults,
    /// Nothing is wrong any more; clients come to an end.
    Healing,
    /// What was promised is read once more.
    Checking,
    Done,
}

#[derive(Default)]
struct Client {
    write: Option<Write>,
    call: Option<Call<Result<Position, WriteError>>>,
    resting: bool,
}

/// A read through a node.
struct Read {
    node: u64,
    /// One of the last, which have to see everything.
    last: bool,
    call: Call<Result<(), String>>,
}

struct Simulation {
    around: Around,
    /// What goes wrong; apart from what the world draws, so that a change of the code leaves the faults as they are.
    chance: Chance,
    machines: BTreeMap<u64, Machine>,
    clients: Vec<Client>,
    /// On its way.
    read: Option<Read>,
    /// Nodes that the last reads did not go through yet; `None` before there was one of files alone.
    unread: Option<BTreeSet<u64>>,
    files: Files,
    phase: Phase,
    /// When the phase must be over.
    deadline: u64,
    seconds: u64,
    written: u64,
    /// Why the last check came to nothing.
    last_failure: String,
}

/// Runs the simulation of a plan on this thread, which serves nothing else afterwards.
pub(crate) fn run(plan: Plan, panicked: &dyn Fn() -> bool) -> Report {
    os::begin(plan.seed);
    let world = World::new(plan.seed, plan.print);
    let mut simulation = Simulation::new(plan, world.clone());
    let (mut steps, mut second) = (0, (0, 0));
    while simulation.phase != Phase::Done && world.violation().is_none() {
        simulation.step();
        steps += 1;
        if panicked() {
            world.violate("a task panicked".to_owned());
        }
        let now = os::elapsed().as_secs();
        second = if second.0 == now { (now, second.1 + 1) } else { (now, 0) };
        if second.1 > STEPS_A_SECOND_MAX {
            world.violate("the simulation comes to no end".to_owned());
        }
    }
    let (digest, events) = world.trace();
    let (acknowledged, attempted) = simulation.around.ledger.rows();
    let (faults, counts) = world.with(|state| (state.faults.clone(), state.counts.clone()));
    let report = Report {
        digest,
        events,
        steps,
        acknowledged,
        attempted,
        elapsed: os::elapsed(),
        faults,
        counts,
        violation: world.violation(),
    };
    // As if all were killed: nobody is to write anything any more.
    simulation.machines.values_mut().for_each(|machine| machine.kill(&world, None));
    report
}

impl Simulation {
    fn new(plan: Plan, world: World) -> Self {
        let mut chance = Chance::new(plan.seed ^ 0x4641_554c_5453);
        let settings = Settings::draw(&mut chance);
        world.note(format_args!("{settings:?}"));
        let tables: Arc<Tables> = Arc::default();
        let ledger = Ledger::new(world.clone());
        let machines = NODES.into_iter().map(|node| (node, Machine::new(node, &mut chance))).collect();
        for node in NODES {
            world.after(chance.below(300 * MILLI), Event::Start(node));
        }
        world.after(LOOK_INTERVAL, Event::Look);
        Self {
            around: Around { world, tables, ledger, settings },
            chance,
            machines,
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            read: None,
            unread: None,
            files: Files::default(),
            phase: Phase::Forming,
            deadline: os::now() + PATIENCE,
            seconds: plan.seconds,
            written: 0,
            last_failure: String::new(),
        }
    }

    fn world(&self) -> &World {
        &self.around.world
    }

    /// Whatever comes next, and all that follows from it at that moment.
    fn step(&mut self) {
        let timers =
            self.machines.values().filter_map(|machine| Some((machine.process.as_ref()?.deadline?, machine.node)));
        let timer = timers.min();
        match (self.world().next_at(), timer) {
            (Some(at), timer) if timer.is_none_or(|(deadline, _)| at <= deadline) => {
                os::advance_to(at);
                if let Some(event) = self.world().take_event() {
                    let node = self.happen(event);
                    self.world().with(|state| state.touched.extend(node));
                }
            }
            (_, Some((deadline, node))) => {
                os::advance_to(deadline);
                self.world().with(|state| state.touched.insert(node));
            }
            // A look is always due.
            (_, None) => self.world().violate("the simulation stands still".to_owned()),
        }
        while let Some(node) = self.world().with(|state| state.touched.pop_first()) {
            self.run_node(node);
        }
        if os::now() > self.deadline {
            self.world().violate(format!("{:?} takes too long: {}", self.phase, self.complaints()));
        }
    }

    fn run_node(&mut self, node: u64) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if machine.run() == Err(NeverIdle) {
            return self.around.world.violate(format!("node {node} never becomes idle"));
        }
        let Some(parts) = machine.parts() else { return };
        for group in parts.groups.data_groups() {
            let seen = group.leadership();
            if seen.here {
                self.around.ledger.leads(node, group.id().0, seen.term);
            }
        }
    }

    /// Does what is due; returns a node that may have something to do now.
    fn happen(&mut self, event: Event) -> Option<u64> {
        let world = self.around.world.clone();
        match event {
            Event::Deliver { connection, to_called } => world.with(|state| state.deliver(connection, to_called)),
            Event::Connect { connection } => world.with(|state| state.call_arrives(connection)),
            Event::Connected { connection, accepted } => world.with(|state| state.call_answered(connection, accepted)),
            Event::Client(client) => self.client(client),
            Event::Reader => self.reader(),
            Event::LateSwap(swaps) => {
                self.around.tables.swap_late(&world, &swaps);
                None
            }
            Event::Start(node) => {
                let machine = self.machines.get_mut(&node)?;
                if machine.process.is_none() {
                    machine.start(&self.around);
                }
                Some(node)
            }
            Event::Fault => {
                if self.phase == Phase::Faults {
                    self.fault();
                    let pause = self.chance.between(200 * MILLI, 2500 * MILLI);
                    world.after(pause, Event::Fault);
                }
                self.touch_all();
                None
            }
            Event::End(lasting, number) => {
                self.end(lasting, number);
                self.touch_all();
                None
            }
            Event::Look => {
                world.after(LOOK_INTERVAL, Event::Look);
                self.look();
                None
            }
        }
    }

    fn touch_all(&self) {
        self.world().with(|state| state.touched.extend(NODES));
    }
}
