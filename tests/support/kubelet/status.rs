//! A pod's status as its node reports it.
//!
//! In: what the pod's task knows. Out: the body of a patch of the status subresource. Never: a
//! lastTransitionTime that moves without its condition.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde_json::{Value, json};

/// What the node knows of one pod.
#[derive(Debug)]
pub(super) struct PodStatus {
    container: String,
    image: String,
    address: Ipv4Addr,
    pod_started: Timestamp,
    restarts: u32,
    state: ContainerState,
    ready_changed: Timestamp,
    last_exit: Option<i32>,
}

/// What its one container does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ContainerState {
    Waiting { reason: &'static str },
    Running { since: Timestamp, ready: bool },
}

impl PodStatus {
    /// A pod that is about to start.
    pub(super) fn new(container: &str, image: &str, address: Ipv4Addr) -> Self {
        let now = Timestamp::now();
        Self {
            container: container.to_owned(),
            image: image.to_owned(),
            address,
            pod_started: now,
            restarts: 0,
            state: ContainerState::Waiting { reason: "ContainerCreating" },
            ready_changed: now,
            last_exit: None,
        }
    }

    /// Whether it is ready.
    pub(super) fn ready(&self) -> bool {
        matches!(self.state, ContainerState::Running { ready: true, .. })
    }

    /// The process runs since now.
    pub(super) fn started(&mut self, ready: bool) {
        self.change(ContainerState::Running { since: Timestamp::now(), ready });
    }

    /// The process ended, and will be started again.
    pub(super) fn crashed(&mut self, exit_code: i32) {
        self.restarts = self.restarts.saturating_add(1);
        self.last_exit = Some(exit_code);
        self.change(ContainerState::Waiting { reason: "CrashLoopBackOff" });
    }

    /// Takes the probe's verdict; true if it is news.
    pub(super) fn set_ready(&mut self, ready: bool) -> bool {
        let ContainerState::Running { since, ready: before } = self.state else { return false };
        self.change(ContainerState::Running { since, ready });
        ready != before
    }

    fn change(&mut self, state: ContainerState) {
        let before = self.ready();
        self.state = state;
        if self.ready() != before {
            self.ready_changed = Timestamp::now();
        }
    }

    /// The patch of the status subresource.
    pub(super) fn patch(&self) -> Value {
        let condition = |kind: &str, holds: bool, since: Timestamp| {
            json!({
                "type": kind,
                "status": if holds { "True" } else { "False" },
                "lastTransitionTime": since.to_string(),
            })
        };
        let (ready, began) = (self.ready(), self.pod_started);
        let state = match self.state {
            ContainerState::Waiting { reason } => json!({"waiting": {"reason": reason}}),
            ContainerState::Running { since, .. } => {
                json!({"running": {"startedAt": since.to_string()}})
            }
        };
        let last = self.last_exit.map(|code| json!({"terminated": {"exitCode": code}}));
        let running = matches!(self.state, ContainerState::Running { .. });
        json!({"status": {
            "phase": if running || self.restarts > 0 { "Running" } else { "Pending" },
            "hostIP": "127.0.0.1",
            "podIP": self.address.to_string(),
            "podIPs": [{"ip": self.address.to_string()}],
            "startTime": began.to_string(),
            "conditions": [
                condition("PodScheduled", true, began),
                condition("Initialized", true, began),
                condition("ContainersReady", ready, self.ready_changed),
                condition("Ready", ready, self.ready_changed),
            ],
            "containerStatuses": [{
                "name": self.container,
                "image": self.image,
                "imageID": "",
                "ready": ready,
                "started": running,
                "restartCount": self.restarts,
                "state": state,
                "lastState": last.unwrap_or_else(|| json!({})),
            }],
        }})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transition(status: &PodStatus) -> Value {
        status.patch()["status"]["conditions"][3].clone()
    }

    #[test]
    fn the_ready_condition_keeps_its_time_while_it_does_not_change() {
        let mut status = PodStatus::new("main", "none", Ipv4Addr::LOCALHOST);
        status.started(true);
        let first = transition(&status);
        assert_eq!(first["status"], "True");
        assert!(!status.set_ready(true));
        assert_eq!(transition(&status), first);
        assert!(status.set_ready(false));
        assert_eq!(transition(&status)["status"], "False");
        assert_ne!(transition(&status)["lastTransitionTime"], first["lastTransitionTime"]);
    }

    #[test]
    fn a_crash_is_counted_and_ends_readiness() {
        let mut status = PodStatus::new("main", "none", Ipv4Addr::LOCALHOST);
        status.started(true);
        status.crashed(3);
        let patch = status.patch();
        let container = &patch["status"]["containerStatuses"][0];
        assert_eq!(container["restartCount"], 1);
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
        assert_eq!(container["ready"], false);
        assert_eq!(patch["status"]["phase"], "Running");
    }
}
