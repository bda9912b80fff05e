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
use tokio::sync::{Semaphore, oneshot};

use super::heap::{self, HeapView};
use super::symbols::{Detail, Symbolizer};
use super::{CaptureError, Service, cpu};
use crate::signals::allocator::Jemalloc;

const DEFAULT_SECONDS: u64 = 30;
const MAX_SECONDS: u64 = 300;
const MAX_SYMBOL_REQUEST_BYTES: usize = 1 << 20;
const MAX_SYMBOLS: usize = 1 << 16;

const GO_PPROF: HeaderName = HeaderName::from_static("x-go-pprof");
const NOSNIFF: (HeaderName, HeaderValue) =
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
const PLAIN: (HeaderName, HeaderValue) =
    (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));

const INDEX: &str = "<!DOCTYPE html>
<html lang=\"en\"><head><title>/debug/pprof/</title></head><body>
<h1>/debug/pprof/</h1>
<ul>
<li><a href=\"profile?seconds=30\">profile</a>: CPU time by stack, for <code>seconds</code> (1 to 300, default 30)</li>
<li><a href=\"heap\">heap</a>: memory in use by stack (<a href=\"heap?debug=1\">text</a>); \
<code>seconds</code> gives what changed</li>
<li><a href=\"allocs\">allocs</a>: all allocations since the start by stack; <code>seconds</code> as above</li>
<li><a href=\"cmdline\">cmdline</a>: the command line, separated by NUL</li>
<li><a href=\"symbol\">symbol</a>: names of addresses, <code>0xADDRESS+0xADDRESS</code></li>
</ul>
<p><code>lines=1</code> adds inlined functions and lines; reading them takes about four times the size of the
debug information in memory. Where the executable is at hand, <code>go tool pprof -symbolize=local:force</code> reads them
on your side.</p>
<p><code>go tool pprof -top http://HOST/debug/pprof/heap</code></p>
</body></html>
";

/// The routes under `/debug/pprof/`, for a listener that only those who may read memory contents by function reach.
pub fn routes<S: Clone + Send + Sync + 'static>(service: &Service) -> Router<S> {
    let room = Room { service: Arc::new(service.clone()), heavy: Arc::new(Semaphore::new(1)) };
    Router::new()
        .route("/debug/pprof", get(|| async { Redirect::permanent("/debug/pprof/") }))
        .route("/debug/pprof/", get(|| async { ([NOSNIFF], Html(INDEX)) }))
        .route("/debug/pprof/profile", get(cpu_profile))
        .route("/debug/pprof/heap", get(in_use))
        .route("/debug/pprof/allocs", get(allocated))
        .route("/debug/pprof/cmdline", get(command_line))
        .route("/debug/pprof/symbol", get(symbol_by_query).post(symbol_by_body))
        .route("/debug/pprof/{name}", get(unknown))
        .layer(DefaultBodyLimit::max(MAX_SYMBOL_REQUEST_BYTES))
        .with_state(room)
}

/// What all requests share.
#[derive(Clone, Debug)]
struct Room {
    service: Arc<Service>,
    /// Held by a thread while it dumps or symbolizes.
    heavy: Arc<Semaphore>,
}

/// Parsed by hand, so that a bad value gets Go's body.
#[derive(Debug, Default, Deserialize)]
struct Parameters {
    seconds: Option<String>,
    debug: Option<String>,
    lines: Option<String>,
}

impl Parameters {
    fn detail(&self) -> Detail {
        if is_set(self.lines.as_ref()) { Detail::Lines } else { Detail::Functions }
    }
}

/// As Go reads its flags: any number but 0.
fn is_set(flag: Option<&String>) -> bool {
    flag.is_some_and(|flag| flag.parse::<i64>().is_ok_and(|number| number != 0))
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

async fn in_use(State(room): State<Room>, Query(parameters): Query<Parameters>) -> Response {
    heap_profile(room, &parameters, HeapView::InUse, "heap").await
}

async fn allocated(State(room): State<Room>, Query(parameters): Query<Parameters>) -> Response {
    heap_profile(room, &parameters, HeapView::Allocated, "allocs").await
}

async fn heap_profile(room: Room, parameters: &Parameters, view: HeapView, name: &str) -> Response {
    let text = is_set(parameters.debug.as_ref());
    let answer = match (seconds(parameters), text) {
        (Err(why), _) => return failure(StatusCode::BAD_REQUEST, &why),
        (Ok(Some(_)), true) => {
            return failure(StatusCode::BAD_REQUEST, "seconds and debug params are incompatible");
        }
        (Ok(None), true) => {
            return match alone(&room, move || heap::dump(view)).await {
                Ok(text) => ([NOSNIFF, PLAIN], text).into_response(),
                Err(error) => failed(&error),
            };
        }
        (Ok(duration), false) => encoded_heap(&room, view, parameters.detail(), duration)
            .await
            .map(|profile| (duration, profile)),
    };
    match answer {
        Ok((None, profile)) => attachment(name, profile),
        Ok((Some(_), profile)) => attachment(&format!("{name}-delta"), profile),
        Err(error) => failed(&error),
    }
}

async fn encoded_heap(
    room: &Room,
    view: HeapView,
    detail: Detail,
    duration: Option<Duration>,
) -> Result<Vec<u8>, CaptureError> {
    let before = match duration {
        None => None,
        Some(duration) => {
            let before = alone(room, move || heap::snapshot(view)).await?;
            tokio::time::sleep(duration).await;
            Some(before)
        }
    };
    let service = room.service.clone();
    alone(room, move || Ok(heap::encode(&service, view, detail, heap::snapshot(view)?, before)))
        .await
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
        for address in request.split('+').take(MAX_SYMBOLS).filter_map(parse_address) {
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

fn parse_address(word: &str) -> Option<u64> {
    let word = word.trim();
    match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

async fn unknown(Path(name): Path<String>) -> Response {
    let why = match name.as_str() {
        "mutex" | "block" => "Unknown profile: waits for locks are not sampled",
        "trace" => "Unknown profile: Rust has no execution tracer",
        "goroutine" => "Unknown profile: a Rust service has tasks; tokio_alive_tasks counts them",
        "threadcreate" => "Unknown profile: process_threads counts the threads",
        _ => "Unknown profile",
    };
    failure(StatusCode::NOT_FOUND, why)
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
            Jemalloc::leave_this_thread_uncounted();
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
    let mut why = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let _ = write!(why, ": {error}");
        cause = error.source();
    }
    failure(StatusCode::INTERNAL_SERVER_ERROR, &why)
}

/// `go tool pprof` shows the body only beside this header.
fn failure(status: StatusCode, why: &str) -> Response {
    let go = (GO_PPROF, HeaderValue::from_static("1"));
    (status, [NOSNIFF, PLAIN, go], format!("{why}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::io::Read;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::body::Body;
    use axum::http::{HeaderMap, Request};
    use flate2::read::GzDecoder;
    use http_body_util::BodyExt;
    use pprof::protos::{Message, Profile};
    use tower::ServiceExt;

    use super::*;

    struct Answer {
        status: StatusCode,
        headers: HeaderMap,
        body: Vec<u8>,
    }

    impl Answer {
        fn text(&self) -> &str {
            std::str::from_utf8(&self.body).expect("UTF-8")
        }
    }

    async fn ask(method: &str, path: &str, body: &str) -> Answer {
        let service = Service { name: "shop".to_owned(), version: "1.2.3".to_owned() };
        let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned()));
        let response = routes::<()>(&service)
            .oneshot(request.expect("a well-formed request"))
            .await
            .expect("a router never fails");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body in memory").to_bytes().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn check_failure(path: &str, status: u16, sentence: &str) {
        let answer = ask("GET", path, "").await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        assert_eq!(answer.headers["x-go-pprof"], "1", "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(answer.text(), format!("{sentence}\n"), "{path}");
    }

    #[tokio::test]
    async fn what_cannot_be_answered_is_refused_in_words_that_go_tool_pprof_prints() {
        let not_positive = "invalid value for \"seconds\" - must be a positive integer";
        for (path, status, sentence) in [
            ("/debug/pprof/profile?seconds=0", 400, not_positive),
            ("/debug/pprof/profile?seconds=x", 400, not_positive),
            ("/debug/pprof/heap?seconds=-1", 400, not_positive),
            (
                "/debug/pprof/profile?seconds=301",
                400,
                "invalid value for \"seconds\" - must be at most 300",
            ),
            (
                "/debug/pprof/heap?seconds=1&debug=1",
                400,
                "seconds and debug params are incompatible",
            ),
            ("/debug/pprof/mutex", 404, "Unknown profile: waits for locks are not sampled"),
            ("/debug/pprof/trace", 404, "Unknown profile: Rust has no execution tracer"),
            ("/debug/pprof/nonsense", 404, "Unknown profile"),
        ] {
            check_failure(path, status, sentence).await;
        }
    }

    #[tokio::test]
    async fn without_jemalloc_the_heap_says_what_to_do() {
        check_failure("/debug/pprof/heap", 500, &CaptureError::NotJemalloc.to_string()).await;
        check_failure("/debug/pprof/allocs", 500, &CaptureError::NotJemalloc.to_string()).await;
    }

    #[tokio::test]
    async fn the_index_links_every_profile() {
        let answer = ask("GET", "/debug/pprof/", "").await;
        for name in ["profile", "heap", "allocs", "cmdline", "symbol"] {
            assert!(answer.text().contains(&format!("<a href=\"{name}")), "{name}");
        }
        assert_eq!(ask("GET", "/debug/pprof", "").await.status, StatusCode::PERMANENT_REDIRECT);
    }

    #[tokio::test]
    async fn the_command_line_is_separated_by_nul() {
        let arguments: Vec<_> = std::env::args().collect();
        assert_eq!(ask("GET", "/debug/pprof/cmdline", "").await.text(), arguments.join("\0"));
    }

    #[tokio::test]
    async fn symbols_are_named_for_get_and_post() {
        let address = format!(
            "{:#x}",
            seconds as fn(&Parameters) -> Result<Option<Duration>, String> as usize
        );
        let request = format!("{address}+0x1+nonsense");
        for answer in [
            ask("GET", &format!("/debug/pprof/symbol?{request}"), "").await,
            ask("POST", "/debug/pprof/symbol", &request).await,
        ] {
            let lines: Vec<_> = answer.text().lines().collect();
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert_eq!(lines[0], "num_symbols: 1");
            assert!(
                lines[1].starts_with(&address) && lines[1].ends_with("endpoints::seconds"),
                "{lines:?}"
            );
        }
    }

    /// Spends its time in itself also when nothing is inlined.
    #[inline(never)]
    fn burn(stop: &AtomicBool) -> u64 {
        let mut state = 1_u64;
        while !stop.load(Ordering::Relaxed) {
            let mut turn = 0;
            while turn < 100_000 {
                state ^= (state << 13) ^ (state >> 7);
                turn += 1;
            }
            state = black_box(state);
        }
        state
    }

    #[tokio::test]
    async fn captures_at_the_same_time_both_name_the_burning_function() {
        let stop = Arc::new(AtomicBool::new(false));
        let burning = {
            let stop = stop.clone();
            thread::spawn(move || burn(&stop))
        };
        let (first, second) =
            tokio::join!(ask("GET", "/debug/pprof/profile?seconds=1", ""), async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                ask("GET", "/debug/pprof/profile?seconds=1", "").await
            });
        stop.store(true, Ordering::Relaxed);
        burning.join().expect("it only multiplies");

        for answer in [first, second] {
            assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
            assert_eq!(answer.headers["content-disposition"], "attachment; filename=\"profile\"");
            assert!(!answer.headers.contains_key("content-encoding"));
            let profile = decode(&answer.body);
            assert!(profile.string_table.iter().any(|text| text == "service: shop"));
            let leaf_is_burn = |sample: &pprof::protos::Sample| {
                function_names(&profile, sample.location_id[0])
                    .iter()
                    .any(|name| name.ends_with("::burn"))
            };
            assert!(profile.sample.iter().any(leaf_is_burn), "no sample has burn as its leaf");
        }
    }

    fn decode(gzipped: &[u8]) -> Profile {
        let mut bytes = Vec::new();
        GzDecoder::new(gzipped).read_to_end(&mut bytes).expect("gzip");
        Profile::decode(bytes.as_slice()).expect("profile.proto")
    }

    fn function_names(profile: &Profile, location: u64) -> Vec<&str> {
        let index = |id: u64| usize::try_from(id).expect("small") - 1;
        let lines = &profile.location[index(location)].line;
        let name = |line: &pprof::protos::Line| profile.function[index(line.function_id)].name;
        lines
            .iter()
            .map(|line| profile.string_table[usize::try_from(name(line)).expect("small")].as_str())
            .collect()
    }
}
