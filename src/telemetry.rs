//! Logs for people and machines; one call at the start of a program.
//!
//! In: `HEADROOM_LOG` (env-filter syntax) and whether stderr is a terminal. Out: a global `tracing` subscriber on stderr,
//! JSON lines unless a person is watching.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// An error with its causes in one line, for the log.
#[must_use]
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    write_error_chain(error, &mut text);
    text
}

/// The same, at the end of `text`.
pub fn write_error_chain(error: &(dyn std::error::Error + 'static), text: &mut String) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
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
        // A second subscriber is refused, and its filter would change nothing.
        match format {
            LogFormat::Json => {
                let builder = builder.json().flatten_event(true).with_filter_reloading();
                let handle = builder.reload_handle();
                if builder.finish().try_init().is_ok() {
                    keep(move |filter| handle.reload(filter).is_ok());
                }
            }
            LogFormat::Text => {
                let builder = builder.with_filter_reloading();
                let handle = builder.reload_handle();
                if builder.finish().try_init().is_ok() {
                    keep(move |filter| handle.reload(filter).is_ok());
                }
            }
        }
    }

    /// Changes what is logged from now on. Says whether it did: not without [`Telemetry::init`], and not for a text that is no
    /// filter.
    pub fn set_filter(directives: &str) -> bool {
        match (EnvFilter::try_new(directives), FILTER.get()) {
            (Ok(filter), Some(set)) => set(filter),
            _ => false,
        }
    }
}

type SetFilter = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// Replaces the filter of the installed subscriber.
static FILTER: OnceLock<SetFilter> = OnceLock::new();

fn keep(set: impl Fn(EnvFilter) -> bool + Send + Sync + 'static) {
    // Only the call whose subscriber was installed comes here.
    let _ = FILTER.set(Box::new(set));
}
