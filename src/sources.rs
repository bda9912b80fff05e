//! Collect: a batch of samples from each pod, before a deadline.
//!
//! In: the pods to ask ([`Target`]). Out: one [`Batch`](crate::sample::Batch) per attempt, with samples or with the reason why
//! there are none. Never: a value that the pod did not report, memory without a bound, and one pod that waits for another.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::sample::EndpointKey;

mod scrape;
mod text;
mod wanted;

pub use scrape::{ScrapeSetup, Scraper, SetupError};
pub use text::{Limits, Parsed, parse};
pub use wanted::Wanted;

/// One endpoint of one pod, and what is wanted from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The pod, where on it to ask, and how often.
    pub endpoint: EndpointKey,
    /// The pod's address and the port of its endpoint.
    pub address: SocketAddr,
    /// What to keep of an answer.
    pub wanted: Arc<Wanted>,
}

/// Where batches come from. An attempt's batch arrives on the channel that the source was made with.
pub trait Source: Send {
    /// Replaces the set of pods that are asked. A pod that stays keeps its rhythm.
    fn set_targets(&mut self, targets: Vec<Target>);
}
