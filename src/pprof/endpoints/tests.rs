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
use crate::pprof::tasks;

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
    let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned()));
    send(request.expect("a well-formed request")).await
}

async fn send(request: Request<Body>) -> Answer {
    let service = Service { name: "shop".to_owned(), version: "1.2.3".to_owned() };
    let response = routes::<()>(&service, Some(Handle::current()))
        .oneshot(request)
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
        ("/debug/pprof/heap?seconds=1&debug=1", 400, "seconds and debug params are incompatible"),
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
async fn the_index_links_and_counts_every_profile() {
    let task = tasks::spawn(std::future::pending::<()>());
    let answer = ask("GET", "/debug/pprof/", "").await;
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
    let count = |name: &str| {
        let link = format!("</td><td><a href='{name}?debug=1'>{name}</a></td></tr>");
        let row = answer.text().lines().find(|line| line.ends_with(&link));
        let row = row.unwrap_or_else(|| panic!("{name} has no row"));
        row.trim_start_matches("<tr><td>").trim_end_matches(&link).parse::<u64>().expect("a count")
    };
    for name in ["allocs", "cmdline", "heap", "mutex", "profile", "symbol", "taskleak", "trace"] {
        count(name);
    }
    for name in ["goroutine", "tasks", "threadcreate"] {
        assert!(count(name) > 0, "{name}");
    }
    assert_eq!(ask("GET", "/debug/pprof", "").await.status, StatusCode::TEMPORARY_REDIRECT);
    task.abort();
}

#[tokio::test]
async fn a_name_that_is_served_by_get_refuses_other_methods() {
    for (method, path, status) in [
        ("POST", "/debug/pprof/heap", 405),
        ("POST", "/debug/pprof/profile", 405),
        ("POST", "/debug/pprof/", 405),
        ("DELETE", "/debug/pprof/tasks", 405),
        ("HEAD", "/debug/pprof/tasks", 200),
        ("POST", "/debug/pprof/symbol", 200),
    ] {
        let answer = ask(method, path, "").await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{method} {path}");
        if status == 405 {
            assert_eq!(answer.headers["allow"], "GET,HEAD", "{method} {path}");
        }
    }
}

/// Names, units, period type and default of a profile, as one line.
fn meaning(profile: &Profile) -> String {
    let text = |index: i64| profile.string_table[usize::try_from(index).expect("small")].as_str();
    let kind = |kind: &pprof::protos::ValueType| format!("{}/{}", text(kind.ty), text(kind.unit));
    let samples: Vec<_> = profile.sample_type.iter().map(kind).collect();
    let period = profile.period_type.as_ref().map(kind).unwrap_or_default();
    let default = text(profile.default_sample_type);
    format!("{} by {} {period} default {default}", samples.join(" "), profile.period)
}

/// The sums of the values of samples with a frame of that name, and how many there are.
fn sums(profile: &Profile, frame: &str) -> (usize, Vec<i64>) {
    let has_frame = |sample: &&pprof::protos::Sample| {
        sample
            .location_id
            .iter()
            .any(|location| function_names(profile, *location).contains(&frame))
    };
    let mut sums = vec![0; profile.sample_type.len()];
    let samples: Vec<_> = profile.sample.iter().filter(has_frame).collect();
    for sample in &samples {
        sums.iter_mut().zip(&sample.value).for_each(|(sum, value)| *sum += value);
    }
    (samples.len(), sums)
}

#[tokio::test]
async fn tasks_are_counted_by_site_under_both_names() {
    let line = line!() + 1;
    let parked: Vec<_> = (0..5).map(|_| tasks::spawn(std::future::pending::<()>())).collect();
    tokio::task::yield_now().await;
    let site = format!("src/pprof/endpoints/tests.rs:{line}");
    for (name, expected, sum) in [
        ("goroutine", "goroutine/count by 1 goroutine/count default ", 5),
        ("tasks", "tasks/count busy/nanoseconds by 1 tasks/count default tasks", 5),
    ] {
        let answer = ask("GET", &format!("/debug/pprof/{name}?gc=1"), "").await;
        let disposition = format!("attachment; filename=\"{name}\"");
        assert_eq!(answer.headers["content-disposition"], disposition);
        assert_eq!(answer.headers["content-type"], "application/octet-stream");
        let profile = decode(&answer.body);
        assert_eq!(meaning(&profile), expected);
        assert_eq!(sums(&profile, &site).1[0], sum, "{name}");
        let text = ask("GET", &format!("/debug/pprof/{name}?debug=1"), "").await;
        assert!(text.text().starts_with(&format!("{name} profile: total ")), "{}", text.text());
        assert!(text.text().contains(&site), "{}", text.text());
        let listing = ask("GET", &format!("/debug/pprof/{name}?debug=2"), "").await;
        assert!(listing.text().matches(&format!("\t{site}\n")).count() >= 5);
    }
    parked.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_delta_holds_the_tasks_that_came_and_went_meanwhile() {
    let first = line!() + 1;
    let before = tasks::spawn(std::future::pending::<()>());
    let steady = tasks::spawn(std::future::pending::<()>());
    let (answer, during) = tokio::join!(ask("GET", "/debug/pprof/tasks?seconds=1", ""), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        before.abort();
        let during = tasks::spawn(std::future::pending::<()>());
        during.abort_handle()
    });
    assert_eq!(answer.headers["content-disposition"], "attachment; filename=\"tasks-delta\"");
    let profile = decode(&answer.body);
    assert!(profile.duration_nanos >= 1_000_000_000, "{}", profile.duration_nanos);
    let own = |line: u32| sums(&profile, &format!("src/pprof/endpoints/tests.rs:{line}")).1[0];
    assert_eq!((own(first), own(first + 1), own(first + 5)), (-1, 0, 1));
    during.abort();
    steady.abort();
}

#[tokio::test]
async fn threads_are_counted_by_name() {
    let (release, wait) = mpsc::channel::<()>();
    let named = thread::Builder::new().name("a-thread".to_owned());
    let (started, start) = mpsc::channel();
    let waiting = named.spawn(move || {
        // A thread takes its name before it does this.
        started.send(()).expect("the test waits");
        wait.recv()
    });
    let waiting = waiting.expect("a thread");
    start.recv().expect("it starts");
    let profile = decode(&ask("GET", "/debug/pprof/threadcreate", "").await.body);
    assert_eq!(meaning(&profile), "threadcreate/count by 1 threadcreate/count default ");
    assert_eq!(sums(&profile, "a-thread"), (1, vec![1]));
    drop(release);
    waiting.join().expect("it only waits").expect_err("nothing was sent");
}

#[tokio::test]
async fn taskleak_says_its_rule() {
    let text = ask("GET", "/debug/pprof/taskleak?debug=1", "").await;
    assert!(text.text().starts_with("taskleak profile: total "), "{}", text.text());
    assert!(text.text().contains("# suspected: sites whose"), "{}", text.text());
    let profile = decode(&ask("GET", "/debug/pprof/taskleak", "").await.body);
    assert_eq!(meaning(&profile), "taskleak/count by 1 taskleak/count default ");
}

#[tokio::test]
async fn the_command_line_is_separated_by_nul() {
    let arguments: Vec<_> = std::env::args().collect();
    assert_eq!(ask("GET", "/debug/pprof/cmdline", "").await.text(), arguments.join("\0"));
}

#[tokio::test]
async fn symbols_are_named_for_get_and_post() {
    let address =
        format!("{:#x}", seconds as fn(&Parameters) -> Result<Option<Duration>, String> as usize);
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
    let (first, second) = tokio::join!(ask("GET", "/debug/pprof/profile?seconds=1", ""), async {
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
