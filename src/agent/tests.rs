//! A running agent, seen from outside.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use axum::routing::get;
use prometheus::{IntGauge, Opts};

use super::*;
use crate::signals::{CATALOGUE, FamilyKind};

fn start() -> Agent {
    let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Agent::builder().service("test").bind(free_port).start().expect("a free port")
}

/// Status code, head and body of a GET over a connection of its own.
fn ask(address: SocketAddr, path: &str, accept: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).expect("the agent listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: agent\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the agent reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the agent answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

/// A family as a scrape shows it.
#[derive(Debug, Default)]
struct Scraped {
    kind: String,
    label_names: BTreeSet<String>,
    samples: Vec<(String, f64, Option<f64>)>,
}

/// Reads either format, and refuses what the formats forbid.
fn parse(text: &str) -> BTreeMap<String, Scraped> {
    let mut families: BTreeMap<String, Scraped> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a type line has a name and a type");
            current = name.to_owned();
            let family = Scraped { kind: kind.to_owned(), ..Scraped::default() };
            assert!(families.insert(current.clone(), family).is_none(), "{name} is declared twice");
        } else if !line.starts_with('#') {
            let family = families.get_mut(&current).expect("a sample follows its type line");
            assert!(line.starts_with(current.as_str()), "{line} is not of family {current}");
            sample(line, family);
        }
    }
    families
}

fn sample(line: &str, family: &mut Scraped) {
    let (series, rest) =
        line.split_at(line.rfind('}').map_or_else(|| line.find(' ').unwrap_or(0), |end| end + 1));
    let mut numbers =
        rest.split_whitespace().map(|number| number.parse::<f64>().expect("a number"));
    let value = numbers.next().expect("a value");
    if let Some((_, labels)) = series.split_once('{') {
        for pair in labels.trim_end_matches('}').split("\",") {
            let (name, _) = pair.split_once("=\"").expect("a label has a quoted value");
            family.label_names.insert(name.to_owned());
        }
    }
    family.samples.push((series.to_owned(), value, numbers.next()));
    assert_eq!(numbers.next(), None, "{line}");
}

fn value(text: &str, series: &str) -> Option<f64> {
    let samples = parse(text).into_values().flat_map(|family| family.samples);
    samples.into_iter().find(|(name, ..)| name == series).map(|(_, value, _)| value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_exposed_is_in_the_catalogue_with_its_type_and_labels() {
    let agent = start();
    let queue_depth =
        IntGauge::with_opts(Opts::new("queue_depth", "Jobs waiting")).expect("valid options");
    queue_depth.set(7);
    agent.registry().register(Box::new(queue_depth)).expect("a new name");
    let app = axum::Router::new().route("/items/{id}", get(|| async {})).layer(agent.http_layer());
    let request = http::Request::builder().uri("/items/1").body(axum::body::Body::empty());
    tower::ServiceExt::oneshot(app, request.expect("a valid request"))
        .await
        .expect("axum is infallible");
    tokio::time::sleep(Duration::from_millis(1_200)).await;

    let (status, head, text) = ask(agent.local_addr(), "/metrics", "*/*");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    let families = parse(&text);
    for (name, scraped) in &families {
        if name == "queue_depth" {
            assert_eq!(scraped.samples, [("queue_depth".to_owned(), 7.0, None)]);
            continue;
        }
        let listed = CATALOGUE.iter().find(|family| family.name == name);
        let family = listed.unwrap_or_else(|| panic!("{name} is not in the catalogue"));
        let kind = match family.kind {
            FamilyKind::Counter => "counter",
            FamilyKind::Gauge => "gauge",
            FamilyKind::Histogram => "histogram",
        };
        assert_eq!(scraped.kind, kind, "{name}");
        let mut label_names: BTreeSet<String> =
            family.labels.iter().map(|&label| label.into()).collect();
        label_names.extend((kind == "histogram").then(|| "le".to_owned()));
        assert_eq!(scraped.label_names, label_names, "{name}");
    }
    for present in [
        "tokio_alive_tasks",
        "tokio_saturation_ratio",
        "tokio_scheduling_delay_seconds",
        "process_cpu_seconds_total",
        "http_server_request_duration_seconds",
        "headroom_agent_host_cpu_count",
    ] {
        assert!(families.contains_key(present), "{present} is missing");
    }
    let sampled_at = families["tokio_saturation_ratio"].samples[0].2;
    let age = crate::time::wall_now().as_millis() as f64
        - sampled_at.expect("a sampled value has a timestamp");
    assert!((0.0..60_000.0).contains(&age), "{age} ms");
    // This test program allocates through the system's allocator.
    if value(&text, r#"headroom_agent_source_available{source="allocator"}"#) == Some(0.0) {
        assert!(!families.contains_key("heap_allocated_bytes"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openmetrics_is_served_to_those_who_ask_for_it() {
    let agent = start();
    let accept = "application/openmetrics-text; version=1.0.0";
    let (status, head, text) = ask(agent.local_addr(), "/metrics", accept);
    assert_eq!(status, 200);
    let content_type = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.contains(content_type), "{head}");
    assert!(text.ends_with("# EOF\n"));
    let families = parse(&text);
    for (name, family) in &families {
        if family.kind == "counter" {
            assert!(!name.ends_with("_total"), "{name}");
            assert!(
                family
                    .samples
                    .iter()
                    .all(|(series, ..)| series.starts_with(&format!("{name}_total")))
            );
        }
    }
    assert!(families.contains_key("process_cpu_seconds"));
}

#[inline(never)]
fn holds_its_worker() {
    std::thread::sleep(Duration::from_secs(10));
    // Not the last call, which would take this function's place on the stack.
    std::hint::black_box(());
}

#[test]
fn a_service_with_every_worker_blocked_for_ten_seconds_still_answers() {
    let service = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let agent = service.block_on(async { start() });
    // Every worker has to have parked once before it is watched.
    std::thread::sleep(Duration::from_millis(200));
    let (started, start) = mpsc::channel();
    for _ in 0..2 {
        let started = started.clone();
        service.spawn(async move {
            started.send(()).expect("the test waits");
            holds_its_worker();
        });
    }
    for _ in 0..2 {
        start.recv_timeout(Duration::from_secs(9)).expect("both workers take a task");
    }
    let mut seen = (0.0, 0.0, 0.0);
    for second in 1..=8 {
        std::thread::sleep(Duration::from_secs(1));
        if second == 2 {
            let held = pprof::block::text(&pprof::block::snapshot());
            assert!(held.contains("tests::holds_its_worker"), "{held}");
        }
        for probe in ["/healthz", "/livez", "/readyz"] {
            assert_eq!(ask(agent.local_addr(), probe, "*/*").0, 200, "{probe}");
        }
        let (status, _, text) = ask(agent.local_addr(), "/metrics", "*/*");
        assert_eq!(status, 200);
        let read = |series| value(&text, series).unwrap_or(0.0);
        seen.0 = f64::max(seen.0, read("tokio_blocked_workers"));
        seen.1 = f64::max(seen.1, read("tokio_saturation_ratio"));
        seen.2 = f64::max(seen.2, read("tokio_scheduling_delay_seconds"));
    }
    assert!((seen.0 - 2.0).abs() < 1e-9 && (seen.1 - 1.0).abs() < 1e-9, "{seen:?}");
    assert!(seen.2 > 2.0, "the canary's overdue wake counts: {seen:?}");
    agent.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_nothing_do_not_keep_others_out() {
    let agent = start();
    let silent: Vec<TcpStream> = (0..200)
        .map(|_| TcpStream::connect(agent.local_addr()).expect("the agent listens"))
        .collect();
    assert_eq!(ask(agent.local_addr(), "/livez", "*/*").0, 200);
    let (_, _, text) = ask(agent.local_addr(), "/metrics", "*/*");
    let evicted = value(&text, "headroom_agent_connections_evicted_total");
    assert!(evicted.is_some_and(|count| count >= 100.0), "{evicted:?}");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_shut_down_ends_its_thread_and_frees_its_address() {
    let agent = start();
    let address = agent.local_addr();
    let _idle = TcpStream::connect(address).expect("the agent listens");
    agent.shutdown();
    let again = Agent::builder().bind(address).start().expect("the address is free again");
    let taken = Agent::builder().bind(address).start().map(|agent| agent.local_addr());
    assert!(matches!(taken, Err(AgentError::Bind { .. })), "{taken:?}");
    drop(again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn profiles_are_served_beside_the_metrics() {
    let agent = start();
    let (status, head, index) = ask(agent.local_addr(), "/debug/pprof/", "*/*");
    assert_eq!(status, 200);
    assert!(head.contains("text/html") && index.contains("profile"), "{head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_of_the_service_that_panics_costs_one_answer() {
    #[derive(Debug)]
    struct Broken(prometheus::core::Desc);
    impl prometheus::core::Collector for Broken {
        fn desc(&self) -> Vec<&prometheus::core::Desc> {
            vec![&self.0]
        }
        fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
            panic!("a bug in the service")
        }
    }
    let agent = start();
    let description =
        prometheus::core::Desc::new("broken".into(), "Broken".into(), Vec::new(), HashMap::new());
    let broken = Broken(description.expect("a valid name"));
    agent.registry().register(Box::new(broken)).expect("a new name");
    let (status, _, reason) = ask(agent.local_addr(), "/metrics", "*/*");
    assert_eq!((status, reason.as_str()), (500, "a collector panicked"));
    assert_eq!(ask(agent.local_addr(), "/livez", "*/*").0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_of_the_service_that_blocks_stops_neither_probes_nor_profiles() {
    #[derive(Debug)]
    struct Waiting {
        description: prometheus::core::Desc,
        entered: mpsc::Sender<()>,
        lock: Arc<Mutex<()>>,
    }
    impl prometheus::core::Collector for Waiting {
        fn desc(&self) -> Vec<&prometheus::core::Desc> {
            vec![&self.description]
        }
        fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
            // The test may have heard enough.
            let _ = self.entered.send(());
            drop(self.lock.lock());
            Vec::new()
        }
    }
    let agent = start();
    let address = agent.local_addr();
    let (entered, collecting) = mpsc::channel();
    let lock = Arc::new(Mutex::new(()));
    let description =
        prometheus::core::Desc::new("waiting".into(), "Waits".into(), Vec::new(), HashMap::new())
            .expect("a valid name");
    let waiting = Waiting { description, entered, lock: lock.clone() };
    agent.registry().register(Box::new(waiting)).expect("a new name");

    let blocked = lock.lock();
    let scrape = std::thread::spawn(move || ask(address, "/metrics", "*/*"));
    collecting.recv_timeout(Duration::from_secs(20)).expect("the scrape collects");
    for path in ["/healthz", "/livez", "/readyz", "/debug/pprof/"] {
        assert_eq!(ask(address, path, "*/*").0, 200, "{path}");
    }
    let (status, _, reason) = scrape.join().expect("the scrape is answered");
    let late = (503, "a collector did not answer within 2 s");
    assert_eq!((status, reason.as_str()), late);
    let (status, _, reason) = ask(address, "/metrics", "*/*");
    assert_eq!((status, reason.as_str()), late);
    assert!(collecting.try_recv().is_err(), "late scrapes wait for their turn on no thread");
    drop(blocked);
    assert_eq!(ask(address, "/metrics", "*/*").0, 200);
}

#[test]
fn an_agent_outside_a_runtime_is_an_error() {
    assert!(matches!(Agent::builder().start(), Err(AgentError::NoRuntime(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services_own_readiness_is_served() {
    let agent = start();
    let warm = agent.progress().add_condition("cache");
    let (status, _, reason) = ask(agent.local_addr(), "/readyz", "*/*");
    assert_eq!((status, reason.as_str()), (503, "cache: not yet"));
    warm.ready();
    assert_eq!(ask(agent.local_addr(), "/readyz", "*/*").0, 200);
}

/// The seconds of the ring as `/debug/headroom/capture` counts them.
fn slices(agent: &Agent) -> u64 {
    let (_, _, body) = ask(agent.debug_addr(), "/debug/headroom/capture", "*/*");
    let list: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    list["ring"]["slices"].as_u64().expect("a count")
}

/// Work that no worker of the runtime sees, on a thread of its own, is no idleness: every second of it is in the ring.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_burns_outside_the_runtime_is_read_every_second() {
    let agent = start();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let burning = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let before = tokio::task::block_in_place(|| slices(&agent));
    tokio::time::sleep(Duration::from_millis(4_000)).await;
    let after = tokio::task::block_in_place(|| slices(&agent));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    burning.join().expect("it only burns");
    // An idle process would have got one at most.
    assert!(after >= before + 2, "{before} {after}");
}
