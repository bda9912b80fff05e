//! Certificates and CAs are replaced while an HTTP/2 client reads without a pause.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::*;

const PATH: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/headroom_demand";

/// Reads with whatever client is current until told to stop; every answer must be the value.
struct Reading<'a> {
    client: ArcSwap<Caller<'a>>,
    answers: AtomicUsize,
    stop: AtomicBool,
}

impl<'a> Reading<'a> {
    fn with(client: Caller<'a>) -> Self {
        let client = ArcSwap::from_pointee(client);
        Self { client, answers: AtomicUsize::new(0), stop: AtomicBool::new(false) }
    }

    async fn read(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let client = self.client.load_full();
            let answer = client
                .try_send(reqwest::Method::GET, PATH, &[("x-remote-user", HPA)])
                .await
                .expect("no request is dropped");
            assert_eq!(answer.version, reqwest::Version::HTTP_2);
            assert_eq!(answer.items(), ["policy=checkout: 1"]);
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Goes on reading for some answers: what was changed before is in effect for them.
    async fn some(&self) {
        let before = self.answers.load(Ordering::Relaxed);
        while self.answers.load(Ordering::Relaxed) < before + 50 {
            tokio::task::yield_now().await;
        }
    }

    /// Reads with several tasks while `change` happens; how many answers there were.
    async fn during(&self, change: impl Future<Output = ()>) -> usize {
        let change = async {
            self.some().await;
            change.await;
            self.some().await;
            self.stop.store(true, Ordering::Relaxed);
        };
        tokio::join!(change, self.read(), self.read(), self.read(), self.read());
        self.answers.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn case_15_a_rotation_of_the_front_proxys_ca_drops_no_request() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let next_ca = Ca::new("front-proxy-ca-2");
    let (client_ca, old, new) = (server.client_ca.pem(), server.proxy_ca.pem(), next_ca.pem());
    let publish = async |bundle: String| {
        *server.script.maps.lock() = vec![config_map(&client_ca, &bundle)];
        server.cas.load_from(server.script.client()).await.expect("a good ConfigMap");
    };
    let reading = Reading::with(server.proxy());
    let answers = reading
        .during(async {
            publish(format!("{old}{new}")).await;
            reading.some().await;
            // kube-apiserver shows its new certificate on new connections.
            reading.client.store(Arc::new(server.holding(next_ca.client(FRONT_PROXY, &[]))));
            reading.some().await;
            publish(new.clone()).await;
        })
        .await;
    assert!(answers >= 200, "{answers}");
    let late = server.proxy().get(PATH, &[("x-remote-user", HPA)]).await;
    late.status(401, "Unauthorized");
}

#[tokio::test]
async fn a_replaced_serving_certificate_drops_no_request_and_new_connections_see_it() {
    let server = Running::start().await;
    server.demand("shop", "checkout", 1.0);
    let made = self_signed(&[SERVICE]).expect("rcgen signs");
    let new_ca = reqwest::Certificate::from_pem(made.ca_pem.as_bytes()).expect("the CA is PEM");
    let trusting_new = || {
        let client = reqwest::Client::builder()
            .tls_certs_only([new_ca.clone()])
            .resolve(SERVICE, server.address)
            .no_proxy()
            .build()
            .expect("the settings fit");
        Caller { server: &server, client }
    };
    let get = reqwest::Method::GET;
    assert!(trusting_new().try_send(get.clone(), "/livez", &[]).await.is_err(), "not yet served");
    let reading = Reading::with(server.proxy());
    let answers = reading
        .during(async {
            let (chain, key) = (made.certificate_pem.as_bytes(), made.key_pem.as_bytes());
            server.certificate.install(chain, key).expect("the pair is whole");
            reading.some().await;
            let seen = trusting_new().try_send(get.clone(), "/livez", &[]).await;
            assert_eq!(seen.expect("a new connection sees it").code, StatusCode::OK);
        })
        .await;
    assert!(answers >= 150, "{answers}");
    let old = server.anyone().try_send(get, "/livez", &[]).await;
    assert!(old.is_err(), "a new connection does not see the old one");
}
