//! What the request layer costs a request: labels, counters, histogram and clocks, against the same service without it.
//!
//! Run with `make bench`. Each figure is the best of several rounds, since anything else on the machine only makes it slower.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::convert::Infallible;
use std::future::{Ready, ready};

use axum::extract::MatchedPath;
use axum::routing::get;
use axum::{Extension, Router};
use futures::FutureExt as _;
use http::{HeaderValue, Request, Response};
use tokio::time::Instant;
use tower::{Layer as _, Service, ServiceExt as _};

const ROUNDS: usize = 25;
const REQUESTS: u32 = 50_000;

#[tokio::main]
async fn main() {
    let address = ([127, 0, 0, 1], 0).into();
    let agent = headroom::Agent::builder().bind(address).start().expect("a free port");
    let path = matched_path().await;
    let request = |flags: Option<&str>| {
        let mut request = Request::new(());
        request.extensions_mut().insert(path.clone());
        if let Some(flags) = flags {
            let trace = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            let trace = HeaderValue::from_str(&trace).expect("a valid value");
            request.headers_mut().insert("traceparent", trace);
        }
        request
    };
    let bare = tower::service_fn(echo);
    let layered = agent.http_layer().layer(bare);
    let clock = best(|| {
        std::hint::black_box(Instant::now());
    });
    let without = service_cost(bare, request(None));
    println!("one read of the clock: {clock:.0} ns; a request without the layer: {without:.0} ns");
    for (what, flags) in [
        ("no traceparent", None),
        ("a traceparent, not sampled", Some("00")),
        ("a sampled traceparent, kept as exemplar", Some("01")),
    ] {
        let with = service_cost(layered.clone(), request(flags));
        println!("the layer, {what}: {:.0} ns", with - without);
    }
}

type Echo = Ready<Result<Response<Request<()>>, Infallible>>;

/// Gives the request back, so that none has to be made or copied.
fn echo(request: Request<()>) -> Echo {
    ready(Ok(Response::new(request)))
}

fn service_cost<S>(mut service: S, request: Request<()>) -> f64
where
    S: Service<Request<()>, Response = Response<Request<()>>, Error = Infallible>,
{
    let mut request = Some(request);
    best(|| {
        let call = service.call(request.take().expect("the last answer gave it back"));
        let answer = call.now_or_never().expect("it is ready at once");
        request = answer.ok().map(Response::into_body);
    })
}

/// Nanoseconds in the best round.
fn best(mut operation: impl FnMut()) -> f64 {
    let mut round = || {
        let began = Instant::now();
        (0..REQUESTS).for_each(|_| operation());
        began.elapsed().as_secs_f64() * 1e9 / f64::from(REQUESTS)
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

/// Only axum can make one.
async fn matched_path() -> MatchedPath {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let handler = async |path: MatchedPath, sender: Extension<Sender>| {
        sender.send(path).expect("the benchmark waits");
    };
    let router = Router::new().route("/carts/{id}/items", get(handler)).layer(Extension(sender));
    let request = Request::builder().uri("/carts/7/items").body(axum::body::Body::empty());
    router.oneshot(request.expect("a valid request")).await.expect("axum is infallible");
    receiver.recv().await.expect("the handler ran")
}

type Sender = tokio::sync::mpsc::UnboundedSender<MatchedPath>;
