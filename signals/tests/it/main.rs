//! Tests of the crate from outside: OTLP to Arrow to Parquet and back is the identity on records.

mod generate;
mod many_keys;
mod round_trip;
