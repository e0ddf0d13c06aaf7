//! Assembly of a SignalDB node: configuration, start and stop, command line.
//!
//! Start with [`config::Config`] for what can be set and [`run::run`] for what a node is made of.

mod banner;
pub mod cli;
mod cluster;
pub mod config;
mod data_dir;
mod disk;
mod metrics;
mod peer_port;
mod query;
mod run;
mod sql;
mod table;
mod wal;
