//! Who asked for what, and what became of it: one line per request, for whoever must know later.
//!
//! In: a request that the gate has judged. Out: an event of the target `audit`, in the terms of Kubernetes' own audit log (its
//! level `Metadata`). Never: discovery or a probe, a credential, a query besides the label selector, or a field without a
//! bound.

use std::borrow::Cow;
use std::net::IpAddr;

use axum::http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::info;

use super::authentication::{Identity, Means};
use super::authorization::is_discovery;
use super::own_metrics::OwnMetrics;
use super::request_info::{RequestInfo, ResourceInfo};
use crate::config::AuditLevel;

/// Longest text of a field; names in Kubernetes have at most 253.
const MAX_FIELD_BYTES: usize = 256;
/// Lines about nobody, which cost their sender nothing: so many at once, and then so many a second.
const NOBODYS_BURST: f64 = 100.0;
const NOBODYS_PER_SECOND: f64 = 20.0;
/// The request's id in the audit log of kube-apiserver, which the aggregator passes on.
const AUDIT_ID: &str = "audit-id";
/// The addresses that a request came through before this connection.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Writes the log.
#[derive(Debug)]
pub(super) struct Audit {
    level: AuditLevel,
    metrics: OwnMetrics,
    nobodys: Mutex<Allowance>,
}

/// What a line needs of a request before its handler takes it.
#[derive(Debug)]
pub(super) struct Subject {
    info: RequestInfo,
    identity: Option<(Identity, Means)>,
    address: IpAddr,
    audit_id: Option<String>,
    forwarded_for: Option<String>,
    started: Instant,
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome<'a> {
    /// It reached its handler, which answered with this.
    Admitted(StatusCode),
    /// The gate answered, and told the sender this.
    Refused(StatusCode, &'a str),
}

impl Audit {
    pub(super) fn new(level: AuditLevel, metrics: OwnMetrics) -> Self {
        let nobodys = Mutex::new(Allowance { left: NOBODYS_BURST, since: Instant::now() });
        Self { level, metrics, nobodys }
    }

    /// Whether a request that was let in has a line.
    pub(super) fn of_admitted(&self, info: &RequestInfo) -> bool {
        self.level == AuditLevel::Metadata && !is_discovery(info)
    }

    /// Whether a request that was refused has a line. Of those whose sender is not known only so many have one that nobody can
    /// fill a disk with them; the others are counted.
    pub(super) fn of_refused(&self, info: &RequestInfo, known: bool) -> bool {
        if self.level == AuditLevel::Off || is_discovery(info) {
            return false;
        }
        let fits = known || self.nobodys.lock().take(Instant::now());
        if !fits {
            self.metrics.audit_line_dropped();
        }
        fits
    }

    pub(super) fn write(&self, subject: &Subject, outcome: Outcome<'_>) {
        let (decision, code, reason) = match outcome {
            Outcome::Admitted(code) => ("allow", code, None),
            Outcome::Refused(code, reason) if code.is_server_error() => {
                ("error", code, Some(bounded(reason)))
            }
            Outcome::Refused(code, reason) => ("forbid", code, Some(bounded(reason))),
        };
        let identity = subject.identity.as_ref();
        let nowhere = ResourceInfo::default();
        let resource = subject.info.resource.as_ref().unwrap_or(&nowhere);
        let path = subject.info.resource.is_none().then(|| bounded(&subject.info.path));
        info!(
            target: "audit",
            audit_id = subject.audit_id.as_deref(),
            user = identity.map(|(identity, _)| bounded(&identity.user)).as_deref(),
            uid = identity.and_then(|(identity, _)| identity.uid.as_deref()).map(bounded).as_deref(),
            groups_count = identity.map(|(identity, _)| identity.groups.len()),
            recognised_by = identity.map(|(_, means)| means.as_str()),
            source_address = %subject.address,
            forwarded_for = subject.forwarded_for.as_deref(),
            verb = &*bounded(&subject.info.verb),
            group = given(&resource.group).as_deref(),
            resource = given(&resource.resource).as_deref(),
            namespace = given(&resource.namespace).as_deref(),
            name = given(&resource.name).as_deref(),
            subresource = given(&resource.subresource).as_deref(),
            label_selector = given(&subject.info.label_selector).as_deref(),
            path = path.as_deref(),
            decision,
            reason = reason.as_deref(),
            code = code.as_u16(),
            elapsed_seconds = subject.started.elapsed().as_secs_f64(),
            "request"
        );
    }
}

impl Subject {
    pub(super) fn new(
        info: &RequestInfo,
        identity: Option<(Identity, Means)>,
        address: IpAddr,
        headers: &HeaderMap,
        started: Instant,
    ) -> Self {
        let header = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.map(|value| bounded(value).into_owned())
        };
        let by_proxy = identity.as_ref().is_some_and(|(_, means)| *means == Means::RequestHeader);
        Self {
            info: info.clone(),
            identity,
            address,
            audit_id: header(AUDIT_ID),
            // Anyone can send it, and only the front proxy is believed.
            forwarded_for: header(FORWARDED_FOR).filter(|_| by_proxy),
            started,
        }
    }
}

fn given(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then(|| bounded(text))
}

/// The text up to the bound, and no control character: a line of a log stays one line in every format.
fn bounded(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_FIELD_BYTES && !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let cut = &text[..text.floor_char_boundary(MAX_FIELD_BYTES)];
    let mut cut = cut.replace(char::is_control, "\u{fffd}");
    if cut.len() < text.len() {
        cut.push('…');
    }
    Cow::Owned(cut)
}

/// A token bucket.
#[derive(Debug)]
struct Allowance {
    left: f64,
    since: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let earned = now.duration_since(self.since).as_secs_f64() * NOBODYS_PER_SECOND;
        self.left = (self.left + earned).min(NOBODYS_BURST);
        self.since = now;
        let fits = self.left >= 1.0;
        if fits {
            self.left -= 1.0;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_field_is_bounded_and_one_line() {
        assert_eq!(bounded("alice"), "alice");
        assert_eq!(bounded("a\nb\u{1b}[0m"), "a\u{fffd}b\u{fffd}[0m");
        let long = "ä".repeat(300);
        assert_eq!(bounded(&long), format!("{}…", "ä".repeat(128)));
    }

    #[test]
    fn nobodys_lines_are_as_many_as_the_allowance() {
        let now = Instant::now();
        let mut allowance = Allowance { left: NOBODYS_BURST, since: now };
        let taken = (0..1000).filter(|_| allowance.take(now)).count();
        assert_eq!(taken, 100);
        let later = now + Duration::from_secs(2);
        assert_eq!((0..1000).filter(|_| allowance.take(later)).count(), 40);
    }
}
