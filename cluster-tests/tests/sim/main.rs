//! Deterministic simulation of a cluster (docs/adr/0016-simulation.md).
//!
//! Three nodes run on one thread: the server's own log, groups, recovery gate, peer port, memtables, flushes and reads, on
//! simulated disks, network, clocks, catalog and object store, while a schedule of faults goes on. All of it follows from a
//! seed: whoever runs a seed again sees the same events. Each seed is a process of its own, for a process has more memory
//! than its authors think; as many run at a time as there are cores.
//!
//! ```text
//! make sim SEEDS=200            seeds 1 to 200
//! make sim SEED=1234            one, with every event printed
//! make sim SEEDS=5000 FROM=1000 SECONDS=60
//! ```
//!
//! `drive.rs` is what runs many, `run.rs` what one is.

#[cfg(target_os = "linux")]
mod arguments;
#[cfg(target_os = "linux")]
mod child;
#[cfg(target_os = "linux")]
mod disk;
#[cfg(target_os = "linux")]
mod drive;
#[cfg(target_os = "linux")]
mod ledger;
#[cfg(target_os = "linux")]
mod net;
#[cfg(target_os = "linux")]
mod node;
#[cfg(target_os = "linux")]
mod os;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod tables;
#[cfg(target_os = "linux")]
mod work;
#[cfg(target_os = "linux")]
mod world;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    drive::main()
}

/// The functions of the C library that are simulated are those of Linux.
#[cfg(not(target_os = "linux"))]
fn main() {}
