//! A fleet at work: policies with some pods each, and a pipeline that is fed a batch of every pod each interval.
//!
//! Each batch has 5 gauges and counters and a histogram of 20 live buckets, as an agent serves them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use headroom::pipeline::{Pipeline, PipelineSetup};
use headroom::policy::{
    Assignment, Board, Endpoint, EntryState, LatencyTarget, Learned, Pod, Policy, PolicyId, Port,
    Scheme, Signal, SignalKind, TargetRef, Threshold, Workload,
};
use headroom::probes::Progress;
use headroom::sample::{Batch, EndpointKey, Labels, MetricName, PodKey, Sample, SeriesKey};
use headroom::sources::{Source, Target};
use headroom::time::{Clock, Timestamp};
use headroom::units::{Measure as _, Ratio};
use prometheus::Registry;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::as_number;

pub(crate) const NAMESPACE: &str = "fleet";
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
const BUCKETS: u32 = 20;
/// For every policy's first demand.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often batches are handed over.
const STEP: Duration = Duration::from_millis(20);

/// A source that asks nobody: the feeder brings the batches.
struct Fed;

impl Source for Fed {
    fn set_targets(&mut self, _targets: Vec<Target>) {}
}

/// A running fleet; it ends with its shutdown.
pub(crate) struct Fleet {
    pub(crate) board: Arc<Board>,
    pub(crate) clock: Clock,
    pub(crate) progress: Progress,
    pub(crate) registry: Registry,
    pub(crate) policies: usize,
}

pub(crate) fn policy_name(index: usize) -> String {
    format!("policy-{index:05}")
}

impl Fleet {
    /// Starts the pipeline and its feeder, and waits until every policy has a demand.
    pub(crate) async fn start(
        policies: usize,
        pods_each: usize,
        shutdown: &CancellationToken,
    ) -> Result<Self> {
        let (clock, registry) = (Clock::start(), Registry::new());
        let progress = Progress::new(clock);
        let board = Arc::<Board>::default();
        let roster: Result<Vec<Assignment>> =
            (0..policies).map(|index| assignment(clock, index, pods_each)).collect();
        let (_roster, roster) = watch::channel(Arc::new(roster?));
        let (sender, batches) = mpsc::channel(4096);
        let setup = PipelineSetup {
            roster,
            source: Fed,
            batches,
            board: board.clone(),
            clock,
            progress: &progress,
            registry: &registry,
        };
        tokio::spawn(Pipeline::new(setup)?.run(shutdown.clone()));
        tokio::spawn(feed(clock, policies * pods_each, sender, shutdown.clone()));
        let fleet = Self { board, clock, progress, registry, policies };
        let started = Instant::now();
        while let Some(why) = fleet.undecided() {
            ensure!(started.elapsed() < PATIENCE, "not every policy is decided: {why}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(fleet)
    }

    /// Why one of the policies has no demand.
    fn undecided(&self) -> Option<String> {
        let all = self.board.all();
        if all.len() < self.policies {
            return Some(format!("{} of {} policies are on the board", all.len(), self.policies));
        }
        all.iter().find_map(|(_, standing)| match standing.state() {
            EntryState::Decided { decision, .. } => {
                decision.demand.as_ref().err().map(ToString::to_string)
            }
            EntryState::Unserved(why) => Some(why.to_string()),
        })
    }

    /// A figure that the pipeline exposes, e.g. the bytes of the store.
    pub(crate) fn gauge(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        family.map_or(f64::NAN, |family| {
            family.get_metric().iter().map(|m| m.get_gauge().get_value()).sum()
        })
    }
}

fn assignment(clock: Clock, index: usize, pods_each: usize) -> Result<Assignment> {
    let signal = |name: &str, kind| Signal { name: name.into(), kind, base: Some(0.0) };
    let name: Arc<str> = policy_name(index).into();
    let policy = Policy {
        id: PolicyId { namespace: NAMESPACE.into(), name: name.clone() },
        generation: 1,
        target: TargetRef {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            name: name.clone(),
        },
        endpoint: Endpoint {
            port: Port::Number(9469),
            path: "/metrics".into(),
            scheme: Scheme::Http,
            interval: INTERVAL,
        },
        window: Duration::from_secs(60),
        stale_after: Duration::from_secs(20),
        start_grace: Duration::from_secs(30),
        coverage_floor: Ratio::new(0.6)?,
        signals: vec![
            signal("tasks", SignalKind::Tasks(Threshold::new(200.0)?)),
            signal("heap", SignalKind::Heap(Threshold::new(64e6)?)),
            signal("alloc", SignalKind::AllocationRate(Threshold::new(20e6)?)),
            signal(
                "latency",
                SignalKind::Latency(LatencyTarget {
                    quantile: Ratio::new(0.95)?,
                    target: Threshold::new(0.2)?,
                    endpoint: None,
                    concurrency: std::num::NonZeroU32::new(8),
                    service_time: Some(Duration::from_millis(20)),
                }),
            ),
        ],
        min_replicas: Some(1),
        learned: Learned::default(),
        wants_usage: false,
        max_replicas: None,
    };
    let replicas = u32::try_from(pods_each)?;
    let workload = Workload {
        spec_replicas: replicas,
        status_replicas: replicas,
        resource: "deployments".into(),
        described: std::collections::BTreeMap::new(),
        pods: (0..pods_each).map(|pod| self::pod(clock, &name, index * pods_each + pod)).collect(),
    };
    Ok(Assignment::Active { policy: Arc::new(policy), workload: Arc::new(workload) })
}

fn pod(clock: Clock, app: &str, index: usize) -> Pod {
    let now = clock.now().wall;
    Pod {
        key: key(index),
        name: format!("{app}-{index}").into(),
        labels: [("app", app), ("pod-template-hash", "5f7c9d8b6")].into_iter().collect(),
        container: Some("app".into()),
        ip: Some(Ipv4Addr::LOCALHOST.into()),
        port: Some(9469),
        started_at: Some(now),
        ready_since: Some(now),
        ended: false,
        cpu_limit: None,
    }
}

fn key(index: usize) -> PodKey {
    PodKey(format!("uid-{index}").into())
}

/// A batch of every pod each interval, evenly spread; twice as fast until each was asked twice.
async fn feed(clock: Clock, pods: usize, sender: mpsc::Sender<Batch>, shutdown: CancellationToken) {
    let names = Names::new();
    let mut tick = tokio::time::interval(STEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (started, mut sent) = (Instant::now(), 0_usize);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let due = started.elapsed().as_secs_f64() / INTERVAL.as_secs_f64();
        let wanted = (due * as_number(pods)).round();
        while as_number(sent) < wanted {
            let batch =
                names.batch(clock, sent % pods, u32::try_from(sent / pods).unwrap_or(u32::MAX));
            if sender.send(batch).await.is_err() {
                return;
            }
            sent += 1;
        }
    }
}

/// The series of every pod, made once.
struct Names {
    path: Arc<str>,
    scalars: Vec<SeriesKey>,
    buckets: Vec<SeriesKey>,
    sums: [SeriesKey; 2],
}

impl Names {
    fn new() -> Self {
        let series = |name: &str, labels: Labels| SeriesKey { name: MetricName::new(name), labels };
        let endpoint = ("endpoint", "POST /checkout");
        let bucket = |index: u32| {
            let bound = if index + 1 == BUCKETS {
                "+Inf".to_owned()
            } else {
                format!("{}", 0.004 * f64::from(index + 1))
            };
            let labels = [endpoint, ("status_code", "200"), ("le", &bound)].into_iter().collect();
            series("http_server_request_duration_seconds_bucket", labels)
        };
        let ended = || [endpoint, ("status_code", "200")].into_iter().collect();
        Self {
            path: "/metrics".into(),
            scalars: [
                "tokio_alive_tasks",
                "heap_allocated_bytes",
                "heap_allocation_bytes_total",
                "tokio_workers",
            ]
            .into_iter()
            .map(|name| series(name, Labels::default()))
            .chain([series("http_server_requests_in_flight", [endpoint].into_iter().collect())])
            .collect(),
            buckets: (0..BUCKETS).map(bucket).collect(),
            sums: [
                series("http_server_request_duration_seconds_sum", ended()),
                series("http_server_request_duration_seconds_count", ended()),
            ],
        }
    }

    fn batch(&self, clock: Clock, pod: usize, round: u32) -> Batch {
        let now = clock.now();
        let round = f64::from(round + 1);
        let sample =
            |series: &SeriesKey, value: f64| Sample { series: series.clone(), value, at: now.wall };
        let scalars = [150.0 + round % 7.0, 40e6 + 1e5 * (round % 11.0), 60e6 * round, 4.0, 2.0];
        let mut samples: Vec<Sample> =
            self.scalars.iter().zip(scalars).map(|(series, value)| sample(series, value)).collect();
        let mut count = 0.0;
        for (index, series) in self.buckets.iter().enumerate() {
            count += round * as_number(self.buckets.len() - index);
            samples.push(sample(series, count));
        }
        let [sum, total] = &self.sums;
        samples.extend([sample(sum, count * 0.02), sample(total, count)]);
        Batch {
            endpoint: EndpointKey {
                pod: key(pod),
                port: 9469,
                path: self.path.clone(),
                interval: INTERVAL,
            },
            arrived: now.monotonic,
            arrived_at: Timestamp::clone(&now.wall),
            outcome: Ok(samples),
            dropped: vec![],
        }
    }
}
