//! The command line: what can be asked, with its defaults and environment variables.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::conformance::{ExternalMetric, ObjectMetric};

/// Kubernetes autoscaling on what services really feel.
#[derive(Debug, Parser)]
#[command(
    name = "headroom",
    version,
    about,
    after_help = "HEADROOM_LOG sets what is logged, e.g. `debug` or `headroom::adapter=debug,info`."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A loaded sample service with the agent, and the adapter, in one terminal; no cluster needed.
    Demo(DemoArgs),
    /// The agent as a sidecar: metrics, profiles and process of a service in any language, on one port.
    Agent(AgentArgs),
    /// The metrics API server and the controller of ScalingPolicy.
    Adapter(AdapterArgs),
    /// Prints the CustomResourceDefinition of ScalingPolicy as YAML.
    Crd,
    /// Prints the Grafana dashboards: their names, or one by its name, or ConfigMaps of them.
    Dashboards(DashboardsArgs),
    /// Prints the recording rules and alerts for Prometheus.
    Rules(RulesArgs),
    /// Holds any metrics adapter (prometheus-adapter, KEDA, Headroom) against what an HPA relies on.
    ///
    /// Exits with 0 if no case failed, 1 if one did, 2 if the adapter could not be asked.
    Conformance(ConformanceArgs),
}

/// `headroom demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Port of the sample service on 127.0.0.1.
    #[arg(long, default_value_t = 8000)]
    pub service_port: u16,
    /// Port of the agent in the sample service on 127.0.0.1.
    #[arg(long, default_value_t = 9469)]
    pub agent_port: u16,
    /// Port of the adapter's HTTPS API on 127.0.0.1.
    #[arg(long, default_value_t = 6443)]
    pub adapter_port: u16,
    /// The bearer token of the adapter's API; a random one otherwise.
    #[arg(long, env = "HEADROOM_DEMO_TOKEN", hide_env_values = true, value_parser = bearer_token)]
    pub token: Option<String>,
    /// Ends by itself after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// Only the sample service: the container command of a pod.
    #[arg(long, conflicts_with = "adapter_only")]
    pub service_only: bool,
    /// Only the adapter of the demo, which the demo starts as a process of its own.
    #[arg(long, hide = true, requires = "credentials")]
    pub adapter_only: bool,
    /// End when standard input closes, so that nothing outlives a demo that was killed.
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
    /// Where the demo keeps its certificates.
    #[arg(long, hide = true)]
    pub credentials: Option<PathBuf>,
    /// Address of the sample service (overrides --service-port).
    #[arg(long, env = "HEADROOM_SERVICE_BIND", value_name = "ADDRESS:PORT", value_parser = bind_address)]
    pub service_bind: Option<SocketAddr>,
    /// Address of the agent (overrides --agent-port).
    #[arg(long, env = "HEADROOM_AGENT_BIND", value_name = "ADDRESS:PORT", value_parser = bind_address)]
    pub agent_bind: Option<SocketAddr>,
    /// The sample service says it is not ready for so long after its start.
    #[arg(long, env = "HEADROOM_SERVICE_STARTUP_DELAY", value_parser = seconds, default_value = "0s")]
    pub service_startup_delay: Duration,
    /// Requests that the sample service's /work serves at once.
    #[arg(long, env = "HEADROOM_SERVICE_CONCURRENCY", default_value_t = 8)]
    pub service_concurrency: usize,
}

impl DemoArgs {
    /// Where the sample service listens.
    #[must_use]
    pub fn service_address(&self) -> SocketAddr {
        self.service_bind.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, self.service_port).into())
    }

    /// Where the agent listens.
    #[must_use]
    pub fn agent_address(&self) -> SocketAddr {
        self.agent_bind.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, self.agent_port).into())
    }

    /// Where the demo's adapter listens.
    #[must_use]
    pub fn adapter_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.adapter_port).into()
    }
}

/// `headroom agent`. What is not given comes from the environment, the file, or the defaults of docs/configuration.md.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// The configuration (YAML; in a cluster a mounted ConfigMap). It is followed while the program runs.
    #[arg(long, env = "HEADROOM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to serve (0.0.0.0:9469).
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub bind: Option<String>,
    /// The service's name in headroom_agent_info.
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// The service's own /metrics, such as http://127.0.0.1:8080/metrics.
    #[arg(long, value_name = "URL")]
    pub target_metrics: Option<String>,
    /// Where the service's profiles lie, such as http://127.0.0.1:6060/debug/pprof.
    #[arg(long, value_name = "URL")]
    pub target_pprof: Option<String>,
    /// The service's process by id.
    #[arg(long, value_name = "PID")]
    pub target_pid: Option<String>,
    /// The service's process by name.
    #[arg(long, value_name = "NAME")]
    pub target_process: Option<String>,
}

impl AgentArgs {
    /// The flags that were given, as keys of the configuration. They are checked with everything else.
    #[must_use]
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let given = [
            ("agent.bind", &self.bind),
            ("agent.service", &self.service),
            ("agent.target.metrics", &self.target_metrics),
            ("agent.target.pprof", &self.target_pprof),
            ("agent.target.pid", &self.target_pid),
            ("agent.target.process", &self.target_process),
        ];
        given.into_iter().filter_map(|(key, text)| Some((key, text.clone()?))).collect()
    }
}

/// `headroom adapter`; flags are named as Kubernetes' own servers name them. What is not given comes from the environment, the
/// file, or the defaults of docs/configuration.md.
#[derive(Clone, Debug, Args)]
pub struct AdapterArgs {
    /// The configuration (YAML; in a cluster a mounted ConfigMap). It is followed while the program runs.
    #[arg(long, env = "HEADROOM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Kubeconfig of the cluster; the in-cluster configuration without it.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Port of the HTTPS API (6443).
    #[arg(long, value_name = "PORT")]
    pub secure_port: Option<String>,
    /// Address of the HTTPS API (0.0.0.0).
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// Address of the adapter's own /metrics and probes, without TLS (0.0.0.0:8080).
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_bind_address: Option<String>,
    /// Serving certificate (PEM); without it the adapter signs its own and sets the APIService's caBundle.
    #[arg(long, requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// The adapter's own namespace (POD_NAMESPACE, else headroom-system).
    #[arg(long)]
    pub namespace: Option<String>,
    /// The adapter's Service, which the APIService points at (headroom-adapter).
    #[arg(long)]
    pub service_name: Option<String>,
    /// Time to go on serving after it was told to end, until all who send requests know (5s).
    #[arg(long, value_name = "DURATION")]
    pub shutdown_delay_duration: Option<String>,
    /// This replica's name in the Lease.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
    /// This replica's address, for clients that use it; it goes into the serving certificate.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<IpAddr>,
    /// Take over the APIServices of all groups that are served from other adapters.
    #[arg(long)]
    pub take_over: bool,
}

impl AdapterArgs {
    /// The flags that were given, as keys of the configuration. They are checked with everything else.
    #[must_use]
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let given = [
            ("adapter.securePort", &self.secure_port),
            ("adapter.bindAddress", &self.bind_address),
            ("adapter.metricsBindAddress", &self.metrics_bind_address),
            ("adapter.namespace", &self.namespace),
            ("adapter.serviceName", &self.service_name),
            ("adapter.shutdownDelay", &self.shutdown_delay_duration),
        ];
        given.into_iter().filter_map(|(key, text)| Some((key, text.clone()?))).collect()
    }
}

/// `headroom conformance`.
#[derive(Clone, Debug, Args)]
pub struct ConformanceArgs {
    /// The adapter, such as https://127.0.0.1:6443.
    #[arg(long)]
    pub url: String,
    /// The URL is a kube-apiserver's, or `kubectl proxy`'s: skip what is between it and the adapter.
    #[arg(long)]
    pub through_apiserver: bool,
    /// Authorities of the serving certificate (PEM); the machine's without it.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Take any serving certificate.
    #[arg(long, conflicts_with = "ca_file")]
    pub insecure_skip_tls_verify: bool,
    /// The name in the serving certificate, such as adapter.monitoring.svc, if it is not the URL's host.
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// The front proxy's client certificate (PEM): ask as the API server does.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
    /// The user that the front proxy speaks for.
    #[arg(long, value_name = "USER", default_value = crate::conformance::HPA_USER)]
    pub requestheader_user: String,
    /// A bearer token, in place of the front proxy.
    #[arg(long, env = "HEADROOM_CONFORMANCE_TOKEN", hide_env_values = true, value_parser = bearer_token)]
    #[arg(conflicts_with = "client_cert")]
    pub token: Option<String>,
    /// The token of a user who may not read metrics.
    #[arg(long, value_name = "TOKEN", value_parser = bearer_token)]
    pub unauthorized_token: Option<String>,
    /// A user who may not read metrics, for the front proxy to speak for.
    #[arg(long, value_name = "USER", default_value = crate::conformance::NOBODY)]
    pub unauthorized_user: String,
    /// Where the metrics are.
    #[arg(long, default_value = "default")]
    pub namespace: String,
    /// An external metric that exists, and a selector of some of its series.
    #[arg(long, value_name = "NAME[,SELECTOR]")]
    pub external_metric: Option<ExternalMetric>,
    /// A metric of an object that exists, such as pods/web-0/requests_per_second; may be repeated.
    #[arg(long = "custom-metric", value_name = "RESOURCE/NAME/METRIC")]
    pub custom_metrics: Vec<ObjectMetric>,
    /// Picks some of the namespace's pods.
    #[arg(long, value_name = "SELECTOR")]
    pub pods_selector: Option<String>,
    /// Where a test build of the adapter takes fixtures (docs/conformance.md).
    #[arg(long, value_name = "URL")]
    pub control_url: Option<String>,
    /// Only the cases of these numbers.
    #[arg(long = "case", value_name = "N", value_delimiter = ',')]
    pub cases: Vec<u8>,
    /// How to say it.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub output: ReportFormat,
}

/// `headroom dashboards`.
#[derive(Clone, Debug, Args)]
pub struct DashboardsArgs {
    /// Which one; without it their names are printed.
    #[arg(value_enum)]
    pub name: Option<Dashboard>,
    /// Print ConfigMaps for this namespace, labelled for Grafana's sidecar, of all or of the one named.
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// The dashboards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dashboard {
    /// What services know about themselves.
    ServiceRuntime,
    /// Why each workload has its size.
    Scaling,
    /// Whether the adapter answers, how fast and how fresh.
    Adapter,
}

/// `headroom rules`.
#[derive(Clone, Copy, Debug, Args)]
pub struct RulesArgs {
    /// As what to print them.
    #[arg(long, value_enum, default_value_t = RulesFormat::Prometheus)]
    pub output: RulesFormat,
}

/// What rules are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RulesFormat {
    /// A rule file of Prometheus.
    Prometheus,
    /// A PrometheusRule of the Prometheus Operator.
    Kubernetes,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `10s`, `1m`, `500ms`, or a bare number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 =
        number.parse().map_err(|_| format!("{text:?} is not a duration such as 10s"))?;
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("{unit:?} is not one of ms, s, m")),
    };
    Duration::try_from_secs_f64(number * scale).map_err(|error| error.to_string())
}

/// What an HTTP header can carry after `Bearer `.
fn bearer_token(text: &str) -> Result<String, String> {
    if text.chars().all(|character| character.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("a bearer token has neither spaces nor control characters, and is ASCII".to_owned())
    }
}

/// `127.0.0.1:8000`, or IPv6 with or without brackets before the port.
fn bind_address(text: &str) -> Result<SocketAddr, String> {
    let plain = || {
        let (ip, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
    };
    text.parse()
        .ok()
        .or_else(plain)
        .ok_or_else(|| format!("{text:?} is not an address such as 127.0.0.1:8000"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_address_of_a_pod_may_be_ipv6_without_brackets() {
        assert_eq!(bind_address("fd00::7:8000"), Ok("[fd00::7]:8000".parse().expect("an address")));
        assert_eq!(bind_address("127.0.0.9:80"), Ok("127.0.0.9:80".parse().expect("an address")));
        assert!(bind_address("nowhere").is_err());
    }

    #[test]
    fn a_token_is_what_a_header_can_carry() {
        assert_eq!(bearer_token("it's\"$x"), Ok("it's\"$x".to_owned()));
        assert!(bearer_token("two words").is_err() && bearer_token("line\n").is_err());
    }

    #[test]
    fn a_duration_names_its_unit() {
        assert_eq!(seconds("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(seconds("250ms"), Ok(Duration::from_millis(250)));
        assert!(seconds("10h").is_err() && seconds("-1s").is_err());
    }
}
