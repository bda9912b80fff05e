//! Against a real server on loopback that misbehaves by path.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::sample::{DropReason, PodKey};

const SECOND: Duration = Duration::from_secs(1);
const QUICK: Duration = Duration::from_millis(200);
/// Long enough for any of these tests on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One pod's endpoint: what it was asked, and how it answers.
#[derive(Default)]
struct Service {
    requests: Mutex<Vec<String>>,
    connections: AtomicUsize,
    bytes_written: AtomicUsize,
    answers: AtomicUsize,
}

impl Service {
    async fn start() -> (SocketAddr, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let service = Arc::new(Self::default());
        let serving = service.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        (address, service)
    }

    /// Ends when the client has gone, or where the path's behaviour is to close.
    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        while let Some(request) = read_request(&mut stream).await {
            let target = request.split(' ').nth(1).unwrap_or_default();
            let path = target.split('?').next().unwrap_or_default().to_owned();
            self.requests.lock().push(request);
            let done = match path.as_str() {
                "/never" => std::future::pending().await,
                "/drip" => self.drip(&mut stream).await,
                "/endless" => self.endless(&mut stream).await,
                "/broken-off" => {
                    let _ = stream.write_all(&answer(200, "tasks 1\n", 500)).await;
                    return;
                }
                "/not-http" => {
                    let _ = stream.write_all(b"tasks 1\n").await;
                    return;
                }
                path => stream.write_all(&self.simple(path)).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn simple(&self, path: &str) -> Vec<u8> {
        let (status, body) = match path {
            "/good" => (200, "tasks 7\nrequests_total 3\nunwanted 1\n".to_owned()),
            "/garbage" => (200, "tasks 1\n<html>\n".to_owned()),
            "/not-numbers" => (200, "tasks NaN\nrequests_total -4\n".to_owned()),
            "/twice" => (200, "tasks 1\ntasks 2\nrequests_total 3\n".to_owned()),
            "/reset" => {
                let started = self.answers.fetch_add(1, Ordering::Relaxed);
                (200, format!("requests_total {}\n", [100, 120, 4].get(started).unwrap_or(&9)))
            }
            "/redirect" => (302, String::new()),
            "/huge-declared" => return answer(200, "", 100 << 20),
            _ => (500, "tasks 1\n".to_owned()),
        };
        answer(status, &body, body.len())
    }

    /// A byte every 50 ms, for ever: each one in time, the answer never.
    async fn drip(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        loop {
            stream.write_all(b"#").await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// 100 MB of comments without a declared length.
    async fn endless(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        let line = [b"#".repeat(9_999), b"\n".to_vec()].concat();
        for _ in 0..10_000 {
            stream.write_all(&line).await?;
            self.bytes_written.fetch_add(line.len(), Ordering::Relaxed);
        }
        stream.shutdown().await
    }
}

fn answer(status: u16, body: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nLocation: /good\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(request).ok()
}

/// A scraper and the batches it sends.
struct Bench {
    scraper: Scraper,
    batches: mpsc::Receiver<Batch>,
    registry: Registry,
}

impl Bench {
    fn new(queue: usize) -> Self {
        let (sender, batches) = mpsc::channel(queue);
        let registry = Registry::new();
        let limits = Limits { body_bytes: 1 << 20, ..Limits::default() };
        let setup =
            ScrapeSetup { limits, clock: Clock::start(), batches: sender, registry: &registry };
        let scraper = Scraper::new(setup).expect("a new registry has no such metrics");
        Self { scraper, batches, registry }
    }

    async fn next(&mut self) -> Batch {
        timeout(PATIENCE, self.batches.recv())
            .await
            .expect("a batch comes")
            .expect("the scraper lives")
    }

    /// The value of a counter or gauge whose labels contain `label`; 0 if there is none.
    fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let samples = families.iter().filter(|family| family.name() == name);
        samples
            .flat_map(|family| family.get_metric())
            .filter(|metric| {
                label.is_empty() || metric.get_label().iter().any(|l| l.value() == label)
            })
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            .sum()
    }
}

fn target(pod: &str, address: SocketAddr, path: &str, interval: Duration) -> Target {
    Target {
        endpoint: EndpointKey {
            pod: PodKey(pod.into()),
            port: address.port(),
            path: path.into(),
            interval,
        },
        address,
        wanted: Arc::new(Wanted::of(&["tasks", "requests_total"])),
    }
}

fn values(batch: &Batch) -> Result<Vec<f64>, CollectFailure> {
    batch.outcome.clone().map(|samples| samples.iter().map(|sample| sample.value).collect())
}

/// One attempt at one path.
async fn scrape_once(path: &str, interval: Duration) -> (Batch, Arc<Service>, Bench) {
    let (address, service) = Service::start().await;
    let mut bench = Bench::new(1);
    bench.scraper.set_targets(vec![target("a", address, path, interval)]);
    (bench.next().await, service, bench)
}

async fn check_failure(path: &str, interval: Duration, failure: CollectFailure, outcome: &str) {
    let (batch, _, bench) = scrape_once(path, interval).await;
    assert_eq!(values(&batch), Err(failure), "{path}");
    assert!(bench.metric("headroom_adapter_scrapes_total", outcome) >= 1.0, "{path}");
}

#[tokio::test]
async fn a_good_answer_yields_the_wanted_samples() {
    let (batch, service, bench) = scrape_once("/good", SECOND).await;
    assert_eq!(values(&batch), Ok(vec![7.0, 3.0]));
    assert_eq!(batch.endpoint.pod, PodKey("a".into()));
    assert!(bench.metric("headroom_adapter_scrapes_total", "ok") >= 1.0);
    assert!((bench.metric("headroom_adapter_scrape_targets", "") - 1.0).abs() < 0.1);
    let request = service.requests.lock()[0].to_lowercase();
    for header in
        ["accept: text/plain;version=0.0.4", "user-agent: headroom/", "timeout-seconds: 1\r\n"]
    {
        assert!(request.contains(header), "{header} in {request}");
    }
}

#[tokio::test]
async fn each_way_to_fail_has_its_reason() {
    let malformed = CollectFailure::Malformed { line: 2, reason: "a metric name was expected" };
    check_failure("/garbage", SECOND, malformed, "malformed").await;
    check_failure("/missing", SECOND, CollectFailure::Status(500), "status").await;
    check_failure("/never", QUICK, CollectFailure::Timeout(QUICK), "timeout").await;
    check_failure("/drip", QUICK, CollectFailure::Timeout(QUICK), "timeout").await;
    let too_large = CollectFailure::TooLarge { limit_bytes: 1 << 20 };
    check_failure("/huge-declared", SECOND, too_large, "too_large").await;
}

#[tokio::test]
async fn a_connection_that_breaks_or_is_no_http_says_so() {
    for path in ["/broken-off", "/not-http"] {
        let (batch, ..) = scrape_once(path, SECOND).await;
        let failure = batch.outcome.expect_err("there is no whole answer");
        assert!(matches!(failure, CollectFailure::Interrupted(_)), "{path}: {failure}");
    }
}

#[tokio::test]
async fn a_refused_connection_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    drop(listener);
    let mut bench = Bench::new(1);
    bench.scraper.set_targets(vec![target("a", address, "/good", SECOND)]);
    let failure = bench.next().await.outcome.expect_err("nobody listens");
    assert!(failure.to_string().to_lowercase().contains("connection refused"), "{failure}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (batch, service, _bench) = scrape_once("/redirect", SECOND).await;
    assert_eq!(values(&batch), Err(CollectFailure::Status(302)));
    assert!(service.requests.lock().iter().all(|request| request.starts_with("GET /redirect ")));
}

#[tokio::test]
async fn an_endless_answer_is_given_up_at_the_limit() {
    let (batch, service, _bench) = scrape_once("/endless", Duration::from_secs(10)).await;
    assert_eq!(values(&batch), Err(CollectFailure::TooLarge { limit_bytes: 1 << 20 }));
    // What the kernel's buffers hold may be written before the client is seen to be gone.
    let written = service.bytes_written.load(Ordering::Relaxed);
    assert!(written < 50_000_000, "{written} bytes were taken from the pod");
}

#[tokio::test]
async fn what_is_left_out_of_a_good_answer_has_its_reason() {
    let (batch, _, bench) = scrape_once("/not-numbers", SECOND).await;
    assert_eq!(values(&batch), Ok(vec![]));
    let reasons: Vec<_> = batch.dropped.iter().map(|dropped| dropped.reason).collect();
    assert_eq!(reasons, [DropReason::Negative, DropReason::NotFinite]);
    assert!(bench.metric("headroom_adapter_dropped_samples_total", "negative") >= 1.0);

    let (batch, _, bench) = scrape_once("/twice", SECOND).await;
    assert_eq!(values(&batch), Ok(vec![3.0]));
    assert!(bench.metric("headroom_adapter_dropped_samples_total", "duplicate") >= 2.0);
}

#[tokio::test]
async fn a_counter_reset_passes_as_it_is() {
    let (address, service) = Service::start().await;
    let mut bench = Bench::new(1);
    bench.scraper.set_targets(vec![target("a", address, "/reset", QUICK)]);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.extend(values(&bench.next().await).expect("the answer is good"));
    }
    assert_eq!(seen, [100.0, 120.0, 4.0]);
    assert_eq!(service.connections.load(Ordering::Relaxed), 1, "the connection is kept");
}

#[tokio::test]
async fn pods_that_hang_or_misbehave_cost_the_others_nothing() {
    let (address, _service) = Service::start().await;
    let slow = 2 * SECOND;
    let mut targets = vec![target("good", address, "/good", Duration::from_millis(100))];
    for path in ["/never", "/drip", "/endless", "/garbage", "/redirect", "/broken-off"] {
        targets.push(target(path, address, path, slow));
    }
    let mut bench = Bench::new(8);
    bench.scraper.set_targets(targets);
    let (mut good, mut timeouts) = (0, 0);
    // Bounded by what the good one is asked in a minute, should the others never time out.
    while timeouts < 2 && good < 600 {
        let batch = bench.next().await;
        if batch.endpoint.pod == PodKey("good".into()) {
            assert_eq!(values(&batch), Ok(vec![7.0, 3.0]));
            good += 1;
        }
        timeouts += usize::from(batch.outcome == Err(CollectFailure::Timeout(slow)));
    }
    // While two pods hung once, a queue would have come to the good one once; its own rhythm comes to it 20 times.
    assert!((5..600).contains(&good), "asked {good} times");
}

#[tokio::test]
async fn policies_on_one_endpoint_share_its_answers() {
    let (address, service) = Service::start().await;
    let mut one = target("a", address, "/good", QUICK);
    one.wanted = Arc::new(Wanted::of(&["tasks"]));
    let mut other = target("a", address, "/good", QUICK);
    other.wanted = Arc::new(Wanted::of(&["unwanted"]));
    let mut bench = Bench::new(1);
    bench.scraper.set_targets(vec![one, other]);
    for _ in 0..2 {
        assert_eq!(values(&bench.next().await), Ok(vec![7.0, 1.0]));
    }
    assert_eq!(service.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn policies_with_rhythms_of_their_own_share_nothing() {
    let (address, _service) = Service::start().await;
    let mut seldom = target("a", address, "/good", 60 * SECOND);
    seldom.wanted = Arc::new(Wanted::of(&["tasks"]));
    let mut often = target("a", address, "/good", QUICK);
    often.wanted = Arc::new(Wanted::of(&["unwanted"]));
    let mut bench = Bench::new(8);
    bench.scraper.set_targets(vec![seldom.clone(), often.clone()]);
    let (mut of_seldom, mut of_often) = (0, 0);
    while of_often < 3 || of_seldom < 1 {
        let batch = bench.next().await;
        if batch.endpoint == seldom.endpoint {
            assert_eq!(values(&batch), Ok(vec![7.0]));
            of_seldom += 1;
        } else {
            assert_eq!((values(&batch), &batch.endpoint), (Ok(vec![1.0]), &often.endpoint));
            of_often += 1;
        }
    }
    assert_eq!(of_seldom, 1);
}

#[tokio::test]
async fn a_pod_that_left_is_asked_no_more_and_one_that_stays_keeps_its_rhythm() {
    let (address, service) = Service::start().await;
    let long = 600 * SECOND;
    let stays = target("stays", address, "/good?stays", long);
    let leaves = target("leaves", address, "/good?leaves", QUICK);
    let mut bench = Bench::new(8);
    bench.scraper.set_targets(vec![stays.clone(), leaves]);
    for _ in 0..4 {
        bench.next().await;
    }
    bench.scraper.set_targets(vec![stays, target("comes", address, "/good?comes", QUICK)]);
    let mut comes = 0;
    while comes < 3 {
        comes += usize::from(bench.next().await.endpoint.pod == PodKey("comes".into()));
    }
    let asked = |path: &str| service.requests.lock().iter().filter(|r| r.contains(path)).count();
    let left_after = asked("leaves");
    for _ in 0..3 {
        assert_eq!(bench.next().await.endpoint.pod, PodKey("comes".into()));
    }
    assert_eq!(asked("leaves"), left_after);
    assert_eq!(asked("stays"), 1, "a new set of targets is no reason to ask again");
}

#[tokio::test]
async fn a_changed_plan_is_asked_for_at_once() {
    let (address, _service) = Service::start().await;
    let mut bench = Bench::new(1);
    let mut asked = target("a", address, "/good", 600 * SECOND);
    bench.scraper.set_targets(vec![asked.clone()]);
    assert_eq!(values(&bench.next().await), Ok(vec![7.0, 3.0]));
    asked.wanted = Arc::new(Wanted::of(&["unwanted"]));
    bench.scraper.set_targets(vec![asked]);
    assert_eq!(values(&bench.next().await), Ok(vec![1.0]));
}

#[tokio::test]
async fn a_reader_that_lags_finds_one_batch_per_pod_and_no_more() {
    let (address, service) = Service::start().await;
    let mut bench = Bench::new(1);
    bench.scraper.set_targets(vec![target("a", address, "/good", Duration::from_millis(100))]);
    let two_were_asked = async {
        while service.requests.lock().len() < 2 {
            tokio::time::sleep(QUICK).await;
        }
    };
    timeout(PATIENCE, two_were_asked).await.expect("the first batch leaves room for a second");
    tokio::time::sleep(SECOND).await;
    // One in the queue, one in the hands of its task; nine more would have fitted into the second.
    assert_eq!(service.requests.lock().len(), 2);
    for _ in 0..4 {
        bench.next().await;
    }
}
