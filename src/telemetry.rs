//! Logs for people and machines; one call at the start of a program.
//!
//! In: `HEADROOM_LOG` (env-filter syntax) and whether stderr is a terminal. Out: a global `tracing` subscriber on stderr,
//! JSON lines unless a person is watching.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// An error with its causes in one line, for the log.
#[must_use]
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// How a program's logs leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For a terminal.
    Text,
}

/// Sets up the process's telemetry.
#[derive(Clone, Copy, Debug)]
pub struct Telemetry;

impl Telemetry {
    /// Installs the global subscriber. Text on a terminal, JSON elsewhere; level `info` unless `HEADROOM_LOG` says more.
    /// A second call changes nothing.
    pub fn init() {
        let format =
            if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json };
        Self::init_with(format);
    }

    /// As [`Telemetry::init`], in a given format.
    pub fn init_with(format: LogFormat) {
        let filter =
            EnvFilter::try_from_env("HEADROOM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        // An error only says that a subscriber is installed already.
        let _ = match format {
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
            LogFormat::Text => builder.try_init(),
        };
    }
}
