//! The life of one pod on this node, from its binding to the end of its deletion.
//!
//! In: the pod. Out: a process, restarted when it ends, and the status. Never: more than one container.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Container, Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::cgroup::{Limits, PodCgroup};
use super::probe::Readiness;
use super::status::PodStatus;
use super::{Shared, allocate_address, uid};
use crate::support::process::{Process, Signal};

/// How often a process is asked whether it still runs.
const POLL: Duration = Duration::from_millis(50);
/// The longest wait before a restart.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Everything one pod needs, made once.
struct Life {
    shared: Arc<Shared>,
    pod: Pod,
    container: Container,
    address: Ipv4Addr,
    cgroup: Option<PodCgroup>,
    log: PathBuf,
    token_file: PathBuf,
    process: Arc<Mutex<Option<Process>>>,
}

/// Runs the pod until `stop`, then ends it and removes it from the API.
pub(super) async fn live(
    shared: Arc<Shared>,
    pod: Pod,
    stop: CancellationToken,
    process: Arc<Mutex<Option<Process>>>,
) {
    let name = pod.name_any();
    match Life::prepare(Arc::clone(&shared), pod.clone(), process).await {
        Ok(life) => {
            shared.journal.note(format!("{name}: {} logs to {}", life.address, life.log.display()));
            life.run(&stop).await;
            life.terminate().await;
        }
        Err(error) => {
            shared.journal.note(format!("{name}: cannot run: {error:#}"));
            stop.cancelled().await;
        }
    }
    shared.finish(&pod).await;
}

impl Life {
    async fn prepare(
        shared: Arc<Shared>,
        pod: Pod,
        process: Arc<Mutex<Option<Process>>>,
    ) -> Result<Self> {
        let spec = pod.spec.as_ref().context("a pod without a spec")?;
        let container = spec.containers.first().context("a pod without a container")?.clone();
        let dir = shared.options.dir.join(pod.namespace().unwrap_or_default()).join(pod.name_any());
        fs::create_dir_all(&dir)?;
        let token_file = dir.join("token");
        write_token(&shared, &pod, &token_file).await?;
        let cgroup = shared.cgroups.create(&uid(&pod), limits(&container)?)?;
        let address = allocate_address();
        let log = dir.join("log");
        Ok(Self { shared, pod, container, address, cgroup, log, token_file, process })
    }

    async fn run(&self, stop: &CancellationToken) {
        let image = self.container.image.as_deref().unwrap_or_default();
        let mut status = PodStatus::new(&self.container.name, image, self.address);
        let mut backoff = Duration::from_secs(1);
        while !stop.is_cancelled() {
            let began = Instant::now();
            let exit_code = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.run_once(&mut status) => match ended {
                    Ok(code) => code,
                    Err(error) => {
                        self.shared.journal.note(format!("{}: {error:#}", self.pod.name_any()));
                        128
                    }
                }
            };
            status.crashed(exit_code);
            self.report(&status).await;
            self.shared.journal.note(format!("{}: ended with {exit_code}", self.pod.name_any()));
            if began.elapsed() > 6 * MAX_BACKOFF {
                backoff = Duration::from_secs(1);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(backoff) => backoff = MAX_BACKOFF.min(backoff * 2),
            }
        }
    }

    /// Starts the process, keeps the status true until it ends; its exit code.
    async fn run_once(&self, status: &mut PodStatus) -> Result<i32> {
        let mut probe = Readiness::of(&self.container, self.address)?;
        let cgroups = self.cgroup.as_ref().map(PodCgroup::procs).transpose()?.unwrap_or_default();
        let process = Process::spawn(self.command()?, &self.log, cgroups)?;
        *self.process.lock() = Some(process);
        status.started(probe.is_none());
        self.report(status).await;
        let delay = probe.as_ref().map_or(Duration::ZERO, Readiness::initial_delay);
        let mut next_probe = Instant::now() + delay;
        loop {
            let asking = async {
                match &mut probe {
                    Some(probe) => {
                        sleep_until(next_probe).await;
                        next_probe = Instant::now() + probe.period();
                        probe.ask(&self.shared.probes, status.ready()).await
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = self.ended() => return Ok(ended),
                ready = asking => {
                    if status.set_ready(ready) {
                        self.report(status).await;
                    }
                }
            }
        }
    }

    async fn ended(&self) -> i32 {
        loop {
            let exited = self.process.lock().as_mut().map(Process::exited);
            match exited {
                Some(None) => sleep(POLL).await,
                // 137: killed by a signal, as a kubelet reports it.
                Some(Some(status)) => return status.code().unwrap_or(137),
                None => return 137,
            }
        }
    }

    /// SIGTERM, the grace period, SIGKILL.
    async fn terminate(&self) {
        let grace = self.grace().await;
        if let Some(process) = self.process.lock().as_mut() {
            process.signal(Signal::Terminate);
        }
        let in_time = tokio::time::timeout(grace, self.ended()).await.is_ok();
        if !in_time {
            self.shared.journal.note(format!("{}: killed after {grace:?}", self.pod.name_any()));
        }
        self.process.lock().take();
    }

    /// The grace period of the deletion, which may be shorter than the spec's.
    async fn grace(&self) -> Duration {
        let now = self.shared.api(&self.pod).get_opt(&self.pod.name_any()).await.ok().flatten();
        let seconds = now.and_then(|pod| pod.metadata.deletion_grace_period_seconds).unwrap_or(0);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    async fn report(&self, status: &PodStatus) {
        let (name, parameters) = (self.pod.name_any(), PatchParams::default());
        let patch = Patch::Merge(status.patch());
        if let Err(error) =
            self.shared.api(&self.pod).patch_status(&name, &parameters, &patch).await
        {
            self.shared.journal.note(format!("{name}: status not written: {error}"));
        }
    }

    fn command(&self) -> Result<Command> {
        let words = [&self.container.command, &self.container.args];
        let mut words = words.into_iter().flatten().flatten();
        let program = words.next().context("a container needs a command here: no image is run")?;
        let mut command = Command::new(program);
        command.args(words).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HEADROOM_TEST_TOKEN_FILE", &self.token_file);
        let mut known: Vec<(String, String)> = Vec::new();
        for variable in self.container.env.iter().flatten() {
            let reference = variable.value_from.as_ref().map(|source| source.field_ref.as_ref());
            let value = match (&variable.value, reference) {
                (Some(value), _) => expand(value, &known),
                (None, Some(Some(field))) => self.field(&field.field_path)?,
                (None, Some(None)) => bail!("{}: only fieldRef is known here", variable.name),
                (None, None) => String::new(),
            };
            command.env(&variable.name, &value);
            known.push((variable.name.clone(), value));
        }
        Ok(command)
    }

    fn field(&self, path: &str) -> Result<String> {
        let account = || self.pod.spec.as_ref()?.service_account_name.clone();
        Ok(match path {
            "status.podIP" | "status.podIPs" => self.address.to_string(),
            "metadata.name" => self.pod.name_any(),
            "metadata.namespace" => self.pod.namespace().unwrap_or_default(),
            "metadata.uid" => uid(&self.pod),
            "spec.nodeName" => self.shared.options.node.clone(),
            "spec.serviceAccountName" => account().unwrap_or_default(),
            other => bail!("field {other} is not known here"),
        })
    }
}

/// Replaces `$(NAME)` by the variables before it, as a kubelet does.
fn expand(value: &str, known: &[(String, String)]) -> String {
    let replace =
        |text: String, (name, value): &(String, String)| text.replace(&format!("$({name})"), value);
    known.iter().fold(value.to_owned(), replace)
}

/// The token that a kubelet would mount: bound to the pod, for the API server's audience.
async fn write_token(shared: &Shared, pod: &Pod, file: &Path) -> Result<()> {
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let accounts = Api::<ServiceAccount>::namespaced(
        shared.client.clone(),
        &pod.namespace().unwrap_or_default(),
    );
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(3607),
            bound_object_ref: Some(BoundObjectReference {
                kind: Some("Pod".to_owned()),
                api_version: Some("v1".to_owned()),
                name: Some(pod.name_any()),
                uid: Some(uid(pod)),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("no token for ServiceAccount {account}"))?;
    let token = answer.status.and_then(|status| status.token);
    fs::write(file, token.context("the answer holds no token")?)?;
    Ok(())
}

fn limits(container: &Container) -> Result<Limits> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let of = |name: &str| -> Result<Option<f64>> {
        let quantity = limits.and_then(|limits| limits.get(name));
        quantity
            .map(|Quantity(text)| Ok(text.parse::<headroom::quantity::Quantity>()?.to_f64()))
            .transpose()
    };
    Ok(Limits { cpu_cores: of("cpu")?, memory_bytes: of("memory")? })
}
