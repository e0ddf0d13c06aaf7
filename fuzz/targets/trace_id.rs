#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    signaldb_api::fuzzing::trace_id(bytes);
    signaldb_query::fuzzing::id(bytes);
});
