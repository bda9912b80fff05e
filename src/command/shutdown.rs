//! SIGINT and SIGTERM become one cancellation.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled at the first SIGINT or SIGTERM.
///
/// # Errors
/// If the process may not handle signals.
pub(super) fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let signals = Signals::new()?;
    let cancel = token.clone();
    tokio::spawn(async move {
        signals.next().await;
        cancel.cancel();
    });
    Ok(token)
}

/// The next SIGINT or SIGTERM after this call.
pub(super) async fn next_signal() {
    match Signals::new() {
        Ok(signals) => signals.next().await,
        // They could be handled before.
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot handle signals");
            std::future::pending().await
        }
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Cancels the token when standard input closes: the parent that held its other end is gone.
pub(super) fn on_stdin_closed(token: CancellationToken) {
    std::thread::spawn(move || {
        // Nothing is ever written to it; the copy ends with the pipe.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        token.cancel();
    });
}
