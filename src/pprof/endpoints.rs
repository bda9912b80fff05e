//! The HTTP side: paths, parameters, headers and error bodies of Go's `net/http/pprof`.
//!
//! In: requests. Out: a profile, or a status with a sentence that `go tool pprof` prints. Never: work on the runtime's
//! worker, and never more than one heap capture or look-up of symbols at a time.

use std::fmt::Write;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Query, RawQuery, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use super::symbols::{Detail, Symbolizer};
use super::{CaptureError, Service, cpu};
use crate::signals::allocator::Jemalloc;

mod index;
mod kind;
mod sampling;
#[cfg(test)]
mod tests;

use kind::Kind;

const DEFAULT_SECONDS: u64 = 30;
const MAX_SECONDS: u64 = 300;
const MAX_SYMBOL_REQUEST_BYTES: usize = 1 << 20;
const MAX_SYMBOLS: usize = 1 << 16;

const GO_PPROF: HeaderName = HeaderName::from_static("x-go-pprof");
const NOSNIFF: (HeaderName, HeaderValue) =
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
const PLAIN: (HeaderName, HeaderValue) =
    (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));

/// The routes under `/debug/pprof/`, for a listener that only those who may read memory contents by function reach.
/// `runtime` is the one whose tasks the profiles `tasks` and `goroutine` count; without it, only spawned ones are known.
pub fn routes<S: Clone + Send + Sync + 'static>(
    service: &Service,
    runtime: Option<Handle>,
) -> Router<S> {
    let heavy = Arc::new(Semaphore::new(1));
    let room = Room { service: Arc::new(service.clone()), runtime, heavy };
    super::heap::start_labelling();
    Router::new()
        .route("/debug/pprof", get(|| async { Redirect::temporary("/debug/pprof/") }))
        .route("/debug/pprof/", get(contents))
        .route("/debug/pprof/profile", get(cpu_profile))
        .route("/debug/pprof/cmdline", get(command_line))
        .route("/debug/pprof/symbol", get(symbol_by_query).post(symbol_by_body))
        // Where `go tool pprof` asks for names of a profile whose path is not below /debug/pprof/.
        .route("/debug/headroom/capture/{id}/symbolz", get(symbol_by_query).post(symbol_by_body))
        .route("/debug/pprof/heap/sampling", get(sampling::show).post(sampling::change))
        .route("/debug/pprof/{*name}", get(named))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_SYMBOL_REQUEST_BYTES))
        .with_state(room)
}

/// What all requests share.
#[derive(Clone, Debug)]
struct Room {
    service: Arc<Service>,
    runtime: Option<Handle>,
    /// Held by a thread while it dumps or symbolizes.
    heavy: Arc<Semaphore>,
}

/// Parsed by hand, so that a bad value gets Go's body. Others, such as `gc` (Rust frees at once: there is nothing to
/// collect first), are accepted and change nothing.
#[derive(Debug, Default, Deserialize)]
struct Parameters {
    seconds: Option<String>,
    debug: Option<String>,
    lines: Option<String>,
}

impl Parameters {
    fn detail(&self) -> Detail {
        if number(self.lines.as_ref()) == 0 { Detail::Functions } else { Detail::Lines }
    }
}

/// As Go reads its flags: what is no number is 0.
fn number(flag: Option<&String>) -> i64 {
    flag.and_then(|flag| flag.parse().ok()).unwrap_or(0)
}

async fn contents(State(room): State<Room>) -> Response {
    let runtime = room.runtime.clone();
    match alone(&room, move || Ok(index::page(runtime.as_ref()))).await {
        Ok(page) => ([NOSNIFF], Html(page)).into_response(),
        Err(error) => failed(&error),
    }
}

async fn cpu_profile(State(room): State<Room>, Query(parameters): Query<Parameters>) -> Response {
    let duration = match seconds(&parameters) {
        Ok(duration) => duration.unwrap_or(Duration::from_secs(DEFAULT_SECONDS)),
        Err(why) => return failure(StatusCode::BAD_REQUEST, &why),
    };
    // A client that goes away drops this future, and with it the sender: the capture sees that and ends.
    let (_requester, cancelled) = mpsc::channel();
    let detail = parameters.detail();
    match on_thread(move || cpu::capture(&room.service, duration, detail, &cancelled)).await {
        Ok(Some(profile)) => attachment("profile", profile),
        Ok(None) => failed(&CaptureError::Lost),
        Err(error) => failed(&error),
    }
}

/// The profiles that are snapshots, and the names that are none.
async fn named(
    State(room): State<Room>,
    Path(name): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Response {
    let Some(kind) = Kind::named(&name) else {
        return failure(StatusCode::NOT_FOUND, why_not(&name));
    };
    let debug = number(parameters.debug.as_ref());
    let duration = match seconds(&parameters) {
        Err(why) => return failure(StatusCode::BAD_REQUEST, &why),
        Ok(Some(_)) if debug != 0 => {
            return failure(StatusCode::BAD_REQUEST, "seconds and debug params are incompatible");
        }
        Ok(duration) => duration,
    };
    if debug != 0 {
        let runtime = room.runtime.clone();
        return match alone(&room, move || kind.text(debug, runtime.as_ref())).await {
            Ok(text) => ([NOSNIFF, PLAIN], text).into_response(),
            Err(error) => failed(&error),
        };
    }
    match (encoded(&room, kind, parameters.detail(), duration).await, duration) {
        (Ok(profile), None) => attachment(kind.name(), profile),
        (Ok(profile), Some(_)) => attachment(&format!("{}-delta", kind.name()), profile),
        (Err(error), _) => failed(&error),
    }
}

/// A profile; with `duration`, of what changed meanwhile.
async fn encoded(
    room: &Room,
    kind: Kind,
    detail: Detail,
    duration: Option<Duration>,
) -> Result<Vec<u8>, CaptureError> {
    let runtime = room.runtime.clone();
    let before = match duration {
        None => None,
        Some(duration) => {
            let runtime = runtime.clone();
            let before = alone(room, move || kind.snapshot(runtime.as_ref())).await?;
            tokio::time::sleep(duration).await;
            Some(before)
        }
    };
    let service = room.service.clone();
    alone(room, move || Ok(kind.encode(&service, detail, kind.snapshot(runtime.as_ref())?, before)))
        .await
}

#[cfg(feature = "agent")]
pub(super) fn tasks_profile(service: &Service, runtime: &Handle) -> Vec<u8> {
    let snapshot = kind::Snapshot::Counts(super::tasks::census(Some(runtime)));
    Kind::Tasks.encode(service, Detail::Functions, snapshot, None)
}

/// Why there is no profile of that name.
fn why_not(name: &str) -> &'static str {
    match name {
        "mutex" => "Unknown profile: waits for locks are not sampled",
        "trace" => "Unknown profile: Rust has no execution tracer",
        _ => "Unknown profile",
    }
}

async fn command_line() -> Response {
    let arguments: Vec<_> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    ([NOSNIFF, PLAIN], arguments.join("\0")).into_response()
}

async fn symbol_by_query(State(room): State<Room>, RawQuery(query): RawQuery) -> Response {
    symbols(&room, query.unwrap_or_default()).await
}

async fn symbol_by_body(State(room): State<Room>, body: String) -> Response {
    symbols(&room, body).await
}

/// Answers for each `+`-separated address that has a name. The first line only says that this service knows symbols.
async fn symbols(room: &Room, request: String) -> Response {
    let names = alone(room, move || {
        let mut symbolizer = Symbolizer::new(Detail::Functions);
        let mut text = "num_symbols: 1\n".to_owned();
        for address in addresses(&request) {
            // The protocol has one name per address: the function that was compiled, not what was inlined into it.
            if let Some((name, _)) = symbolizer.compiled_function(address) {
                let _ = writeln!(text, "{address:#x} {name}");
            }
        }
        Ok(text)
    });
    match names.await {
        Ok(text) => ([NOSNIFF, PLAIN], text).into_response(),
        Err(error) => failed(&error),
    }
}

fn addresses(request: &str) -> impl Iterator<Item = u64> {
    request.split('+').take(MAX_SYMBOLS).filter_map(parse_address)
}

/// Reads `text` as a list of addresses: printed, it reads as the same again. For fuzzing.
#[cfg(any(fuzzing, test))]
pub fn read_any_symbol_list(text: &str) {
    let found: Vec<_> = addresses(text).collect();
    let printed: Vec<_> = found.iter().map(|address| format!("{address:#x}")).collect();
    assert_eq!(addresses(&printed.join("+")).collect::<Vec<_>>(), found);
}

fn parse_address(word: &str) -> Option<u64> {
    let word = word.trim();
    match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

async fn method_not_allowed() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [NOSNIFF, PLAIN], "Method Not Allowed\n").into_response()
}

/// The parameter `seconds`, if given.
fn seconds(parameters: &Parameters) -> Result<Option<Duration>, String> {
    let Some(text) = parameters.seconds.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match text.parse::<u64>() {
        Ok(seconds @ 1..=MAX_SECONDS) => Ok(Some(Duration::from_secs(seconds))),
        Ok(seconds) if seconds > MAX_SECONDS => {
            Err(format!("invalid value for \"seconds\" - must be at most {MAX_SECONDS}"))
        }
        _ => Err("invalid value for \"seconds\" - must be a positive integer".to_owned()),
    }
}

/// Runs `work` on a thread of its own after all earlier such work. The thread finishes it even if the requester left.
async fn alone<T: Send + 'static>(
    room: &Room,
    work: impl FnOnce() -> Result<T, CaptureError> + Send + 'static,
) -> Result<T, CaptureError> {
    let turn = room.heavy.clone().acquire_owned().await.map_err(|_| CaptureError::Lost)?;
    on_thread(move || {
        let _turn = turn;
        work()
    })
    .await
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CaptureError> + Send + 'static,
) -> Result<T, CaptureError> {
    let (answer, answered) = oneshot::channel();
    thread::Builder::new()
        .name("headroom-pprof".to_owned())
        .spawn(move || {
            Jemalloc::set_passing_thread_apart();
            // A requester that left wants no answer.
            drop(answer.send(work()));
        })
        .map_err(CaptureError::Thread)?;
    answered.await.map_err(|_| CaptureError::Lost)?
}

/// The gzip is the payload, as tools expect it: there is no Content-Encoding.
fn attachment(name: &str, profile: Vec<u8>) -> Response {
    let disposition = format!("attachment; filename=\"{name}\"");
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    ([NOSNIFF], headers, profile).into_response()
}

fn failed(error: &CaptureError) -> Response {
    failure(StatusCode::INTERNAL_SERVER_ERROR, &crate::telemetry::error_chain(error))
}

/// `go tool pprof` shows the body only beside this header.
pub(crate) fn failure(status: StatusCode, why: &str) -> Response {
    let go = (GO_PPROF, HeaderValue::from_static("1"));
    (status, [NOSNIFF, PLAIN, go], format!("{why}\n")).into_response()
}
