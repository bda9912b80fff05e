//! The adapter as the cluster sees it: installed from `manifests/`, run as a process on this machine.
//!
//! In: a control plane. Out: APIServices that are Available, served by the shipped ServiceAccount with
//! the shipped RBAC. Never: rights that the manifests do not give.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::control_plane::{ControlPlane, free_ports};
use super::process::Process;
use super::programs::{HEADROOM, checkout};
use super::shared::eventually;

/// A running adapter.
#[derive(Debug)]
pub(crate) struct Adapter {
    process: Process,
    installation: Installation,
    kubeconfig: PathBuf,
    log: PathBuf,
    environment: Environment,
    /// Beside those that every adapter gets here.
    arguments: Vec<String>,
    port: u16,
    metrics_port: u16,
}

/// Variables that the adapter is started with.
type Environment = Vec<(&'static str, String)>;

/// What `manifests/` says about the adapter.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    /// The adapter's namespace.
    pub(crate) namespace: String,
    /// The Service behind its APIServices.
    pub(crate) service: String,
    /// Its ServiceAccount.
    pub(crate) account: String,
    /// The names of its APIServices.
    pub(crate) api_services: Vec<String>,
}

/// In which an APIService must become Available: discovery is asked again every 30 s at worst.
const AVAILABLE: Duration = Duration::from_secs(60);

impl Adapter {
    /// Installs everything but the Deployment, starts the adapter and waits until the API server
    /// reaches it.
    ///
    /// # Errors
    /// The manifests do not apply, the adapter ends, or an APIService does not become Available.
    pub(crate) async fn start(plane: &ControlPlane) -> Result<Self> {
        Self::start_with(plane, Vec::new()).await
    }

    /// The same with more variables, for it and its replicas.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub(crate) async fn start_with(plane: &ControlPlane, environment: Environment) -> Result<Self> {
        let [port, metrics_port] = free_ports()?;
        let installation = Installation::apply(plane, port)?;
        let ports = Ports { port, metrics_port };
        Self::run(plane, installation, (environment, Vec::new()), ports).await
    }

    /// Starts the adapter of an installation that somebody else made: its Service and APIServices are led to this machine, and
    /// everything else is left as it was installed. Waits until the API server reaches it.
    ///
    /// # Errors
    /// A part of it is missing, the adapter ends, or an APIService does not become Available.
    pub(crate) async fn attach(plane: &ControlPlane, installation: Installation) -> Result<Self> {
        Self::attach_with(plane, installation, Vec::new()).await
    }

    /// The same with more arguments.
    ///
    /// # Errors
    /// As for [`Self::attach`].
    pub(crate) async fn attach_with(
        plane: &ControlPlane,
        installation: Installation,
        arguments: Vec<String>,
    ) -> Result<Self> {
        let [port, metrics_port] = free_ports()?;
        installation.lead_here(plane, port)?;
        let ports = Ports { port, metrics_port };
        Self::run(plane, installation, (Vec::new(), arguments), ports).await
    }

    /// Leads what was applied anew to this adapter again, and waits until the API server reaches it.
    ///
    /// # Errors
    /// A part of it is missing, or an APIService does not become Available.
    pub(crate) async fn attach_again(&mut self, plane: &ControlPlane) -> Result<()> {
        self.installation.lead_here(plane, self.port)?;
        self.wait_available(plane).await
    }

    async fn run(
        plane: &ControlPlane,
        installation: Installation,
        (environment, arguments): (Environment, Vec<String>),
        ports: Ports,
    ) -> Result<Self> {
        let kubeconfig = plane
            .kubeconfig_for_service_account(&installation.namespace, &installation.account)
            .await?;
        let log = plane.dir().join("logs/adapter.log");
        let mut command = command(&installation, &kubeconfig, ports);
        command.envs(environment.iter().cloned()).args(&arguments);
        let process = Process::spawn(command, &log, Vec::new())?;
        let mut adapter = Self {
            process,
            installation,
            kubeconfig,
            log,
            environment,
            arguments,
            port: ports.port,
            metrics_port: ports.metrics_port,
        };
        adapter.wait_available(plane).await?;
        Ok(adapter)
    }

    /// Kills it, as a crash does.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again at the same address, without waiting for anything.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let ports = Ports { port: self.port, metrics_port: self.metrics_port };
        let mut command = command(&self.installation, &self.kubeconfig, ports);
        command.envs(self.environment.iter().cloned()).args(&self.arguments);
        self.process = Process::spawn(command, &self.log, Vec::new())?;
        Ok(())
    }

    /// Another replica of the same installation, at addresses of its own, that logs what it does. It is
    /// not waited for.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn beside(&self, name: &str, delay: Duration) -> Result<Replica> {
        let [port, metrics_port] = free_ports()?;
        let log = self.log.with_file_name(format!("{name}.log"));
        let mut command =
            command(&self.installation, &self.kubeconfig, Ports { port, metrics_port });
        command
            .args(["--shutdown-delay-duration", &format!("{}ms", delay.as_millis())])
            .env("POD_NAME", name)
            .env("HEADROOM_LOG", "headroom=debug,info")
            .envs(self.environment.iter().cloned());
        let process = Process::spawn(command, &log, Vec::new())?;
        Ok(Replica { process, port, metrics_port })
    }

    /// Where its output goes.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Its own address.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The address of its own metrics and probes.
    pub(crate) fn metrics_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.metrics_port)
    }

    /// What was installed.
    pub(crate) fn installation(&self) -> &Installation {
        &self.installation
    }

    /// Waits until every APIService is Available.
    ///
    /// # Errors
    /// The adapter ends, or one is not in time; the message holds the condition's.
    pub(crate) async fn wait_available(&mut self, plane: &ControlPlane) -> Result<()> {
        let process = &mut self.process;
        self.installation
            .wait_available(plane, || match process.exited() {
                Some(status) => {
                    bail!("the adapter ended with {status}, see {}", process.log().display())
                }
                None => Ok(()),
            })
            .await
    }
}

/// One more adapter process.
#[derive(Debug)]
pub(crate) struct Replica {
    /// The process, with its log.
    pub(crate) process: Process,
    /// Of its HTTPS API, on loopback.
    pub(crate) port: u16,
    metrics_port: u16,
}

impl Replica {
    /// The address of its own metrics and probes.
    pub(crate) fn metrics_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.metrics_port)
    }
}

#[derive(Clone, Copy)]
struct Ports {
    port: u16,
    metrics_port: u16,
}

fn command(installation: &Installation, kubeconfig: &Path, ports: Ports) -> Command {
    let Ports { port, metrics_port } = ports;
    let mut command = Command::new(HEADROOM);
    command
        .args(["adapter", "--bind-address", "127.0.0.1", "--secure-port", &port.to_string()])
        .args(["--metrics-bind-address", &format!("127.0.0.1:{metrics_port}")])
        .args(["--service-name", &installation.service])
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env("POD_NAMESPACE", &installation.namespace)
        .env("POD_NAME", "headroom-adapter-test");
    command
}

impl Installation {
    /// Applies `manifests/base` with two changes: its Service leads to this machine, and its Deployment
    /// is left out.
    ///
    /// # Errors
    /// kubectl refuses something, or the manifests lack a part.
    pub(crate) fn apply(plane: &ControlPlane, port: u16) -> Result<Self> {
        let objects = base(plane)?;
        let installation = Self::of(&objects)?;
        let kept = |object: &&Value| {
            let kind = object["kind"].as_str().unwrap_or_default();
            !["Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"].contains(&kind)
        };
        let mut items: Vec<Value> = objects.iter().filter(kept).cloned().collect();
        for item in items.iter_mut().filter(|item| item["kind"] == "APIService") {
            item["spec"]["service"]["port"] = json!(port);
        }
        items.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": installation.service, "namespace": installation.namespace},
            "spec": {"type": "ExternalName", "externalName": "localhost",
                     "ports": [{"name": "https", "port": port}]},
        }));
        // Namespaces and definitions first: the rest needs them.
        items.sort_by_key(|item| match item["kind"].as_str() {
            Some("Namespace") => 0,
            Some("CustomResourceDefinition") => 1,
            _ => 2,
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        plane.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &list)?;
        Ok(installation)
    }

    /// What these objects install.
    ///
    /// # Errors
    /// They lack a part.
    pub(crate) fn of(objects: &[Value]) -> Result<Self> {
        let of_kind = |kind: &str| {
            objects.iter().filter(move |object| object["kind"] == kind).collect::<Vec<_>>()
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let api_services = of_kind("APIService");
        let behind = &api_services.first().context("no APIService")?["spec"]["service"];
        let deployment = *of_kind("Deployment").first().context("no Deployment")?;
        let account = &deployment["spec"]["template"]["spec"]["serviceAccountName"];
        Ok(Self {
            namespace: text(&behind["namespace"]).context("an APIService without a namespace")?,
            service: text(&behind["name"]).context("an APIService without a Service")?,
            account: text(account).context("a Deployment without a ServiceAccount")?,
            api_services: api_services
                .iter()
                .filter_map(|api| text(&api["metadata"]["name"]))
                .collect(),
        })
    }

    /// Nothing here forwards to a cluster's addresses: the Service becomes a name of this machine, at this port.
    fn lead_here(&self, plane: &ControlPlane, port: u16) -> Result<()> {
        let spec = json!({"spec": {
            "type": "ExternalName", "externalName": "localhost", "selector": null,
            "clusterIP": null, "clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null,
            "internalTrafficPolicy": null, "ports": [{"name": "https", "port": port}],
        }});
        let merge = ["patch", "--type=merge", "-p"];
        let service = ["service", "-n", &self.namespace, &self.service];
        plane.kubectl(&[&merge[..], &[&spec.to_string()], &service].concat())?;
        let behind = json!({"spec": {"service": {"port": port}}}).to_string();
        for name in &self.api_services {
            plane.kubectl(&[&merge[..], &[&behind, "apiservice", name]].concat())?;
        }
        Ok(())
    }

    /// Waits until every APIService is Available, as long as `check` finds nothing wrong.
    ///
    /// # Errors
    /// `check` fails, or one is not in time; the message holds the condition's.
    pub(crate) async fn wait_available(
        &self,
        plane: &ControlPlane,
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut last = Value::Null;
        let waited = eventually(AVAILABLE, "the APIServices", async || {
            check()?;
            for name in &self.api_services {
                let path = format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}");
                let request = http::Request::get(path).body(Vec::new())?;
                last = plane.client().request::<Value>(request).await?["status"].take();
                if last["conditions"][0]["status"] != "True" {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await;
        waited.with_context(|| format!("last seen: {last}"))
    }
}

/// The objects of `manifests/base`, as kustomize builds them.
fn base(plane: &ControlPlane) -> Result<Vec<Value>> {
    let directory = checkout().join("manifests/base").display().to_string();
    let yaml = plane.kubectl(&["kustomize", &directory])?;
    let json = plane.kubectl_with_input(
        &["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"],
        &yaml,
    )?;
    let mut objects = Vec::new();
    for object in serde_json::Deserializer::from_str(&json).into_iter::<Value>() {
        let mut object = object?;
        match object.get_mut("items").and_then(Value::as_array_mut) {
            Some(items) => objects.append(items),
            None => objects.push(object),
        }
    }
    Ok(objects)
}
