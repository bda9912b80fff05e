//! `headroom`: the agent, the adapter, and a demo of both. See `headroom --help`.

use std::process::ExitCode;

use clap::Parser;
use headroom::cli::Cli;

// AddressSanitizer sees the memory of its own allocator only: `make soak-sanitized`.
#[cfg(not(sanitized))]
headroom::profiled_jemalloc!();

fn main() -> ExitCode {
    match headroom::command::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // The whole chain on one line: what failed, and each cause.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
