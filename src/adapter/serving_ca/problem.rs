//! Why the serving certificate is not installed and trusted, and whose turn it is.
//!
//! In: one sentence. Out: the same, with how loudly it is logged. Never: a secret; the sentence is shown by `/readyz`.

use tracing::{error, info, warn};

/// What keeps the adapter from being reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    turn: Turn,
    text: String,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Another replica's: it passes by itself.
    Replica,
    /// The Kubernetes API's: it is asked again.
    Api,
    /// A person's.
    Operator,
}

impl Problem {
    /// Passes by itself once another replica has done its part.
    pub(super) fn waiting(text: String) -> Self {
        Self { turn: Turn::Replica, text }
    }

    /// Passes once the Kubernetes API answers as it should.
    pub(super) fn failing(text: String) -> Self {
        Self { turn: Turn::Api, text }
    }

    /// Does not pass by itself.
    pub(super) fn needs_action(text: String) -> Self {
        Self { turn: Turn::Operator, text }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn log(&self) {
        let reason = self.text();
        match self.turn {
            Turn::Replica => info!(reason, "the serving certificate is not trusted yet"),
            Turn::Api => warn!(reason, "cannot keep the serving certificate, trying again"),
            Turn::Operator => error!(reason, "the serving certificate needs someone to act"),
        }
    }
}
