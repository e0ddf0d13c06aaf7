//! The clients of a round, and how many of each workload there are.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::cluster::NODES;
use crate::scenario::Workload;
use crate::workload::{self, Test, isolation, log, register};

pub(super) fn start_clients(test: &Test, workloads: &[Workload]) -> JoinSet<anyhow::Result<()>> {
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
