//! The table of keys: the one place that says what can be configured.
//!
//! In: nothing. Out: [`KEYS`], [`RULE_SIGNALS`]. Never: a key that no section reads, or a section that reads another key; tests hold both.

use std::time::Duration;

use super::AuditLevel;

/// Whose section a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `headroom agent`, the sidecar.
    Agent,
    /// `headroom adapter`.
    Adapter,
}

impl Program {
    /// The name of the section.
    #[must_use]
    pub const fn section(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Adapter => "adapter",
        }
    }
}

/// What happens to a key that changes in the file of a running program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The new value is used from then on.
    Hot,
    /// The old value stays until the program is started again; that this is so is reported.
    Restart,
}

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A name of Kubernetes: lower-case letters, digits and `-`.
    DnsName,
    /// An IP address and a port.
    Address,
    /// An IP address.
    Ip,
    /// A port.
    Port,
    /// A plain `http` URL.
    Url,
    /// A path of a file.
    File,
    /// A duration with its unit: `250ms`, `5s`, `1m`, `1h`.
    Duration {
        /// The shortest that is accepted.
        min: Duration,
        /// The longest that is accepted.
        max: Duration,
    },
    /// Bytes as a Kubernetes quantity: `4Mi`, `200k`.
    Bytes {
        /// The fewest that are accepted.
        min: u64,
        /// The most that are accepted.
        max: u64,
    },
    /// A whole number.
    Count {
        /// The least that is accepted.
        min: u64,
        /// The most that is accepted.
        max: u64,
    },
    /// A number above 0 and up to 1.
    Share,
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// What is logged, as `HEADROOM_LOG` says it.
    LogFilter,
    /// A list of [`super::CaptureRule`].
    Rules,
}

impl Kind {
    /// The unit or form, as the docs show it.
    #[must_use]
    pub const fn form(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::DnsName => "name",
            Self::Address => "IP:port",
            Self::Ip => "IP",
            Self::Port => "port",
            Self::Url => "http URL",
            Self::File => "path",
            Self::Duration { .. } => "duration",
            Self::Bytes { .. } => "bytes (quantity)",
            Self::Count { .. } => "number",
            Self::Share => "share of 1",
            Self::Switch => "true or false",
            Self::Choice(_) => "word",
            Self::LogFilter => "log filter",
            Self::Rules => "list of rules",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Key {
    /// The path in the file, such as `agent.target.metrics`.
    pub path: &'static str,
    /// Environment variables, the first that is set and not empty wins.
    pub env: &'static [&'static str],
    /// What a value looks like.
    pub kind: Kind,
    /// The default as it would be written; `None`: not set.
    pub default: Option<&'static str>,
    /// What a change in the file does.
    pub change: Change,
    /// What it is.
    pub meaning: &'static str,
}

impl Key {
    /// Whose it is.
    #[must_use]
    pub fn program(&self) -> Program {
        if self.path.starts_with("agent.") { Program::Agent } else { Program::Adapter }
    }
}

/// The row of that path.
pub(super) fn key(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// What a rule of `agent.capture.rules` can be about: what the sidecar reads of the kernel each second. The service's own
/// metrics are only read when somebody scrapes.
pub const RULE_SIGNALS: &[&str] = &[
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_virtual_memory_max_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
    "process_threads",
    "process_runqueue_wait_seconds_total",
    "cgroup_cpu_usage_seconds_total",
    "cgroup_cpu_throttled_seconds_total",
    "cgroup_cpu_periods_total",
    "cgroup_cpu_throttled_periods_total",
    "cgroup_cpu_limit_cores",
    "cgroup_memory_working_set_bytes",
    "cgroup_memory_limit_bytes",
    "cgroup_memory_events_total",
    "pressure_stall_seconds_total",
    "headroom_agent_host_memory_available_bytes",
    "headroom_agent_host_cpu_count",
];

const MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// Everything that can be configured, in the order of the docs.
pub const KEYS: &[Key] = &[
    Key {
        path: "agent.bind",
        env: &["HEADROOM_AGENT_BIND"],
        kind: Kind::Address,
        default: Some("0.0.0.0:9469"),
        change: Change::Restart,
        meaning: "where the sidecar serves `/metrics`, probes and `/debug/pprof/*`",
    },
    Key {
        path: "agent.service",
        env: &["HEADROOM_AGENT_SERVICE"],
        kind: Kind::Text,
        default: Some("service"),
        change: Change::Restart,
        meaning: "the service's name in `headroom_agent_info`",
    },
    Key {
        path: "agent.logLevel",
        env: &["HEADROOM_LOG"],
        kind: Kind::LogFilter,
        default: Some("info"),
        change: Change::Hot,
        meaning: "what is logged, such as `debug` or `headroom::agent=debug,info`",
    },
    Key {
        path: "agent.target.metrics",
        env: &["HEADROOM_AGENT_TARGET_METRICS"],
        kind: Kind::Url,
        default: None,
        change: Change::Hot,
        meaning: "the service's own `/metrics`; not set: nothing is re-exposed",
    },
    Key {
        path: "agent.target.timeout",
        env: &["HEADROOM_AGENT_TARGET_TIMEOUT"],
        kind: Kind::Duration { min: Duration::from_millis(10), max: MINUTE },
        default: Some("2s"),
        change: Change::Hot,
        meaning: "for one answer of the service's `/metrics`; shorter than the timeout of whoever scrapes the sidecar",
    },
    Key {
        path: "agent.target.maxBody",
        env: &["HEADROOM_AGENT_TARGET_MAX_BODY"],
        kind: Kind::Bytes { min: 1024, max: 256 * MIB },
        default: Some("16Mi"),
        change: Change::Hot,
        meaning: "the longest answer of the service's `/metrics`; a longer one is left out whole",
    },
    Key {
        path: "agent.target.pprof",
        env: &["HEADROOM_AGENT_TARGET_PPROF"],
        kind: Kind::Url,
        default: None,
        change: Change::Hot,
        meaning: "where the service's profiles lie, such as `http://127.0.0.1:6060/debug/pprof`; not set: 404",
    },
    Key {
        path: "agent.target.bearerTokenFile",
        env: &["HEADROOM_AGENT_TARGET_BEARER_TOKEN_FILE"],
        kind: Kind::File,
        default: None,
        change: Change::Hot,
        meaning: "a file whose text is sent to the service as bearer token; read at each request. What the service protects in its `/metrics` is re-exposed to all by intent; beside `pprof` it is accepted only if `/debug/` asks for a token or is served on loopback",
    },
    Key {
        path: "agent.target.pid",
        env: &["HEADROOM_AGENT_TARGET_PID"],
        kind: Kind::Count { min: 1, max: 4_194_304 },
        default: None,
        change: Change::Hot,
        meaning: "the service's process id; excludes `agent.target.process`",
    },
    Key {
        path: "agent.target.process",
        env: &["HEADROOM_AGENT_TARGET_PROCESS"],
        kind: Kind::Text,
        default: None,
        change: Change::Hot,
        meaning: "the service's process by name; without it and `pid`: the one that listens on the port of `metrics`, else the only other one",
    },
    Key {
        path: "agent.capture.ring.window",
        env: &["HEADROOM_AGENT_CAPTURE_RING_WINDOW"],
        kind: Kind::Duration { min: Duration::from_secs(1), max: Duration::from_secs(600) },
        default: Some("60s"),
        change: Change::Restart,
        meaning: "how far the samples that are always kept reach back, as far as `agent.capture.ring.size` lets them",
    },
    Key {
        path: "agent.capture.ring.size",
        env: &["HEADROOM_AGENT_CAPTURE_RING_SIZE"],
        kind: Kind::Bytes { min: 64 << 10, max: 4 * MIB },
        default: Some("4Mi"),
        change: Change::Restart,
        meaning: "how much memory the samples that are always kept may take; the oldest go first",
    },
    Key {
        path: "agent.capture.memoryNearLimit",
        env: &["HEADROOM_AGENT_CAPTURE_MEMORY_NEAR_LIMIT"],
        kind: Kind::Share,
        default: Some("0.9"),
        change: Change::Hot,
        meaning: "the share of the memory limit at which a capture is made",
    },
    Key {
        path: "agent.capture.rules",
        env: &["HEADROOM_AGENT_CAPTURE_RULES"],
        kind: Kind::Rules,
        default: Some("[]"),
        change: Change::Hot,
        meaning: "what else makes a capture: a list of `{signal, above, cooldown}`, cooldown 5m unless given; YAML in the environment too. The signal is one that the kernel knows of the process, its cgroup or the machine (`process_*`, `cgroup_*`, `pressure_stall_seconds_total`, `headroom_agent_host_*`), a counter by its increase per second; the service's own metrics are not watched",
    },
    Key {
        path: "agent.capture.directory",
        env: &["HEADROOM_AGENT_CAPTURE_DIRECTORY"],
        kind: Kind::File,
        default: None,
        change: Change::Restart,
        meaning: "where captures are kept beside memory, such as a mounted emptyDir: there they outlive the container",
    },
    Key {
        path: "agent.debug.bind",
        env: &["HEADROOM_AGENT_DEBUG_BIND"],
        kind: Kind::Address,
        default: None,
        change: Change::Restart,
        meaning: "serves `/debug/` there alone; not set: beside the metrics",
    },
    Key {
        path: "agent.debug.tokenFile",
        env: &["HEADROOM_AGENT_DEBUG_TOKEN_FILE"],
        kind: Kind::File,
        default: None,
        change: Change::Restart,
        meaning: "a file with the bearer token that `/debug/` asks for; read at each request; excludes `agent.debug.tokenReview`",
    },
    Key {
        path: "agent.debug.tokenReview",
        env: &["HEADROOM_AGENT_DEBUG_TOKEN_REVIEW"],
        kind: Kind::Switch,
        default: Some("false"),
        change: Change::Restart,
        meaning: "`/debug/` asks for a token of the cluster whose holder has the right to `get` (to change something: `create`) the non-resource URL",
    },
    Key {
        path: "adapter.bindAddress",
        env: &["HEADROOM_ADAPTER_BIND_ADDRESS"],
        kind: Kind::Ip,
        default: Some("0.0.0.0"),
        change: Change::Restart,
        meaning: "address of the HTTPS API",
    },
    Key {
        path: "adapter.securePort",
        env: &["HEADROOM_ADAPTER_SECURE_PORT"],
        kind: Kind::Port,
        default: Some("6443"),
        change: Change::Restart,
        meaning: "port of the HTTPS API",
    },
    Key {
        path: "adapter.metricsBindAddress",
        env: &["HEADROOM_ADAPTER_METRICS_BIND_ADDRESS"],
        kind: Kind::Address,
        default: Some("0.0.0.0:8080"),
        change: Change::Restart,
        meaning: "address of the adapter's own `/metrics` and probes, without TLS",
    },
    Key {
        path: "adapter.namespace",
        env: &["HEADROOM_ADAPTER_NAMESPACE", "POD_NAMESPACE"],
        kind: Kind::DnsName,
        default: Some("headroom-system"),
        change: Change::Restart,
        meaning: "the adapter's own namespace",
    },
    Key {
        path: "adapter.serviceName",
        env: &["HEADROOM_ADAPTER_SERVICE_NAME"],
        kind: Kind::DnsName,
        default: Some("headroom-adapter"),
        change: Change::Restart,
        meaning: "the adapter's Service, which the APIService points at",
    },
    Key {
        path: "adapter.shutdownDelay",
        env: &["HEADROOM_ADAPTER_SHUTDOWN_DELAY"],
        kind: Kind::Duration { min: Duration::ZERO, max: Duration::from_secs(300) },
        default: Some("5s"),
        change: Change::Hot,
        meaning: "for how long the adapter goes on serving after it was told to end, not ready, until all who send it requests know; with it and 10 s for requests under way `terminationGracePeriodSeconds` must not be over",
    },
    Key {
        path: "adapter.logLevel",
        env: &["HEADROOM_LOG"],
        kind: Kind::LogFilter,
        default: Some("info"),
        change: Change::Hot,
        meaning: "what is logged, such as `debug` or `headroom::adapter=debug,info`",
    },
    Key {
        path: "adapter.audit",
        env: &["HEADROOM_ADAPTER_AUDIT"],
        kind: Kind::Choice(AuditLevel::WORDS),
        default: Some("refused"),
        change: Change::Restart,
        meaning: "which requests to the API have a line in the log, target `audit`, level info: who (user, uid, number of groups, addresses), what, and the outcome; discovery and probes never have one",
    },
    Key {
        path: "adapter.resourceMetrics",
        env: &["HEADROOM_ADAPTER_RESOURCE_METRICS"],
        kind: Kind::Switch,
        default: Some("false"),
        change: Change::Restart,
        meaning: "`metrics.k8s.io` is served: the CPU and memory in use of every policy's pods",
    },
    Key {
        path: "adapter.scrape.maxBody",
        env: &["HEADROOM_ADAPTER_SCRAPE_MAX_BODY"],
        kind: Kind::Bytes { min: 1024, max: 256 * MIB },
        default: Some("16Mi"),
        change: Change::Restart,
        meaning: "the longest answer of a pod; a longer one is a failed scrape",
    },
    Key {
        path: "adapter.scrape.seriesPerPod",
        env: &["HEADROOM_ADAPTER_SCRAPE_SERIES_PER_POD"],
        kind: Kind::Count { min: 1, max: 1_000_000 },
        default: Some("10000"),
        change: Change::Restart,
        meaning: "the most series that a policy wants of one pod; those after it are left out and counted",
    },
    Key {
        path: "adapter.scrape.labelsPerSeries",
        env: &["HEADROOM_ADAPTER_SCRAPE_LABELS_PER_SERIES"],
        kind: Kind::Count { min: 1, max: 1024 },
        default: Some("64"),
        change: Change::Restart,
        meaning: "the most labels of a wanted series; one with more is left out and counted",
    },
    Key {
        path: "adapter.scrape.labelBytesPerSeries",
        env: &["HEADROOM_ADAPTER_SCRAPE_LABEL_BYTES_PER_SERIES"],
        kind: Kind::Bytes { min: 64, max: MIB },
        default: Some("4Ki"),
        change: Change::Restart,
        meaning: "the longest label set of a wanted series; a longer one is left out and counted",
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn paths_are_unique_and_lie_in_a_section() {
        let paths: HashSet<_> = KEYS.iter().map(|key| key.path).collect();
        assert_eq!(paths.len(), KEYS.len());
        for key in KEYS {
            assert!(key.path.starts_with(&format!("{}.", key.program().section())), "{}", key.path);
            assert!(!key.meaning.is_empty() && !key.meaning.ends_with('.'), "{}", key.path);
        }
    }

    /// A Service named `headroom-adapter` makes Kubernetes set HEADROOM_ADAPTER_PORT and such in every pod beside it.
    #[test]
    fn no_variable_is_one_that_kubernetes_sets_for_our_services() {
        for name in KEYS.iter().flat_map(|key| key.env) {
            let rest =
                name.strip_prefix("HEADROOM_ADAPTER").or(name.strip_prefix("HEADROOM_AGENT"));
            let link = ["_PORT", "_SERVICE_HOST", "_SERVICE_PORT"];
            assert!(
                !link.iter().any(|link| rest.is_some_and(|rest| rest.starts_with(link))),
                "{name}"
            );
        }
    }
}
