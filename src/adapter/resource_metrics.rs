//! `metrics.k8s.io`: CPU and memory of the pods that expose them, for `kubectl top pod` and Resource HPAs where no
//! metrics-server runs.
//!
//! In: the board, and per request a namespace, a pod's name or a selector. Out: one object or a list, in the encoding or as the
//! table asked for. Never: a node, a pod that no policy scrapes, or a value older than its policy's `staleAfter`; a pod without
//! a value is left out, which every client of this API expects.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;

use super::answers::{Metrics, decided, fresh, selector};
use super::request_info::RequestInfo;
use super::status::{ApiStatus, Details, body_response};
use super::wire::{self, Encoding, Form, PodMetricsItem, PodMetricsVersion};
use crate::policy::{PodReading, PodUsage};
use crate::quantity::Quantity;
use crate::sample::Selector;
use crate::units::Measure;

/// The API group.
const GROUP: &str = "metrics.k8s.io";

/// Answers from the board.
#[derive(Debug)]
pub(super) struct ResourceMetrics(pub(super) Metrics);

impl ResourceMetrics {
    /// One pod, if the path names it; else all that the selectors pick.
    ///
    /// # Errors
    /// 400 for a malformed selector, 404 for what is not served.
    pub(super) fn answer(
        &self,
        info: &RequestInfo,
        accept: Option<&str>,
    ) -> Result<Response, ApiStatus> {
        let resource = info.resource.as_ref().ok_or_else(ApiStatus::no_such_path)?;
        let version =
            PodMetricsVersion::named(&resource.version).ok_or_else(ApiStatus::no_such_path)?;
        if resource.resource != "pods" || !resource.subresource.is_empty() {
            return Err(ApiStatus::no_such_path());
        }
        let form = Form::negotiate(accept)
            .map_err(|error| ApiStatus::not_acceptable(error.to_string()))?;
        let picks = Picks {
            namespace: &resource.namespace,
            name: match &*resource.name {
                "" => field_selected(&info.field_selector)?,
                name => Some(name),
            },
            labels: selector("labelSelector", &info.label_selector)?,
        };
        let rows = self.rows(&picks, form);
        let one = !resource.name.is_empty();
        if one && rows.is_empty() {
            let about = Details {
                name: resource.name.clone(),
                group: GROUP.to_owned(),
                kind: "pods".to_owned(),
                ..Details::default()
            };
            let message = format!("no CPU and memory of pod {:?} are known", resource.name);
            return Err(ApiStatus::not_found(message).about(about));
        }
        Ok(put_together(version, form, one, &rows))
    }

    /// By namespace and name; a pod of two policies once.
    fn rows(&self, picks: &Picks<'_>, form: Form) -> BTreeMap<(Arc<str>, Arc<str>), Bytes> {
        let now = self.0.clock.now();
        let mut rows = BTreeMap::new();
        for entry in self.0.board.entries(picks.namespace) {
            let standing = entry.load();
            let Ok((_, decision)) = decided(&standing) else { continue };
            if fresh(decision, now).is_err() {
                continue;
            }
            for pod in decision.pods.iter().filter(|pod| picks.pod(pod)) {
                let Some(usage) = &pod.usage else { continue };
                self.0.metrics.served(now.wall.since(pod.sampled_at));
                let row = encoded(&entry.id.namespace, pod, usage, form);
                rows.entry((entry.id.namespace.clone(), pod.name.clone())).or_insert(row);
            }
        }
        rows
    }
}

/// Which pods are asked for.
struct Picks<'a> {
    /// Empty for all.
    namespace: &'a str,
    name: Option<&'a str>,
    labels: Selector,
}

impl Picks<'_> {
    fn pod(&self, pod: &PodReading) -> bool {
        self.name.is_none_or(|name| name == &*pod.name) && self.labels.matches(&pod.labels)
    }
}

/// The one field that clients select pods' metrics by.
fn field_selected(text: &str) -> Result<Option<&str>, ApiStatus> {
    match text.trim() {
        "" => Ok(None),
        text => text
            .strip_prefix("metadata.name=")
            .map(|name| Some(name.trim_start_matches('=')))
            .ok_or_else(|| {
                let message = format!("fieldSelector {text:?}: only metadata.name= is supported");
                ApiStatus::bad_request(message)
            }),
    }
}

fn encoded(namespace: &str, pod: &PodReading, usage: &PodUsage, form: Form) -> Bytes {
    let PodUsage { container, cpu, memory, window } = usage;
    let quantity = |value| Quantity::from_served(value).unwrap_or_default();
    let item = PodMetricsItem {
        namespace,
        name: &pod.name,
        labels: &pod.labels,
        timestamp: pod.sampled_at,
        window: *window,
        containers: &[(container, quantity(cpu.get()), quantity(memory.get()))],
    };
    match form {
        Form::Objects(encoding) => item.encode(encoding),
        Form::Table => item.table_row(),
    }
}

fn put_together<K>(
    version: PodMetricsVersion,
    form: Form,
    one: bool,
    rows: &BTreeMap<K, Bytes>,
) -> Response {
    let items = rows.values().map(|row| &row[..]);
    match form {
        Form::Table => body_response(Encoding::Json, wire::table(items)),
        Form::Objects(encoding) => {
            let body = match rows.values().next() {
                Some(item) if one => wire::object(version.object(), encoding, item),
                _ => wire::list(version.list(), encoding, items),
            };
            body_response(encoding, body)
        }
    }
}
