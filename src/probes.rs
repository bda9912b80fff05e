//! `/healthz`, `/livez` and `/readyz` from typed progress.
//!
//! In: beats of the program's loops and the conditions that its parts report. Out: one router for agent and adapter.
//! Never: a probe that asks a network; it reads what the parts last said.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;

use crate::time::{Clock, Moment};

/// Collects beats and conditions. Cheap to clone; every clone sees the same.
#[derive(Clone, Debug)]
pub struct Progress {
    clock: Clock,
    checks: Arc<Mutex<Vec<Check>>>,
}

#[derive(Clone, Debug)]
struct Check {
    name: &'static str,
    kind: CheckKind,
}

#[derive(Clone, Debug)]
enum CheckKind {
    Loop { last_beat: Arc<ArcSwap<Moment>>, max_silence: Duration },
    Condition { state: Arc<ArcSwap<Result<(), String>>> },
}

/// The handle of one loop: say that it came round.
#[derive(Clone, Debug)]
pub struct Beat {
    clock: Clock,
    last: Arc<ArcSwap<Moment>>,
}

impl Beat {
    /// The loop came round now.
    pub fn beat(&self) {
        self.last.store(Arc::new(self.clock.now().monotonic));
    }
}

/// The handle of one readiness condition.
#[derive(Clone, Debug)]
pub struct Condition(Arc<ArcSwap<Result<(), String>>>);

impl Condition {
    /// The part can do its work.
    pub fn ready(&self) {
        self.0.store(Arc::new(Ok(())));
    }

    /// The part cannot do its work; `why` is shown by `/readyz`.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.0.store(Arc::new(Err(why.into())));
    }
}

impl Progress {
    /// No loops, no conditions: alive and ready.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, checks: Arc::default() }
    }

    /// Adds a loop that counts as stuck, and the program as not alive, once it was silent for longer than `max_silence`.
    #[must_use]
    pub fn add_loop(&self, name: &'static str, max_silence: Duration) -> Beat {
        let last = Arc::new(ArcSwap::from_pointee(self.clock.now().monotonic));
        let kind = CheckKind::Loop { last_beat: last.clone(), max_silence };
        self.checks.lock().push(Check { name, kind });
        Beat { clock: self.clock, last }
    }

    /// Adds a condition that must hold for the program to be ready; it starts as not ready.
    #[must_use]
    pub fn add_condition(&self, name: &'static str) -> Condition {
        let state = Arc::new(ArcSwap::from_pointee(Err("not yet".to_owned())));
        self.checks
            .lock()
            .push(Check { name, kind: CheckKind::Condition { state: state.clone() } });
        Condition(state)
    }

    /// Every loop came round in time.
    ///
    /// # Errors
    /// One line per stuck loop.
    pub fn live(&self) -> Result<(), String> {
        self.live_at(self.clock.now().monotonic)
    }

    fn live_at(&self, now: Moment) -> Result<(), String> {
        let stuck = |check: &Check| match &check.kind {
            CheckKind::Loop { last_beat, max_silence } => {
                let silent = now.since(**last_beat.load());
                (silent > *max_silence)
                    .then(|| format!("{}: silent for {:.1} s", check.name, silent.as_secs_f64()))
            }
            CheckKind::Condition { .. } => None,
        };
        join(self.checks.lock().iter().filter_map(stuck))
    }

    /// Alive, and every condition holds.
    ///
    /// # Errors
    /// One line per reason.
    pub fn ready(&self) -> Result<(), String> {
        self.live()?;
        let unmet = |check: &Check| match &check.kind {
            CheckKind::Loop { .. } => None,
            CheckKind::Condition { state } => {
                state.load().as_ref().as_ref().err().map(|why| format!("{}: {why}", check.name))
            }
        };
        join(self.checks.lock().iter().filter_map(unmet))
    }

    /// The three probe routes.
    ///
    /// `/healthz` answers `{"status":"ok","timestamp":"…Z"}`, the others `ok`; a failing one answers 503 with its reasons.
    pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        Router::new()
            .route("/healthz", get(healthz))
            .route(
                "/livez",
                get(|State(progress): State<Self>| async move { plain(progress.live()) }),
            )
            .route(
                "/readyz",
                get(|State(progress): State<Self>| async move { plain(progress.ready()) }),
            )
            .with_state(self.clone())
    }
}

fn join(reasons: impl Iterator<Item = String>) -> Result<(), String> {
    let reasons: Vec<_> = reasons.collect();
    if reasons.is_empty() { Ok(()) } else { Err(reasons.join("\n")) }
}

fn plain(outcome: Result<(), String>) -> Response {
    match outcome {
        Ok(()) => "ok".into_response(),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons).into_response(),
    }
}

async fn healthz(State(progress): State<Progress>) -> Response {
    let (code, status) = match progress.live() {
        Ok(()) => (StatusCode::OK, "ok".to_owned()),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons),
    };
    let timestamp = progress.clock.now().wall.to_string();
    let body = serde_json::json!({"status": status, "timestamp": timestamp}).to_string();
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_loop_is_named_and_its_beat_heals_it() {
        let clock = Clock::start();
        let progress = Progress::new(clock);
        let beat = progress.add_loop("scrape", Duration::from_secs(5));
        let later = clock.now().monotonic + Duration::from_secs(6);
        let stuck = progress.live_at(later).expect_err("silent for 6 s of 5 allowed");
        assert!(stuck.starts_with("scrape: silent for 6"), "{stuck}");
        beat.last.store(Arc::new(later));
        assert_eq!(progress.live_at(later), Ok(()));
    }

    #[test]
    fn ready_only_when_every_condition_holds() {
        let progress = Progress::new(Clock::start());
        let watch = progress.add_condition("policies");
        assert!(progress.ready().is_err());
        watch.ready();
        assert_eq!(progress.ready(), Ok(()));
        watch.not_ready("lost the watch");
        assert_eq!(progress.ready(), Err("policies: lost the watch".to_owned()));
    }
}
