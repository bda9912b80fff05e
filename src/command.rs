//! One composition root per subcommand: each builds its rooms, joins them, and owns every task it starts.

use std::process::ExitCode;

use crate::cli::{Cli, Command};

pub mod adapter;
pub mod agent;
#[cfg(test)]
mod asked_metrics;
mod configured;
mod conformance;
mod dashboards;
pub mod demo;
mod rules;
mod shutdown;

/// Runs the subcommand until it ends or the process is told to end (SIGINT, SIGTERM), and says how the process should end.
///
/// # Errors
/// Whatever the subcommand could not do, with its causes.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    // Every TLS client and server of the program uses ring; an error only says that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Conformance(args) => return conformance::run(args),
        Command::Demo(args) => demo::run(args)?,
        Command::Agent(args) => agent::run(&args)?,
        Command::Adapter(args) => adapter::run(args)?,
        Command::Dashboards(args) => dashboards::print(&args)?,
        Command::Rules(args) => rules::print(args)?,
        Command::Crd => {
            use std::io::Write;
            std::io::stdout().write_all(crate::controller::crd::crd_yaml()?.as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
