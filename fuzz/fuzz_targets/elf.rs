#![no_main]

use headroom::fuzzing::read_any_elf;
use libfuzzer_sys::fuzz_target;

// A file of code, and an offset into it.
fuzz_target!(|input: (u16, &[u8])| read_any_elf(input.1, u64::from(input.0)));
