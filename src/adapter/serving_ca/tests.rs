//! What holds between replicas, the Secret and the APIService, on an API server in memory.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::Registry;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};

use super::authority::{CA_LIFETIME, LEAF_LIFETIME};
use super::registration::FIELD_MANAGER;
use super::*;
use crate::adapter::Groups;
use crate::scripted_kubernetes::ScriptedKubernetes;
use crate::time::Clock;

const API_SERVICE: &str = "v1beta1.external.metrics.k8s.io";
const SECRET_PATH: &str = "/api/v1/namespaces/headroom-system/secrets/headroom-serving-ca";
const DAY: Duration = Duration::from_secs(86_400);
/// What kube-apiserver verifies.
const SERVER_NAME: &str = "headroom-adapter.headroom-system.svc";
/// 2026-11-24.
const START: Timestamp = Timestamp::from_millis(1_795_500_000_000);

type Installed = Arc<Mutex<Option<(String, String)>>>;
type Install = Box<dyn Fn(&[u8], &[u8]) -> Result<(), InstallError> + Send + Sync>;

struct Replica {
    ca: ServingCa<Install>,
    leading: watch::Sender<bool>,
    installed: Installed,
    progress: Progress,
}

impl Replica {
    fn new(kubernetes: &ScriptedKubernetes, name: &'static str, leads: bool) -> Self {
        Self::with(kubernetes, name, leads, false)
    }

    fn with(
        kubernetes: &ScriptedKubernetes,
        name: &'static str,
        leads: bool,
        take_over: bool,
    ) -> Self {
        let options = ServingCaOptions {
            namespace: "headroom-system".to_owned(),
            service: "headroom-adapter".to_owned(),
            service_port: 443,
            pod_ip: Some(IpAddr::from([10, 0, 0, 7])),
            api_services: vec![API_SERVICE.to_owned()],
            take_over,
        };
        let (leading, receiver) = watch::channel(leads);
        let progress = Progress::new(Clock::start());
        let installed = Installed::default();
        let metrics = ServingMetrics::register(&Registry::new()).expect("the registry is empty");
        let (sink, cluster) = (installed.clone(), kubernetes.clone());
        let install: Install = Box::new(move |certificate, key| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
            let (certificate, key) = (text(certificate)?, text(key)?);
            if sink.lock().is_some() && cluster.get(&api_service_path()).is_some() {
                // Whatever takes the place of another is trusted from its first moment.
                let outcome =
                    verify(&bundle(&cluster), &certificate, SERVER_NAME, made_at(&certificate));
                assert_eq!(outcome, Ok(()), "installed before it was trusted");
            }
            *sink.lock() = Some((certificate, key));
            Ok(())
        });
        let ca =
            ServingCa::new(kubernetes.client(name), options, receiver, &progress, metrics, install);
        Self { ca, leading, installed, progress }
    }

    /// One round of the loop at a given time; says whether everything is done.
    async fn step(&mut self, now: Timestamp) -> bool {
        let passed = self.ca.pass(now).await;
        self.ca.report(passed, now)
    }

    fn certificate(&self) -> String {
        self.installed.lock().as_ref().expect("a certificate is installed").0.clone()
    }

    fn unready(&self) -> String {
        self.progress.ready().err().unwrap_or_default()
    }
}

fn api_service_path() -> String {
    format!("/apis/apiregistration.k8s.io/v1/apiservices/{API_SERVICE}")
}

fn cluster(service: &str) -> ScriptedKubernetes {
    let kubernetes = ScriptedKubernetes::new();
    put_api_service(&kubernetes, service);
    kubernetes
}

fn put_api_service(kubernetes: &ScriptedKubernetes, service: &str) {
    let object = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": API_SERVICE},
        "spec": {
            "group": "external.metrics.k8s.io", "version": "v1beta1",
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"namespace": "headroom-system", "name": service, "port": 443},
        },
    });
    kubernetes.put(&api_service_path(), object);
}

fn spec_of_api_service(kubernetes: &ScriptedKubernetes) -> Value {
    kubernetes.get(&api_service_path()).expect("it exists")["spec"].clone()
}

fn bundle(kubernetes: &ScriptedKubernetes) -> String {
    let encoded = spec_of_api_service(kubernetes)["caBundle"].clone();
    let bytes: k8s_openapi::ByteString = serde_json::from_value(encoded).unwrap_or_default();
    String::from_utf8(bytes.0).expect("PEM is text")
}

/// As kube-apiserver does: the chain to `caBundle`, and the name of the Service.
fn verify(bundle: &str, leaf_pem: &str, name: &str, now: Timestamp) -> Result<(), webpki::Error> {
    let roots: Vec<_> = CertificateDer::pem_slice_iter(bundle.as_bytes())
        .collect::<Result<_, _>>()
        .expect("the bundle is PEM");
    let anchors: Vec<_> =
        roots.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<_, _>>().expect("CAs");
    let leaf = CertificateDer::from_pem_slice(leaf_pem.as_bytes()).expect("the leaf is PEM");
    let leaf = webpki::EndEntityCert::try_from(&leaf)?;
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &[],
        UnixTime::since_unix_epoch(now.since(Timestamp::default())),
        webpki::KeyUsage::server_auth(),
        None,
        None,
    )?;
    leaf.verify_is_valid_for_subject_name(&ServerName::try_from(name).expect("a name"))
}

/// Certificates begin an hour before they are made.
fn made_at(leaf_pem: &str) -> Timestamp {
    let (_, block) =
        x509_parser::pem::parse_x509_pem(leaf_pem.as_bytes()).expect("the leaf is PEM");
    let not_before = block.parse_x509().expect("a certificate").validity().not_before.timestamp();
    Timestamp::from_millis((not_before + 3600) * 1000)
}

fn assert_trusted(kubernetes: &ScriptedKubernetes, replica: &Replica, now: Timestamp) {
    let outcome = verify(
        &bundle(kubernetes),
        &replica.certificate(),
        "headroom-adapter.headroom-system.svc",
        now,
    );
    assert_eq!(outcome, Ok(()), "at {now}");
}

#[tokio::test]
async fn a_new_cluster_gets_a_ca_and_every_replica_a_leaf_that_it_trusts() {
    let kubernetes = cluster("headroom-adapter");
    let mut leader = Replica::new(&kubernetes, "a", true);
    let mut follower = Replica::new(&kubernetes, "b", false);
    assert!(!follower.step(START).await);
    assert!(
        follower
            .unready()
            .contains("waiting for the Lease holder to make Secret headroom-serving-ca")
    );
    assert!(kubernetes.take_writes().is_empty(), "a follower writes nothing");

    assert!(leader.step(START).await);
    assert!(follower.step(START).await);
    for replica in [&leader, &follower] {
        assert_trusted(&kubernetes, replica, START);
        assert_eq!(replica.progress.ready(), Ok(()));
    }
    assert_ne!(leader.certificate(), follower.certificate());
    let writes = kubernetes.take_writes();
    let paths: Vec<_> = writes.iter().map(|write| write.path.as_str()).collect();
    assert_eq!(paths, [SECRET_PATH, &api_service_path()]);
    assert!(
        writes[1].query.contains(&format!("fieldManager={FIELD_MANAGER}")),
        "{}",
        writes[1].query
    );
    let fields: Vec<_> = writes[1].body["spec"].as_object().expect("a spec").keys().collect();
    assert_eq!(fields, ["caBundle"], "only this field is applied");

    leader.step(START).await;
    assert!(kubernetes.take_writes().is_empty(), "nothing is written twice");
}

#[tokio::test]
async fn a_leaf_is_good_for_every_name_and_for_a_clock_that_is_behind() {
    let kubernetes = cluster("headroom-adapter");
    let mut leader = Replica::new(&kubernetes, "a", true);
    leader.step(START).await;
    let behind = Timestamp::from_millis(START.as_millis() - 59 * 60 * 1000);
    for name in [
        "headroom-adapter.headroom-system.svc",
        "headroom-adapter.headroom-system.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        "10.0.0.7",
    ] {
        let outcome = verify(&bundle(&kubernetes), &leader.certificate(), name, behind);
        assert_eq!(outcome, Ok(()), "{name}");
    }
    assert!(
        verify(&bundle(&kubernetes), &leader.certificate(), "kubernetes.default.svc", START)
            .is_err()
    );
}

#[tokio::test]
async fn two_replicas_that_both_make_the_ca_end_with_one() {
    let kubernetes = ScriptedKubernetes::slow();
    put_api_service(&kubernetes, "headroom-adapter");
    let mut a = Replica::new(&kubernetes, "a", true);
    let mut b = Replica::new(&kubernetes, "b", true);
    tokio::join!(a.step(START), b.step(START));
    assert_eq!(kubernetes.take_refused()[0], "AlreadyExists", "they did race");
    assert!(a.step(START).await && b.step(START).await);
    let secrets = kubernetes.take_writes().iter().filter(|write| write.path == SECRET_PATH).count();
    assert_eq!(secrets, 1);
    assert_trusted(&kubernetes, &a, START);
    assert_trusted(&kubernetes, &b, START);
}

#[tokio::test]
async fn a_secret_deleted_by_hand_is_made_again_while_every_leaf_stays_trusted() {
    let kubernetes = cluster("headroom-adapter");
    let mut leader = Replica::new(&kubernetes, "a", true);
    let mut follower = Replica::new(&kubernetes, "b", false);
    leader.step(START).await;
    follower.step(START).await;
    let (old_bundle, old_leaves) =
        (bundle(&kubernetes), [leader.certificate(), follower.certificate()]);
    kubernetes.remove(SECRET_PATH);
    for round in 0..6 {
        // The follower looks first in every other round.
        for turn in [round % 2, (round + 1) % 2] {
            if turn == 0 {
                leader.step(START).await
            } else {
                follower.step(START).await
            };
            assert_trusted(&kubernetes, &leader, START);
            assert_trusted(&kubernetes, &follower, START);
        }
    }
    assert!(kubernetes.get(SECRET_PATH).is_some());
    assert_ne!(leader.certificate(), old_leaves[0], "signed again");
    assert_ne!(follower.certificate(), old_leaves[1], "signed again");
    assert!(
        bundle(&kubernetes).contains(old_bundle.trim()),
        "the lost CA stays in the bundle for a while"
    );
}

#[tokio::test]
async fn over_two_years_every_leaf_is_trusted_every_day_and_old_cas_leave_the_bundle() {
    let kubernetes = cluster("headroom-adapter");
    let mut leader = Replica::new(&kubernetes, "a", true);
    let mut follower = Replica::new(&kubernetes, "b", false);
    let (mut cas_seen, mut most, mut now) = (std::collections::BTreeSet::new(), 0, START);
    for day in 0..730 {
        now = now + DAY;
        if day % 2 == 0 {
            follower.step(now).await
        } else {
            leader.step(now).await
        };
        if day == 0 {
            leader.step(now).await;
            follower.step(now).await;
        }
        assert_trusted(&kubernetes, &leader, now);
        assert_trusted(&kubernetes, &follower, now);
        let trusted = CaCertificate::parse_all(&bundle(&kubernetes));
        most = most.max(trusted.len());
        cas_seen.extend(trusted.iter().map(|ca| ca.der().to_vec()));
    }
    assert_eq!(most, 2, "new and old");
    let lifetimes = 730.0 * DAY.as_secs_f64() / (CA_LIFETIME.as_secs_f64() * 2.0 / 3.0);
    assert!((cas_seen.len() as f64 - lifetimes.ceil()).abs() < 1.5, "{} CAs", cas_seen.len());
    for _ in 0..2 * LEAF_LIFETIME.as_secs() / DAY.as_secs() {
        if CaCertificate::parse_all(&bundle(&kubernetes)).len() == 1 {
            return;
        }
        now = now + DAY;
        leader.step(now).await;
        follower.step(now).await;
    }
    panic!("the old CA never left the bundle");
}

#[tokio::test]
async fn an_api_service_of_another_service_is_left_alone_and_named() {
    let kubernetes = cluster("keda-metrics-apiserver");
    let before = spec_of_api_service(&kubernetes);
    let mut leader = Replica::new(&kubernetes, "a", true);
    assert!(!leader.step(START).await);
    assert_eq!(spec_of_api_service(&kubernetes), before);
    let unready = leader.unready();
    assert!(
        unready.contains("belongs to Service headroom-system/keda-metrics-apiserver"),
        "{unready}"
    );
    assert!(unready.contains("--take-over"), "{unready}");
    assert!(!leader.certificate().is_empty(), "it can still be served");
}

#[tokio::test]
async fn take_over_points_it_at_us_in_one_write_and_only_the_leader_does() {
    let kubernetes = cluster("keda-metrics-apiserver");
    let mut object = kubernetes.get(&api_service_path()).expect("it exists");
    object["spec"]["insecureSkipTLSVerify"] = json!(true);
    kubernetes.put(&api_service_path(), object);
    let mut leader = Replica::with(&kubernetes, "a", true, true);
    let mut follower = Replica::with(&kubernetes, "b", false, true);
    follower.step(START).await;
    assert!(kubernetes.take_writes().is_empty());
    assert!(leader.step(START).await);
    assert_trusted(&kubernetes, &leader, START);
    let spec = spec_of_api_service(&kubernetes);
    assert_eq!(spec["service"]["name"], json!("headroom-adapter"));
    assert_eq!(spec["insecureSkipTLSVerify"], Value::Null, "it is refused beside a bundle");
    assert_eq!(kubernetes.take_writes().len(), 2, "the Secret and the APIService");
}

#[tokio::test]
async fn a_missing_api_service_is_named_and_found_once_it_is_there() {
    let kubernetes = ScriptedKubernetes::new();
    let mut leader = Replica::new(&kubernetes, "a", true);
    assert!(!leader.step(START).await);
    assert!(leader.unready().contains("APIService v1beta1.external.metrics.k8s.io does not exist"));
    put_api_service(&kubernetes, "headroom-adapter");
    assert!(leader.step(START).await);
    assert_trusted(&kubernetes, &leader, START);
    assert_eq!(leader.progress.ready(), Ok(()));
}

#[tokio::test]
async fn a_secret_that_holds_something_else_is_never_overwritten() {
    let kubernetes = cluster("headroom-adapter");
    let mut other = Replica::new(&kubernetes, "x", true);
    other.step(START).await;
    let good = kubernetes.get(SECRET_PATH).expect("it was made");
    let leaf = other.certificate();
    let (certificate, key) = (good["data"]["tls.crt"].clone(), good["data"]["tls.key"].clone());
    let foreign_key = {
        let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        json!(k8s_openapi::ByteString(key.into_bytes()))
    };
    let leaf_as_ca = json!(k8s_openapi::ByteString(leaf.clone().into_bytes()));
    for (data, reason) in [
        (json!({"tls.crt": certificate}), "tls.key is missing"),
        (json!({"tls.key": key}), "tls.crt is missing"),
        (json!({"tls.crt": certificate, "tls.key": foreign_key}), "tls.key does not match tls.crt"),
        (json!({"tls.crt": leaf_as_ca, "tls.key": key}), "tls.crt is not the certificate of a CA"),
        (json!({"tls.crt": key, "tls.key": key}), "tls.crt is not a PEM certificate"),
    ] {
        let mut secret = good.clone();
        secret["data"] = data;
        kubernetes.put(SECRET_PATH, secret.clone());
        kubernetes.take_writes();
        let mut fresh = Replica::new(&kubernetes, "a", true);
        assert!(!fresh.step(START).await && !other.step(START).await);
        assert!(fresh.unready().contains(reason), "{reason}: {}", fresh.unready());
        assert_eq!(other.certificate(), leaf, "the last good one stays");
        assert_eq!(other.progress.ready(), Ok(()), "and is still served");
        assert!(kubernetes.take_writes().is_empty(), "{reason}");
    }
}

#[tokio::test]
async fn an_empty_secret_made_by_an_administrator_is_filled() {
    let kubernetes = cluster("headroom-adapter");
    let empty = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": SECRET_NAME, "labels": {"kept": "yes"}},
    });
    kubernetes.put(SECRET_PATH, empty);
    let mut leader = Replica::new(&kubernetes, "a", true);
    assert!(leader.step(START).await);
    let secret = kubernetes.get(SECRET_PATH).expect("it exists");
    assert_eq!(secret["metadata"]["labels"]["kept"], json!("yes"));
    assert_trusted(&kubernetes, &leader, START);
}

#[tokio::test]
async fn a_trusted_leaf_is_not_traded_while_nobody_knows_what_is_trusted() {
    let kubernetes = cluster("headroom-adapter");
    let mut leader = Replica::new(&kubernetes, "a", true);
    let mut follower = Replica::new(&kubernetes, "b", false);
    leader.step(START).await;
    follower.step(START).await;
    let leaf = follower.certificate();
    let good = kubernetes.get(&api_service_path()).expect("it exists");
    kubernetes.remove(SECRET_PATH);
    let mut other_cluster_leader = Replica::new(&kubernetes, "c", true);
    // Not decodable, as after a failed read.
    kubernetes.put(&api_service_path(), json!({"metadata": {"name": API_SERVICE}, "spec": 5}));
    other_cluster_leader.step(START).await;
    for _ in 0..3 {
        assert!(!follower.step(START).await);
    }
    assert_eq!(follower.certificate(), leaf);
    assert_eq!(follower.progress.ready(), Ok(()), "what was true is not taken back");
    kubernetes.put(&api_service_path(), good);
    other_cluster_leader.step(START).await;
    follower.step(START).await;
    follower.step(START).await;
    assert_ne!(follower.certificate(), leaf);
}

#[tokio::test]
async fn a_secret_and_an_api_service_that_are_both_lost_are_made_again_without_a_gap() {
    let kubernetes = cluster("headroom-adapter");
    let mut leader = Replica::new(&kubernetes, "a", true);
    let mut follower = Replica::new(&kubernetes, "b", false);
    leader.step(START).await;
    follower.step(START).await;
    kubernetes.remove(SECRET_PATH);
    kubernetes.remove(&api_service_path());
    leader.step(START).await;
    put_api_service(&kubernetes, "headroom-adapter");
    leader.step(START).await;
    assert_trusted(&kubernetes, &leader, START);
    assert_trusted(&kubernetes, &follower, START);
}

#[tokio::test]
async fn one_api_service_that_cannot_be_written_does_not_keep_another_from_it() {
    let kubernetes = cluster("headroom-adapter");
    let first = "v1beta1.custom.metrics.k8s.io";
    let path = api_service_path().replace(API_SERVICE, first);
    let mut object = kubernetes.get(&api_service_path()).expect("it exists");
    object["metadata"]["name"] = json!(first);
    kubernetes.put(&path, object);
    kubernetes.refuse_writes(&path);
    let mut leader = Replica::new(&kubernetes, "a", true);
    leader.ca.options.api_services.insert(0, first.to_owned());
    assert!(!leader.step(START).await);
    assert_trusted(&kubernetes, &leader, START);
    let unready = leader.unready();
    assert!(
        unready
            .contains("cannot write APIService v1beta1.custom.metrics.k8s.io: scripted: Forbidden"),
        "{unready}"
    );
}

#[tokio::test]
async fn a_group_that_another_adapter_serves_does_not_take_ours_away() {
    let custom = "v1beta1.custom.metrics.k8s.io";
    for others in [Some("prometheus-adapter"), None] {
        let kubernetes = cluster("headroom-adapter");
        if let Some(others) = others {
            let mut object = kubernetes.get(&api_service_path()).expect("it exists");
            object["metadata"]["name"] = json!(custom);
            object["spec"]["service"]["name"] = json!(others);
            kubernetes.put(&api_service_path().replace(API_SERVICE, custom), object);
        }
        let mut leader = Replica::new(&kubernetes, "a", true);
        leader.ca.options.api_services.insert(0, custom.to_owned());
        assert!(!leader.step(START).await, "it is looked at again");
        assert_trusted(&kubernetes, &leader, START);
        assert_eq!(leader.progress.ready(), Ok(()));
        let problem = leader.ca.problem.as_ref().expect("it is reported");
        assert!(problem.text().contains(custom), "{problem:?}");
    }
}

#[tokio::test]
async fn the_loop_makes_the_ca_once_this_replica_leads() {
    let kubernetes = cluster("headroom-adapter");
    let Replica { ca, leading, installed, progress } = Replica::new(&kubernetes, "a", false);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(ca.run(shutdown.clone()));
    leading.send_replace(true);
    let ready = async {
        while progress.ready().is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), ready).await.expect("ready within a minute");
    assert!(installed.lock().is_some());
    shutdown.cancel();
    task.await.expect("it ends without a panic");
}

#[test]
fn the_shipped_rights_name_the_secret_and_the_api_services() {
    const BASE: [&str; 2] = [
        include_str!("../../../manifests/base/rbac.yaml"),
        include_str!("../../../manifests/base/apiservice.yaml"),
    ];
    const PODS: [&str; 2] = [
        include_str!("../../../manifests/components/resource-metrics/rbac.yaml"),
        include_str!("../../../manifests/components/resource-metrics/apiservice.yaml"),
    ];
    assert!(BASE[0].contains(&format!("resourceNames: [{SECRET_NAME}]")));
    let pods = Groups { custom: false, external: false, resource_metrics: true };
    for ([rbac, registered], groups) in [(BASE, Groups::default()), (PODS, pods)] {
        for name in groups.api_services() {
            assert!(rbac.contains(&format!("\n  - {name}\n")), "{name}");
            assert!(registered.contains(&format!("\n  name: {name}\n")), "{name}");
        }
    }
}
