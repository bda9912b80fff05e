//! What both ways to a serving certificate share: [`super::serving_ca`] and [`super::serving_files`].
//!
//! In: a certificate that goes into use, or a failure to get one. Out: the two metrics about it. Never: a private key.

use std::error::Error;

use prometheus::{Gauge, IntCounter, Registry};

use crate::time::Timestamp;

/// Why the listener refused a certificate.
pub type InstallError = Box<dyn Error + Send + Sync>;

/// When the served certificate ends, and how often getting one failed. Clones share the values.
#[derive(Clone, Debug)]
pub struct ServingMetrics {
    not_after: Gauge,
    failures: IntCounter,
}

impl ServingMetrics {
    /// Registers both metrics.
    ///
    /// # Errors
    /// [`prometheus::Error`] if the registry has a metric of one of these names already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let not_after = Gauge::new(
            "headroom_adapter_serving_certificate_not_after_timestamp_seconds",
            "End of the serving certificate in use, in seconds since the Unix epoch; 0 before the first",
        )?;
        let failures = IntCounter::new(
            "headroom_adapter_serving_certificate_failures_total",
            "Failed attempts to make, sign, load, install or register the serving certificate",
        )?;
        registry.register(Box::new(not_after.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        Ok(Self { not_after, failures })
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds of this millennium fit into 53 bits")]
    pub(super) fn in_use(&self, not_after: Timestamp) {
        self.not_after.set(not_after.as_millis() as f64 / 1000.0);
    }

    pub(super) fn failed(&self) {
        self.failures.inc();
    }
}

/// An error with its causes, in one line for conditions and logs.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    // The message of the API server says it all; kube's own text adds a dump of the whole Status.
    if let Some(kube::Error::Api(status)) = error.downcast_ref() {
        return status.message.clone();
    }
    let text = error.to_string();
    match error.source().map(chain) {
        // Some errors repeat their cause.
        Some(cause) if !text.contains(&cause) => format!("{text}: {cause}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read it")]
    struct Outer(#[source] kube::Error);

    #[test]
    fn a_refusal_is_shown_in_the_words_of_the_api_server() {
        let status = Status::failure("secrets is forbidden", "Forbidden").with_code(403);
        let error = Outer(kube::Error::Api(Box::new(status)));
        assert_eq!(chain(&error), "cannot read it: secrets is forbidden");
    }

    #[test]
    fn a_cause_that_is_in_the_message_already_is_not_repeated() {
        let cause = std::io::Error::other("connection reset");
        assert_eq!(
            chain(&Outer(kube::Error::ReadEvents(cause))),
            "cannot read it: Error reading events stream: connection reset"
        );
    }
}
