#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| headroom::fuzzing::sidecar_target(input));
