//! The fixture contract: how a test build of an adapter lets the suite say what its metrics are.
//!
//! In: a [`Fixture`], by `PUT /fixture` in JSON. Out: 2xx once the adapter serves it, with an optional body
//! `{"unsupported": ["custom"]}` that names the parts it cannot stage. Never: a merge; each fixture replaces the last, and an
//! empty one restores the adapter as it was started.
//!
//! An adapter whose external metrics have names of its own says so at `GET /fixture` ([`Names`]); fixtures then use them.
//!
//! The server may be part of the adapter, or stand beside it and feed the adapter's source.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::case::Stop;

/// Seconds after which a sample of a fixture must no longer be served.
pub const STALE_AFTER_SECONDS: u64 = 20;

/// Everything that there is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fixture {
    /// Where series and namespaced objects are.
    pub namespace: String,
    /// Samples older than this are stale.
    pub stale_after_seconds: u64,
    /// One sample each.
    pub series: Vec<Series>,
    /// Objects that exist. A series of any other object is of one that is gone.
    pub objects: Vec<Object>,
    /// What stands between the adapter and its metrics: a Prometheus, KEDA's operator.
    pub backend: Backend,
    /// What the ConfigMap `extension-apiserver-authentication` says; as at the start without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// Who may read metrics; as at the start without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readers: Option<Vec<Reader>>,
}

/// A series with its newest sample.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// The metric, as its source spells it.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// As Prometheus writes numbers: `1.5`, `NaN`, `+Inf`.
    pub value: String,
    /// How old the sample is.
    pub age_seconds: u64,
    /// The object that it describes: a custom metric. An external one without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectName>,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectName {
    /// `pods`, `nodes` or `namespaces`.
    pub resource: String,
    /// Its name.
    pub name: String,
}

/// An object that exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Object {
    /// `pods`, `nodes` or `namespaces`.
    pub resource: String,
    /// Its name.
    pub name: String,
    /// The labels in its metadata.
    pub labels: BTreeMap<String, String>,
}

/// How the component behind the adapter behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// At once.
    #[default]
    Answering,
    /// After ten seconds.
    Slow,
    /// Not at all: connections to it fail.
    Down,
}

/// Whom to believe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    /// `requestheader-client-ca-file` (PEM).
    pub requestheader_client_ca: String,
    /// `requestheader-allowed-names`.
    pub requestheader_allowed_names: Vec<String>,
    /// `client-ca-file` (PEM).
    pub client_ca: String,
}

/// A user who may read every metric.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reader {
    /// The user's name.
    pub user: String,
    /// Extra of the user that must be there as well, with one of these values.
    #[serde(default)]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Fixture {
    pub(super) fn of(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            stale_after_seconds: STALE_AFTER_SECONDS,
            ..Self::default()
        }
    }

    /// And this external series.
    pub(super) fn external(mut self, name: &str, labels: &[(&str, &str)], value: &str) -> Self {
        let (name, value, labels) = (name.to_owned(), value.to_owned(), owned(labels));
        self.series.push(Series { name, labels, value, age_seconds: 0, object: None });
        self
    }

    /// And this series of an object.
    pub(super) fn of_object(
        mut self,
        resource: &str,
        object: &str,
        name: &str,
        value: &str,
    ) -> Self {
        self.series.push(Series {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            value: value.to_owned(),
            age_seconds: 0,
            object: Some(ObjectName { resource: resource.to_owned(), name: object.to_owned() }),
        });
        self
    }

    /// The last series' sample is so old, and has these labels too.
    pub(super) fn last(mut self, age_seconds: u64, labels: &[(&str, &str)]) -> Self {
        if let Some(series) = self.series.last_mut() {
            series.age_seconds = age_seconds;
            series.labels.extend(owned(labels));
        }
        self
    }

    /// And this object.
    pub(super) fn object(mut self, resource: &str, name: &str, labels: &[(&str, &str)]) -> Self {
        let (resource, name) = (resource.to_owned(), name.to_owned());
        self.objects.push(Object { resource, name, labels: owned(labels) });
        self
    }

    pub(super) fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    pub(super) fn authentication(mut self, authentication: Authentication) -> Self {
        self.authentication = Some(authentication);
        self
    }

    pub(super) fn reader(mut self, user: &str, extra: &[(&str, &str)]) -> Self {
        let extra = extra.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()]));
        let reader = Reader { user: user.to_owned(), extra: extra.collect() };
        self.readers.get_or_insert_default().push(reader);
        self
    }

    /// The parts that an adapter may not be able to stage.
    fn parts(&self) -> Vec<&'static str> {
        let custom = !self.objects.is_empty() || self.series.iter().any(|s| s.object.is_some());
        [
            ("custom", custom),
            ("nodes", self.objects.iter().any(|object| object.resource == "nodes")),
            ("backend", self.backend != Backend::Answering),
            ("authentication", self.authentication.is_some()),
            ("readers", self.readers.is_some()),
        ]
        .into_iter()
        .filter_map(|(part, used)| used.then_some(part))
        .collect()
    }
}

fn owned(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What a server of the contract answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Staged {
    /// Parts that it cannot stage: `custom`, `nodes`, `backend`, `authentication`, `readers`. And `readiness`: of a backend
    /// that is down, `/readyz` says nothing, since there is none behind all metrics.
    pub unsupported: Vec<String>,
}

impl Staged {
    pub(super) fn lacks(&self, part: &str) -> bool {
        self.unsupported.iter().any(|other| other == part)
    }
}

/// How the external metrics are called that an adapter can serve, where that is not free.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Names {
    /// The metric that every external series is of.
    pub external_metric: Option<String>,
    /// The labels that each of its series has, at least two; a fixture may leave some to the adapter.
    pub labels: Vec<String>,
}

/// The client of the contract.
#[derive(Debug)]
pub(super) struct Control {
    http: reqwest::Client,
    url: String,
}

impl Control {
    pub(super) fn new(http: reqwest::Client, url: &str) -> Self {
        Self { http, url: format!("{}/fixture", url.trim_end_matches('/')) }
    }

    /// The names that are fixed; a server that says none has none.
    pub(super) async fn names(&self) -> Names {
        let answer = self.http.get(&self.url).send().await;
        match answer.and_then(reqwest::Response::error_for_status) {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => Names::default(),
        }
    }

    /// Makes the fixture true.
    pub(super) async fn stage(&self, fixture: &Fixture) -> Result<Staged, Stop> {
        let broken =
            |error: String| Stop::skip(format!("the fixture could not be staged: {error}"));
        let answer = self.http.put(&self.url).json(fixture).send().await;
        let answer = answer.map_err(|error| broken(super::wire::chain(&error)))?;
        if !answer.status().is_success() {
            return Err(broken(format!("PUT {} was answered with {}", self.url, answer.status())));
        }
        let body = answer.bytes().await.map_err(|error| broken(super::wire::chain(&error)))?;
        let staged: Staged = serde_json::from_slice(&body).unwrap_or_default();
        let parts = fixture.parts();
        match parts.into_iter().find(|part| staged.lacks(part)) {
            Some(part) => Err(Stop::skip(format!("its fixture cannot stage {part:?}"))),
            None => Ok(staged),
        }
    }
}
