//! The control loop in simulated time: a workload, scrapes into a real store, a real decider, and an HPA.
//!
//! A fluid model: load is spread over Ready pods, each of which serves at most what it can; the rest queues. Nothing here
//! reads a clock, so every run is the same.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::hpa::{Behavior, Metric, Normalizer, ScaleState, Tolerance, desired_replicas};
use super::scenario::*;
use super::*;
use crate::quantity::Quantity;
use crate::sample::{Batch, PodKey, Sample, SeriesKey};
use crate::store::{Limits, Store};
use crate::time::Now;
use crate::units::{ByteCount, BytesPerSecond, CpuCores, Measure, Ratio, TaskCount};

const STEP: f64 = 0.1;
const SYNC: f64 = 15.0;
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What the load does to a pod.
#[derive(Clone, Copy, Debug)]
enum Service {
    /// A gauge: the pod's part of the load on top of what it shows idle.
    Gauge { family: &'static str, idle: f64 },
    /// A counter of the pod's part of the load.
    Counter { family: &'static str },
    /// Requests that keep one of `servers` busy for `seconds` each.
    Requests { servers: f64, seconds: f64 },
    /// Requests that cost `seconds` of CPU each, of a quota, beside what the idle pod uses.
    Cpu { quota: f64, seconds: f64, idle: f64 },
}

struct Setup {
    policy: Policy,
    service: Service,
    /// The load of the workload at a second.
    load: fn(f64) -> f64,
    pods: u32,
    until: f64,
    /// Seconds from a pod's creation to Ready.
    ready_after: f64,
    /// When in its period the HPA looks.
    phase: f64,
    down_window: u64,
}

struct SimPod {
    pod: Pod,
    created: f64,
    part: f64,
    counted: f64,
    in_flight: f64,
    completed: f64,
    latency_sum: f64,
    cpu: f64,
    buckets: BTreeMap<usize, f64>,
}

/// What happened, once per second.
#[derive(Clone, Copy, Debug)]
struct Second {
    at: f64,
    replicas: u32,
    demand: f64,
    /// The longest wait of a request that arrives now.
    wait: f64,
}

struct Simulation {
    setup: Setup,
    store: Store,
    decider: Decider,
    pods: Vec<SimPod>,
    created: usize,
    replicas: u32,
    demand: Option<f64>,
}

impl SimPod {
    fn new(index: usize, created: f64) -> Self {
        let cpu_limit = None;
        let pod = Pod {
            started_at: Some(wall(created + 1.0).wall),
            ready_since: None,
            key: PodKey(format!("sim-{index}").into()),
            cpu_limit,
            ..old_pod(index)
        };
        let zero = 0.0;
        Self {
            pod,
            created,
            part: zero,
            counted: zero,
            in_flight: zero,
            completed: zero,
            latency_sum: zero,
            cpu: zero,
            buckets: BTreeMap::new(),
        }
    }

    /// Serves `arrivals` requests per second for one step.
    fn serve(&mut self, arrivals: f64, capacity: f64, seconds: f64) {
        let waiting = (self.in_flight - arrivals * seconds).max(0.0);
        let offered = self.in_flight + arrivals * STEP;
        // Without a queue a request leaves after its service time, with one at the pod's capacity.
        let served = (capacity * STEP).min(offered * (STEP / seconds).min(1.0));
        let latency = seconds * 1.003 + if waiting > 1.0 { waiting / capacity } else { 0.0 };
        self.in_flight = offered - served;
        self.completed += served;
        self.latency_sum += served * latency;
        let bucket = BUCKETS.iter().position(|&bound| latency <= bound).unwrap_or(BUCKETS.len());
        *self.buckets.entry(bucket).or_default() += served;
    }

    fn readings(&self, service: Service) -> Vec<(SeriesKey, f64)> {
        let mut readings = vec![reading("tokio_workers", &[], 8.0)];
        match service {
            Service::Gauge { family, idle } => {
                readings.push(reading(family, &[], idle + self.part))
            }
            Service::Counter { family } => readings.push(reading(family, &[], self.counted)),
            Service::Requests { .. } => self.add_requests(&mut readings),
            Service::Cpu { .. } => {
                readings.push(reading("process_cpu_seconds_total", &[], self.cpu));
                self.add_requests(&mut readings);
            }
        }
        readings
    }

    fn add_requests(&self, readings: &mut Vec<(SeriesKey, f64)>) {
        let endpoint = [("endpoint", "POST /work")];
        readings.push(reading("http_server_requests_in_flight", &endpoint, self.in_flight.round()));
        readings.push(reading(
            "http_server_request_duration_seconds_count",
            &endpoint,
            self.completed.floor(),
        ));
        readings.push(reading(
            "http_server_request_duration_seconds_sum",
            &endpoint,
            self.latency_sum,
        ));
        let mut cumulative = 0.0;
        for index in 0..=BUCKETS.len() {
            cumulative += self.buckets.get(&index).copied().unwrap_or_default();
            let bound = BUCKETS.get(index).map_or("+Inf".to_owned(), f64::to_string);
            let labels = [("endpoint", "POST /work"), ("le", bound.as_str())];
            readings.push(reading(
                "http_server_request_duration_seconds_bucket",
                &labels,
                cumulative.floor(),
            ));
        }
    }
}

fn wall(at: f64) -> Now {
    start() + seconds(at)
}

impl Simulation {
    fn new(setup: Setup) -> Self {
        let limits = Limits { history: setup.policy.history(), ..Limits::default() };
        let decider = Decider::new(Arc::new(setup.policy.clone()));
        let mut simulation = Self {
            store: Store::new(limits),
            decider,
            pods: vec![],
            created: 0,
            replicas: setup.pods,
            demand: None,
            setup,
        };
        simulation.scale(0.0);
        simulation
    }

    fn run(setup: Setup) -> Vec<Second> {
        let mut simulation = Self::new(setup);
        let mut normalizer = simulation.normalizer();
        let mut seconds = vec![];
        let mut step = 0_u32;
        loop {
            let at = f64::from(step) * STEP;
            if at > simulation.setup.until {
                return seconds;
            }
            simulation.work(at);
            simulation.scrape(at, step);
            if is_due(at - simulation.setup.phase, SYNC) {
                simulation.autoscale(at, &mut normalizer);
            }
            if is_due(at, 1.0) {
                seconds.push(simulation.second(at));
            }
            step += 1;
        }
    }

    fn normalizer(&self) -> Normalizer {
        let mut behavior = Behavior::default();
        behavior.down.stabilization = Duration::from_secs(self.setup.down_window);
        Normalizer::new(1, 100, behavior)
    }

    fn ready(&self) -> usize {
        self.pods.iter().filter(|pod| pod.pod.ready_since.is_some()).count()
    }

    fn work(&mut self, at: f64) {
        let ready_after = self.setup.ready_after;
        for pod in &mut self.pods {
            if pod.pod.ready_since.is_none() && at >= pod.created + ready_after {
                pod.pod.ready_since = Some(wall(at).wall);
            }
        }
        let ready = f64::from(u32::try_from(self.ready()).expect("few pods"));
        let load = (self.setup.load)(at);
        let service = self.setup.service;
        for pod in &mut self.pods {
            pod.part = if pod.pod.ready_since.is_some() { load / ready } else { 0.0 };
            match service {
                Service::Gauge { .. } => {}
                Service::Counter { .. } => pod.counted += pod.part * STEP,
                Service::Requests { servers, seconds } => {
                    pod.serve(pod.part, servers / seconds, seconds)
                }
                Service::Cpu { quota, seconds, idle } => {
                    let before = pod.completed;
                    pod.serve(pod.part, (quota - idle) / seconds, seconds);
                    pod.cpu += (pod.completed - before) * seconds + idle * STEP;
                }
            }
        }
    }

    /// Every pod at its own time within the interval, from a second after its creation on.
    fn scrape(&mut self, at: f64, step: u32) {
        let interval = self.setup.policy.endpoint.interval.as_secs_f64();
        let now = wall(at);
        let mut scraped = false;
        for index in 0..self.pods.len() {
            let pod = &self.pods[index];
            let offset = STEP * f64::from(u32::try_from(index * 7 % 10).expect("small"));
            if at < pod.created + 1.0 || !is_due(f64::from(step) * STEP - offset, interval) {
                continue;
            }
            let readings = pod.readings(self.setup.service);
            let samples = readings
                .into_iter()
                .map(|(series, value)| Sample { series, value, at: now.wall })
                .collect();
            self.store.record(&Batch {
                endpoint: self.setup.policy.endpoint.on(&pod.pod).expect("the pod has the port"),
                arrived: now.monotonic,
                arrived_at: now.wall,
                outcome: Ok(samples),
                dropped: vec![],
            });
            scraped = true;
        }
        if scraped {
            let workload = self.workload();
            self.demand = self.decider.decide(&self.store, &workload, now).demand.ok();
        }
    }

    fn workload(&self) -> Workload {
        Workload {
            spec_replicas: self.replicas,
            status_replicas: self.replicas,
            resource: "deployments".into(),
            pods: self.pods.iter().map(|pod| pod.pod.clone()).collect(),
            ..Workload::default()
        }
    }

    fn autoscale(&mut self, at: f64, normalizer: &mut Normalizer) {
        let Some(served) = self.demand.and_then(Quantity::from_served) else { return };
        let metric = Metric::ExternalAverageValue {
            items_milli: vec![i64::try_from(served.milli_ceil()).expect("clamped")],
            target_milli: 1000,
        };
        let scale = ScaleState {
            spec_replicas: self.replicas,
            status_replicas: self.replicas,
            pods: vec![],
        };
        let proposal = desired_replicas(&metric, &scale, Tolerance::default()).expect("one item");
        self.replicas = normalizer.next(wall(at).monotonic, self.replicas, proposal.replicas);
        self.scale(at);
    }

    fn scale(&mut self, at: f64) {
        self.pods.truncate(self.replicas as usize);
        while self.pods.len() < self.replicas as usize {
            self.pods.push(SimPod::new(self.created, at));
            self.created += 1;
        }
        let pods = &self.pods;
        self.store.retain(|of| pods.iter().any(|pod| pod.pod.key == of.pod));
    }

    fn second(&self, at: f64) -> Second {
        let capacity = match self.setup.service {
            Service::Requests { servers, seconds } => servers / seconds,
            Service::Cpu { quota, seconds, idle } => (quota - idle) / seconds,
            _ => f64::INFINITY,
        };
        let longest = self.pods.iter().map(|pod| pod.in_flight / capacity).fold(0.0, f64::max);
        Second {
            at,
            replicas: self.replicas,
            demand: self.demand.unwrap_or(f64::NAN),
            wait: longest,
        }
    }
}

fn is_due(at: f64, period: f64) -> bool {
    let rest = at.rem_euclid(period);
    at > -STEP / 2.0 && (rest < STEP / 2.0 || period - rest < STEP / 2.0)
}

// The six loads of the end-to-end test: idle or low for 60 s, loaded for two minutes, then nothing.

fn at(load: f64, low: f64) -> impl Fn(f64) -> f64 {
    move |second| match second {
        ..60.0 => low,
        60.0..180.0 => load,
        _ => 0.0,
    }
}

struct Load {
    what: &'static str,
    signal: Signal,
    service: Service,
    load: fn(f64) -> f64,
    pods: u32,
    /// Seconds after the end of the load in which the workload is back at one pod.
    back: usize,
}

fn check_load(load: &Load) {
    for interval in [1, 5] {
        for phase in [0.0, 3.0, 7.0, 11.0] {
            let mut policy = policy(vec![load.signal.clone()]);
            policy.endpoint.interval = Duration::from_secs(interval);
            let run = Simulation::run(Setup {
                policy,
                service: load.service,
                load: load.load,
                pods: 1,
                until: 300.0,
                ready_after: 10.0,
                phase,
                down_window: 15,
            });
            let replicas = |second: usize| run[second].replicas;
            let peak = run.iter().map(|second| second.replicas).max().expect("it ran");
            let what =
                format!("{}, interval {interval}, phase {phase}: {}", load.what, trace(&run));
            assert_eq!(replicas(59), 1, "{what}");
            assert!(replicas(120).abs_diff(load.pods) <= 1, "{what}");
            assert!(replicas(178).abs_diff(load.pods) <= 1, "{what}");
            assert!(peak <= load.pods + 1, "{what}");
            assert_eq!(replicas(180 + load.back), 1, "{what}");
        }
    }
}

/// A line for a failing test: replicas and demand at every change.
fn trace(run: &[Second]) -> String {
    let changes = run.windows(2).filter(|pair| pair[0].replicas != pair[1].replicas);
    let line = changes.map(|pair| {
        format!(
            "{:.0}s: {} (demand {:.2}, wait {:.1})",
            pair[1].at, pair[1].replicas, pair[1].demand, pair[1].wait
        )
    });
    line.collect::<Vec<_>>().join(", ")
}

#[test]
fn tasks_lead_to_the_pods_that_carry_them() {
    check_load(&Load {
        what: "560 tasks at 100",
        signal: signal("tasks", SignalKind::Tasks(threshold::<TaskCount>(100.0))),
        service: Service::Gauge { family: "tokio_alive_tasks", idle: 4.0 },
        load: |second| at(560.0, 0.0)(second),
        pods: 6,
        back: 60,
    });
}

#[test]
fn heap_over_a_given_base_leads_to_the_pods_that_carry_it() {
    const MIB: f64 = 1_048_576.0;
    let kind = SignalKind::Heap(threshold::<ByteCount>(130.0 * MIB));
    check_load(&Load {
        what: "560 MiB at base + 100 MiB",
        signal: Signal { base: Some(30.0 * MIB), ..signal("heap", kind) },
        service: Service::Gauge { family: "heap_allocated_bytes", idle: 30.0 * MIB },
        load: |second| at(560.0 * MIB, 0.0)(second),
        pods: 6,
        back: 60,
    });
}

#[test]
fn allocation_leads_to_the_pods_that_carry_it() {
    check_load(&Load {
        what: "56 MB/s at 10 MB/s",
        signal: signal("alloc", SignalKind::AllocationRate(threshold::<BytesPerSecond>(10e6))),
        service: Service::Counter { family: "heap_allocation_bytes_total" },
        load: |second| at(56e6, 1e5)(second),
        pods: 6,
        back: 60,
    });
}

#[test]
fn a_metric_leads_to_the_pods_that_carry_it() {
    check_load(&Load {
        what: "queue_depth 56 at 10",
        signal: metric("queue_depth", Aggregate::Sum, 10.0),
        service: Service::Gauge { family: "queue_depth", idle: 0.0 },
        load: |second| at(56.0, 0.0)(second),
        pods: 6,
        back: 60,
    });
}

fn latency(target_seconds: f64, service_time: Option<f64>) -> Signal {
    signal(
        "latency",
        SignalKind::Latency(LatencyTarget {
            quantile: Ratio::new(0.95).expect("a share"),
            target: threshold(target_seconds),
            endpoint: None,
            concurrency: NonZeroU32::new(8),
            service_time: service_time.map(Duration::from_secs_f64),
        }),
    )
}

#[test]
fn latency_leads_to_the_pods_that_keep_its_target() {
    check_load(&Load {
        what: "240 requests/s of 0.1 s, 150 ms at 0.95",
        signal: latency(0.15, None),
        service: Service::Requests { servers: 8.0, seconds: 0.1 },
        load: |second| at(240.0, 20.0)(second),
        pods: 5,
        back: 60,
    });
}

#[test]
fn cpu_leads_to_the_pods_that_can_do_the_work_although_the_first_is_saturated() {
    check_load(&Load {
        what: "225m at 40m of 50m",
        signal: signal("cpu", SignalKind::Cpu(threshold::<CpuCores>(0.04))),
        service: Service::Cpu { quota: 0.05, seconds: 0.001, idle: 0.001 },
        load: |second| at(225.0, 10.0)(second),
        pods: 6,
        // The backlog of the first pod is work too.
        back: 100,
    });
}

#[test]
fn a_doubled_load_ends_at_its_pods_without_overshoot() {
    let rho = 0.7;
    let allowed = super::erlang::wait_quantile(8, rho, 0.95);
    for phase in [0.0, 5.0, 10.0, 14.0] {
        let mut policy = policy(vec![latency(0.1 + 0.1 * allowed, Some(0.1))]);
        policy.endpoint.interval = Duration::from_secs(1);
        let run = Simulation::run(Setup {
            policy,
            service: Service::Requests { servers: 8.0, seconds: 0.1 },
            load: |second| if second < 120.0 { 560.0 } else { 1120.0 },
            pods: 10,
            until: 600.0,
            ready_after: 30.0,
            phase,
            down_window: 300,
        });
        let peak = run.iter().map(|second| second.replicas).max().expect("it ran");
        let waited = run.iter().filter(|second| second.wait > 1.0).count();
        let what = format!("phase {phase}: waits over 1 s for {waited} s; {}", trace(&run));
        assert!((20..=22).contains(&peak), "{what}");
        assert_eq!(run.last().map(|second| second.replicas), Some(peak), "{what}");
        assert!(waited <= 110, "{what}");
    }
}
