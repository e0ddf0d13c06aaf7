#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| signaldb_query::fuzzing::sql(bytes));
