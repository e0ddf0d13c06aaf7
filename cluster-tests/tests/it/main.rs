//! Scenarios on real `signaldb` processes: each starts its own node on free ports in its own directory, waits for
//! conditions, and ends the node by its own process id.
//!
//! The binary is the one that was built beside these tests, or `SIGNALDB_BIN`. Sizes are for CI; `SIGNALDB_TEST_SCALE`
//! multiplies them (the closing walk of the first issue ran at full size on the release binary).

mod access;
mod bad_input;
mod budgets;
mod clients;
mod cluster;
mod crash;
mod crate_graph;
mod deploy_files;
mod deployment;
mod disk_faults;
mod distributed;
mod ext4;
mod fixtures;
mod flight_sql;
mod foreign;
mod freshness;
mod iceberg_rest;
mod intake;
mod large_requests;
mod lifecycle;
mod lost_leader;
mod maintenance;
mod mutations;
mod named_tests;
mod node;
mod object_store;
mod old_copy;
mod otlp;
mod outage;
mod peer_port;
mod power_loss;
mod promotion;
mod pruning;
mod query_page;
mod reading;
mod recover;
mod recovery_model;
mod rust_sdk;
mod scans;
mod sim_arguments;
mod sim_lasting;
mod sim_thresholds;
mod spans;
mod sql_shell;
mod store_faults;
mod tempo;
mod tempo_budgets;
mod three_nodes;
mod time_travel;
mod transfer_leader;
mod wal_cli;
