//! Runs cases against one adapter.
//!
//! In: [`Options`]. Out: a verdict per case, as they are found. Never: two cases at once, for a fixture is everybody's, and
//! never a fixture left behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::GROUPS;
use super::authorities::Authority;
use super::case::{Case, Check, Stop, Verdict};
use super::fixture::{Control, Fixture, Names, Staged};
use super::options::{ObjectMetric, Options};
use super::report::Report;
use super::wire::{Ask, Wire, chain};

/// Why the suite could not run at all.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    /// Not a URL.
    #[error("{0:?} is not a URL such as https://127.0.0.1:6443")]
    Url(String),
    /// A certificate or key that is none.
    #[error("cannot make a client of the certificates given")]
    Client(#[source] reqwest::Error),
    /// The suite's own certificates.
    #[error("cannot make certificates")]
    Certificates(#[from] rcgen::Error),
    /// Nobody there.
    #[error("cannot reach the adapter: {0}")]
    Unreachable(String),
    /// No such case.
    #[error("there is no case {0}; there are 1 to 60")]
    NoSuchCase(u8),
}

/// The adapter under test, and the means to ask it.
pub struct Suite {
    pub(super) options: Options,
    pub(super) wire: Wire,
    control: Option<Control>,
    names: Names,
    staged: AtomicBool,
    /// Signs what fixtures make the front proxy's.
    pub(super) front_proxy: Authority,
    /// What it is rotated to.
    pub(super) rotated: Authority,
    /// Signs what fixtures make ordinary clients'.
    pub(super) clients: Authority,
}

/// An external metric that is known to exist.
pub(super) struct KnownMetric {
    /// As the HPA spells it.
    pub(super) name: String,
    /// In its query form.
    pub(super) selector: String,
    /// The suite itself says what its values are.
    pub(super) staged: bool,
}

/// The name of the external metric of most fixtures, where names are free.
const QUEUE: &str = "conformance_queue";
/// Its two series.
pub(super) const QUEUES: [(&str, &str); 2] = [("bar", "42"), ("baz", "43")];

const NEEDS_CONTROL: &str = "needs --control-url";

/// Runs the cases of these numbers, or all; `found` hears of each.
///
/// # Errors
/// [`ConformanceError`] if the suite cannot run: nobody answers, or an option is unusable.
pub async fn run(
    options: Options,
    numbers: &[u8],
    mut found: impl FnMut(&'static Case, &Verdict),
) -> Result<Report, ConformanceError> {
    for number in numbers {
        super::find(*number).ok_or(ConformanceError::NoSuchCase(*number))?;
    }
    let started = Instant::now();
    let suite = Suite::new(options).await?;
    suite.reach().await?;
    let mut results = Vec::new();
    for case in GROUPS.iter().flat_map(|group| group.cases) {
        if !numbers.is_empty() && !numbers.contains(&case.number) {
            continue;
        }
        let verdict = suite.decide(case).await;
        found(case, &verdict);
        results.push((case, verdict));
    }
    Ok(Report { url: suite.options.url.clone(), results, took: started.elapsed() })
}

impl Suite {
    async fn new(options: Options) -> Result<Self, ConformanceError> {
        let wire = Wire::new(&options).await?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30));
        let http = http.build().map_err(ConformanceError::Client)?;
        let control = options.control_url.as_deref().map(|url| Control::new(http, url));
        let names = match &control {
            Some(control) => control.names().await,
            None => Names::default(),
        };
        Ok(Self {
            options,
            wire,
            control,
            names,
            staged: AtomicBool::new(false),
            front_proxy: Authority::new("conformance-front-proxy")?,
            rotated: Authority::new("conformance-front-proxy-rotated")?,
            clients: Authority::new("conformance-clients")?,
        })
    }

    /// Any answer will do.
    async fn reach(&self) -> Result<(), ConformanceError> {
        match self.wire.get("/apis/external.metrics.k8s.io/v1beta1").send().await {
            Err(Stop::Fail { got, .. }) => Err(ConformanceError::Unreachable(got)),
            _ => Ok(()),
        }
    }

    async fn decide(&self, case: &Case) -> Verdict {
        let verdict = match case.check {
            Check::InCluster => {
                Verdict::Skipped { reason: "needs a cluster with a running HPA".to_owned() }
            }
            Check::OnTheWire(check) => check(self).await.into(),
        };
        if let (true, Some(control)) = (self.staged.swap(false, Ordering::Relaxed), &self.control)
            && let Err(stop) = control.stage(&Fixture::default()).await
        {
            tracing::warn!(case = case.number, ?stop, "a fixture stayed");
        }
        verdict
    }

    pub(super) fn get(&self, path: impl Into<String>) -> Ask<'_> {
        self.wire.get(path)
    }

    /// Makes the fixture true, or skips the case.
    pub(super) async fn stage(&self, fixture: &Fixture) -> Result<Staged, Stop> {
        let control = self.control.as_ref().ok_or_else(|| Stop::skip(NEEDS_CONTROL))?;
        self.staged.store(true, Ordering::Relaxed);
        control.stage(fixture).await
    }

    pub(super) fn has_control(&self) -> bool {
        self.control.is_some()
    }

    /// The external metric of a fixture, which has this name where names are free.
    pub(super) fn name<'a>(&'a self, free: &'a str) -> &'a str {
        self.names.external_metric.as_deref().unwrap_or(free)
    }

    /// The external metric of most fixtures.
    pub(super) fn queue(&self) -> &str {
        self.name(QUEUE)
    }

    /// A label of external series, which has this name where names are free; the place tells those of a series apart.
    pub(super) fn label<'a>(&'a self, place: usize, free: &'a str) -> &'a str {
        self.names.labels.get(place).map_or(free, String::as_str)
    }

    /// Whether every external series has the same labels.
    pub(super) fn has_fixed_labels(&self) -> bool {
        !self.names.labels.is_empty()
    }

    pub(super) fn fixture(&self) -> Fixture {
        Fixture::of(&self.options.namespace)
    }

    /// Skips what is about the connection to the adapter, where a kube-apiserver is between.
    pub(super) fn must_be_direct(&self) -> Result<(), Stop> {
        let reason = "is between a kube-apiserver and the adapter: needs the adapter's own --url";
        if self.options.through_apiserver { Err(Stop::skip(reason)) } else { Ok(()) }
    }

    /// An external metric that exists: the fixture's queues, or the one of the options.
    pub(super) async fn known_external(&self) -> Result<KnownMetric, Stop> {
        if self.has_control() {
            let queues = QUEUES.iter().fold(self.fixture(), |fixture, (label, value)| {
                fixture.external(self.queue(), &[(self.label(0, "foo"), label)], value)
            });
            self.stage(&queues).await?;
            return Ok(KnownMetric {
                name: self.queue().to_owned(),
                selector: String::new(),
                staged: true,
            });
        }
        let metric = self.options.external_metric.as_ref();
        let reason = "needs --external-metric, one that exists, or --control-url";
        let metric = metric.ok_or_else(|| Stop::skip(reason))?;
        Ok(KnownMetric {
            name: metric.name.clone(),
            selector: metric.selector.clone(),
            staged: false,
        })
    }

    /// A custom metric of an object of this resource, where there is no fixture.
    pub(super) fn known_object(&self, resource: &str) -> Result<&ObjectMetric, Stop> {
        let found = self.options.custom_metrics.iter().find(|metric| metric.resource == resource);
        found.ok_or_else(|| {
            Stop::skip(format!("needs --custom-metric {resource}/NAME/METRIC, or --control-url"))
        })
    }

    /// The path of an external metric.
    pub(super) fn external_path(&self, metric: &str, selector: &str) -> String {
        let namespace = &self.options.namespace;
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}",
            metric.to_lowercase()
        );
        with_selector(path, selector)
    }

    /// A path under the namespace in custom metrics v1beta2.
    pub(super) fn custom_path(&self, rest: &str, selector: &str) -> String {
        let namespace = &self.options.namespace;
        let path = format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/{rest}");
        with_selector(path, selector)
    }

    /// The staged certificates of a client, or a skip: they are made here, so that it does not happen.
    pub(super) fn certificate(
        authority: &Authority,
        name: &str,
    ) -> Result<super::options::ClientCertificate, Stop> {
        authority
            .client(name)
            .map_err(|error| Stop::skip(format!("cannot make a certificate: {}", chain(&error))))
    }
}

/// The selector as Go encodes it: spaces as `+`.
fn with_selector(path: String, selector: &str) -> String {
    if selector.is_empty() {
        return path;
    }
    let mut encoded = String::new();
    for byte in selector.bytes() {
        match byte {
            b' ' => encoded.push('+'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("{path}?labelSelector={encoded}")
}
