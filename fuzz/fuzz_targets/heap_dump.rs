#![no_main]

use headroom::fuzzing::read_any_dump;
use libfuzzer_sys::fuzz_target;

// The text that jemalloc dumps.
fuzz_target!(|text: &str| read_any_dump(text));
