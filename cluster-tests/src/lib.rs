//! Tests of whole nodes as processes, through their public ports. See `tests/it/main.rs`.
