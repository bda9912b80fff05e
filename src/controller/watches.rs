//! What all watches share: their settings and their metrics.
//!
//! In: the outcomes of watch streams. Out: `headroom_adapter_watches_failing` and `headroom_adapter_watch_failures_total`.
//! Never: an end because of an error; a watch that fails is tried again with growing pauses, and what it brought stays.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
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
    failing: IntGaugeVec,
    failures: IntCounterVec,
}

impl WatchMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let failing = Opts::new(
            "headroom_adapter_watches_failing",
            "Watches of the API server that are down now; the last known state is used",
        );
        let failures = Opts::new(
            "headroom_adapter_watch_failures_total",
            "Failures of watches of the API server and of their lists",
        );
        let failing = IntGaugeVec::new(failing, &["resource"])?;
        let failures = IntCounterVec::new(failures, &["resource"])?;
        registry.register(Box::new(failing.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        for resource in ["policies", "pods", "targets", "autoscalers"] {
            failing.with_label_values(&[resource]);
            failures.with_label_values(&[resource]);
        }
        Ok(Self { failing, failures })
    }
}

/// What a watch has to tell.
pub(super) enum Told<K> {
    /// Something was seen.
    Event(Event<K>),
    /// From now on changes may be missed.
    Failing,
    /// From now on they are not.
    Recovered,
}

/// A watch that never ends, and knows whether it stands.
pub(super) struct Watch<K> {
    events: BoxStream<'static, watcher::Result<Event<K>>>,
    resource: &'static str,
    metrics: WatchMetrics,
    failing: bool,
    pending: Option<Event<K>>,
}

impl<K> Watch<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// All objects behind `api` that `config` selects.
    pub(super) fn new(
        api: Api<K>,
        config: watcher::Config,
        resource: &'static str,
        metrics: WatchMetrics,
    ) -> Self {
        let events = watcher(api, config).default_backoff().boxed();
        Self { events, resource, metrics, failing: false, pending: None }
    }

    /// What comes next; `None` only if the stream ends, which it does not.
    pub(super) async fn next(&mut self) -> Option<Told<K>> {
        if let Some(event) = self.pending.take() {
            return Some(Told::Event(event));
        }
        loop {
            let next = if self.failing {
                tokio::time::timeout(RECOVERED_AFTER, self.events.next()).await
            } else {
                Ok(self.events.next().await)
            };
            match next {
                Ok(None) => return None,
                Ok(Some(Ok(event))) if !self.failing => return Some(Told::Event(event)),
                Ok(Some(Ok(event))) => {
                    self.pending = Some(event);
                    return Some(self.recover());
                }
                Err(_) => return Some(self.recover()),
                Ok(Some(Err(error))) => {
                    let first = self.fail(&error);
                    if first {
                        return Some(Told::Failing);
                    }
                }
            }
        }
    }

    fn recover(&mut self) -> Told<K> {
        info!(resource = self.resource, "the watch stands again");
        self.failing = false;
        self.metrics.failing.with_label_values(&[self.resource]).dec();
        Told::Recovered
    }

    fn fail(&mut self, error: &watcher::Error) -> bool {
        self.metrics.failures.with_label_values(&[self.resource]).inc();
        if self.failing {
            debug!(resource = self.resource, %error, "the watch failed again");
            return false;
        }
        warn!(resource = self.resource, %error, "the watch failed, the last known state stays");
        self.failing = true;
        self.metrics.failing.with_label_values(&[self.resource]).inc();
        true
    }
}

impl<K> Drop for Watch<K> {
    fn drop(&mut self) {
        if self.failing {
            self.metrics.failing.with_label_values(&[self.resource]).dec();
        }
    }
}

/// Sends what `into` makes of each event, until nobody listens.
pub(super) async fn forward<K, C>(
    mut watch: Watch<K>,
    changes: mpsc::Sender<C>,
    into: impl Fn(Event<K>) -> C,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    while let Some(told) = watch.next().await {
        if let Told::Event(event) = told
            && changes.send(into(event)).await.is_err()
        {
            return;
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
