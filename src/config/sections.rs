//! The validated values, section by section.
//!
//! In: what the layers agreed on. Out: plain immutable data with units. Never: a value outside its documented range.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;

use crate::units::Ratio;

/// `headroom agent`: the section `agent`.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// Where the sidecar serves.
    pub bind: SocketAddr,
    /// The service's name in `headroom_agent_info`.
    pub service: String,
    /// What is logged, in the syntax of `HEADROOM_LOG`.
    pub log_level: String,
    /// The service beside the sidecar.
    pub target: TargetConfig,
    /// What is kept of the past when something goes wrong.
    pub capture: CaptureConfig,
    /// Who may see profiles and captures.
    pub debug: DebugConfig,
}

/// Where `/debug/` is served, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugConfig {
    /// An address of its own; `None`: beside the metrics.
    pub bind: Option<SocketAddr>,
    /// What a request must bring.
    pub credential: Credential,
}

/// What a request under `/debug/` must bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Nothing; to change something, it must come from loopback.
    None,
    /// The token in this file.
    TokenFile(PathBuf),
    /// A token of the cluster, whose holder has the right.
    TokenReview,
}

/// The service beside the sidecar: what it serves, and which process it is.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetConfig {
    /// Its `/metrics`; `None` if it serves none.
    pub metrics: Option<HttpUrl>,
    /// For one answer of its `/metrics`.
    pub timeout: Duration,
    /// The longest answer of its `/metrics`.
    pub max_body_bytes: usize,
    /// Where its profiles lie, such as `http://127.0.0.1:6060/debug/pprof`; `None` if it serves none.
    pub pprof: Option<HttpUrl>,
    /// A file whose text goes to the target as bearer token; it is read at each request.
    pub bearer_token_file: Option<PathBuf>,
    /// Which process it is.
    pub process: ProcessChoice,
}

/// Which process is the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessChoice {
    /// The one that listens on the port of [`TargetConfig::metrics`], else the only other one.
    Find,
    /// This process id.
    Pid(i32),
    /// The only process of this name.
    Named(String),
}

/// What is kept of the past, and when it is written out.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureConfig {
    /// The samples that are always kept.
    pub ring: RingConfig,
    /// The share of the memory limit at which a capture is made before the kernel ends the process.
    pub memory_near_limit: Ratio,
    /// What else makes a capture.
    pub rules: Vec<CaptureRule>,
    /// Where captures are kept beside memory.
    pub directory: Option<PathBuf>,
}

/// The bounds of the samples that are always kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// How far they reach back.
    pub window: Duration,
    /// How much memory they may take.
    pub size_bytes: usize,
}

/// A capture is made when a signal exceeds a value.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureRule {
    /// The name of the metric.
    pub signal: String,
    /// The value that must be exceeded, in the metric's unit.
    pub above: f64,
    /// The shortest time between two captures of this rule.
    pub cooldown: Duration,
}

/// `headroom adapter`: the section `adapter`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Address of the HTTPS API.
    pub bind_address: IpAddr,
    /// Port of the HTTPS API.
    pub secure_port: u16,
    /// Address of the adapter's own metrics and probes, without TLS.
    pub metrics_bind_address: SocketAddr,
    /// The adapter's own namespace.
    pub namespace: String,
    /// The adapter's Service, which the APIService points at.
    pub service_name: String,
    /// How long it serves on after it was told to end.
    pub shutdown_delay: Duration,
    /// What is logged, in the syntax of `HEADROOM_LOG`.
    pub log_level: String,
    /// Which requests have a line in the log of who asked for what.
    pub audit: AuditLevel,
    /// The CPU and memory in use of every policy's pods are read, too.
    pub resource_metrics: bool,
    /// What one pod's answer may cost.
    pub scrape: ScrapeConfig,
}

/// Which requests to the API groups have a line in the log of who asked for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditLevel {
    /// None.
    Off,
    /// Those that were refused.
    #[default]
    Refused,
    /// All: who, what, when and the outcome, as Kubernetes' level of this name.
    Metadata,
}

impl AuditLevel {
    /// The words for the levels, in the order of the variants.
    pub const WORDS: &'static [&'static str] = &["off", "refused", "metadata"];

    /// The level of that word.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        let levels = [Self::Off, Self::Refused, Self::Metadata];
        levels
            .into_iter()
            .zip(Self::WORDS)
            .find(|(_, known)| **known == word)
            .map(|(level, _)| level)
    }
}

/// What one pod's answer may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrapeConfig {
    /// The longest answer.
    pub body_bytes: usize,
    /// The most wanted series of one pod.
    pub series_per_pod: usize,
    /// The most labels of a wanted series.
    pub labels_per_series: usize,
    /// The longest label set of a wanted series.
    pub label_bytes_per_series: usize,
}

/// A plain `http` URL without credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl(Uri);

/// Why a text is no [`HttpUrl`]. The text itself is not repeated: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpUrlError {
    /// Not a URL, or one without a host.
    #[error("not a URL such as http://127.0.0.1:8080/metrics")]
    Malformed,
    /// Another scheme.
    #[error("only http is spoken with a target in the same pod")]
    Scheme,
    /// A user or password.
    #[error("a URL must not carry credentials: use a bearer token file")]
    Credentials,
}

impl HttpUrl {
    /// The port, written or implied.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(80)
    }

    /// Whether it leads to this network namespace: a loopback address, or `localhost`.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = self.0.host().unwrap_or_default().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for HttpUrl {
    type Err = HttpUrlError;

    fn from_str(text: &str) -> Result<Self, HttpUrlError> {
        let uri: Uri = text.parse().map_err(|_| HttpUrlError::Malformed)?;
        let authority = uri.authority().ok_or(HttpUrlError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(HttpUrlError::Credentials);
        }
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => Ok(Self(uri)),
            Some(_) => Err(HttpUrlError::Scheme),
            None => Err(HttpUrlError::Malformed),
        }
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
