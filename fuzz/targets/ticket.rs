#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| signaldb_api::fuzzing::ticket(bytes));
