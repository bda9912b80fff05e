//! What the gate of the adapter costs a request whose answers are all remembered: the words of the request, who asks, and
//! whether they may. And what it would cost to judge the client's certificate at each request.
//!
//! `make bench`, or `cargo bench --profile dev --bench gate`. One thread; the API server behind it is scripted and asked once.
//! Each figure is the best of several rounds, since anything else on the machine only makes it slower.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, Method, Uri};
use headroom::adapter::{
    AccessReviews, Authentication, Authorization, ClientCaSettings, ClientCas, Delegated,
    PeerCertificate, RequestInfo, Verdict,
};
use headroom::probes::Progress;
use headroom::time::Clock;
use http_body_util::BodyExt as _;
use kube::client::Body;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

const ROUNDS: u32 = 40;

/// An API server that lets everyone do everything.
fn client() -> kube::Client {
    let service = tower::service_fn(|request: http::Request<Body>| async move {
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
        let mut review: serde_json::Value =
            serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        review["status"] = serde_json::json!({"allowed": true});
        let body = Body::from(review.to_string().into_bytes());
        Ok::<_, std::convert::Infallible>(http::Response::new(body))
    });
    kube::Client::new(service, "default")
}

/// The front proxy's CA, and the certificate that it gave the front proxy.
fn front_proxy() -> anyhow::Result<(String, CertificateDer<'static>)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "front-proxy-ca");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "front-proxy-client");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&KeyPair::generate()?, &ca)?;
    Ok((ca.pem(), leaf.der().clone()))
}

fn settings(ca: &str) -> anyhow::Result<ClientCaSettings> {
    let data: BTreeMap<String, String> = [
        ("client-ca-file", ca),
        ("requestheader-client-ca-file", ca),
        ("requestheader-allowed-names", "[\"front-proxy-client\"]"),
        ("requestheader-username-headers", "[\"X-Remote-User\"]"),
        ("requestheader-group-headers", "[\"X-Remote-Group\"]"),
        ("requestheader-extra-headers-prefix", "[\"X-Remote-Extra-\"]"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    Ok(ClientCaSettings::from_config_map(&data)?)
}

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
    let (ca, leaf) = front_proxy()?;
    let cas = Arc::new(ClientCas::new(Progress::new(Clock::start()).add_condition("CAs")));
    cas.install(settings(&ca)?);
    let peer = PeerCertificate::new(&[leaf]).ok_or_else(|| anyhow::anyhow!("no certificate"))?;
    let authentication = Authentication::Delegated(Delegated::new(cas, client()));
    let authorization = Authorization::Delegated(AccessReviews::new(client()));
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
    let (one, other) = (Arc::new(settings(&ca)?), Arc::new(settings(&ca)?));
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
