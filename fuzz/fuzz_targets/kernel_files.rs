#![no_main]

use headroom::fuzzing::read_any_text;
use libfuzzer_sys::fuzz_target;

// The files of /proc and /sys.
fuzz_target!(|text: &str| read_any_text(text));
