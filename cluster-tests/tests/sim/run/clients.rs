//! Clients: each writes some rows, through any node, until it has an answer or gives up.

use std::time::Duration;

use signaldb_model::{Clock, SystemClock};

use super::{Phase, Simulation};
use crate::work::{Call, Write};
use crate::world::{Event, MILLI};

/// Attempts of a client at the same write.
const ATTEMPTS_MAX: u32 = 6;

impl Simulation {
    pub(super) fn client(&mut self, at: usize) -> Option<u64> {
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

    pub(super) fn open_nodes(&self) -> Vec<u64> {
        let open = self.machines.values().filter(|machine| machine.parts().is_some());
        open.map(|machine| machine.node).collect()
    }
}
