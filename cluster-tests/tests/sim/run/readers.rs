//! The reader: one read after the other, through any node; at the end through each of them.

use std::sync::Arc;
use std::time::Duration;

use super::{Phase, Read, Simulation};
use crate::node::{Machine, NODES};
use crate::work::{Call, GROUP, Level, Reader};
use crate::world::{Event, MILLI};

impl Simulation {
    pub(super) fn reader(&mut self) -> Option<u64> {
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
}
