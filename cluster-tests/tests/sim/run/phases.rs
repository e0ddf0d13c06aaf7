//! From one phase to the next: a cluster forms, things go wrong, everything heals, and what was promised is looked at.

use super::{CLIENTS, PATIENCE, Phase, Simulation};
use crate::node::{Machine, NODES, STOPPED};
use crate::os;
use crate::world::{Event, MILLI, SECOND};

impl Simulation {
    pub(super) fn look(&mut self) {
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
            if reason == STOPPED {
                self.world().count("orderly stops");
            } else {
                self.last_failure = format!("node {node} ended: {reason}");
                self.world().count("of them by themselves");
                self.distrust(node);
            }
            self.kill(node, None);
        }
    }

    fn heal(&mut self) {
        self.world().with(|state| {
            let free = state.lastings.end_all();
            state.move_on(&free);
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
    pub(super) fn complaints(&self) -> String {
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
