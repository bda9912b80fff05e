//! The scale of every target that a policy names.
//!
//! In: the set of wanted targets. Out: a [`Change::Scale`] whenever a target may have changed. For each kind one
//! metadata-only watch over the cluster, which tells that an object changed; then one read of its scale subresource, the
//! same one that the HPA reads. Never: a read by timer, except where a watch is refused or failing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::autoscaling::v1::Scale;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::Event;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

use super::index::{Change, ScaleReading, TargetKey, WantedTargets};
use super::kinds::{KindKey, RESOLVE_AGAIN, Unresolved};
use super::watches::{Told, Watch, WatchMetrics, watch_config};
use crate::sample::Selector;

/// Reads of scales in flight at once.
const MAX_READS: usize = 16;
/// A read that takes longer has failed.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// From one read of a scale to the next while no watch tells of changes.
const UNWATCHED_INTERVAL: Duration = Duration::from_secs(15);
/// From one failed read to the next; doubled up to [`UNWATCHED_INTERVAL`].
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Keeps the scales of the wanted targets known.
pub(super) struct Targets {
    pub(super) client: kube::Client,
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) wanted: watch::Receiver<Arc<WantedTargets>>,
    pub(super) metrics: WatchMetrics,
}

/// What is known of a kind.
#[derive(Clone, Debug)]
enum KindState {
    Resolving,
    /// Not served, or not to be found out; a reading says why.
    Unresolved(ScaleReading),
    /// `watched`: changes are told; else they must be looked for.
    Resolved {
        resource: ApiResource,
        watched: bool,
    },
}

/// Who is to be told that an object changed.
type Followers = Arc<Mutex<HashMap<TargetKey, Arc<Notify>>>>;

struct KindWatch {
    state: watch::Receiver<KindState>,
    followers: Followers,
    task: AbortHandle,
}

/// A target that is being read.
struct Followed {
    /// The number under which it is wanted.
    number: u64,
    changed: Arc<Notify>,
    task: AbortHandle,
}

impl Targets {
    /// Runs until the receiver of changes, or the sender of wanted targets, is gone.
    pub(super) async fn run(mut self) {
        let mut tasks = JoinSet::new();
        let mut kinds: HashMap<KindKey, KindWatch> = HashMap::new();
        let mut followed: HashMap<TargetKey, Followed> = HashMap::new();
        let reads = Arc::new(Semaphore::new(MAX_READS));
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            followed.retain(|key, followed| {
                let Some(&number) = wanted.get(key) else {
                    followed.task.abort();
                    if let Some(kind) = kinds.get(&KindKey::of(&key.target)) {
                        kind.followers.lock().remove(key);
                    }
                    return false;
                };
                if followed.number != number {
                    // It was unwanted meanwhile, and the reading forgotten.
                    followed.number = number;
                    followed.changed.notify_one();
                }
                true
            });
            for (key, &number) in wanted.iter() {
                if followed.contains_key(key) {
                    continue;
                }
                let kind = kinds
                    .entry(KindKey::of(&key.target))
                    .or_insert_with_key(|kind| self.watch_kind(kind.clone(), &mut tasks));
                let changed = Arc::new(Notify::new());
                kind.followers.lock().insert(key.clone(), changed.clone());
                let follower = Follower {
                    client: self.client.clone(),
                    key: key.clone(),
                    kind: kind.state.clone(),
                    changed: changed.clone(),
                    reads: reads.clone(),
                    changes: self.changes.clone(),
                };
                let task = tasks.spawn(follower.run());
                followed.insert(key.clone(), Followed { number, changed, task });
            }
            kinds.retain(|_, kind| {
                let keep = !kind.followers.lock().is_empty();
                if !keep {
                    kind.task.abort();
                }
                keep
            });
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    // A follower ends only when nobody listens; a bug in one must not be silent.
                    if let Err(error) = ended && error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
            }
        }
    }

    fn watch_kind(&self, kind: KindKey, tasks: &mut JoinSet<()>) -> KindWatch {
        let (sender, state) = watch::channel(KindState::Resolving);
        let followers = Followers::default();
        let (client, metrics) = (self.client.clone(), self.metrics.clone());
        let task = tasks.spawn(follow_kind(client, kind, sender, followers.clone(), metrics));
        KindWatch { state, followers, task }
    }
}

impl From<Unresolved> for ScaleReading {
    fn from(why: Unresolved) -> Self {
        match why {
            Unresolved::NotServed(message) => Self::NotFound(message),
            Unresolved::Unreadable(message) => Self::Unreadable(message),
        }
    }
}

fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Resolves a kind, then tells its followers of changes.
async fn follow_kind(
    client: kube::Client,
    kind: KindKey,
    state: watch::Sender<KindState>,
    followers: Followers,
    metrics: WatchMetrics,
) {
    let resource = loop {
        match kind.resolve(&client).await {
            Ok(kind) => break kind.resource,
            Err(why) => {
                let reading = ScaleReading::from(why);
                debug!(kind = &*kind.kind, reading = ?reading, "the kind is not resolved");
                state.send_replace(KindState::Unresolved(reading));
                tokio::time::sleep(RESOLVE_AGAIN).await;
            }
        }
    };
    let set_watched = |watched: bool| {
        state.send_if_modified(|state| {
            let same = matches!(state, KindState::Resolved { watched: now, .. } if *now == watched);
            if !same {
                *state = KindState::Resolved { resource: resource.clone(), watched };
            }
            !same
        });
    };
    // The reads that this starts are the only ones before the watch stands.
    set_watched(false);
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource);
    let mut watch = Watch::new(api, watch_config(), "targets", metrics);
    while let Some(told) = watch.next().await {
        match told {
            Told::Failing => set_watched(false),
            Told::Recovered => set_watched(true),
            Told::Event(event) => {
                notify(&kind, &event, &followers);
                if matches!(event, Event::InitDone) {
                    set_watched(true);
                }
            }
        }
    }
}

/// A complete list tells everyone: what is not in it is gone.
fn notify(kind: &KindKey, event: &Event<PartialObjectMeta<DynamicObject>>, followers: &Followers) {
    let followers = followers.lock();
    match event {
        Event::Init | Event::InitApply(_) => {}
        Event::InitDone => followers.values().for_each(|follower| follower.notify_one()),
        Event::Apply(object) | Event::Delete(object) => {
            let text =
                |value: &Option<String>| Arc::<str>::from(value.as_deref().unwrap_or_default());
            let key = TargetKey {
                namespace: text(&object.metadata.namespace),
                target: crate::policy::TargetRef {
                    api_version: kind.api_version.clone(),
                    kind: kind.kind.clone(),
                    name: text(&object.metadata.name),
                },
            };
            if let Some(follower) = followers.get(&key) {
                follower.notify_one();
            }
        }
    }
}

/// Reads one target's scale whenever it may have changed.
struct Follower {
    client: kube::Client,
    key: TargetKey,
    kind: watch::Receiver<KindState>,
    changed: Arc<Notify>,
    reads: Arc<Semaphore>,
    changes: mpsc::Sender<Change>,
}

impl Follower {
    async fn run(mut self) {
        let mut retry = FIRST_RETRY;
        loop {
            let state = self.kind.borrow_and_update().clone();
            let (reading, again) = match state {
                KindState::Resolving => (None, None),
                KindState::Unresolved(reading) => (Some(reading), None),
                KindState::Resolved { resource, watched } => {
                    let reading = self.read(&resource).await;
                    let failed = matches!(reading, ScaleReading::Unreadable(_));
                    let again =
                        if failed { Some(retry) } else { (!watched).then_some(UNWATCHED_INTERVAL) };
                    retry = if failed { (retry * 2).min(UNWATCHED_INTERVAL) } else { FIRST_RETRY };
                    (Some(reading), again)
                }
            };
            if let Some(reading) = reading
                && self.changes.send(Change::Scale(self.key.clone(), reading)).await.is_err()
            {
                return;
            }
            let timer = async {
                match again {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                resolved = self.kind.changed() => if resolved.is_err() { return },
                () = timer => {}
            }
        }
    }

    async fn read(&self, resource: &ApiResource) -> ScaleReading {
        let _permit = self.reads.acquire().await;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.key.namespace, resource);
        let (kind, name) = (&self.key.target.kind, &self.key.target.name);
        match tokio::time::timeout(READ_DEADLINE, api.get_scale(name)).await {
            Ok(Ok(scale)) => reading(kind, name, &resource.plural, &scale),
            Ok(Err(error)) if is_not_found(&error) => {
                ScaleReading::NotFound(format!("there is no {kind} {name} with a scale"))
            }
            Ok(Err(kube::Error::Api(status))) => ScaleReading::Unreadable(format!(
                "cannot read the scale of {kind} {name}: {}",
                status.message
            )),
            Ok(Err(error)) => {
                ScaleReading::Unreadable(format!("cannot read the scale of {kind} {name}: {error}"))
            }
            Err(_) => {
                ScaleReading::Unreadable(format!("reading the scale of {kind} {name} timed out"))
            }
        }
    }
}

/// An empty selector would select every pod of the namespace; the HPA refuses it too.
fn reading(kind: &str, name: &str, resource: &str, scale: &Scale) -> ScaleReading {
    let replicas = |count: i32| u32::try_from(count).unwrap_or(0);
    let status = scale.status.as_ref();
    let text = status.and_then(|status| status.selector.as_deref()).unwrap_or_default();
    if text.is_empty() {
        return ScaleReading::Unreadable(format!(
            "the scale of {kind} {name} has no selector for its pods"
        ));
    }
    match Selector::parse(text) {
        Ok(selector) => ScaleReading::Known {
            spec_replicas: replicas(
                scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0),
            ),
            status_replicas: replicas(status.map_or(0, |status| status.replicas)),
            selector,
            resource: resource.into(),
        },
        Err(error) => {
            ScaleReading::Unreadable(format!("the selector {text:?} of {kind} {name}: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::policy::TargetRef;

    /// Answers reads of scales, and lists nothing ever.
    fn client() -> kube::Client {
        let service = tower::service_fn(|request: http::Request<Body>| async move {
            if !request.uri().path().ends_with("/scale") {
                std::future::pending::<()>().await;
            }
            let scale = json!({
                "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "checkout"},
                "spec": {"replicas": 2}, "status": {"replicas": 2, "selector": "app=checkout"},
            });
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(
                scale.to_string().into_bytes(),
            )))
        });
        kube::Client::new(service, "shop")
    }

    #[tokio::test]
    async fn a_target_unwanted_and_wanted_again_between_two_looks_is_read_again() {
        let target = TargetRef {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            name: "checkout".into(),
        };
        let key = TargetKey { namespace: "shop".into(), target };
        let wanting = |number| Arc::new(WantedTargets::from([(key.clone(), number)]));
        let (changes, mut read) = mpsc::channel(8);
        let (wanted, wanted_targets) = watch::channel(wanting(1));
        let metrics = WatchMetrics::register(&prometheus::Registry::new()).expect("it is empty");
        let targets = Targets { client: client(), changes, wanted: wanted_targets, metrics };
        let task = tokio::spawn(targets.run());
        // Without being told, the next read is due after UNWATCHED_INTERVAL.
        let soon = UNWATCHED_INTERVAL / 2;
        for number in [2, 3] {
            let change = tokio::time::timeout(soon, read.recv()).await.expect("it is read at once");
            assert!(
                matches!(&change, Some(Change::Scale(of, ScaleReading::Known { .. })) if *of == key),
                "{change:?}"
            );
            wanted.send_replace(wanting(number));
        }
        task.abort();
    }
}
