//! A real control plane on loopback: etcd, kube-apiserver, kube-controller-manager.
//!
//! In: options. Out: a running API with RBAC, aggregation and the real HPA controller, and clients for
//! it. Never: a process that outlives the test process.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::pki::Pki;
use super::process::Process;
use super::programs;

/// How the control plane runs.
#[derive(Clone, Debug)]
pub(crate) struct ControlPlaneOptions {
    /// `--horizontal-pod-autoscaler-sync-period`, whole seconds. Kubernetes' own default is 15 s.
    pub(crate) hpa_sync_period: Duration,
    /// More flags of kube-controller-manager; the last of two that are the same is the one that holds.
    pub(crate) controller_flags: Vec<String>,
    /// Whose requests the API server writes into its audit log, if anybody's.
    pub(crate) audited_user: Option<String>,
    /// Where data and logs go. Logs stay until the next run.
    pub(crate) dir: PathBuf,
}

impl ControlPlaneOptions {
    /// The defaults of Kubernetes, in a directory of this process under Cargo's target directory.
    ///
    /// # Errors
    /// The directory of earlier runs cannot be read.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
        remove_leftovers(root)?;
        let dir = root.join(format!("{PREFIX}{}-{name}", std::process::id()));
        let hpa_sync_period = Duration::from_secs(15);
        Ok(Self { hpa_sync_period, controller_flags: Vec::new(), audited_user: None, dir })
    }
}

/// A running control plane.
pub(crate) struct ControlPlane {
    // Dropped in this order: nothing is left talking to a server that is gone.
    controller_manager: Process,
    apiserver: Process,
    etcd: Process,
    etcd_ports: [u16; 2],
    dir: PathBuf,
    url: String,
    pki: Pki,
    client: Client,
}

const PREFIX: &str = "control-plane-";
const START_DEADLINE: Duration = Duration::from_secs(90);

impl ControlPlane {
    /// Starts everything and waits until `/readyz` is 200 and the controllers have made the default
    /// ServiceAccount.
    ///
    /// # Errors
    /// A program is missing, ends, or is not ready in 90 s; the message names the log.
    pub(crate) async fn start(options: ControlPlaneOptions) -> Result<Self> {
        let dir = options.dir.clone();
        fs::create_dir_all(dir.join("logs"))?;
        let pki = Pki::create(&dir.join("pki"))?;
        let [etcd_port, peer_port, port] = free_ports()?;
        let url = format!("https://127.0.0.1:{port}");
        for user in ["admin", "controller-manager"] {
            let path = kubeconfig_path(&dir, user);
            let identity =
                json!({"client-certificate": pki.certificate(user), "client-key": pki.key(user)});
            fs::write(path, kubeconfig(&url, &pki, &identity))?;
        }
        let client = client_from(&kubeconfig_path(&dir, "admin")).await?;

        let mut etcd = start_etcd(&dir, etcd_port, peer_port)?;
        let audit = options.audited_user.as_deref().map(|user| audit_flags(&dir, user));
        let audit = audit.transpose()?.unwrap_or_default();
        let mut apiserver = start_apiserver(&dir, &pki, [etcd_port, port], &audit)?;
        wait_ready(&client, &mut [&mut etcd, &mut apiserver]).await?;
        let mut controller_manager = start_controllers(&pki, &options)?;
        wait_for_controllers(&client, &mut controller_manager).await?;
        let etcd_ports = [etcd_port, peer_port];
        Ok(Self { controller_manager, apiserver, etcd, etcd_ports, dir, url, pki, client })
    }

    /// The directory with `logs/`.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The audit log, if somebody is audited.
    pub(crate) fn audit_log(&self) -> PathBuf {
        log(&self.dir, "audit")
    }

    /// A client in system:masters.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The API server's address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The certificates.
    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        kubeconfig_path(&self.dir, "admin")
    }

    /// Kills etcd, as a crash does.
    pub(crate) fn kill_etcd(&mut self) {
        self.etcd.kill();
    }

    /// Starts etcd again with its data at the same address, without waiting for anything.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start_etcd_again(&mut self) -> Result<()> {
        let [port, peer_port] = self.etcd_ports;
        self.etcd = start_etcd(&self.dir, port, peer_port)?;
        Ok(())
    }

    /// A bound token of a ServiceAccount, valid for an hour.
    ///
    /// # Errors
    /// The ServiceAccount does not exist.
    pub(crate) async fn token(&self, namespace: &str, account: &str) -> Result<String> {
        self.token_for(namespace, account, &[]).await
    }

    /// The same for these audiences; for none: for the API server.
    ///
    /// # Errors
    /// The ServiceAccount does not exist.
    pub(crate) async fn token_for(
        &self,
        namespace: &str,
        account: &str,
        audiences: &[&str],
    ) -> Result<String> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), namespace);
        let owned = || audiences.iter().map(|audience| (*audience).to_owned()).collect();
        let audiences = (!audiences.is_empty()).then(owned);
        let spec =
            TokenRequestSpec { audiences, expiration_seconds: Some(3600), ..Default::default() };
        let request = TokenRequest { spec: Some(spec), ..Default::default() };
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("no token for {namespace}/{account}"))?;
        answer.status.and_then(|status| status.token).context("the answer holds no token")
    }

    /// Writes a kubeconfig with a bound token of the ServiceAccount: what runs with it has the
    /// account's rights and no more.
    ///
    /// # Errors
    /// No token, or the file cannot be written.
    pub(crate) async fn kubeconfig_for_service_account(
        &self,
        namespace: &str,
        account: &str,
    ) -> Result<PathBuf> {
        let token = self.token(namespace, account).await?;
        let path = kubeconfig_path(&self.dir, &format!("{namespace}-{account}"));
        fs::write(&path, kubeconfig(&self.url, &self.pki, &json!({"token": token})))?;
        Ok(path)
    }

    /// Runs the real kubectl as the administrator; its stdout.
    ///
    /// # Errors
    /// It fails: the message holds its stderr.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with_input(arguments, "")
    }

    /// Runs the real kubectl with text on its stdin.
    ///
    /// # Errors
    /// It fails: the message holds its stderr.
    pub(crate) fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let stdin = tempfile::tempfile().and_then(|mut file| {
            use std::io::{Seek as _, Write as _};
            file.write_all(input.as_bytes())?;
            file.rewind()?;
            Ok(file)
        })?;
        let mut command = Command::new(programs::kubernetes("kubectl")?);
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments)
            .env("HOME", &self.dir)
            .env_remove("KUBECONFIG")
            .stdin(stdin);
        let output = tokio::task::block_in_place(|| command.output())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {} failed: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.controller_manager.kill();
        self.apiserver.kill();
        self.etcd.kill();
        // The logs stay for whoever asks why a test failed; the next run removes them.
        let _left = fs::remove_dir_all(self.dir.join("etcd"));
    }
}

/// Ports that were free a moment ago.
///
/// # Errors
/// The system has none.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// A client with the kubeconfig's identity.
///
/// # Errors
/// The file is missing or wrong.
pub(crate) async fn client_from(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    // The default repeats a 503 for minutes; here a 503 is an answer, and often the expected one.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn kubeconfig_path(dir: &Path, user: &str) -> PathBuf {
    dir.join(format!("{user}.kubeconfig"))
}

/// JSON is YAML.
fn kubeconfig(url: &str, pki: &Pki, identity: &serde_json::Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": url,
            "certificate-authority": pki.certificate("serving-ca"),
        }}],
        "users": [{"name": "test", "user": identity}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    })
    .to_string()
}

fn start_etcd(dir: &Path, port: u16, peer_port: u16) -> Result<Process> {
    let client = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let mut command = Command::new(programs::kubernetes("etcd")?);
    command
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--unsafe-no-fsync=true", "--log-level", "warn"]);
    Process::spawn(command, &log(dir, "etcd"), Vec::new())
}

/// Flags that have every request of the user in `logs/audit.log`, with its answer's code.
fn audit_flags(dir: &Path, user: &str) -> Result<Vec<String>> {
    let policy = dir.join("audit-policy.json");
    let rules = json!([{"level": "Metadata", "users": [user]}, {"level": "None"}]);
    let content = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "omitStages": ["RequestReceived"], "rules": rules,
    });
    fs::write(&policy, content.to_string())?;
    let log = log(dir, "audit");
    Ok(vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", log.display()),
    ])
}

fn start_apiserver(
    dir: &Path,
    pki: &Pki,
    [etcd_port, port]: [u16; 2],
    more: &[String],
) -> Result<Process> {
    let mut command = Command::new(programs::kubernetes("kube-apiserver")?);
    command
        .args(["--etcd-servers", &format!("http://127.0.0.1:{etcd_port}")])
        .args(["--bind-address", "127.0.0.1", "--secure-port", &port.to_string()])
        .args(["--advertise-address", "10.99.0.1", "--endpoint-reconciler-type", "none"])
        .args(["--service-cluster-ip-range", "10.96.0.0/16", "--authorization-mode", "RBAC"])
        .args(["--service-account-issuer", "https://kubernetes.default.svc"])
        .args(["--requestheader-allowed-names", super::pki::FRONT_PROXY_CLIENT])
        .args(["--requestheader-username-headers", "X-Remote-User"])
        .args(["--requestheader-group-headers", "X-Remote-Group"])
        .args(["--requestheader-extra-headers-prefix", "X-Remote-Extra-"]);
    for (flag, file) in [
        ("--tls-cert-file", pki.certificate("apiserver")),
        ("--tls-private-key-file", pki.key("apiserver")),
        ("--client-ca-file", pki.certificate("client-ca")),
        ("--service-account-key-file", pki.certificate("service-account")),
        ("--service-account-signing-key-file", pki.key("service-account")),
        ("--requestheader-client-ca-file", pki.certificate("front-proxy-ca")),
        ("--proxy-client-cert-file", pki.certificate("front-proxy")),
        ("--proxy-client-key-file", pki.key("front-proxy")),
    ] {
        command.arg(flag).arg(file);
    }
    command.args(more);
    Process::spawn(command, &log(dir, "kube-apiserver"), Vec::new())
}

fn start_controllers(pki: &Pki, options: &ControlPlaneOptions) -> Result<Process> {
    let dir = &options.dir;
    let mut command = Command::new(programs::kubernetes("kube-controller-manager")?);
    let period = format!("{}s", options.hpa_sync_period.as_secs());
    command
        .arg("--kubeconfig")
        .arg(kubeconfig_path(dir, "controller-manager"))
        .arg("--service-account-private-key-file")
        .arg(pki.key("service-account"))
        .arg("--root-ca-file")
        .arg(pki.certificate("serving-ca"))
        .args(["--secure-port", "0", "--leader-elect=false"])
        .arg("--use-service-account-credentials=true")
        .args(["--horizontal-pod-autoscaler-sync-period", &period])
        .args(["--horizontal-pod-autoscaler-cpu-initialization-period", "0s"])
        .args(&options.controller_flags);
    Process::spawn(command, &log(dir, "kube-controller-manager"), Vec::new())
}

fn log(dir: &Path, program: &str) -> PathBuf {
    dir.join("logs").join(program).with_extension("log")
}

async fn wait_ready(client: &Client, programs: &mut [&mut Process]) -> Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        let Err(error) = client.request_text(request).await else { return Ok(()) };
        for program in programs.iter_mut() {
            fail_if_ended(program)?;
        }
        if Instant::now() > deadline {
            let log = programs.last().map(|program| program.log().display().to_string());
            return Err(error).context(format!("the API server is not ready, see {log:?}"));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn wait_for_controllers(client: &Client, controllers: &mut Process) -> Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
    while accounts.get_opt("default").await?.is_none() {
        fail_if_ended(controllers)?;
        if Instant::now() > deadline {
            bail!("the controllers do nothing, see {}", controllers.log().display());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn fail_if_ended(program: &mut Process) -> Result<()> {
    match program.exited() {
        Some(status) => bail!("ended with {status}, see {}", program.log().display()),
        None => Ok(()),
    }
}

/// Removes the directories of test processes that are gone.
fn remove_leftovers(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        let Some(owner) = owner else { continue };
        if !Path::new("/proc").join(owner).exists() {
            // Another test process may be removing it too.
            let _gone = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
