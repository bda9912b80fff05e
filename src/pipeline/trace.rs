//! A decision in the log, so that a served number leads to the samples behind it.
//!
//! In: a decision. Out: at level debug one line with its number, by which the adapter's lines name it, and the time of its oldest
//! sample; at trace a line for each pod. The scraper's line of the same pod then has the answer itself. Never: work while
//! those levels are off.

use tracing::{Level, debug, trace};

use crate::policy::Decision;

pub(super) fn decided(decision: &Decision) {
    if !tracing::enabled!(Level::DEBUG) {
        return;
    }
    let id = &decision.policy;
    let (namespace, name, number) = (&*id.namespace, &*id.name, decision.number());
    let unserved = decision.demand.as_ref().err().map(|why| why.reason);
    debug!(
        namespace,
        name,
        decision = number,
        demand = decision.demand.as_ref().ok(),
        unserved,
        driver = decision.driver.as_deref(),
        reporting = decision.coverage.reporting,
        expected = decision.coverage.expected,
        sampled_at = %decision.sampled_at,
        "a policy was decided"
    );
    for signal in &decision.signals {
        let (signal, formula) = (&*signal.name, signal.formula.as_str());
        trace!(
            namespace,
            name,
            decision = number,
            signal,
            formula,
            "a signal's part in a decision"
        );
    }
    for pod in &decision.pods {
        let (at, pod) = (pod.sampled_at, &*pod.name);
        trace!(namespace, name, decision = number, pod, sampled_at = %at, "a pod's part in a decision");
    }
    for pod in &decision.left_out {
        let (why, pod) = (&pod.reason, &*pod.name);
        trace!(namespace, name, decision = number, pod, reason = %why, "a pod without a part in a decision");
    }
}
