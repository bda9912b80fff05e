//! For tests of all rooms: a policy and a decision with nothing in them, of which a test states what it is about.

use std::time::Duration;

use super::{
    Coverage, Decision, DescribedObject, Endpoint, Learned, Policy, PolicyId, Port, Scheme,
    TargetRef,
};
use crate::time::{Moment, Timestamp};
use crate::units::{Measure, Ratio};

impl Policy {
    /// Without signals, of the Deployment of the same name: scraped each 5 s, window 30 s, stale after 20 s.
    pub(crate) fn example(id: PolicyId) -> Self {
        Self {
            target: TargetRef {
                api_version: "apps/v1".into(),
                kind: "Deployment".into(),
                name: id.name.clone(),
            },
            id,
            generation: 1,
            endpoint: Endpoint {
                port: Port::Number(9469),
                path: "/metrics".into(),
                scheme: Scheme::Http,
                interval: Duration::from_secs(5),
            },
            window: Duration::from_secs(30),
            stale_after: Duration::from_secs(20),
            start_grace: Duration::from_secs(30),
            coverage_floor: Ratio::new(0.6).expect("a ratio"),
            signals: Vec::new(),
            min_replicas: None,
            max_replicas: None,
            wants_usage: false,
            learned: Learned::default(),
        }
    }
}

impl Decision {
    /// About [`Policy::example`]: one pod's worth, no pods, samples of 2026-09-21T14:13:20Z.
    pub(crate) fn example(id: PolicyId, decided: Moment) -> Self {
        Self {
            target: DescribedObject {
                api_version: "apps/v1".into(),
                kind: "Deployment".into(),
                resource: "deployments".into(),
                namespace: Some(id.namespace.clone()),
                name: id.name.clone(),
            },
            policy: id,
            generation: 1,
            decided,
            stale_after: Duration::from_secs(20),
            sampled_at: Timestamp::from_millis(1_790_000_000_999),
            window: Duration::from_secs(30),
            demand: Ok(1.0),
            driver: None,
            signals: Vec::new(),
            coverage: Coverage::default(),
            totals: Vec::new(),
            quantiles: Vec::new(),
            pods: Vec::new(),
            objects: Vec::new(),
            left_out: Vec::new(),
            findings: Vec::new(),
            learned: Learned::default(),
        }
    }
}
