//! Tests of whole nodes as processes, through their public ports: see `tests/it/main.rs`; and of simulated ones: see
//! `tests/sim/main.rs`.
