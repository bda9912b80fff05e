//! Each endpoint against a real `/metrics` of the agent: the signal rises, and falls back where it is a gauge.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::task::JoinHandle;

use super::*;

/// The service, its end, and a client.
struct Running {
    address: SocketAddr,
    agent: SocketAddr,
    client: reqwest::Client,
    shutdown: CancellationToken,
    served: JoinHandle<Result<(), ServiceError>>,
}

impl Running {
    async fn start() -> Self {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let service =
            Service::start(ServiceOptions::new(any_port, any_port)).await.expect("free ports");
        let (address, agent) = (service.address(), service.agent_address());
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(service.serve(shutdown.clone()));
        // Another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { address, agent, client, shutdown, served }
    }

    async fn post(&self, path: &str) {
        let response = self.client.post(format!("http://{}{path}", self.address)).send().await;
        let status = response.expect("the service answers").status();
        assert!(status.is_success(), "{path}: {status}");
    }

    /// The sum of the series whose name and labels start with `series`; `None` if there is none.
    async fn scrape(&self, series: &str) -> Option<f64> {
        let response = self.client.get(format!("http://{}/metrics", self.agent)).send().await;
        let text = response.expect("the agent answers").text().await.expect("text");
        text.lines()
            .filter(|line| line.starts_with(series))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .reduce(|sum, value| sum + value)
    }

    async fn now(&self, series: &str) -> f64 {
        self.scrape(series).await.unwrap_or_else(|| panic!("{series} is not served"))
    }

    /// Waits until the series is as wanted; a test that hangs fails by the runner's limit.
    async fn until(&self, series: &str, wanted: impl Fn(f64) -> bool) {
        while !self.scrape(series).await.is_some_and(&wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.served.await.expect("it does not panic").expect("it ends in order");
    }
}

#[tokio::test]
async fn tasks_rise_and_fall() {
    let service = Running::start().await;
    let before = service.now("tokio_alive_tasks").await;
    service.post("/tasks?count=5000&seconds=0.3").await;
    service.until("tokio_alive_tasks", |tasks| tasks >= before + 5000.0).await;
    service.until("tokio_alive_tasks", |tasks| tasks < before + 1000.0).await;
    service.stop().await;
}

#[tokio::test]
async fn the_queue_rises_and_falls() {
    let service = Running::start().await;
    assert!(service.now("queue_depth").await < 0.5);
    service.post("/queue?items=70&seconds=0.3").await;
    service.post("/queue?items=30&seconds=0.3").await;
    service.until("queue_depth", |depth| depth > 0.5).await;
    service.until("queue_depth", |depth| depth < 0.5).await;
    service.stop().await;
}

#[tokio::test]
async fn cpu_seconds_grow_by_what_was_asked_for() {
    let service = Running::start().await;
    let before = service.now("process_cpu_seconds_total").await;
    service.post("/cpu?milliseconds=300").await;
    // The kernel counts in hundredths.
    assert!(service.now("process_cpu_seconds_total").await >= before + 0.28);
    service.stop().await;
}

#[tokio::test]
async fn work_is_measured_with_its_duration() {
    let service = Running::start().await;
    service.post("/work?milliseconds=40").await;
    service.post("/work?milliseconds=60").await;
    let of = |suffix: &str| {
        format!("http_server_request_duration_seconds_{suffix}{{endpoint=\"POST /work\"")
    };
    service.until(&of("count"), |count| count > 1.5).await;
    assert!(service.now(&of("sum")).await >= 0.1);
    service.stop().await;
}

#[tokio::test]
async fn the_agent_of_the_service_serves_profiles() {
    let service = Running::start().await;
    let url = format!("http://{}/debug/pprof/cmdline", service.agent);
    let text = service.client.get(url).send().await.expect("an answer").text().await.expect("text");
    assert!(text.contains("headroom"), "{text}");
    service.stop().await;
}

#[tokio::test]
async fn a_request_in_flight_is_finished_before_the_end() {
    let service = Running::start().await;
    let in_flight = {
        let (client, address) = (service.client.clone(), service.address);
        tokio::spawn(async move {
            client.post(format!("http://{address}/work?milliseconds=300")).send().await
        })
    };
    let series = "http_server_requests_in_flight{endpoint=\"POST /work\"";
    service.until(series, |requests| requests > 0.5).await;
    service.stop().await;
    let response = in_flight.await.expect("it does not panic").expect("the request was answered");
    assert!(response.status().is_success());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let service = Running::start().await;
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let error = run(ServiceOptions::new(service.address, any_port), CancellationToken::new()).await;
    let message = error.expect_err("the port is taken").to_string();
    assert_eq!(message, format!("cannot serve on {}", service.address));
    service.stop().await;
}
