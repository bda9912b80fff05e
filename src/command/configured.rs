//! A subcommand's configuration.
//!
//! In: flags, environment, file. Out: what is in effect, and the log level along with it. Never: a start with a problem, or a
//! misspelt variable that nobody hears of.

use anyhow::Result;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::{Inputs, Live, Section};
use crate::telemetry::Telemetry;

/// Reads the configuration, and warns of variables that look like ours and are none.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn start<T: Section>(inputs: Inputs, registry: &Registry) -> Result<Live<T>> {
    for variable in inputs.unknown_variables(T::PROGRAM) {
        warn!(variable, "an environment variable like ours is no key of the configuration");
    }
    Ok(Live::start(inputs, registry)?)
}

/// Follows the file until `stop`, and logs from then on what it says.
pub(super) async fn follow<T: Section>(
    live: Live<T>,
    stop: CancellationToken,
    log_level: impl Fn(&T) -> String,
) {
    let mut changes = live.subscribe();
    let mut level = None;
    let following = live.follow(stop);
    let logging = async {
        loop {
            let wanted = log_level(&changes.borrow_and_update().config);
            if level.as_ref() != Some(&wanted) {
                Telemetry::set_filter(&wanted);
                level = Some(wanted);
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = logging => {}
    }
}
