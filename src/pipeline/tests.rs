//! The pipeline with fed batches: real store, real deciders, no network.

use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use std::sync::Barrier;

use super::*;
use crate::policy::{
    Decision, Endpoint, LeftOutReason, Pod, Policy, Signal, SignalKind, Threshold, Workload,
};
use crate::sample::{CollectFailure, EndpointKey, Labels, MetricName, PodKey, Sample, SeriesKey};
use crate::sources::{ScrapeSetup, Scraper, Target};
use crate::time::Timestamp;
use crate::units::{Measure, Ratio};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for any of these tests on any machine.
const PATIENCE: Duration = Duration::from_secs(30);
const TIMEOUT: CollectFailure = CollectFailure::Timeout(SECOND);

/// A source that is fed by the test; it only remembers its targets.
#[derive(Clone, Default)]
struct Fed(Arc<Mutex<Vec<Target>>>);

impl Source for Fed {
    fn set_targets(&mut self, targets: Vec<Target>) {
        *self.0.lock() = targets;
    }
}

/// A running pipeline and its ends.
struct Bench {
    roster: watch::Sender<Arc<Vec<Assignment>>>,
    batches: mpsc::Sender<Batch>,
    source: Fed,
    board: Arc<Board>,
    clock: Clock,
    registry: Registry,
    progress: Progress,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Bench {
    /// Starts with `roster`, and with two batches each of what is `waiting`: one alone is no reason to trust a pod.
    fn start(roster: Vec<Assignment>, waiting: &[(&str, Result<f64, CollectFailure>)]) -> Self {
        let clock = Clock::start();
        let (batch_sender, batches) = mpsc::channel(64);
        for (pod, outcome) in waiting {
            for _ in 0..2 {
                batch_sender
                    .try_send(batch(clock, pod, outcome.clone()))
                    .expect("the queue has room");
            }
        }
        let (roster_sender, roster) = watch::channel(Arc::new(roster));
        let (source, board, registry) = (Fed::default(), Arc::<Board>::default(), Registry::new());
        let progress = Progress::new(clock);
        let pipeline = Pipeline::new(PipelineSetup {
            roster,
            source: source.clone(),
            batches,
            board: board.clone(),
            clock,
            progress: &progress,
            registry: &registry,
        })
        .expect("a new registry has no such metrics");
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(pipeline.run(shutdown.clone()));
        Self {
            roster: roster_sender,
            batches: batch_sender,
            source,
            board,
            clock,
            registry,
            progress,
            shutdown,
            task,
        }
    }

    /// Two batches, as above.
    async fn feed(&self, pod: &str, outcome: Result<f64, CollectFailure>) {
        for _ in 0..2 {
            let batch = batch(self.clock, pod, outcome.clone());
            self.batches.send(batch).await.expect("the pipeline runs");
        }
    }

    fn assign(&self, roster: Vec<Assignment>) {
        self.roster.send(Arc::new(roster)).expect("the pipeline runs");
    }

    /// Waits until the board answers `Some` to the question.
    async fn until<T>(&self, what: &str, ask: impl Fn(&Self) -> Option<T>) -> T {
        let answered = async {
            loop {
                if let Some(answer) = ask(self) {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("never: {what}"))
    }

    fn decision(&self, policy: &str) -> Option<Arc<Decision>> {
        match self.board.get(&id(policy))?.state() {
            EntryState::Decided { decision, .. } => Some(decision.clone()),
            EntryState::Unserved(_) => None,
        }
    }

    fn unserved(&self, policy: &str) -> Option<Unserved> {
        match self.board.get(&id(policy))?.state() {
            EntryState::Decided { .. } => None,
            EntryState::Unserved(unserved) => Some(unserved.clone()),
        }
    }

    /// Waits until the policy's demand is this, to the nearest thousandth.
    async fn until_demand(&self, policy: &str, demand: f64) -> Arc<Decision> {
        self.until(&format!("demand {demand} of {policy}"), |bench| {
            let decision = bench.decision(policy)?;
            let now = *decision.demand.as_ref().ok()?;
            ((now - demand).abs() < 0.001).then_some(decision)
        })
        .await
    }

    /// A gauge or counter, by the value of one of its labels; `None` without such a series.
    fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name)?;
        let metric = family
            .get_metric()
            .iter()
            .find(|metric| metric.get_label().iter().any(|pair| pair.value() == label))?;
        Some(metric.get_counter().get_value() + metric.get_gauge().get_value())
    }

    fn decisions(&self) -> f64 {
        ["served", "unserved", "panicked"]
            .iter()
            .filter_map(|outcome| self.metric("headroom_adapter_decisions_total", outcome))
            .sum()
    }

    fn asked(&self) -> Vec<String> {
        self.source.0.lock().iter().map(|target| target.endpoint.pod.0.to_string()).collect()
    }
}

/// A pipeline that the test moves by hand, with its roster taken.
fn at_rest(
    roster: Vec<Assignment>,
) -> (watch::Sender<Arc<Vec<Assignment>>>, Pipeline<Fed>, Arc<Board>) {
    let (sender, roster) = watch::channel(Arc::new(roster));
    let (clock, board) = (Clock::start(), Arc::<Board>::default());
    let mut pipeline = Pipeline::new(PipelineSetup {
        roster,
        source: Fed::default(),
        batches: mpsc::channel(1).1,
        board: board.clone(),
        clock,
        progress: &Progress::new(clock),
        registry: &Registry::new(),
    })
    .expect("a new registry has no such metrics");
    pipeline.take_roster();
    (sender, pipeline, board)
}

fn id(policy: &str) -> PolicyId {
    PolicyId { namespace: "shop".into(), name: policy.into() }
}

/// Makes the sample times of batches that are made within one millisecond differ.
static LATER_MILLIS: AtomicI64 = AtomicI64::new(0);

/// The endpoint that [`policy`] asks, but for the path.
fn endpoint(pod: &str, path: &str) -> EndpointKey {
    EndpointKey { pod: PodKey(pod.into()), port: 9469, path: path.into(), interval: SECOND }
}

/// A batch with `tokio_alive_tasks`.
fn batch(clock: Clock, pod: &str, outcome: Result<f64, CollectFailure>) -> Batch {
    let now = clock.now();
    let series =
        SeriesKey { name: MetricName::new("tokio_alive_tasks"), labels: Labels::default() };
    let later = LATER_MILLIS.fetch_add(1, Ordering::Relaxed);
    let at = Timestamp::from_millis(now.wall.as_millis() + later);
    let outcome = outcome.map(|value| vec![Sample { series, value, at }]);
    let endpoint = endpoint(pod, "/metrics");
    Batch { endpoint, arrived: now.monotonic, arrived_at: now.wall, outcome, dropped: Vec::new() }
}

/// Tasks with a threshold of 100 per pod; stale after `stale_after`.
fn policy(name: &str, stale_after: Duration) -> Arc<Policy> {
    let kind = SignalKind::Tasks(Threshold::new(100.0).expect("it is more than zero"));
    let example = Policy::example(id(name));
    Arc::new(Policy {
        endpoint: Endpoint { interval: SECOND, ..example.endpoint.clone() },
        window: 2 * SECOND,
        stale_after,
        start_grace: SECOND,
        coverage_floor: Ratio::new(0.5).expect("it is a ratio"),
        signals: vec![Signal { name: "tasks".into(), kind, base: Some(0.0) }],
        min_replicas: Some(1),
        max_replicas: Some(9),
        ..example
    })
}

fn pod(clock: Clock, name: &str) -> Pod {
    Pod {
        key: PodKey(name.into()),
        name: name.into(),
        ip: Some([127, 0, 0, 1].into()),
        port: Some(9469),
        started_at: Some(clock.now().wall),
        ready_since: Some(clock.now().wall),
        ended: false,
        cpu_limit: None,
        labels: Labels::default(),
        container: None,
    }
}

/// A policy with ready pods of these names.
fn active(name: &str, pods: &[&str]) -> Assignment {
    let clock = Clock::start();
    let replicas = u32::try_from(pods.len()).expect("few pods");
    let workload = Workload {
        spec_replicas: replicas,
        status_replicas: replicas,
        resource: "deployments".into(),
        pods: pods.iter().map(|name| pod(clock, name)).collect(),
        ..Workload::default()
    };
    Assignment::Active { policy: policy(name, 60 * SECOND), workload: Arc::new(workload) }
}

fn refused(name: &str) -> Assignment {
    let message = "the older policy of this target is checkout".to_owned();
    Assignment::Refused { id: id(name), reason: "TargetConflict", message }
}

#[tokio::test]
async fn batches_become_a_demand_on_the_board() {
    let bench =
        Bench::start(vec![active("checkout", &["a", "b"])], &[("a", Ok(150.0)), ("b", Ok(250.0))]);
    let decision = bench.until_demand("checkout", 4.0).await;
    assert_eq!(decision.coverage.reporting, 2);
    assert_eq!(bench.metric("headroom_adapter_policy_demand", "checkout"), Some(4.0));
    assert_eq!(bench.metric("headroom_adapter_policy_coverage_ratio", "checkout"), Some(1.0));
    bench.feed("b", Ok(50.0)).await;
    // The long window's mean holds the demand up, but the newest total is 200.
    bench
        .until("the newest batch counts", |bench| {
            let decision = bench.decision("checkout")?;
            (decision.signals.first()?.current.is_some_and(|total| (total - 200.0).abs() < 0.1))
                .then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_policy_without_samples_says_so_until_it_is_decided() {
    let bench = Bench::start(vec![active("checkout", &["a", "b"])], &[]);
    let unserved =
        bench.until("the policy is on the board", |bench| bench.unserved("checkout")).await;
    assert_eq!(unserved.reason, "NoSamplesYet");
    assert!(unserved.message.contains("Deployment checkout"), "{}", unserved.message);
    assert!(unserved.message.contains("2 pods"), "{}", unserved.message);
    bench.feed("a", Ok(100.0)).await;
    bench.until("a decision", |bench| bench.decision("checkout")).await;
}

#[tokio::test]
async fn a_pod_that_hangs_is_named_with_its_reason_and_the_others_count() {
    let roster = vec![active("checkout", &["a", "b", "hangs"])];
    let waiting = [("a", Ok(100.0)), ("b", Ok(100.0)), ("hangs", Err(TIMEOUT))];
    let bench = Bench::start(roster, &waiting);
    let decision = bench.until("a decision", |bench| bench.decision("checkout")).await;
    let left_out: Vec<_> =
        decision.left_out.iter().map(|pod| (&*pod.name, pod.reason.clone())).collect();
    assert_eq!(left_out, [("hangs", LeftOutReason::Failed(TIMEOUT))]);
    assert_eq!(decision.coverage.reporting, 2);
}

#[tokio::test]
async fn a_policy_whose_pods_all_fail_is_decided_as_an_error() {
    let waiting = [("a", Err(TIMEOUT)), ("b", Err(CollectFailure::Status(500)))];
    let bench = Bench::start(vec![active("checkout", &["a", "b"])], &waiting);
    let decision = bench.until("a decision", |bench| bench.decision("checkout")).await;
    assert!(decision.demand.is_err(), "{:?}", decision.demand);
    assert_eq!(decision.left_out.len(), 2);
    assert_eq!(
        bench.metric("headroom_adapter_policy_demand", "checkout"),
        None,
        "no demand is not zero"
    );
}

#[tokio::test]
async fn batches_that_arrive_together_are_one_decision() {
    let waiting: Vec<_> =
        ["a", "b"].into_iter().cycle().map(|pod| (pod, Ok(1.0))).take(20).collect();
    let bench = Bench::start(vec![active("checkout", &["a", "b"])], &waiting);
    bench.until("a decision", |bench| bench.decision("checkout")).await;
    assert!(bench.decisions() < 5.0, "{} decisions of 20 batches", bench.decisions());
}

#[tokio::test]
async fn a_policy_without_pods_is_decided_at_once_and_again_before_it_is_stale() {
    let Assignment::Active { workload, .. } = active("checkout", &[]) else { unreachable!() };
    let roster = vec![Assignment::Active { policy: policy("checkout", 2 * SECOND), workload }];
    let bench = Bench::start(roster, &[]);
    let first = bench.until("a decision", |bench| bench.decision("checkout")).await;
    let next = bench.until("the next decision", |bench| {
        bench.decision("checkout").filter(|decision| decision.decided > first.decided)
    });
    assert!(next.await.decided.since(first.decided) >= SECOND, "half of staleAfter is soon enough");
}

#[tokio::test]
async fn a_policy_that_is_removed_leaves_the_board_the_targets_and_the_metrics() {
    let both = vec![active("checkout", &["a"]), active("cart", &["b"])];
    let bench = Bench::start(both, &[("a", Ok(100.0)), ("b", Ok(200.0))]);
    bench.until_demand("checkout", 1.0).await;
    bench.until_demand("cart", 2.0).await;
    assert_eq!(bench.asked(), ["b", "a"], "in the order of the policies' names");
    bench.assign(vec![active("cart", &["b"])]);
    bench
        .until("checkout is gone", |bench| bench.board.get(&id("checkout")).is_none().then_some(()))
        .await;
    bench.until("its pod is not asked", |bench| (bench.asked() == ["b"]).then_some(())).await;
    assert_eq!(bench.metric("headroom_adapter_policy_demand", "checkout"), None);
    // An answer that was on its way changes nothing.
    bench.feed("a", Ok(900.0)).await;
    bench.feed("b", Ok(300.0)).await;
    bench.until_demand("cart", 3.0).await;
    assert!(bench.board.get(&id("checkout")).is_none());
}

#[tokio::test]
async fn a_refused_policy_says_why_and_comes_back_as_new() {
    let bench = Bench::start(vec![refused("checkout")], &[]);
    let unserved =
        bench.until("the policy is on the board", |bench| bench.unserved("checkout")).await;
    assert_eq!(unserved.reason, "TargetConflict");
    assert_eq!(unserved.message, "the older policy of this target is checkout");
    assert_eq!(bench.metric("headroom_adapter_policies", "refused"), Some(1.0));
    bench.assign(vec![active("checkout", &["a"])]);
    bench
        .until("it is taken up", |bench| {
            bench.unserved("checkout").filter(|unserved| unserved.reason == "NoSamplesYet")
        })
        .await;
    bench.feed("a", Ok(100.0)).await;
    bench.until_demand("checkout", 1.0).await;
    bench.assign(vec![refused("checkout")]);
    bench.until("it is refused again", |bench| bench.unserved("checkout")).await;
    assert!(bench.asked().is_empty());
}

#[tokio::test]
async fn a_changed_workload_is_decided_about_without_waiting_for_a_batch() {
    let bench =
        Bench::start(vec![active("checkout", &["a", "b"])], &[("a", Ok(100.0)), ("b", Ok(100.0))]);
    bench.until_demand("checkout", 2.0).await;
    bench.assign(vec![active("checkout", &["a", "b", "c"])]);
    bench
        .until("the third pod is matched", |bench| {
            bench.decision("checkout").filter(|decision| decision.coverage.matched == 3)
        })
        .await;
}

#[tokio::test]
async fn pods_that_ended_or_have_no_address_are_not_asked() {
    let Assignment::Active { policy, workload } = active("checkout", &["a", "ended", "young"])
    else {
        unreachable!()
    };
    let mut workload = Workload::clone(&workload);
    workload.pods[1].ended = true;
    workload.pods[2].ip = None;
    let bench =
        Bench::start(vec![Assignment::Active { policy, workload: Arc::new(workload) }], &[]);
    bench.until("targets are set", |bench| (bench.asked() == ["a"]).then_some(())).await;
}

/// The whole way over a real network: one pod answers, one accepts the connection and never answers.
#[tokio::test]
async fn scraped_pods_become_a_demand_and_the_one_that_hangs_is_named() {
    let listen = || TcpListener::bind("127.0.0.1:0");
    let answers = listen().await.expect("loopback has a free port");
    let hangs = listen().await.expect("loopback has a free port");
    let mut pods = ["answers", "hangs"].map(|name| pod(Clock::start(), name));
    for (pod, listener) in pods.iter_mut().zip([&answers, &hangs]) {
        pod.port = Some(listener.local_addr().expect("it is bound").port());
    }
    let service = axum::Router::new()
        .route("/metrics", axum::routing::get(async || "tokio_alive_tasks 250\nother 1\n"));
    tokio::spawn(async move { axum::serve(answers, service).await });

    let mut policy = Policy::clone(&policy("checkout", 60 * SECOND));
    policy.endpoint.interval = SECOND;
    let workload = Workload {
        spec_replicas: 2,
        status_replicas: 2,
        resource: "deployments".into(),
        pods: pods.to_vec(),
        ..Workload::default()
    };
    let active = Assignment::Active { policy: Arc::new(policy), workload: Arc::new(workload) };
    let (_roster, roster) = watch::channel(Arc::new(vec![active]));
    let (clock, board, registry) = (Clock::start(), Arc::<Board>::default(), Registry::new());
    let (sender, batches) = mpsc::channel(16);
    let limits = crate::sources::Limits::default();
    let setup = ScrapeSetup { limits, clock, batches: sender, registry: &registry };
    let pipeline = Pipeline::new(PipelineSetup {
        roster,
        source: Scraper::new(setup).expect("a new registry has no such metrics"),
        batches,
        board: board.clone(),
        clock,
        progress: &Progress::new(clock),
        registry: &registry,
    })
    .expect("a new registry has no such metrics");
    tokio::spawn(pipeline.run(CancellationToken::new()));

    let both_known = async {
        loop {
            if let Some(EntryState::Decided { decision, .. }) =
                board.get(&id("checkout")).as_ref().map(|standing| standing.state())
                && decision.demand.is_ok()
                && decision
                    .left_out
                    .iter()
                    .any(|pod| matches!(pod.reason, LeftOutReason::Failed(_)))
            {
                return decision.clone();
            }
            tokio::time::sleep(SECOND / 20).await;
        }
    };
    let decision = timeout(PATIENCE, both_known).await.expect("both pods are decided about");
    let demand = decision.demand.as_ref().expect("the other pod answers");
    assert!((demand - 2.5).abs() < 1e-9, "{demand}");
    assert_eq!(&*decision.left_out[0].name, "hangs");
    let reason = LeftOutReason::Failed(CollectFailure::Timeout(SECOND));
    assert_eq!(decision.left_out[0].reason, reason);
}

#[tokio::test]
async fn the_loop_beats_and_ends_at_the_shutdown() {
    let bench = Bench::start(vec![], &[]);
    let start = bench.clock.now().monotonic;
    bench
        .until("a beat", |bench| {
            (bench.clock.now().monotonic.since(start) > SECOND && bench.progress.live().is_ok())
                .then_some(())
        })
        .await;
    bench.shutdown.cancel();
    timeout(PATIENCE, bench.task).await.expect("it ends").expect("it does not panic");
}

#[tokio::test]
async fn what_the_store_keeps_of_a_pod_goes_with_the_pod() {
    let both = vec![active("checkout", &["a"]), active("cart", &["b"])];
    let (roster, mut pipeline, board) = at_rest(both);
    let clock = pipeline.clock;
    pipeline.take_batch(&batch(clock, "a", Ok(100.0)));
    pipeline.take_batch(&batch(clock, "b", Ok(100.0)));
    assert_eq!(pipeline.store.stats().pods, 2);
    roster.send(Arc::new(vec![active("cart", &["b"])])).expect("the pipeline listens");
    pipeline.take_roster();
    pipeline.take_batch(&batch(clock, "a", Ok(100.0)));
    assert_eq!(pipeline.store.stats().pods, 1, "nor is an answer kept that was on its way");
    assert_eq!(board.all().len(), 1);
}

#[tokio::test]
async fn a_panic_in_one_decision_is_said_and_harms_no_other_policy() {
    let both = vec![active("checkout", &["a", "b"]), active("cart", &["a"])];
    let (_roster, mut pipeline, board) = at_rest(both);
    let clock = pipeline.clock;
    let seat = pipeline.seats.get_mut(&id("cart")).expect("cart is active");
    seat.decides_with(|_, _, _, _| panic!("seeded"));
    pipeline.take_batch(&batch(clock, "a", Ok(100.0)));
    pipeline.take_batch(&batch(clock, "b", Ok(100.0)));
    pipeline.decide_dirty().await;

    let state = |name| board.get(&id(name)).expect("it is on the board");
    let cart = state("cart");
    let EntryState::Unserved(unserved) = cart.state() else { panic!("cart panicked") };
    assert_eq!(unserved.reason, "InternalError");
    assert!(matches!(state("checkout").state(), EntryState::Decided { .. }));

    let seat = pipeline.seats.get_mut(&id("cart")).expect("cart is active");
    seat.decides_with(crate::policy::Decider::decide);
    pipeline.take_batch(&batch(clock, "a", Ok(100.0)));
    pipeline.decide_dirty().await;
    assert!(matches!(state("cart").state(), EntryState::Decided { .. }), "the next batch heals it");
}

/// Readers of the board wait for nobody, even if the writer stands still in the middle of a decision.
#[tokio::test]
async fn a_writer_that_is_held_holds_up_no_reader() {
    static ENTERED: Barrier = Barrier::new(2);
    static LEAVES: Barrier = Barrier::new(2);
    let (_roster, mut pipeline, board) = at_rest(vec![active("checkout", &["a"])]);
    pipeline.take_batch(&batch(pipeline.clock, "a", Ok(100.0)));
    pipeline.decide_dirty().await;
    let seat = pipeline.seats.get_mut(&id("checkout")).expect("checkout is active");
    seat.decides_with(|decider, store, workload, now| {
        ENTERED.wait();
        LEAVES.wait();
        decider.decide(store, workload, now)
    });
    pipeline.take_batch(&batch(pipeline.clock, "a", Ok(200.0)));
    let writer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(pipeline.decide_dirty());
    });
    ENTERED.wait();
    for _ in 0..10_000 {
        let standing = board.get(&id("checkout")).expect("it is on the board");
        assert!(matches!(standing.state(), EntryState::Decided { .. }));
        assert_eq!(board.namespace("shop").map_or(0, |namespace| namespace.iter().count()), 1);
    }
    LEAVES.wait();
    writer.join().expect("the decision was made");
}

#[tokio::test]
async fn two_policies_that_ask_one_pod_at_different_paths_read_only_their_own() {
    let Assignment::Active { policy: own, workload } = active("app", &["a"]) else {
        unreachable!()
    };
    let mut own = Policy::clone(&own);
    own.endpoint.path = "/app".into();
    let app = Assignment::Active { policy: Arc::new(own), workload };
    let (_roster, mut pipeline, board) =
        at_rest(vec![app, active("checkout", &["a"]), active("twin", &["a"])]);
    let clock = pipeline.clock;
    for _ in 0..2 {
        pipeline.take_batch(&batch(clock, "a", Ok(100.0)));
        let at_app = Batch { endpoint: endpoint("a", "/app"), ..batch(clock, "a", Ok(700.0)) };
        pipeline.take_batch(&at_app);
    }
    pipeline.decide_dirty().await;
    for (policy, demand) in [("checkout", 1.0), ("twin", 1.0), ("app", 7.0)] {
        let state = board.get(&id(policy)).expect("it is on the board");
        let EntryState::Decided { decision, .. } = state.state() else {
            panic!("{policy}: {state:?}")
        };
        assert_eq!(decision.demand, Ok(demand), "{policy}");
    }
    assert_eq!(pipeline.store.stats().pods, 2, "the twins share a window");
}

/// A pipeline that learned what an idle pod of `checkout` shows, and what it learned.
async fn learned() -> (watch::Sender<Arc<Vec<Assignment>>>, Pipeline<Fed>, Arc<Board>, Assignment) {
    let Assignment::Active { policy, workload } = active("checkout", &["a"]) else {
        unreachable!()
    };
    let (mut policy, mut workload) = (Policy::clone(&policy), Workload::clone(&workload));
    policy.signals[0].base = None;
    workload.pods[0].ready_since = None;
    let started = workload.pods[0].started_at.expect("it has started");
    let checkout = Assignment::Active { policy: Arc::new(policy), workload: Arc::new(workload) };
    let (roster, mut pipeline, board) = at_rest(vec![checkout.clone()]);
    for second in [30, 61] {
        let mut batch = batch(pipeline.clock, "a", Ok(7.0));
        for sample in batch.outcome.iter_mut().flatten() {
            sample.at = started + second * SECOND;
        }
        pipeline.take_batch(&batch);
        pipeline.decide_dirty().await;
    }
    assert_eq!(base_of_checkout(&board), Some(7.0));
    (roster, pipeline, board, checkout)
}

fn base_of_checkout(board: &Board) -> Option<f64> {
    let state = board.get(&id("checkout")).expect("it is on the board");
    let EntryState::Decided { decision, .. } = state.state() else { panic!("{state:?}") };
    decision.learned.signals.first()?.base
}

#[tokio::test]
async fn what_was_learned_since_the_last_status_outlives_a_refusal() {
    let (roster, mut pipeline, board, checkout) = learned().await;
    for assignment in [refused("checkout"), refused("checkout"), checkout] {
        roster.send(Arc::new(vec![assignment])).expect("the pipeline listens");
        pipeline.take_roster();
    }
    pipeline.take_batch(&batch(pipeline.clock, "a", Ok(9.0)));
    pipeline.decide_dirty().await;
    assert_eq!(base_of_checkout(&board), Some(7.0));
}

#[tokio::test]
async fn what_was_learned_since_the_last_status_outlives_a_panic() {
    let (_roster, mut pipeline, board, _) = learned().await;
    let decides = [|_: &mut _, _: &_, _: &_, _| panic!("seeded"), crate::policy::Decider::decide];
    for decide in decides {
        pipeline.seats.get_mut(&id("checkout")).expect("it is active").decides_with(decide);
        pipeline.mark(&id("checkout"));
        pipeline.decide_dirty().await;
    }
    assert_eq!(base_of_checkout(&board), Some(7.0));
}
