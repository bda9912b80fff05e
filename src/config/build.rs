//! From settings to the typed sections.
//!
//! In: every key of one program, without a problem. Out: its section. Never: a key that the table does not have.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::keys::Program;
use super::layers::Setting;
use super::value::Value;
use super::{
    AdapterConfig, AgentConfig, AuditLevel, CaptureConfig, CaptureRule, Credential, DebugConfig,
    HttpUrl, ProcessChoice, RingConfig, ScrapeConfig, TargetConfig,
};
use crate::units::Ratio;

/// A program's section of the configuration.
pub trait Section: Clone + PartialEq + Send + Sync + 'static {
    /// Whose section it is.
    const PROGRAM: Program;

    /// From settings that hold a value for each key that has a default, and do not contradict one another.
    fn build(settings: &[Setting]) -> Self;
}

/// Looks values up by path.
pub(super) struct Values<'a>(pub(super) &'a [Setting]);

/// Why a look-up cannot fail.
const TYPED: &str =
    "the table gives this key a default of this kind, and a test builds every section";

impl Values<'_> {
    fn get(&self, path: &str) -> Option<&Value> {
        self.0.iter().find(|setting| setting.key.path == path)?.value.as_ref()
    }

    pub(super) fn text(&self, path: &str) -> Option<String> {
        match self.get(path)? {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    pub(super) fn url(&self, path: &str) -> Option<HttpUrl> {
        match self.get(path)? {
            Value::Url(url) => Some(url.clone()),
            _ => None,
        }
    }

    pub(super) fn file(&self, path: &str) -> Option<PathBuf> {
        match self.get(path)? {
            Value::File(file) => Some(file.clone()),
            _ => None,
        }
    }

    pub(super) fn address(&self, path: &str) -> Option<SocketAddr> {
        match self.get(path)? {
            Value::Address(address) => Some(*address),
            _ => None,
        }
    }

    fn ip(&self, path: &str) -> Option<IpAddr> {
        match self.get(path)? {
            Value::Ip(ip) => Some(*ip),
            _ => None,
        }
    }

    fn duration(&self, path: &str) -> Option<Duration> {
        match self.get(path)? {
            Value::Duration(duration) => Some(*duration),
            _ => None,
        }
    }

    pub(super) fn whole<T: TryFrom<u64>>(&self, path: &str) -> Option<T> {
        match self.get(path)? {
            Value::Whole(number) => T::try_from(*number).ok(),
            _ => None,
        }
    }

    fn share(&self, path: &str) -> Option<Ratio> {
        match self.get(path)? {
            Value::Share(share) => Some(*share),
            _ => None,
        }
    }

    pub(super) fn switch(&self, path: &str) -> Option<bool> {
        match self.get(path)? {
            Value::Switch(switch) => Some(*switch),
            _ => None,
        }
    }

    fn rules(&self, path: &str) -> Option<Vec<CaptureRule>> {
        match self.get(path)? {
            Value::Rules(rules) => Some(rules.clone()),
            _ => None,
        }
    }
}

impl Section for AgentConfig {
    const PROGRAM: Program = Program::Agent;

    fn build(settings: &[Setting]) -> Self {
        let values = Values(settings);
        Self {
            bind: values.address("agent.bind").expect(TYPED),
            service: values.text("agent.service").expect(TYPED),
            log_level: values.text("agent.logLevel").expect(TYPED),
            target: TargetConfig {
                metrics: values.url("agent.target.metrics"),
                timeout: values.duration("agent.target.timeout").expect(TYPED),
                max_body_bytes: values.whole("agent.target.maxBody").expect(TYPED),
                pprof: values.url("agent.target.pprof"),
                bearer_token_file: values.file("agent.target.bearerTokenFile"),
                process: process(&values),
            },
            capture: CaptureConfig {
                ring: RingConfig {
                    window: values.duration("agent.capture.ring.window").expect(TYPED),
                    size_bytes: values.whole("agent.capture.ring.size").expect(TYPED),
                },
                memory_near_limit: values.share("agent.capture.memoryNearLimit").expect(TYPED),
                rules: values.rules("agent.capture.rules").expect(TYPED),
                directory: values.file("agent.capture.directory"),
            },
            debug: DebugConfig {
                bind: values.address("agent.debug.bind"),
                credential: credential(&values),
            },
        }
    }
}

fn credential(values: &Values<'_>) -> Credential {
    match values.file("agent.debug.tokenFile") {
        Some(file) => Credential::TokenFile(file),
        None if values.switch("agent.debug.tokenReview").expect(TYPED) => Credential::TokenReview,
        None => Credential::None,
    }
}

fn process(values: &Values<'_>) -> ProcessChoice {
    match (values.whole("agent.target.pid"), values.text("agent.target.process")) {
        (Some(pid), _) => ProcessChoice::Pid(pid),
        (None, Some(name)) => ProcessChoice::Named(name),
        (None, None) => ProcessChoice::Find,
    }
}

impl Section for AdapterConfig {
    const PROGRAM: Program = Program::Adapter;

    fn build(settings: &[Setting]) -> Self {
        let values = Values(settings);
        Self {
            bind_address: values.ip("adapter.bindAddress").expect(TYPED),
            secure_port: values.whole("adapter.securePort").expect(TYPED),
            metrics_bind_address: values.address("adapter.metricsBindAddress").expect(TYPED),
            namespace: values.text("adapter.namespace").expect(TYPED),
            service_name: values.text("adapter.serviceName").expect(TYPED),
            shutdown_delay: values.duration("adapter.shutdownDelay").expect(TYPED),
            log_level: values.text("adapter.logLevel").expect(TYPED),
            audit: values
                .text("adapter.audit")
                .and_then(|word| AuditLevel::named(&word))
                .expect(TYPED),
            resource_metrics: values.switch("adapter.resourceMetrics").expect(TYPED),
            scrape: ScrapeConfig {
                body_bytes: values.whole("adapter.scrape.maxBody").expect(TYPED),
                series_per_pod: values.whole("adapter.scrape.seriesPerPod").expect(TYPED),
                labels_per_series: values.whole("adapter.scrape.labelsPerSeries").expect(TYPED),
                label_bytes_per_series: values
                    .whole("adapter.scrape.labelBytesPerSeries")
                    .expect(TYPED),
            },
        }
    }
}
