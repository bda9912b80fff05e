//! Load on a sample workload, whose total does not depend on how many pods share it.
//!
//! In: an amount per second. Out: requests to the pods that are Ready now, evenly. Never: less load
//! because the pods are slow: the rate is kept, up to a bound of requests in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The sample service's port.
pub(crate) const SERVICE_PORT: u16 = 8000;

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// One request to each pod at a time, with its share of what is due.
    Amount {
        /// E.g. `/tasks`.
        path: &'static str,
        /// The parameter that carries the amount.
        parameter: &'static str,
        /// Of the whole workload.
        per_second: f64,
        /// For how long the service holds it, where it does: what is held is `per_second` x this.
        hold: Option<Duration>,
    },
    /// Requests of one kind, one by one.
    Requests {
        /// Path and query.
        path: &'static str,
        /// To the whole workload.
        per_second: f64,
    },
}

impl Load {
    /// An amount that is held all the time, from one `hold` after the beginning on.
    pub(crate) fn held(
        path: &'static str,
        parameter: &'static str,
        total: f64,
        hold: Duration,
    ) -> Self {
        Self::Amount { path, parameter, per_second: total / hold.as_secs_f64(), hold: Some(hold) }
    }

    fn per_second(&self) -> f64 {
        match self {
            Self::Amount { per_second, .. } | Self::Requests { per_second, .. } => *per_second,
        }
    }
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Answered with 2xx.
    pub(crate) succeeded: AtomicU64,
    /// Refused, failed, or answered with anything else.
    pub(crate) failed: AtomicU64,
    /// Not sent: too many were in flight.
    pub(crate) dropped: AtomicU64,
}

/// A running load; it ends when dropped.
#[derive(Debug)]
pub(crate) struct LoadDriver {
    outcome: Arc<Outcome>,
    tasks: [AbortHandle; 2],
}

const TICK: Duration = Duration::from_millis(100);
const MAX_IN_FLIGHT: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(30);

impl LoadDriver {
    /// Begins to send to the Ready pods with label `app=NAME`.
    ///
    /// # Errors
    /// No HTTP client can be made.
    pub(crate) fn start(client: Client, namespace: &str, name: &str, load: Load) -> Result<Self> {
        let pods = Api::<Pod>::namespaced(client, namespace);
        let (reader, writer) = reflector::store();
        let config = watcher::Config::default().labels(&format!("app={name}"));
        let events = watcher::watcher(pods, config).default_backoff().reflect(writer);
        let watching = tokio::spawn(events.for_each(|_| std::future::ready(())));
        let outcome = Arc::new(Outcome::default());
        let sender = Sender {
            http: reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?,
            outcome: Arc::clone(&outcome),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
        };
        let sending = tokio::spawn(drive(reader, load, sender));
        Ok(Self { outcome, tasks: [watching.abort_handle(), sending.abort_handle()] })
    }

    /// What became of the requests so far.
    pub(crate) fn outcome(&self) -> String {
        let [succeeded, failed, dropped] =
            [&self.outcome.succeeded, &self.outcome.failed, &self.outcome.dropped]
                .map(|count| count.load(Ordering::Relaxed));
        format!("{succeeded} requests succeeded, {failed} failed, {dropped} were not sent")
    }
}

impl Drop for LoadDriver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

#[derive(Clone, Debug)]
struct Sender {
    http: reqwest::Client,
    outcome: Arc<Outcome>,
    in_flight: Arc<Semaphore>,
}

impl Sender {
    fn send(&self, url: String) {
        let Ok(permit) = Arc::clone(&self.in_flight).try_acquire_owned() else {
            self.outcome.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (http, outcome) = (self.http.clone(), Arc::clone(&self.outcome));
        tokio::spawn(async move {
            let answer = http.post(url).send().await;
            let succeeded = answer.is_ok_and(|answer| answer.status().is_success());
            let count = if succeeded { &outcome.succeeded } else { &outcome.failed };
            count.fetch_add(1, Ordering::Relaxed);
            drop(permit);
        });
    }
}

async fn drive(pods: reflector::Store<Pod>, load: Load, sender: Sender) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    let mut owed = 0.0;
    let mut turn = 0_usize;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        owed += load.per_second() * (now - last).as_secs_f64();
        last = now;
        let addresses: Vec<String> =
            pods.state().iter().filter_map(|pod| ready_address(pod)).collect();
        if addresses.is_empty() {
            owed = 0.0;
            continue;
        }
        let due = whole(owed);
        owed -= due as f64;
        turn = turn.wrapping_add(1);
        match &load {
            Load::Amount { path, parameter, hold, .. } => {
                let seconds = hold.map(|hold| format!("&seconds={}", hold.as_secs_f64()));
                let seconds = seconds.unwrap_or_default();
                for (address, share) in shares(due, &addresses, turn) {
                    let base = format!("http://{address}:{SERVICE_PORT}{path}");
                    sender.send(format!("{base}?{parameter}={share}{seconds}"));
                }
            }
            Load::Requests { path, .. } => {
                for _ in 0..due {
                    turn = turn.wrapping_add(1);
                    let address = &addresses[turn % addresses.len()];
                    sender.send(format!("http://{address}:{SERVICE_PORT}{path}"));
                }
            }
        }
    }
}

/// The whole part of an amount that is not negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "amounts here are far below 2^53 and never negative"
)]
fn whole(amount: f64) -> u64 {
    amount.max(0.0) as u64
}

/// Splits `due` evenly; the remainder goes to other pods each turn. Shares of 0 are left out.
fn shares(due: u64, addresses: &[String], turn: usize) -> Vec<(&str, u64)> {
    let count = addresses.len() as u64;
    let (each, rest) = (due / count, due % count);
    let from = turn % addresses.len();
    let rotated = addresses[from..].iter().chain(&addresses[..from]);
    let given =
        rotated.zip(0..).map(|(address, index)| (address.as_str(), each + u64::from(index < rest)));
    given.filter(|(_, share)| *share > 0).collect()
}

fn ready_address(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    let ready =
        status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    ready.then(|| status.pod_ip.clone()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_what_is_due_however_many_pods_there_are() {
        for count in 1..8 {
            let addresses: Vec<String> = (0..count).map(|number| number.to_string()).collect();
            for due in 0..30 {
                let shares = shares(due, &addresses, 3);
                assert_eq!(shares.iter().map(|(_, share)| share).sum::<u64>(), due);
                let most = shares.iter().map(|(_, share)| *share).max().unwrap_or(0);
                assert!(most <= due / count + 1, "{shares:?}");
            }
        }
    }
}
