//! What the gate of the adapter costs a request whose answers are all remembered: the words of the request, who asks, and
//! whether they may. And what it would cost to judge the client's certificate at each request.
//!
//! `make bench`, or `cargo bench --profile dev --bench gate`. One thread; the API server behind it is scripted and asked once.
//! Each figure is the best of several rounds, since anything else on the machine only makes it slower.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "support/aggregation.rs"]
mod aggregation;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use aggregation::{FrontProxy, api_server};
use axum::http::{HeaderMap, Method, Uri};
use headroom::adapter::{
    AccessReviews, Authentication, Authorization, ClientCas, Delegated, PeerCertificate,
    RequestInfo, Verdict,
};
use headroom::probes::Progress;
use headroom::time::Clock;
use tokio::time::Instant;

const ROUNDS: u32 = 40;

/// What the aggregator passes on of a read by the HPA controller.
fn headers() -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("accept", "application/vnd.kubernetes.protobuf, */*"),
        (
            "user-agent",
            "kube-controller-manager/v1.37.2 (linux/amd64) kubernetes/0123456/horizontal-pod-autoscaler",
        ),
        ("audit-id", "b0e1c7a2-6a3c-4a0d-8f55-0a4f4f1d5a11"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-remote-user", "system:serviceaccount:kube-system:horizontal-pod-autoscaler"),
    ] {
        headers.insert(name, value.parse()?);
    }
    for group in
        ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]
    {
        headers.append("x-remote-group", group.parse()?);
    }
    headers.insert(
        "x-remote-extra-authentication.kubernetes.io%2Fcredential-id",
        "JTI=0a1b2c3d".parse()?,
    );
    Ok(headers)
}

/// Shows the best round of what is done `times` times in a round.
async fn shown(
    what: &str,
    times: u32,
    mut work: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..times {
            work().await?;
        }
        best = best.min(started.elapsed());
    }
    println!("{what:<58} {:>8.0} ns", best.as_secs_f64() * 1e9 / f64::from(times));
    Ok(())
}

async fn measure() -> anyhow::Result<()> {
    let (proxy, _) = FrontProxy::new()?;
    let cas = Arc::new(ClientCas::new(Progress::new(Clock::start()).add_condition("CAs")));
    cas.install(proxy.settings()?);
    let peer = PeerCertificate::new(std::slice::from_ref(&proxy.certificate))
        .ok_or_else(|| anyhow::anyhow!("no certificate"))?;
    let authentication = Authentication::Delegated(Delegated::new(cas, api_server()));
    let authorization = Authorization::Delegated(AccessReviews::new(api_server()));
    let headers = headers()?;
    let address = std::net::IpAddr::from([10, 0, 0, 1]);
    let uri: Uri = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/headroom_demand?labelSelector=policy%3Dcheckout".parse()?;

    shown("the words of a request", 5_000, async || {
        black_box(RequestInfo::of(black_box(&Method::GET), black_box(&uri)));
        Ok(())
    })
    .await?;
    shown("who asks: the front proxy, its certificate judged before", 5_000, async || {
        black_box(authentication.authenticate(black_box(&headers), Some(&peer), address).await?);
        Ok(())
    })
    .await?;
    let info = RequestInfo::of(&Method::GET, &uri);
    let found = authentication.authenticate(&headers, Some(&peer), address).await?;
    let (identity, _) = found.ok_or_else(|| anyhow::anyhow!("nobody is recognised"))?;
    shown("may they: the review is remembered", 5_000, async || {
        let verdict = authorization.authorize(black_box(&identity), black_box(&info)).await?;
        anyhow::ensure!(verdict == Verdict::Allowed);
        Ok(())
    })
    .await?;
    let (one, other) = (Arc::new(proxy.settings()?), Arc::new(proxy.settings()?));
    shown("to judge the certificate by both CAs anew, twice", 50, async || {
        black_box((peer.vouched(&one), peer.vouched(&other)));
        Ok(())
    })
    .await
}

fn main() -> anyhow::Result<()> {
    // A second call only says that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure())
}
