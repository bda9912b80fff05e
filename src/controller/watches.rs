//! What all watches share: their settings and their metrics.
//!
//! In: the outcomes of watch streams. Out: `headroom_adapter_watch_connected` and `headroom_adapter_watch_failures_total`.
//! Never: an end because of an error; a watch that fails is tried again with growing pauses, and what it brought stays.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher, watcher::Event};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

/// A connection that broke without a word is noticed after this and five more seconds.
const WATCH_TIMEOUT_SECONDS: u32 = 60;
/// A watch that failed and is then silent for this long stands again: tries are at most half as far apart.
const RECOVERED_AFTER: Duration = Duration::from_secs(75);

/// The settings of every watch.
pub(super) fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS)
}

/// The metrics of all watches, by resource.
#[derive(Clone, Debug)]
pub(super) struct WatchMetrics {
    connected: IntGaugeVec,
    failures: IntCounterVec,
}

impl WatchMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let connected = Opts::new(
            "headroom_adapter_watch_connected",
            "1 while the watch of a resource stands, 0 while the last known state is used",
        );
        let failures = Opts::new(
            "headroom_adapter_watch_failures_total",
            "Failures of watches and of their lists",
        );
        let connected = IntGaugeVec::new(connected, &["resource"])?;
        let failures = IntCounterVec::new(failures, &["resource"])?;
        registry.register(Box::new(connected.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        for resource in ["policies", "pods", "targets", "autoscalers"] {
            connected.with_label_values(&[resource]);
            failures.with_label_values(&[resource]);
        }
        Ok(Self { connected, failures })
    }

    pub(super) fn connected(&self, resource: &'static str) {
        self.connected.with_label_values(&[resource]).set(1);
    }

    pub(super) fn failed(&self, resource: &'static str) {
        self.connected.with_label_values(&[resource]).set(0);
        self.failures.with_label_values(&[resource]).inc();
    }
}

/// Watches all objects behind `api` and sends what `into` makes of each event, until nobody listens.
pub(super) async fn forward<K, C>(
    api: Api<K>,
    config: watcher::Config,
    resource: &'static str,
    metrics: WatchMetrics,
    changes: mpsc::Sender<C>,
    into: impl Fn(Event<K>) -> C,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut failing = false;
    loop {
        let next = if failing {
            tokio::time::timeout(RECOVERED_AFTER, events.next()).await.ok()
        } else {
            Some(events.next().await)
        };
        match next {
            Some(None) => return,
            Some(Some(Err(error))) => {
                if failing {
                    debug!(resource, %error, "the watch failed again");
                } else {
                    warn!(resource, %error, "the watch failed, the last known state stays");
                }
                failing = true;
                metrics.failed(resource);
            }
            recovered => {
                if failing {
                    info!(resource, "the watch stands again");
                }
                failing = false;
                metrics.connected(resource);
                if let Some(Some(Ok(event))) = recovered
                    && changes.send(into(event)).await.is_err()
                {
                    return;
                }
            }
        }
    }
}

/// Changes every object of an event into another, keeping what happened.
pub(super) fn map_event<A, B>(event: Event<A>, into: impl FnOnce(A) -> B) -> Event<B> {
    match event {
        Event::Apply(object) => Event::Apply(into(object)),
        Event::Delete(object) => Event::Delete(into(object)),
        Event::InitApply(object) => Event::InitApply(into(object)),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    }
}
