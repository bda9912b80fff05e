//! The Lease that elects the one replica which writes: status, HPAs, the serving CA.
//!
//! In: a `coordination.k8s.io/v1` Lease in the adapter's namespace. Out: a [`watch::Receiver`] that is true while this
//! replica may write. Never: another machine's clock compared with ours. As in client-go's `leaderelection`, a holder
//! counts as alive for its lease duration from the moment *we* saw its record change.
//!
//! Guarantee: a holder whose renewals fail says false [`RENEW_DEADLINE`] after it sent its last good renewal. Another
//! can acquire no sooner than [`LEASE_DURATION`] after it saw that renewal. The difference is the time for writes under
//! way to end. A Lease deleted by hand voids this for up to [`RETRY_PERIOD`]. kube 5.0 has no election of its own.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use prometheus::{IntGauge, Registry};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::probes::{Beat, Progress};
use crate::time::{Clock, Moment, wall_now};

/// The Lease's name.
pub const LEASE_NAME: &str = "headroom-adapter";

/// How long the others wait for a sign of life of the holder.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);

/// How long a holder may write after it sent its last good renewal.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// The time between two attempts; those who follow add up to half of it at random.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// One attempt is a read and a write; a slower API server counts as one that does not answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Shutdown does not wait longer than this for the Lease to be given back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Several times the slowest round, which is an attempt and a pause.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// A record with a longer duration was not written by one of us, and must not lock everyone out for days.
const MAX_OBSERVED_DURATION_SECONDS: u64 = 600;

/// One replica's part in the election.
pub struct Election {
    leases: Api<Lease>,
    identity: String,
    clock: Box<dyn Fn() -> Moment + Send + Sync>,
    write_until: Option<Moment>,
    leading: watch::Sender<bool>,
    leader_gauge: IntGauge,
    beat: Beat,
    observed: Option<Observed>,
    failing: bool,
}

/// The newest version of the record, and when we first saw it. The version, not `renewTime`: two renewals may carry the
/// same time if the holder's clock stands still.
#[derive(Debug)]
struct Observed {
    version: Option<String>,
    at: Moment,
}

#[derive(Debug)]
enum Standing {
    Leading,
    Following { holder: String },
}

#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("cannot read lease {LEASE_NAME}")]
    Read(#[source] kube::Error),
    #[error("cannot write lease {LEASE_NAME}")]
    Write(#[source] kube::Error),
    #[error("lease {LEASE_NAME} was written by someone else in between")]
    Contended(#[source] kube::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("not renewed for {RENEW_DEADLINE:?}")]
    Deadline,
}

impl LeaseError {
    /// In the words of the API server, without kube's dump of the whole Status.
    fn cause(&self) -> Option<String> {
        match self {
            Self::Read(kube::Error::Api(status)) | Self::Write(kube::Error::Api(status)) => {
                Some(status.message.clone())
            }
            Self::Read(cause) | Self::Write(cause) | Self::Contended(cause) => {
                Some(cause.to_string())
            }
            Self::Timeout(_) | Self::Deadline => None,
        }
    }
}

impl Election {
    /// A candidate in `namespace`. `replica` (the pod's name) is shown as the holder, with a random suffix: a restarted
    /// process is another holder. The receiver is false until [`Election::run`] has acquired the Lease.
    ///
    /// # Errors
    /// [`prometheus::Error`] if the registry has a metric `headroom_adapter_leader` already.
    pub fn new(
        client: kube::Client,
        namespace: &str,
        replica: &str,
        progress: &Progress,
        registry: &Registry,
    ) -> Result<(Self, watch::Receiver<bool>), prometheus::Error> {
        let leader_gauge = IntGauge::new(
            "headroom_adapter_leader",
            "1 while this replica holds the Lease and writes status, HPAs and the serving CA, else 0",
        )?;
        registry.register(Box::new(leader_gauge.clone()))?;
        let (leading, receiver) = watch::channel(false);
        let clock = Clock::start();
        let election = Self {
            leases: Api::namespaced(client, namespace),
            identity: format!("{replica}_{:016x}", rand::random::<u64>()),
            clock: Box::new(move || clock.now().monotonic),
            write_until: None,
            leading,
            leader_gauge,
            beat: progress.add_loop("leader election", MAX_SILENCE),
            observed: None,
            failing: false,
        };
        Ok((election, receiver))
    }

    /// Takes part until `shutdown`, then says false and gives the Lease back. Cancel it after the writers have ended:
    /// another replica leads within about [`RETRY_PERIOD`].
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            self.beat.beat();
            let pause = tokio::select! {
                () = shutdown.cancelled() => break,
                pause = self.round() => pause,
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = sleep(pause) => {}
            }
        }
        self.end().await;
    }

    /// One attempt, and what follows from it. Returns when to come again: no later than this replica must stop writing.
    async fn round(&mut self) -> Duration {
        let sent = (self.clock)();
        let limit = self.left(sent).map_or(ATTEMPT_TIMEOUT, |left| left.min(ATTEMPT_TIMEOUT));
        let outcome = match limit {
            Duration::ZERO => Err(LeaseError::Deadline),
            limit => {
                timeout(limit, self.attempt()).await.unwrap_or(Err(LeaseError::Timeout(limit)))
            }
        };
        self.log_failure(&outcome);
        match outcome {
            Ok(Standing::Leading) => self.write_until = Some(sent + RENEW_DEADLINE),
            Ok(Standing::Following { .. }) => self.write_until = None,
            Err(_) => {}
        }
        match self.left((self.clock)()) {
            Some(left) if !left.is_zero() => {
                self.announce(true);
                RETRY_PERIOD.min(left)
            }
            _ => {
                self.write_until = None;
                self.announce(false);
                follower_pause()
            }
        }
    }

    /// For how long this replica may write, if it leads.
    fn left(&self, now: Moment) -> Option<Duration> {
        self.write_until.map(|until| until.since(now))
    }

    /// Reads the record and, where it is free, expired or ours, writes ours over exactly that version.
    async fn attempt(&mut self) -> Result<Standing, LeaseError> {
        let Some(mut lease) = self.leases.get_opt(LEASE_NAME).await.map_err(LeaseError::Read)?
        else {
            return self.create().await;
        };
        let spec = lease.spec.take().unwrap_or_default();
        if let Some(holder) = self.living_holder(&spec, lease.metadata.resource_version.as_deref())
        {
            return Ok(Standing::Following { holder });
        }
        lease.spec = Some(self.renewed(spec));
        let written = self.leases.replace(LEASE_NAME, &PostParams::default(), &lease).await;
        self.note_written(written)
    }

    async fn create(&mut self) -> Result<Standing, LeaseError> {
        let lease = Lease {
            metadata: ObjectMeta { name: Some(LEASE_NAME.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                lease_transitions: Some(0),
                ..self.renewed(LeaseSpec::default())
            }),
        };
        let written = self.leases.create(&PostParams::default(), &lease).await;
        self.note_written(written)
    }

    fn note_written(&mut self, written: kube::Result<Lease>) -> Result<Standing, LeaseError> {
        let lease = written.map_err(|source| match &source {
            // A conflict of versions, or the name taken since we saw it free.
            kube::Error::Api(status) if status.code == 409 => LeaseError::Contended(source),
            _ => LeaseError::Write(source),
        })?;
        self.observed =
            Some(Observed { version: lease.metadata.resource_version, at: (self.clock)() });
        Ok(Standing::Leading)
    }

    /// Someone else who holds the Lease, as far as our own clock can tell.
    fn living_holder(&mut self, spec: &LeaseSpec, version: Option<&str>) -> Option<String> {
        let now = (self.clock)();
        let seen_at = match &self.observed {
            Some(observed) if observed.version.as_deref() == version => observed.at,
            _ => {
                self.observed = Some(Observed { version: version.map(str::to_owned), at: now });
                now
            }
        };
        let holder = spec.holder_identity.as_ref().filter(|holder| !holder.is_empty())?;
        let duration = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(LEASE_DURATION, |seconds| {
                Duration::from_secs(seconds.min(MAX_OBSERVED_DURATION_SECONDS))
            });
        (*holder != self.identity && now < seen_at + duration).then(|| holder.clone())
    }

    fn renewed(&self, seen: LeaseSpec) -> LeaseSpec {
        let now = micro_time_now();
        let ours = seen.holder_identity.as_deref() == Some(&self.identity);
        let transitions = seen.lease_transitions.unwrap_or(0);
        LeaseSpec {
            acquire_time: if ours { seen.acquire_time } else { now.clone() },
            renew_time: now,
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
            ..seen
        }
    }

    fn announce(&self, leads: bool) {
        self.leader_gauge.set(i64::from(leads));
        let changed = self.leading.send_if_modified(|now| std::mem::replace(now, leads) != leads);
        if changed {
            let identity = self.identity.as_str();
            let message =
                if leads { "this replica writes now" } else { "this replica writes no more" };
            info!(identity, "{message}");
        }
    }

    /// Once per outage, not once per attempt.
    fn log_failure(&mut self, outcome: &Result<Standing, LeaseError>) {
        match outcome {
            Ok(standing) => {
                if std::mem::take(&mut self.failing) {
                    info!("the lease can be read and written again");
                }
                if let Standing::Following { holder } = standing {
                    debug!(holder, "another replica writes");
                }
            }
            Err(error @ LeaseError::Contended(_)) => debug!(%error, "lost a race for the lease"),
            Err(error) => {
                let cause = error.cause();
                if std::mem::replace(&mut self.failing, true) {
                    debug!(%error, cause, "still cannot renew or acquire the lease");
                } else {
                    warn!(%error, cause, "cannot renew or acquire the lease");
                }
            }
        }
    }

    async fn end(&self) {
        self.announce(false);
        let released = timeout(RELEASE_TIMEOUT, self.release()).await;
        if let Err(error) = released.unwrap_or(Err(LeaseError::Timeout(RELEASE_TIMEOUT))) {
            let cause = error.cause();
            warn!(%error, cause, "the lease was not given back; the next holder waits until it expires");
        }
    }

    /// Gives the Lease back if the record names us, even where the answer to our own write never came.
    async fn release(&self) -> Result<(), LeaseError> {
        let lease = self.leases.get_opt(LEASE_NAME).await.map_err(LeaseError::Read)?;
        let Some(mut lease) = lease else { return Ok(()) };
        let spec = lease.spec.take().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        lease.spec = Some(LeaseSpec {
            holder_identity: None,
            lease_duration_seconds: Some(1),
            renew_time: micro_time_now(),
            ..spec
        });
        let written = self.leases.replace(LEASE_NAME, &PostParams::default(), &lease).await;
        written.map(drop).map_err(LeaseError::Write)
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leads = *self.leading.borrow();
        f.debug_struct("Election")
            .field("identity", &self.identity)
            .field("leads", &leads)
            .finish_non_exhaustive()
    }
}

fn follower_pause() -> Duration {
    RETRY_PERIOD.mul_f64(rand::random_range(1.0..1.5))
}

/// For people who read the Lease; no replica decides anything by it.
fn micro_time_now() -> Option<MicroTime> {
    jiff::Timestamp::from_millisecond(wall_now().as_millis()).ok().map(MicroTime)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;
    use crate::scripted_kubernetes::ScriptedKubernetes;

    const PATH: &str =
        "/apis/coordination.k8s.io/v1/namespaces/headroom-system/leases/headroom-adapter";

    /// Replicas on one API server and one clock, which goes from event to event.
    struct Simulation {
        kubernetes: ScriptedKubernetes,
        now: Arc<Mutex<Moment>>,
        replicas: Vec<Replica>,
    }

    struct Replica {
        election: Election,
        leading: watch::Receiver<bool>,
        registry: Registry,
        next: Moment,
    }

    impl Simulation {
        fn new() -> Self {
            let now = Arc::new(Mutex::new(Moment::after_start(Duration::from_secs(1000))));
            Self { kubernetes: ScriptedKubernetes::new(), now, replicas: Vec::new() }
        }

        fn now(&self) -> Moment {
            *self.now.lock()
        }

        fn start(&mut self, name: &'static str) {
            let registry = Registry::new();
            let (mut election, leading) = candidate(&self.kubernetes, name, &registry);
            let now = self.now.clone();
            election.clock = Box::new(move || *now.lock());
            self.replicas.push(Replica { election, leading, registry, next: self.now() });
        }

        fn leads(&self, replica: usize) -> bool {
            *self.replicas[replica].leading.borrow()
        }

        /// Runs the next round that is due, whosever it is. Never may two lead at once.
        async fn advance(&mut self) {
            let replica = self
                .replicas
                .iter_mut()
                .min_by_key(|replica| replica.next)
                .expect("one was started");
            *self.now.lock() = replica.next;
            let pause = replica.election.round().await;
            replica.next = replica.next + pause;
            let leaders = self.replicas.iter().filter(|replica| *replica.leading.borrow()).count();
            assert!(leaders <= 1, "two replicas write at once");
        }

        async fn run_for(&mut self, duration: Duration) {
            let end = self.now() + duration;
            while self.now() < end {
                self.advance().await;
            }
        }

        /// Runs until a replica leads, or no longer does; says when.
        async fn until(&mut self, replica: usize, leads: bool) -> Moment {
            for _ in 0..1000 {
                if self.leads(replica) == leads {
                    return self.now();
                }
                self.advance().await;
            }
            panic!("replica {replica} never changed");
        }
    }

    fn candidate(
        kubernetes: &ScriptedKubernetes,
        name: &'static str,
        registry: &Registry,
    ) -> (Election, watch::Receiver<bool>) {
        let progress = Progress::new(Clock::start());
        Election::new(kubernetes.client(name), "headroom-system", name, &progress, registry)
            .expect("the registry is empty")
    }

    fn foreign_lease(renew_time: &str) -> serde_json::Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": LEASE_NAME, "namespace": "headroom-system"},
            "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 15, "leaseTransitions": 4, "renewTime": renew_time},
        })
    }

    #[tokio::test]
    async fn exactly_one_of_two_replicas_leads_and_its_gauge_says_so() {
        let mut simulation = Simulation::new();
        simulation.start("a");
        simulation.start("b");
        simulation.run_for(Duration::from_secs(120)).await;
        assert!(simulation.leads(0) && !simulation.leads(1));
        assert_eq!(
            simulation.kubernetes.get(PATH).expect("it was made")["spec"]["leaseTransitions"],
            json!(0)
        );
        let gauge = |replica: &Replica| {
            replica.registry.gather()[0].get_metric()[0].get_gauge().get_value().to_string()
        };
        assert_eq!(simulation.replicas[0].registry.gather()[0].name(), "headroom_adapter_leader");
        assert_eq!(simulation.replicas.iter().map(gauge).collect::<Vec<_>>(), ["1", "0"]);
    }

    #[tokio::test]
    async fn of_two_that_find_no_lease_at_the_same_time_one_leads() {
        let kubernetes = ScriptedKubernetes::slow();
        let (mut a, a_leads) = candidate(&kubernetes, "a", &Registry::new());
        let (mut b, b_leads) = candidate(&kubernetes, "b", &Registry::new());
        tokio::join!(a.round(), b.round());
        assert!(*a_leads.borrow() != *b_leads.borrow());
        assert_eq!(kubernetes.take_refused(), ["AlreadyExists"], "they did race");
    }

    #[tokio::test]
    async fn of_two_that_find_it_free_at_the_same_time_one_leads() {
        let kubernetes = ScriptedKubernetes::slow();
        let mut lease = foreign_lease("2026-01-01T00:00:00.000000Z");
        lease["spec"]["holderIdentity"] = json!("");
        kubernetes.put(PATH, lease);
        let (mut a, a_leads) = candidate(&kubernetes, "a", &Registry::new());
        let (mut b, b_leads) = candidate(&kubernetes, "b", &Registry::new());
        tokio::join!(a.round(), b.round());
        assert!(*a_leads.borrow() != *b_leads.borrow());
        assert_eq!(kubernetes.take_refused(), ["Conflict"], "they did race");
    }

    #[tokio::test]
    async fn a_silent_holder_is_replaced_after_its_duration_by_our_own_clock_whatever_its_clock_says()
     {
        for renew_time in ["1999-01-01T00:00:00.000000Z", "2199-01-01T00:00:00.000000Z"] {
            let mut simulation = Simulation::new();
            simulation.kubernetes.put(PATH, foreign_lease(renew_time));
            simulation.start("a");
            let started = simulation.now();
            let waited = simulation.until(0, true).await.since(started);
            assert!(waited >= LEASE_DURATION, "{renew_time}: {waited:?}");
            assert!(waited <= LEASE_DURATION + 2 * RETRY_PERIOD, "{renew_time}: {waited:?}");
            let spec = &simulation.kubernetes.get(PATH).expect("it exists")["spec"];
            assert_eq!(spec["leaseTransitions"], json!(5));
            assert!(
                spec["holderIdentity"].as_str().is_some_and(|holder| holder.starts_with("a_")),
                "{spec}"
            );
        }
    }

    #[tokio::test]
    async fn a_holder_that_cannot_renew_steps_down_before_another_acquires() {
        let mut simulation = Simulation::new();
        simulation.start("a");
        simulation.start("b");
        simulation.run_for(Duration::from_secs(31)).await;
        let cut_at = simulation.now();
        simulation.kubernetes.cut("a");
        let ended = simulation.until(0, false).await;
        assert!(ended.since(cut_at) <= RENEW_DEADLINE, "{:?}", ended.since(cut_at));
        assert!(ended.since(cut_at) >= RENEW_DEADLINE - RETRY_PERIOD, "{:?}", ended.since(cut_at));
        let gap = simulation.until(1, true).await.since(ended);
        assert!(gap >= LEASE_DURATION - RENEW_DEADLINE, "{gap:?}");
        simulation.kubernetes.heal("a");
        simulation.run_for(Duration::from_secs(60)).await;
        assert!(!simulation.leads(0) && simulation.leads(1), "the one that came back follows");
    }

    #[tokio::test]
    async fn a_request_that_hangs_cannot_outlast_the_deadline() {
        let kubernetes = ScriptedKubernetes::new();
        let (mut election, leading) = candidate(&kubernetes, "a", &Registry::new());
        election.round().await;
        assert!(*leading.borrow());
        kubernetes.hang("a");
        let almost = RENEW_DEADLINE - Duration::from_millis(50);
        let begun = election.write_until.expect("it leads");
        let base = Clock::start();
        // The clock goes on from 50 ms before the deadline.
        let shift = begun.since(Moment::default()) - (RENEW_DEADLINE - almost);
        election.clock = Box::new(move || base.now().monotonic + shift);
        election.round().await;
        assert!(!*leading.borrow());
    }

    #[tokio::test]
    async fn a_short_outage_does_not_change_the_holder() {
        let mut simulation = Simulation::new();
        simulation.start("a");
        simulation.start("b");
        simulation.run_for(Duration::from_secs(30)).await;
        simulation.replicas[0].leading.mark_unchanged();
        simulation.kubernetes.cut("a");
        simulation.run_for(Duration::from_secs(6)).await;
        simulation.kubernetes.heal("a");
        simulation.run_for(Duration::from_secs(60)).await;
        assert!(simulation.leads(0));
        let changed = simulation.replicas[0].leading.has_changed().expect("the election exists");
        assert!(!changed, "it never said false in between");
    }

    #[tokio::test]
    async fn shutdown_says_false_and_gives_the_lease_back() {
        let kubernetes = ScriptedKubernetes::new();
        let (election, mut leading) = candidate(&kubernetes, "a", &Registry::new());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(election.run(shutdown.clone()));
        leading.wait_for(|leads| *leads).await.expect("the election runs");
        shutdown.cancel();
        task.await.expect("it ends without a panic");
        assert!(!*leading.borrow());
        let (mut next, next_leads) = candidate(&kubernetes, "b", &Registry::new());
        next.round().await;
        assert!(*next_leads.borrow(), "at its first attempt, not after the lease duration");
    }

    #[tokio::test]
    async fn shutdown_of_a_follower_leaves_the_lease_alone() {
        let kubernetes = ScriptedKubernetes::new();
        kubernetes.put(PATH, foreign_lease("2026-01-01T00:00:00.000000Z"));
        let (election, _leading) = candidate(&kubernetes, "a", &Registry::new());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(election.run(shutdown.clone()));
        tokio::task::yield_now().await;
        shutdown.cancel();
        task.await.expect("it ends without a panic");
        assert!(kubernetes.take_writes().is_empty());
    }

    #[tokio::test]
    async fn a_lease_deleted_by_hand_is_made_again() {
        let mut simulation = Simulation::new();
        simulation.start("a");
        simulation.run_for(Duration::from_secs(20)).await;
        simulation.kubernetes.remove(PATH);
        simulation.run_for(Duration::from_secs(4)).await;
        assert!(simulation.leads(0));
        assert!(simulation.kubernetes.get(PATH).is_some());
    }

    #[tokio::test]
    async fn a_lease_taken_by_someone_else_is_left_at_the_next_attempt() {
        let mut simulation = Simulation::new();
        simulation.start("a");
        simulation.until(0, true).await;
        simulation.kubernetes.put(PATH, foreign_lease("2026-01-01T00:00:00.000000Z"));
        simulation.advance().await;
        assert!(!simulation.leads(0));
    }

    #[test]
    fn the_shipped_rights_name_the_lease() {
        let rbac = include_str!("../../manifests/base/rbac.yaml");
        assert!(rbac.contains(&format!("resourceNames: [{LEASE_NAME}]")));
    }
}
