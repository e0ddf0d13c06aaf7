#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| signaldb_api::fuzzing::otlp_json(bytes));
