//! What all tests of this process share: one runtime and one cluster.
//!
//! In: nothing. Out: the cluster, started by the first test that asks. Never: two tests at once where
//! one of them takes the cluster for itself.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::{
    MappedMutexGuard, Mutex, MutexGuard, OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use tokio::time::{Instant, sleep};

use super::adapter::Adapter;
use super::control_plane::{ControlPlane, ControlPlaneOptions};
use super::kubelet::{Kubelet, KubeletOptions};

/// A control plane with one node.
pub(crate) struct Cluster {
    /// The control plane.
    pub(crate) plane: ControlPlane,
    /// Its only node.
    pub(crate) kubelet: Kubelet,
    adapter: Mutex<Option<Adapter>>,
}

impl Cluster {
    /// Starts a control plane of its own with a node.
    ///
    /// # Errors
    /// One of them does not come up.
    pub(crate) async fn start(options: ControlPlaneOptions) -> Result<Self> {
        // Shown by the test harness if the test fails.
        eprintln!("logs are below {}", options.dir.display());
        let plane = ControlPlane::start(options).await?;
        let dir = plane.dir().join("node");
        let options = KubeletOptions { node: "local".to_owned(), dir };
        let kubelet = Kubelet::start(plane.client(), options).await?;
        Ok(Self { plane, kubelet, adapter: Mutex::new(None) })
    }

    /// The adapter, started by the first that asks. Locked: take what is needed and let go.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) async fn adapter(&self) -> Result<MappedMutexGuard<'_, Adapter>> {
        let mut adapter = self.adapter.lock().await;
        if adapter.is_none() {
            *adapter = Some(Adapter::start(&self.plane).await?);
        }
        Ok(MutexGuard::map(adapter, |adapter| adapter.as_mut().expect("started above")))
    }

    /// Makes a namespace and waits until pods can be made in it.
    ///
    /// # Errors
    /// It exists, or the controllers do not make its ServiceAccount in 30 s.
    pub(crate) async fn namespace(&self, name: &str) -> Result<()> {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let client = self.plane.client();
        let namespaces = Api::<Namespace>::all(client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.context("namespace")?;
        let accounts = Api::<ServiceAccount>::namespaced(client, name);
        eventually(Duration::from_secs(30), "the default ServiceAccount", async || {
            Ok(accounts.get_opt("default").await?.map(drop))
        })
        .await
    }

    /// Deletes a namespace without waiting: its pods end, and take no more of the machine.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn delete_namespace(&self, name: &str) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.plane.client());
        namespaces.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until a deleted namespace is gone, so that its name is free again.
    ///
    /// # Errors
    /// It stays, or the API server refuses.
    pub(crate) async fn namespace_ends(&self, name: &str) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.plane.client());
        eventually(Duration::from_secs(60), "the namespace's end", async || {
            Ok(namespaces.get_opt(name).await?.is_none().then_some(()))
        })
        .await
    }
}

/// Runs a test on the shared runtime, which outlives every test: tasks of the cluster live on it.
pub(crate) fn run<T>(test: impl Future<Output = Result<T>>) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        // A second install is refused and changes nothing.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        Runtime::new().expect("a runtime needs threads only")
    });
    match runtime.block_on(test) {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}

static CLUSTER: OnceCell<RwLock<Cluster>> = OnceCell::const_new();

async fn cluster() -> Result<&'static RwLock<Cluster>> {
    let cluster = CLUSTER
        .get_or_try_init(async || {
            Cluster::start(ControlPlaneOptions::new("shared")?).await.map(RwLock::new)
        })
        .await?;
    Ok(cluster)
}

/// The shared cluster, for a test that keeps to namespaces of its own.
///
/// # Errors
/// It does not come up.
pub(crate) async fn share() -> Result<RwLockReadGuard<'static, Cluster>> {
    let guard = cluster().await?.read().await;
    // Shown by the test harness if the test fails.
    eprintln!("logs are below {}", guard.plane.dir().display());
    Ok(guard)
}

/// The shared cluster, alone: for a test that disturbs what belongs to all.
///
/// # Errors
/// It does not come up.
pub(crate) async fn alone() -> Result<RwLockWriteGuard<'static, Cluster>> {
    let guard = cluster().await?.write().await;
    eprintln!("logs are below {}", guard.plane.dir().display());
    Ok(guard)
}

/// Asks until there is an answer.
///
/// # Errors
/// Asking fails, or there is none in time.
pub(crate) async fn eventually<T>(
    within: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("{what}: not in {within:?}");
        }
        sleep(Duration::from_millis(200)).await;
    }
}
