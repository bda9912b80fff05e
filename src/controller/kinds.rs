//! Where a kind is served: its plural in paths, and whether its objects lie in a namespace.
//!
//! In: kinds as specs name them. Out: the API server's discovery of each, asked once and again only while it is not
//! served: its definition may be installed later. Never: a guess of a plural.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use kube::api::{ApiResource, GroupVersionKind};
use kube::discovery::Scope;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

use super::index::Change;
use crate::policy::TargetRef;

/// A look-up that takes longer has failed.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(10);
/// From one try to resolve an unknown kind to the next.
pub(super) const RESOLVE_AGAIN: Duration = Duration::from_secs(30);
/// Look-ups in flight at once.
const MAX_LOOK_UPS: usize = 4;

/// A kind of one version of its group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KindKey {
    pub(super) api_version: Arc<str>,
    pub(super) kind: Arc<str>,
}

/// A kind that is served.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ServedKind {
    pub(super) resource: ApiResource,
    pub(super) scope: Scope,
}

/// Why it is not known where a kind is served; the text says so to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// The API server has no such kind.
    NotServed(String),
    /// It may have. What was known before stays.
    Unreadable(String),
}

/// The kinds that must be known, each under a number that stays for as long as it is wanted without a break.
pub(super) type WantedKinds = BTreeMap<KindKey, u64>;

impl KindKey {
    pub(super) fn of(reference: &TargetRef) -> Self {
        Self { api_version: reference.api_version.clone(), kind: reference.kind.clone() }
    }

    /// The kinds that need no discovery.
    fn well_known(&self) -> Option<ServedKind> {
        let resource = match (&*self.api_version, &*self.kind) {
            ("apps/v1", "Deployment") => ApiResource::erase::<Deployment>(&()),
            ("apps/v1", "StatefulSet") => ApiResource::erase::<StatefulSet>(&()),
            ("apps/v1", "ReplicaSet") => ApiResource::erase::<ReplicaSet>(&()),
            _ => return None,
        };
        Some(ServedKind { resource, scope: Scope::Namespaced })
    }

    fn gvk(&self) -> GroupVersionKind {
        let (group, version) = self.api_version.rsplit_once('/').unwrap_or(("", &self.api_version));
        GroupVersionKind::gvk(group, version, &self.kind)
    }

    /// Asks the API server.
    pub(super) async fn resolve(&self, client: &kube::Client) -> Result<ServedKind, Unresolved> {
        if let Some(kind) = self.well_known() {
            return Ok(kind);
        }
        let gvk = self.gvk();
        let look_up = kube::discovery::pinned_kind(client, &gvk);
        let not_served = || {
            let Self { api_version, kind } = self;
            Unresolved::NotServed(format!("no kind {kind} in {api_version} is served"))
        };
        match tokio::time::timeout(LOOK_UP_DEADLINE, look_up).await {
            Ok(Ok((resource, capabilities))) => {
                Ok(ServedKind { resource, scope: capabilities.scope })
            }
            Ok(Err(kube::Error::Discovery(_))) => Err(not_served()),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(not_served()),
            Ok(Err(error)) => {
                Err(Unresolved::Unreadable(format!("cannot look up kind {}: {error}", self.kind)))
            }
            Err(_) => {
                Err(Unresolved::Unreadable(format!("looking up kind {} timed out", self.kind)))
            }
        }
    }
}

/// Keeps the kinds of described objects known.
pub(super) struct Kinds {
    pub(super) client: kube::Client,
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) wanted: watch::Receiver<Arc<WantedKinds>>,
    /// From one try to the next: [`RESOLVE_AGAIN`].
    pub(super) again: Duration,
}

impl Kinds {
    /// Runs until the sender of wanted kinds is gone.
    pub(super) async fn run(mut self) {
        let mut tasks = JoinSet::new();
        let mut asked: HashMap<KindKey, (u64, AbortHandle)> = HashMap::new();
        let look_ups = Arc::new(Semaphore::new(MAX_LOOK_UPS));
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            asked.retain(|key, (number, task)| {
                // Under another number it was unwanted meanwhile, and the reading forgotten.
                let keep = wanted.get(key) == Some(number);
                if !keep {
                    task.abort();
                }
                keep
            });
            for (key, &number) in wanted.iter() {
                asked.entry(key.clone()).or_insert_with(|| {
                    let (client, changes) = (self.client.clone(), self.changes.clone());
                    let task = tasks.spawn(look_up(
                        client,
                        key.clone(),
                        changes,
                        look_ups.clone(),
                        self.again,
                    ));
                    (number, task)
                });
            }
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
            }
        }
    }
}

/// Asks until the kind is served.
async fn look_up(
    client: kube::Client,
    key: KindKey,
    changes: mpsc::Sender<Change>,
    look_ups: Arc<Semaphore>,
    again: Duration,
) {
    loop {
        let permit = look_ups.acquire().await;
        let reading = key.resolve(&client).await;
        drop(permit);
        let served = reading.is_ok();
        if !served {
            debug!(kind = &*key.kind, reading = ?reading, "the kind is not resolved");
        }
        if changes.send(Change::Kind(key.clone(), reading)).await.is_err() || served {
            return;
        }
        tokio::time::sleep(again).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scripted_kubernetes::ScriptedKubernetes;

    fn key(api_version: &str, kind: &str) -> KindKey {
        KindKey { api_version: api_version.into(), kind: kind.into() }
    }

    fn networking(kind: &str, plural: &str, namespaced: bool) -> serde_json::Value {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "networking.k8s.io/v1",
            "resources": [
                {"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get"]},
                {"name": format!("{plural}/status"), "singularName": "", "namespaced": namespaced, "kind": kind,
                    "verbs": ["get"]},
            ],
        })
    }

    const NETWORKING: &str = "/apis/networking.k8s.io/v1";

    #[tokio::test]
    async fn a_kind_is_known_by_its_plural_and_its_scope() {
        let server = ScriptedKubernetes::new();
        for (namespaced, expected) in [(true, Scope::Namespaced), (false, Scope::Cluster)] {
            server.put(NETWORKING, networking("Ingress", "ingresses", namespaced));
            let kind = key("networking.k8s.io/v1", "Ingress").resolve(&server.client("a")).await;
            let kind = kind.expect("it is served");
            assert_eq!((&*kind.resource.plural, &kind.scope), ("ingresses", &expected));
        }
        let deployment = key("apps/v1", "Deployment").resolve(&server.client("a")).await;
        let plural = deployment.map(|kind| kind.resource.plural);
        assert_eq!(plural, Ok("deployments".to_owned()), "without asking");
    }

    #[tokio::test]
    async fn a_kind_that_is_not_served_is_told_from_a_server_that_is_away() {
        let server = ScriptedKubernetes::new();
        let client = server.client("a");
        let not_served = |api_version: &str, kind: &str| {
            Err(Unresolved::NotServed(format!("no kind {kind} in {api_version} is served")))
        };
        server.put(NETWORKING, networking("Ingress", "ingresses", true));
        for (api_version, kind) in [("networking.k8s.io/v1", "Gate"), ("example.com/v1", "Gate")] {
            let reading = key(api_version, kind).resolve(&client).await;
            assert_eq!(reading, not_served(api_version, kind));
        }
        server.cut("a");
        let reading = key("networking.k8s.io/v1", "Ingress").resolve(&client).await;
        assert!(matches!(reading, Err(Unresolved::Unreadable(_))), "{reading:?}");
    }

    #[tokio::test]
    async fn a_kind_is_asked_for_until_it_is_served_and_anew_under_another_number() {
        let server = ScriptedKubernetes::new();
        let ingress = key("networking.k8s.io/v1", "Ingress");
        let wanting = |number| Arc::new(WantedKinds::from([(ingress.clone(), number)]));
        let (changes, mut read) = mpsc::channel(8);
        let (wanted, wanted_kinds) = watch::channel(wanting(1));
        let kinds = Kinds {
            client: server.client("a"),
            changes,
            wanted: wanted_kinds,
            again: Duration::from_millis(5),
        };
        let task = tokio::spawn(kinds.run());
        let mut served = async || match read.recv().await {
            Some(Change::Kind(of, reading)) if of == ingress => reading.is_ok(),
            change => panic!("{change:?}"),
        };
        assert!(!served().await);
        assert!(!served().await, "asked again, and still not served");
        server.put(NETWORKING, networking("Ingress", "ingresses", true));
        while !served().await {}
        wanted.send_replace(wanting(2));
        assert!(served().await);
        task.abort();
    }
}
