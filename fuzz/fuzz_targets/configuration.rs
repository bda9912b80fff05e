#![no_main]

use headroom::config::{AdapterConfig, AgentConfig, Inputs, KEYS, load};
use libfuzzer_sys::fuzz_target;

// A configuration file, and one variable of the environment: the first byte tells which.
fuzz_target!(|input: (u8, &str)| {
    let (choice, text) = input;
    let (file, value) = text.split_once('\0').unwrap_or((text, ""));
    let mut inputs = Inputs::default();
    if let Some(variable) = KEYS[usize::from(choice) % KEYS.len()].env.first() {
        inputs.environment.insert((*variable).to_owned(), value.to_owned());
    }
    let _ = load::<AgentConfig>(&inputs, Some(file)).map_err(|error| error.to_string());
    let _ = load::<AdapterConfig>(&inputs, Some(file)).map_err(|error| error.to_string());
});
