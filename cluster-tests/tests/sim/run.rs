//! One simulation: three nodes, clients and readers, and faults, all of it drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use signaldb_model::{Clock, Position, SystemClock};
use signaldb_raft::WriteError;
use signaldb_wal::sim::Loss;

use crate::ledger::Ledger;
use crate::node::{Around, Machine, NODES, STOPPED, Settings};
use crate::os::{self, NeverIdle};
use crate::tables::Tables;
use crate::work::{Call, Files, GROUP, Level, Reader, Write};
use crate::world::{Chance, Event, FailingDisk, Lasting, MILLI, Operation, SECOND, World};

const CLIENTS: usize = 4;
/// How often all nodes are looked at.
const LOOK_INTERVAL: u64 = 50 * MILLI;
/// How long nodes may take to form a cluster, or to become well again once nothing is wrong any more.
const PATIENCE: u64 = 90 * SECOND;
/// Attempts of a client at the same write.
const ATTEMPTS_MAX: u32 = 6;
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
            Event::End(lasting) => {
                self.end(lasting);
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

    // --- clients

    fn client(&mut self, at: usize) -> Option<u64> {
        self.answered(at);
        let pause = self.chance.between(5 * MILLI, 120 * MILLI);
        // Whoever has an answer ends with the faults.
        let over = !matches!(self.phase, Phase::Faults) && self.clients[at].write.is_none();
        self.clients[at].resting = over;
        if over {
            return None;
        }
        let open: Vec<u64> = self.open_nodes();
        let Some(node) = self.chance.pick(&open) else {
            self.world().after(100 * MILLI, Event::Client(at));
            return None;
        };
        let write = match self.clients[at].write.take() {
            Some(again) => again,
            None => {
                self.written += 1;
                let count = self.chance.between(1, 4);
                let write = Write::new(self.written, count, SystemClock.now());
                self.around.ledger.attempts(&write.table, &write.rows);
                write
            }
        };
        let machine = self.machines.get(&node)?;
        let (parts, process) = (machine.parts()?.clone(), machine.process.as_ref()?);
        let (call, reply) = Call::new(self.world(), Event::Client(at));
        let request = write.clone();
        drop(process.runtime.spawn(async move {
            // A moment for whoever does this for a living.
            tokio::time::sleep(Duration::from_nanos(pause)).await;
            reply.give(Box::pin(request.perform(parts)).await);
        }));
        self.clients[at].write = Some(write);
        self.clients[at].call = Some(call);
        Some(node)
    }

    /// Takes the answer to the last call of a client, if there was one.
    fn answered(&mut self, at: usize) {
        let Some(call) = self.clients[at].call.take() else { return };
        let Some(mut write) = self.clients[at].write.take() else { return };
        match call.take() {
            Some(Ok(position)) => {
                let Write { table, rows, payload, .. } = &write;
                self.world().note(format_args!("acknowledged {at} {} at {position}", rows[0]));
                self.around.ledger.acknowledged(table, rows, payload, position);
                return;
            }
            Some(Err(error)) => self.world().note(format_args!("not acknowledged {at} {} {error}", write.rows[0])),
            None => self.world().note(format_args!("no answer {at} {}", write.rows[0])),
        }
        write.attempts += 1;
        if write.attempts < ATTEMPTS_MAX {
            self.clients[at].write = Some(write);
        } else {
            self.world().count("given up");
        }
    }

    fn open_nodes(&self) -> Vec<u64> {
        let open = self.machines.values().filter(|machine| machine.parts().is_some());
        open.map(|machine| machine.node).collect()
    }

    // --- readers

    fn reader(&mut self) -> Option<u64> {
        self.has_read();
        if self.phase == Phase::Done {
            return None;
        }
        let checking = self.phase == Phase::Checking;
        let level = match checking {
            false => self.level(),
            true if self.unread.is_none() => Some(Level::Flushed),
            true => Some(Level::Strong),
        };
        let mut nodes = self.open_nodes();
        nodes.retain(|node| level != Some(Level::Flushed) || self.leads(*node));
        nodes.retain(|node| !checking || self.unread.as_ref().is_none_or(|unread| unread.contains(node)));
        let Some(node) = self.chance.pick(&nodes) else {
            self.world().after(200 * MILLI, Event::Reader);
            return None;
        };
        let pause = Duration::from_nanos(self.chance.between(100 * MILLI, 700 * MILLI));
        let machine = self.machines.get(&node)?;
        let reader = Reader {
            parts: machine.parts()?.clone(),
            ledger: self.around.ledger.clone(),
            world: self.around.world.clone(),
            files: Arc::clone(&self.files),
        };
        let (call, reply) = Call::new(self.world(), Event::Reader);
        drop(machine.process.as_ref()?.runtime.spawn(async move {
            tokio::time::sleep(pause).await;
            let who = format!("node {node}");
            let read = async {
                match level {
                    None => reader.read_index(who).await,
                    Some(level) => Box::pin(reader.read_tables(who, level)).await,
                }
            };
            // A call of a store that hangs is not waited for.
            let limit = Duration::from_secs(if checking { 30 } else { 8 });
            let outcome = tokio::time::timeout(limit, Box::pin(read)).await;
            reply.give(outcome.unwrap_or_else(|_| Err("no answer in time".to_owned())));
        }));
        self.read = Some(Read { node, last: checking, call });
        Some(node)
    }

    /// Takes the outcome of the read that was on its way.
    fn has_read(&mut self) {
        let Some(Read { node, last, call }) = self.read.take() else { return };
        match call.take() {
            Some(Ok(())) => self.world().count("reads"),
            Some(Err(reason)) => {
                self.world().note(format_args!("no read {reason}"));
                self.last_failure = reason;
                return;
            }
            None => return,
        }
        if last {
            let unread = self.unread.get_or_insert_with(|| NODES.into());
            unread.remove(&node);
            if unread.is_empty() {
                self.phase = Phase::Done;
            }
        }
    }

    /// What the next read asks for while things go wrong; `None`: for a read index alone.
    fn level(&mut self) -> Option<Level> {
        match self.chance.below(100) {
            0..20 => None,
            20..40 => Some(Level::Position),
            40..50 => Some(Level::Eventual),
            _ => Some(Level::Strong),
        }
    }

    fn leads(&self, node: u64) -> bool {
        let group = self.machines.get(&node).and_then(Machine::parts).and_then(|parts| parts.groups.group(GROUP));
        group.is_some_and(|group| group.leadership().here)
    }

    // --- faults

    /// Whether another node may lose what it did not sync: at level `quorum` one of three at a time.
    fn may_lose(&self, node: u64) -> bool {
        self.around.settings.fsync || self.others_are_whole(node)
    }

    /// Whether what this node has on its disk may be lost: not of two at a time, whatever the level.
    fn others_are_whole(&self, node: u64) -> bool {
        self.machines.values().all(|machine| machine.node == node || !machine.untrusted)
    }

    fn fault(&mut self) {
        let Some(node) = self.chance.pick(&NODES) else { return };
        let world = self.around.world.clone();
        let name = match self.chance.below(21) {
            0 | 1 => {
                self.kill(node, None);
                "kill"
            }
            2 => {
                NODES.into_iter().for_each(|node| self.kill(node, None));
                "kill all"
            }
            3 | 4 if self.may_lose(node) => {
                let kept = usize::try_from(self.chance.below(400)).unwrap_or(0);
                let losses = [Loss::All, Loss::KeepPrefix(kept), Loss::ZerosAfter(kept)];
                let loss = self.chance.pick(&losses);
                self.kill(node, loss);
                "power loss"
            }
            5 if self.around.settings.fsync => {
                NODES.into_iter().for_each(|node| self.kill(node, Some(Loss::All)));
                "power loss everywhere"
            }
            6 if self.may_lose(node) && self.is_running(node) => {
                self.fail_disk(node, Operation::Sync, 1);
                "EIO of a sync"
            }
            7 => {
                let last = self.chance.between(500 * MILLI, 4 * SECOND);
                let slow = self.chance.between(50 * MILLI, 1500 * MILLI);
                world.with(|state| {
                    state.trouble.slow_disks.insert(node, slow);
                    state.after(last, Event::End(Lasting::SlowDisk(node)));
                });
                "slow disk"
            }
            8 | 9 => {
                self.partition(node);
                "partition"
            }
            10 => {
                let other = NODES[usize::try_from(node).unwrap_or(0) % NODES.len()];
                let broken = world.with(|state| state.break_wires(node, other));
                world.note(format_args!("{broken} connections of {node} and {other} break"));
                "connections break"
            }
            11 => {
                let (failing, last) = (self.chance.between(20, 101), self.chance.between(500 * MILLI, 6 * SECOND));
                let of_store = self.chance.percent(50);
                world.with(|state| {
                    if of_store {
                        state.trouble.store = failing;
                    } else {
                        state.trouble.catalog = failing;
                    }
                    let lasting = if of_store { Lasting::Store } else { Lasting::Catalog };
                    state.after(last, Event::End(lasting));
                });
                if of_store { "store fails" } else { "catalog fails" }
            }
            12 => {
                self.transfer();
                "leader transfer"
            }
            13 | 14 if self.may_lose(node) => {
                // The mark that a process leaves when it fails may fail, too.
                let left = self.chance.between(1, 3);
                self.fail_disk(node, Operation::Change, left);
                "EIO of a write"
            }
            15 | 16 if self.others_are_whole(node) => {
                let (reads, left) = (self.chance.percent(70), self.chance.between(1, 30));
                let operation = if reads { Operation::Read } else { Operation::Open };
                self.fail_disk(node, operation, if reads { left } else { 1 });
                // Little is read but by a start.
                let loss = self.chance.percent(30).then_some(Loss::All);
                self.kill(node, loss);
                if reads { "EIO of reads" } else { "EIO of an open" }
            }
            17 if self.may_lose(node) => {
                self.fill_disk(node);
                "disk full"
            }
            18 | 19 => match self.machines.get_mut(&node) {
                Some(machine) => machine.derange_clock(&mut self.chance),
                None => return,
            },
            _ => {
                if let Some(machine) = self.machines.get_mut(&node).filter(|machine| machine.ended().is_none()) {
                    machine.stop();
                }
                "stop"
            }
        };
        world.with(|state| {
            state.note(format_args!("fault {name} {node}"));
            *state.faults.entry(name).or_default() += 1;
        });
    }

    /// From now on, for a while, so many operations of a disk fail.
    fn fail_disk(&mut self, node: u64, operation: Operation, left: u64) {
        let last = self.chance.between(500 * MILLI, 5 * SECOND);
        self.distrust(node);
        self.world().with(|state| {
            state.trouble.failing_disks.insert(node, FailingDisk { operation, left });
            state.after(last, Event::End(Lasting::FailingDisk(node)));
        });
    }

    /// Something else takes the room on a disk, for a while: all of it, or as much as the node notices.
    fn fill_disk(&mut self, node: u64) {
        let room = self.chance.pick(&[0, 200, 4 << 10, 20 << 10, 60 << 10]).unwrap_or(0);
        let last = self.chance.between(500 * MILLI, 5 * SECOND);
        self.distrust(node);
        let Some(machine) = self.machines.get(&node) else { return };
        machine.disk.set_capacity(Some(machine.disk.used_bytes() + room));
        self.world().with(|state| {
            state.trouble.full_disks.insert(node);
            state.after(last, Event::End(Lasting::FullDisk(node)));
        });
    }

    fn distrust(&mut self, node: u64) {
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.untrusted = true;
        }
    }

    fn is_running(&self, node: u64) -> bool {
        self.machines.get(&node).is_some_and(|machine| machine.parts().is_some())
    }

    /// Ends the process of a node, and starts another one a little later.
    fn kill(&mut self, node: u64, loss: Option<Loss>) {
        let world = self.around.world.clone();
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if machine.process.is_none() {
            return;
        }
        machine.kill(&world, loss);
        world.count(if loss.is_some() { "power failed" } else { "processes ended" });
        let down = self.chance.between(50 * MILLI, 4 * SECOND);
        world.after(down, Event::Start(node));
    }

    fn partition(&mut self, node: u64) {
        let (last, kind) = (self.chance.between(300 * MILLI, 7 * SECOND), self.chance.below(3));
        self.world().with(|state| {
            for other in NODES.into_iter().filter(|other| *other != node) {
                // Nothing comes from it, nothing comes to it, or neither.
                if kind != 1 {
                    state.hold(node, other);
                }
                if kind != 0 {
                    state.hold(other, node);
                }
            }
            state.after(last, Event::End(Lasting::Partition));
        });
    }

    fn transfer(&mut self) {
        let Some(target) = self.chance.pick(&NODES) else { return };
        for machine in self.machines.values().filter(|machine| machine.node != target) {
            let (Some(parts), Some(process)) = (machine.parts(), machine.process.as_ref()) else { continue };
            let Some(group) = parts.groups.group(GROUP).filter(|group| group.leadership().here) else { continue };
            drop(process.runtime.spawn(async move {
                // That it may fail is the point.
                let _ = Box::pin(group.transfer(target, Duration::from_secs(2))).await;
            }));
        }
    }

    fn end(&mut self, lasting: Lasting) {
        if let Lasting::FullDisk(node) = lasting
            && let Some(machine) = self.machines.get(&node)
        {
            machine.disk.set_capacity(None);
        }
        self.world().with(|state| {
            match lasting {
                Lasting::Partition => state.release_all(),
                Lasting::SlowDisk(node) => {
                    state.trouble.slow_disks.remove(&node);
                }
                Lasting::FailingDisk(node) => {
                    state.trouble.failing_disks.remove(&node);
                }
                Lasting::FullDisk(node) => {
                    state.trouble.full_disks.remove(&node);
                }
                Lasting::Catalog => state.trouble.catalog = 0,
                Lasting::Store => state.trouble.store = 0,
            }
            state.note(format_args!("over: {lasting:?}"));
        });
    }

    // --- phases

    fn look(&mut self) {
        self.bury();
        let well = self.machines.values().all(Machine::is_well);
        let world = self.around.world.clone();
        for machine in self.machines.values_mut().filter(|machine| machine.untrusted) {
            machine.untrusted = world.with(|state| state.is_disk_bad(machine.node)) || !machine.is_well();
        }
        match self.phase {
            Phase::Forming if well => {
                self.enter(Phase::Faults, self.seconds * SECOND + PATIENCE);
                self.world().with(|state| {
                    for client in 0..CLIENTS {
                        state.after(0, Event::Client(client));
                    }
                    state.after(0, Event::Reader);
                    state.after(SECOND, Event::Fault);
                });
                let over = os::now() + self.seconds * SECOND;
                self.deadline = over + PATIENCE;
            }
            Phase::Faults if os::now() + PATIENCE >= self.deadline => {
                self.enter(Phase::Healing, PATIENCE);
                self.heal();
            }
            Phase::Healing => {
                let resting = self.clients.iter().all(|client| client.resting);
                if well && resting {
                    self.enter(Phase::Checking, PATIENCE);
                }
            }
            _ => {}
        }
    }

    fn enter(&mut self, phase: Phase, patience: u64) {
        self.world().note(format_args!("{phase:?}"));
        self.phase = phase;
        self.deadline = os::now() + patience;
    }

    /// Processes that have come to their end make room for others.
    fn bury(&mut self) {
        for node in NODES {
            let Some(reason) = self.machines.get(&node).and_then(|machine| machine.ended()).map(str::to_owned) else {
                continue;
            };
            self.world().note(format_args!("ended {node} {reason}"));
            if reason != STOPPED {
                self.last_failure = format!("node {node} ended: {reason}");
                self.world().count("of them by themselves");
                self.distrust(node);
            }
            self.kill(node, None);
        }
    }

    fn heal(&mut self) {
        self.world().with(|state| {
            state.release_all();
            state.trouble = crate::world::Trouble::default();
        });
        for machine in self.machines.values_mut() {
            machine.disk.set_capacity(None);
            // What the clocks on the wall show stays wrong: nobody may mind.
            machine.clocks.set_drift(0);
        }
        for node in NODES {
            self.world().after(MILLI, Event::Start(node));
        }
        self.touch_all();
    }

    /// What is not as it should be, for whoever has to find out why.
    fn complaints(&self) -> String {
        let mut complaints = vec![self.last_failure.clone()];
        for machine in self.machines.values() {
            let state = match machine.parts() {
                _ if machine.process.is_none() => "is down".to_owned(),
                None => "is not open".to_owned(),
                Some(parts) => format!("{:?} {:?}", parts.groups.not_ready(), parts.groups.statuses()),
            };
            complaints.push(format!("node {} {state}", machine.node));
        }
        complaints.join("; ")
    }
}
