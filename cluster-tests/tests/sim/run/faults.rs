//! What goes wrong, and when it is over.

use std::time::Duration;

use signaldb_wal::sim::Loss;

use super::Simulation;
use crate::lasting::Lasting;
use crate::node::NODES;
use crate::work::GROUP;
use crate::world::{Event, FailingDisk, MILLI, Operation, SECOND};

impl Simulation {
    /// Whether another node may lose what it did not sync: at level `quorum` one of three at a time.
    fn may_lose(&self, node: u64) -> bool {
        self.around.settings.fsync || self.others_are_whole(node)
    }

    /// Whether what this node has on its disk may be lost: not of two at a time, whatever the level.
    fn others_are_whole(&self, node: u64) -> bool {
        self.machines.values().all(|machine| machine.node == node || !machine.untrusted)
    }

    pub(super) fn fault(&mut self) {
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
                    state.last(Lasting::SlowDisk(node), last);
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
                    state.last(lasting, last);
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
                Some(machine) => machine.derange_clock(&mut self.chance, &world),
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
            state.last(Lasting::FailingDisk(node), last);
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
            state.last(Lasting::FullDisk(node), last);
        });
    }

    pub(super) fn distrust(&mut self, node: u64) {
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.untrusted = true;
        }
    }

    fn is_running(&self, node: u64) -> bool {
        self.machines.get(&node).is_some_and(|machine| machine.parts().is_some())
    }

    /// Ends the process of a node, and starts another one a little later.
    pub(super) fn kill(&mut self, node: u64, loss: Option<Loss>) {
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
            let number = state.last(Lasting::Partition, last);
            for other in NODES.into_iter().filter(|other| *other != node) {
                // Nothing comes from it, nothing comes to it, or neither.
                if kind != 1 {
                    state.lastings.hold(number, (node, other));
                }
                if kind != 0 {
                    state.lastings.hold(number, (other, node));
                }
            }
        });
    }

    fn transfer(&mut self) {
        let Some(target) = self.chance.pick(&NODES) else { return };
        for machine in self.machines.values().filter(|machine| machine.node != target) {
            let (Some(parts), Some(process)) = (machine.parts(), machine.process.as_ref()) else { continue };
            let Some(group) = parts.groups.group(GROUP).filter(|group| group.leadership().here) else { continue };
            let world = self.around.world.clone();
            drop(process.runtime.spawn(async move {
                // That it may fail is the point.
                if Box::pin(group.transfer(target, Duration::from_secs(2))).await.is_ok() {
                    world.count("leaderships given away");
                }
            }));
        }
    }

    /// What began under this number is over, if nothing newer of its kind took its place.
    pub(super) fn end(&mut self, lasting: Lasting, number: u64) {
        let over = self.world().with(|state| match lasting {
            Lasting::Partition => {
                let free = state.lastings.release(number);
                state.move_on(&free);
                !free.is_empty()
            }
            _ => state.lastings.end(lasting, number),
        });
        if !over {
            return;
        }
        if let Lasting::FullDisk(node) = lasting
            && let Some(machine) = self.machines.get(&node)
        {
            machine.disk.set_capacity(None);
        }
        self.world().with(|state| {
            match lasting {
                Lasting::Partition => {}
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
}
