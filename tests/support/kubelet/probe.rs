//! Readiness probes over HTTP.
//!
//! In: a container's readinessProbe and its pod's address. Out: passes and failures, counted as a
//! kubelet counts them. Never: a probe that is not httpGet.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A readinessProbe, ready to be asked.
#[derive(Debug)]
pub(super) struct Readiness {
    url: String,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    success_threshold: i32,
    failure_threshold: i32,
    successes: i32,
    failures: i32,
}

impl Readiness {
    /// The container's probe; `None` if it has none: then it is ready once it runs.
    ///
    /// # Errors
    /// The probe is of another kind, or names a port that the container does not have.
    pub(super) fn of(container: &Container, address: Ipv4Addr) -> Result<Option<Self>> {
        let Some(probe) = &container.readiness_probe else { return Ok(None) };
        let get = probe.http_get.as_ref().context("the readiness probe is not httpGet")?;
        let port = match &get.port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                container
                    .ports
                    .iter()
                    .flatten()
                    .find(|port| port.name.as_ref() == Some(name))
                    .with_context(|| format!("no port is named {name}"))?
                    .container_port
            }
        };
        let path = get.path.as_deref().unwrap_or("/");
        let seconds = |value: Option<i32>, default: u32| {
            Duration::from_secs(
                value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default).into(),
            )
        };
        Ok(Some(Self {
            url: format!("http://{address}:{port}{path}"),
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            success_threshold: probe.success_threshold.unwrap_or(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3),
            successes: 0,
            failures: 0,
        }))
    }

    /// Before the first probe.
    pub(super) fn initial_delay(&self) -> Duration {
        self.initial_delay
    }

    /// Between probes.
    pub(super) fn period(&self) -> Duration {
        self.period
    }

    /// Asks once; whether the container is ready now, given that it was `ready` before.
    pub(super) async fn ask(&mut self, client: &reqwest::Client, ready: bool) -> bool {
        let answer = client.get(&self.url).timeout(self.timeout).send().await;
        let passed = answer.is_ok_and(|answer| answer.status().as_u16() < 400);
        self.count(passed, ready)
    }

    fn count(&mut self, passed: bool, ready: bool) -> bool {
        if passed {
            (self.successes, self.failures) = (self.successes.saturating_add(1), 0);
            ready || self.successes >= self.success_threshold
        } else {
            (self.successes, self.failures) = (0, self.failures.saturating_add(1));
            ready && self.failures < self.failure_threshold
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_end_readiness_and_one_pass_restores_it() {
        let container = serde_json::from_value(serde_json::json!({
            "name": "main",
            "ports": [{"name": "http", "containerPort": 8000}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1},
        }))
        .expect("a container");
        let mut probe = Readiness::of(&container, Ipv4Addr::LOCALHOST)
            .expect("a known port")
            .expect("there is a probe");
        assert_eq!(probe.url, "http://127.0.0.1:8000/ready");
        let mut ready = false;
        let answers = [false, true, false, false, true, false, false, false, true];
        let states = answers.map(|passed| {
            ready = probe.count(passed, ready);
            ready
        });
        assert_eq!(states, [false, true, true, true, true, true, true, false, true]);
    }
}
