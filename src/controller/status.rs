//! What a policy's status says, and when it is worth a write.
//!
//! In: a [`Ruling`], the board's state, findings about the HPA, and the status written last. Out: the wanted status, and
//! whether it is due. Pure. Never: a number for something unknown, and never a write for what only wobbles.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff;

use super::index::{Ruling, reason};
use super::scaling_policy::{LearnedStatus, ScalingPolicyStatus, SignalStatus};
use crate::policy::{
    Assignment, Decision, EntryState, Finding, Learned, LearnedSignal, Policy, SignalDecision,
    Unserved, Workload,
};
use crate::time::{Now, Timestamp};
use crate::units::Measure;

/// The condition that says whether the policy's demand is served.
pub const READY: &str = "Ready";
/// The reason of [`READY`] while it is true.
const SERVED: &str = "Served";
/// The condition for a share of reporting pods under `coverageFloor`.
const COVERAGE_LOW: &str = "CoverageLow";
/// The reason when decisions stopped coming.
const DECISION_STALE: &str = "DecisionStale";

/// From one write of numbers to the next.
const NUMBERS_EVERY: Duration = Duration::from_secs(30);
/// A number that moved by less is the same. Of demands under one pod: this share of a pod.
const MOVED: f64 = 0.05;
/// Longer messages are cut.
const MAX_MESSAGE_CHARS: usize = 1024;

/// One condition without its times.
struct Statement {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

/// The status a policy should have now. `None` while there is nothing to say: its target is being read, or its newest
/// decision is about an older spec.
pub(super) fn wanted(
    ruling: &Ruling,
    state: Option<&EntryState>,
    autoscaler_finding: Option<&Finding>,
    written: &ScalingPolicyStatus,
    now: Now,
) -> Option<ScalingPolicyStatus> {
    let mut status =
        ScalingPolicyStatus { learned: written.learned.clone(), ..ScalingPolicyStatus::default() };
    let mut statements = match (&ruling.assignment, state) {
        (Assignment::Refused { reason: reason::TARGET_PENDING, .. }, _)
        | (Assignment::Active { .. }, None) => return None,
        (Assignment::Refused { reason, message, .. }, _) => not_ready(reason, message),
        (Assignment::Active { workload, .. }, Some(EntryState::Unserved(why))) => {
            count_replicas(&mut status, workload);
            not_ready(why.reason, &why.message)
        }
        (Assignment::Active { policy, workload }, Some(EntryState::Decided { decision, .. })) => {
            if decision.generation != ruling.policy.generation {
                return None;
            }
            count_replicas(&mut status, workload);
            decided(&mut status, policy, decision, now)
        }
    };
    if let Some(finding) = autoscaler_finding {
        add_finding(&mut statements, finding.reason, &finding.message);
    }
    let generation = ruling.policy.generation;
    status.observed_generation = Some(generation);
    status.conditions = statements
        .iter()
        .map(|statement| condition(statement, generation, written, now.wall))
        .collect();
    Some(status)
}

/// Whether a status should be written: at once when a condition or the generation changed, else when numbers moved and
/// the last write (`None`: by an earlier leader) is long enough ago.
pub(super) fn due(
    wanted: &ScalingPolicyStatus,
    written: &ScalingPolicyStatus,
    since_written: Option<Duration>,
) -> bool {
    let told = |status: &ScalingPolicyStatus| -> Vec<(String, String, String)> {
        let part = |c: &Condition| (c.type_.clone(), c.status.clone(), c.reason.clone());
        let mut told: Vec<_> = status.conditions.iter().map(part).collect();
        told.sort_unstable();
        told
    };
    if wanted.observed_generation != written.observed_generation || told(wanted) != told(written) {
        return true;
    }
    since_written.is_none_or(|since| since >= NUMBERS_EVERY) && numbers_moved(wanted, written)
}

fn numbers_moved(wanted: &ScalingPolicyStatus, written: &ScalingPolicyStatus) -> bool {
    let known = |status: &ScalingPolicyStatus| -> Vec<(String, bool)> {
        status.signals.iter().map(|signal| (signal.name.clone(), signal.demand.is_some())).collect()
    };
    moved(wanted.demand, written.demand, 1.0)
        || moved(wanted.coverage, written.coverage, 1.0)
        || wanted.driver != written.driver
        || wanted.replicas != written.replicas
        || wanted.pods_matched != written.pods_matched
        || known(wanted) != known(written)
        || learned_moved(&wanted.learned, &written.learned)
}

fn learned_moved(wanted: &[LearnedStatus], written: &[LearnedStatus]) -> bool {
    let numbers = |entry: &LearnedStatus| {
        [entry.base, entry.cost_seconds, entry.service_time_seconds, entry.quantile_seconds]
    };
    wanted.len() != written.len()
        || wanted.iter().zip(written).any(|(wanted, written)| {
            (&wanted.name, &wanted.of) != (&written.name, &written.of)
                || numbers(wanted).into_iter().zip(numbers(written)).any(|(a, b)| moved(a, b, 0.0))
        })
}

/// By more than [`MOVED`] of the larger, or of `least` where both are smaller.
fn moved(a: Option<f64>, b: Option<f64>, least: f64) -> bool {
    match (a, b) {
        (None, None) => false,
        (Some(a), Some(b)) => (a - b).abs() > MOVED * a.abs().max(b.abs()).max(least),
        _ => true,
    }
}

fn not_ready(reason: &'static str, message: &str) -> Vec<Statement> {
    let message = cut(message);
    vec![
        Statement { kind: READY, holds: false, reason, message: message.clone() },
        Statement { kind: reason, holds: true, reason, message },
    ]
}

/// A finding whose condition is already stated adds nothing: the first says why there is no number.
fn add_finding(statements: &mut Vec<Statement>, reason: &'static str, message: &str) {
    if statements.iter().all(|statement| statement.kind != reason) {
        statements.push(Statement { kind: reason, holds: true, reason, message: cut(message) });
    }
}

fn count_replicas(status: &mut ScalingPolicyStatus, workload: &Workload) {
    let lasting = workload.pods.iter().filter(|pod| !pod.ended).count();
    status.replicas = i32::try_from(workload.spec_replicas).ok();
    status.pods_matched = i32::try_from(lasting).ok();
}

fn decided(
    status: &mut ScalingPolicyStatus,
    policy: &Policy,
    decision: &Decision,
    now: Now,
) -> Vec<Statement> {
    if decision.is_stale(now.monotonic) {
        let age = decision.age(now.monotonic);
        let message = format!("the newest decision is {:.0} s old", age.as_secs_f64());
        return not_ready(DECISION_STALE, &message);
    }
    let coverage = decision.coverage.ratio();
    status.coverage = coverage.map(|ratio| rounded(ratio.get(), 2));
    status.driver = decision.driver.as_deref().map(str::to_owned);
    status.signals = decision.signals.iter().map(signal_status).collect();
    status.learned = learned(&decision.learned);
    let mut statements = match &decision.demand {
        Ok(demand) => {
            status.demand = Some(rounded(*demand, 2));
            let message = "the demand is known and served".to_owned();
            vec![Statement { kind: READY, holds: true, reason: SERVED, message }]
        }
        Err(Unserved { reason, message }) => not_ready(reason, message),
    };
    if coverage.is_some_and(|ratio| ratio < policy.coverage_floor) {
        let (reporting, expected) = (decision.coverage.reporting, decision.coverage.expected);
        let floor = policy.coverage_floor.get();
        let message =
            format!("{reporting} of {expected} pods report, which is under the floor of {floor}");
        add_finding(&mut statements, COVERAGE_LOW, &message);
    }
    for (reason, message) in missing_signals(&decision.signals) {
        add_finding(&mut statements, reason, &message);
    }
    for finding in &decision.findings {
        add_finding(&mut statements, finding.reason, &finding.message);
    }
    statements
}

/// Each reason for which signals have no demand, with all signals that it concerns.
fn missing_signals(signals: &[SignalDecision]) -> Vec<(&'static str, String)> {
    let mut reasons: Vec<(&'static str, Vec<String>)> = Vec::new();
    for signal in signals {
        let Err(why) = &signal.demand else { continue };
        let text = format!("{}: {}", signal.name, why.message);
        match reasons.iter_mut().find(|(reason, _)| *reason == why.reason) {
            Some((_, texts)) => texts.push(text),
            None => reasons.push((why.reason, vec![text])),
        }
    }
    reasons.into_iter().map(|(reason, texts)| (reason, texts.join("; "))).collect()
}

fn signal_status(signal: &SignalDecision) -> SignalStatus {
    let message = match &signal.demand {
        Ok(_) => &signal.formula,
        Err(why) => &why.message,
    };
    SignalStatus {
        name: signal.name.to_string(),
        demand: signal.demand.as_ref().ok().map(|demand| rounded(*demand, 2)),
        current: signal.current.map(|current| rounded(current, 3)),
        threshold: Some(signal.threshold),
        message: Some(cut(message)).filter(|message| !message.is_empty()),
    }
}

fn learned(learned: &Learned) -> Vec<LearnedStatus> {
    let entry = |signal: &LearnedSignal| LearnedStatus {
        name: signal.name.to_string(),
        of: signal.of.to_string(),
        at: time(signal.at),
        base: signal.base,
        cost_seconds: signal.cost_seconds,
        service_time_seconds: signal.service_time_seconds,
        quantile_seconds: signal.quantile_seconds,
    };
    learned.signals.iter().map(entry).collect()
}

/// Keeps the time of the last transition while the condition's status stays.
fn condition(
    statement: &Statement,
    generation: i64,
    written: &ScalingPolicyStatus,
    now: Timestamp,
) -> Condition {
    let status = if statement.holds { "True" } else { "False" };
    let earlier =
        written.conditions.iter().find(|c| c.type_ == statement.kind && c.status == status);
    Condition {
        last_transition_time: earlier.map_or_else(|| time(now), |c| c.last_transition_time.clone()),
        message: statement.message.clone(),
        observed_generation: Some(generation),
        reason: statement.reason.to_owned(),
        status: status.to_owned(),
        type_: statement.kind.to_owned(),
    }
}

fn time(at: Timestamp) -> Time {
    Time(jiff::Timestamp::from_millisecond(at.as_millis()).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

fn cut(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_CHARS).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::controller::index::SeenPolicy;
    use crate::policy::{Coverage, PolicyId, Signal, SignalKind, Threshold};
    use crate::time::Moment;
    use crate::units::TaskCount;

    pub(in crate::controller) fn id() -> PolicyId {
        PolicyId { namespace: "shop".into(), name: "checkout".into() }
    }

    pub(in crate::controller) fn policy() -> Arc<Policy> {
        let threshold = Threshold::<TaskCount>::new(100.0).expect("positive");
        Arc::new(Policy {
            generation: 3,
            signals: vec![Signal {
                name: "tasks".into(),
                kind: SignalKind::Tasks(threshold),
                base: None,
            }],
            ..Policy::example(id())
        })
    }

    fn ruling(assignment: Assignment) -> Ruling {
        let policy = SeenPolicy::for_tests(id(), 3, policy());
        Ruling { policy: Arc::new(policy), assignment }
    }

    fn active() -> Ruling {
        let workload = Workload {
            spec_replicas: 4,
            status_replicas: 4,
            resource: "deployments".into(),
            pods: Vec::new(),
            ..Workload::default()
        };
        ruling(Assignment::Active { policy: policy(), workload: Arc::new(workload) })
    }

    pub(in crate::controller) fn decision(change: impl FnOnce(&mut Decision)) -> EntryState {
        let mut decision = Decision {
            generation: 3,
            sampled_at: Timestamp::default(),
            demand: Ok(3.456),
            driver: Some("tasks".into()),
            signals: vec![SignalDecision {
                name: "tasks".into(),
                demand: Ok(3.456),
                current: Some(345.6),
                coverage: Coverage { matched: 4, reporting: 4, expected: 4 },
                threshold: 100.0,
                base: 0.0,
                formula: "345.6 / 100".to_owned(),
            }],
            coverage: Coverage { matched: 4, reporting: 4, expected: 4 },
            ..Decision::example(id(), Moment::after_start(Duration::from_secs(100)))
        };
        change(&mut decision);
        EntryState::Decided { policy: policy(), decision: Arc::new(decision) }
    }

    fn now() -> Now {
        Now {
            monotonic: Moment::after_start(Duration::from_secs(101)),
            wall: Timestamp::from_millis(1_790_000_000_000),
        }
    }

    fn wanted_of(
        ruling: &Ruling,
        state: &EntryState,
        written: &ScalingPolicyStatus,
    ) -> ScalingPolicyStatus {
        wanted(ruling, Some(state), None, written, now()).expect("there is something to say")
    }

    fn conditions(status: &ScalingPolicyStatus) -> Vec<String> {
        status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
    }

    #[test]
    fn a_served_demand_makes_the_policy_ready() {
        let status = wanted_of(&active(), &decision(|_| {}), &ScalingPolicyStatus::default());
        assert_eq!(conditions(&status), ["Ready=True Served"]);
        assert_eq!(
            (status.demand, status.replicas, status.coverage),
            (Some(3.46), Some(4), Some(1.0))
        );
        assert_eq!(status.driver.as_deref(), Some("tasks"));
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.signals[0].message.as_deref(), Some("345.6 / 100"));
    }

    #[test]
    fn a_refused_policy_says_why_and_keeps_what_was_learned() {
        let entry = LearnedStatus {
            name: "tasks".to_owned(),
            of: "tasks of apps/v1 Deployment checkout".to_owned(),
            at: time(Timestamp::default()),
            base: Some(1.0),
            cost_seconds: None,
            service_time_seconds: None,
            quantile_seconds: None,
        };
        let written =
            ScalingPolicyStatus { learned: vec![entry], demand: Some(1.0), ..Default::default() };
        let refused = ruling(Assignment::Refused {
            id: id(),
            reason: reason::TARGET_NOT_FOUND,
            message: "there is no Deployment checkout".to_owned(),
        });
        let status =
            wanted(&refused, None, None, &written, now()).expect("there is something to say");
        assert_eq!(
            conditions(&status),
            ["Ready=False TargetNotFound", "TargetNotFound=True TargetNotFound"]
        );
        assert_eq!(status.demand, None);
        assert_eq!(status.learned, written.learned);
    }

    #[test]
    fn every_finding_becomes_a_condition_once() {
        let missing = Unserved { reason: "SignalMissing", message: "no pod serves cpu".to_owned() };
        let state = decision(|decision| {
            decision.demand = Err(missing.clone());
            decision.signals[0].demand = Err(missing.clone());
            decision.coverage = Coverage { matched: 4, reporting: 2, expected: 4 };
            decision.findings = vec![
                Finding { reason: "CannotWake", message: "m".to_owned() },
                Finding { reason: "CoverageLow", message: "m".to_owned() },
            ];
        });
        let conflict = Finding { reason: "HPAConflict", message: "m".to_owned() };
        let written = ScalingPolicyStatus::default();
        let status =
            wanted(&active(), Some(&state), Some(&conflict), &written, now()).expect("something");
        assert_eq!(
            conditions(&status),
            [
                "Ready=False SignalMissing",
                "SignalMissing=True SignalMissing",
                "CoverageLow=True CoverageLow",
                "CannotWake=True CannotWake",
                "HPAConflict=True HPAConflict",
            ]
        );
        assert_eq!(status.signals[0].demand, None);
    }

    #[test]
    fn an_old_decision_is_no_demand() {
        let state =
            decision(|decision| decision.decided = Moment::after_start(Duration::from_secs(80)));
        let status = wanted_of(&active(), &state, &ScalingPolicyStatus::default());
        assert_eq!(
            conditions(&status),
            ["Ready=False DecisionStale", "DecisionStale=True DecisionStale"]
        );
        assert_eq!(status.demand, None);
    }

    #[test]
    fn nothing_is_said_before_there_is_a_decision_about_this_spec() {
        let pending = ruling(Assignment::Refused {
            id: id(),
            reason: reason::TARGET_PENDING,
            message: String::new(),
        });
        let written = ScalingPolicyStatus::default();
        assert_eq!(wanted(&pending, None, None, &written, now()), None);
        assert_eq!(wanted(&active(), None, None, &written, now()), None);
        let older_spec = decision(|decision| decision.generation = 2);
        assert_eq!(wanted(&active(), Some(&older_spec), None, &written, now()), None);
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let mut written = wanted_of(&active(), &decision(|_| {}), &ScalingPolicyStatus::default());
        let earlier = time(Timestamp::from_millis(1_700_000_000_000));
        written.conditions[0].last_transition_time = earlier.clone();
        let same = wanted_of(&active(), &decision(|_| {}), &written);
        assert_eq!(same.conditions[0].last_transition_time, earlier);
        let unserved =
            EntryState::Unserved(Unserved { reason: "CoverageLow", message: "m".to_owned() });
        let changed = wanted_of(&active(), &unserved, &written);
        assert_eq!(changed.conditions[0].last_transition_time, time(now().wall));
    }

    fn check_due(
        change: impl FnOnce(&mut ScalingPolicyStatus),
        seconds: Option<u64>,
        expected: bool,
    ) {
        let written = wanted_of(&active(), &decision(|_| {}), &ScalingPolicyStatus::default());
        let mut wanted = written.clone();
        change(&mut wanted);
        assert_eq!(
            due(&wanted, &written, seconds.map(Duration::from_secs)),
            expected,
            "{wanted:?}"
        );
    }

    #[test]
    fn a_changed_condition_is_written_at_once() {
        check_due(|status| status.conditions[0].reason = "Other".to_owned(), Some(0), true);
        check_due(|status| status.conditions.clear(), Some(0), true);
        check_due(|status| status.observed_generation = Some(4), Some(0), true);
        check_due(
            |status| status.conditions[0].message = "other words".to_owned(),
            Some(3600),
            false,
        );
    }

    #[test]
    fn numbers_are_written_when_they_moved_and_at_most_every_thirty_seconds() {
        check_due(|status| status.demand = Some(3.7), Some(29), false);
        check_due(|status| status.demand = Some(3.7), Some(30), true);
        check_due(|status| status.demand = Some(3.7), None, true);
        check_due(|status| status.demand = Some(3.5), Some(3600), false);
        check_due(|status| status.demand = None, Some(30), true);
        check_due(|status| status.replicas = Some(5), Some(30), true);
        check_due(|status| status.signals[0].demand = None, Some(30), true);
        check_due(|_| {}, Some(3600), false);
    }

    #[test]
    fn a_small_demand_moves_by_a_share_of_a_pod() {
        assert!(!moved(Some(0.01), Some(0.05), 1.0));
        assert!(moved(Some(0.01), Some(0.07), 1.0));
        assert!(moved(Some(0.000_010), Some(0.000_011), 0.0), "what is learned may be small");
    }
}
