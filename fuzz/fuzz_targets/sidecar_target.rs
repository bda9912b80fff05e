#![no_main]

use headroom::fuzzing::read_any_target;
use libfuzzer_sys::fuzz_target;

// The metrics of the service beside a sidecar.
fuzz_target!(|body: &[u8]| read_any_target(body));
