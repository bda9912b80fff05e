//! Heap sampling, shown and switched while the service runs: `/debug/pprof/heap/sampling`.
//!
//! In: GET, or POST with `active=0|1` and `interval_bytes=N`. Out: the settings that hold now. Never: a decision about
//! who may change it: that is for whoever mounts the routes.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::super::heap::Sampling;
use super::{NOSNIFF, PLAIN, Room, alone, failed, failure};

/// More between two samples is no profile; less than a page costs each allocation.
const INTERVAL_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 30;

#[derive(Debug, Deserialize)]
pub(super) struct Change {
    active: Option<String>,
    interval_bytes: Option<String>,
}

/// The settings, a line each.
pub(super) async fn show(State(room): State<Room>) -> Response {
    answer(alone(&room, Sampling::read).await)
}

/// Changes what is given. A new interval forgets all samples so far: they were taken with another chance.
pub(super) async fn change(State(room): State<Room>, Query(change): Query<Change>) -> Response {
    let active = match change.active.as_deref() {
        None => None,
        Some("1" | "true") => Some(true),
        Some("0" | "false") => Some(false),
        Some(_) => {
            let why = "invalid value for \"active\" - must be 0 or 1";
            return failure(StatusCode::BAD_REQUEST, why);
        }
    };
    let interval = match change.interval_bytes.map(|text| text.parse::<u64>()) {
        None => None,
        Some(Ok(bytes)) if INTERVAL_BYTES.contains(&bytes) && bytes.is_power_of_two() => {
            Some(bytes)
        }
        Some(_) => {
            let why = "invalid value for \"interval_bytes\" - must be a power of two from 4096 to 1073741824";
            return failure(StatusCode::BAD_REQUEST, why);
        }
    };
    answer(alone(&room, move || Sampling::change(active, interval)).await)
}

fn answer(outcome: Result<Sampling, super::CaptureError>) -> Response {
    match outcome {
        Ok(Sampling { active, interval_bytes }) => {
            let text = format!("active: {active}\ninterval_bytes: {interval_bytes}\n");
            ([NOSNIFF, PLAIN], text).into_response()
        }
        Err(error) => failed(&error),
    }
}
