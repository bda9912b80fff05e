//! Where the adapter is, who asks it, and what it is known to serve.
//!
//! In: texts of the command line. Out: [`Options`]. Never: a file or a network.

use std::str::FromStr;

/// What the suite is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The root of the adapter, or of a kube-apiserver, such as `https://127.0.0.1:6443`.
    pub url: String,
    /// The URL is a kube-apiserver's, or `kubectl proxy`'s: cases about the connection to the adapter are skipped.
    pub through_apiserver: bool,
    /// Authorities (PEM) that the serving certificate must chain to; the machine's own without it.
    pub ca_pem: Option<Vec<u8>>,
    /// Take any serving certificate.
    pub accept_any_certificate: bool,
    /// The name in the serving certificate, if it is not the URL's host.
    pub server_name: Option<String>,
    /// The front proxy's client certificate: the suite then speaks as the aggregator does.
    pub front_proxy: Option<ClientCertificate>,
    /// The user that the front proxy speaks for.
    pub requestheader_user: String,
    /// A bearer token, where there is no front proxy.
    pub token: Option<String>,
    /// A token of a user who may not read metrics.
    pub unauthorized_token: Option<String>,
    /// A user who may not read metrics, for the front proxy to speak for.
    pub unauthorized_user: String,
    /// Where the metrics are.
    pub namespace: String,
    /// An external metric that exists.
    pub external_metric: Option<ExternalMetric>,
    /// Metrics of objects that exist.
    pub custom_metrics: Vec<ObjectMetric>,
    /// Picks some of the namespace's pods.
    pub pods_selector: Option<String>,
    /// Where the fixture contract is offered.
    pub control_url: Option<String>,
}

/// Who asks for metrics in a cluster.
pub const HPA_USER: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
/// Nobody has given this user a role.
pub const NOBODY: &str = "headroom-conformance-nobody";

impl Options {
    /// Nothing but the address.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            through_apiserver: false,
            ca_pem: None,
            accept_any_certificate: false,
            server_name: None,
            front_proxy: None,
            requestheader_user: HPA_USER.to_owned(),
            token: None,
            unauthorized_token: None,
            unauthorized_user: NOBODY.to_owned(),
            namespace: "default".to_owned(),
            external_metric: None,
            custom_metrics: Vec::new(),
            pods_selector: None,
            control_url: None,
        }
    }
}

/// A client certificate with its key, both PEM.
#[derive(Clone)]
pub struct ClientCertificate {
    /// The certificate, and its intermediates.
    pub certificate_pem: Vec<u8>,
    /// The private key.
    pub key_pem: Vec<u8>,
}

/// The key is nobody's business.
impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientCertificate")
    }
}

/// Why a text does not name a metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Not the form of an external metric.
    #[error("{0:?} is not NAME or NAME,SELECTOR, such as queue_depth,queue=orders")]
    ExternalMetric(String),
    /// Not the form of an object's metric.
    #[error("{0:?} is not RESOURCE/NAME/METRIC, such as pods/web-0/requests_per_second")]
    ObjectMetric(String),
}

/// `NAME` or `NAME,SELECTOR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalMetric {
    /// As it is in an HPA.
    pub name: String,
    /// A label selector in its query form; empty for every series.
    pub selector: String,
}

impl FromStr for ExternalMetric {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let (name, selector) = text.split_once(',').unwrap_or((text, ""));
        if !is_segment(name) {
            return Err(OptionsError::ExternalMetric(text.to_owned()));
        }
        Ok(Self { name: name.to_owned(), selector: selector.to_owned() })
    }
}

/// `RESOURCE/NAME/METRIC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMetric {
    /// Such as `pods`, `deployments.apps` or `namespaces`.
    pub resource: String,
    /// The object.
    pub name: String,
    /// The metric.
    pub metric: String,
}

impl FromStr for ObjectMetric {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        match *text.split('/').collect::<Vec<_>>() {
            [resource, name, metric] if [resource, name, metric].into_iter().all(is_segment) => {
                let [resource, name, metric] = [resource, name, metric].map(str::to_owned);
                Ok(Self { resource, name, metric })
            }
            _ => Err(OptionsError::ObjectMetric(text.to_owned())),
        }
    }
}

/// What can stand between two slashes of a path as it is.
fn is_segment(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', '%', '?', '#', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_metric_is_a_name_and_perhaps_a_selector() {
        let check = |text: &str, name: &str, selector: &str| {
            let (name, selector) = (name.to_owned(), selector.to_owned());
            assert_eq!(text.parse(), Ok(ExternalMetric { name, selector }), "{text}");
        };
        check("queue_depth", "queue_depth", "");
        check("queue_depth,queue=orders", "queue_depth", "queue=orders");
        check("queue_depth,a in (x,y),b", "queue_depth", "a in (x,y),b");
        for text in ["", ",a=b", "a/b", "50%"] {
            assert!(text.parse::<ExternalMetric>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_metric_of_an_object_has_three_parts() {
        let metric: ObjectMetric = "deployments.apps/web/qps".parse().expect("three parts");
        assert_eq!(
            (metric.resource.as_str(), metric.name.as_str(), metric.metric.as_str()),
            ("deployments.apps", "web", "qps")
        );
        for text in ["", "pods/a", "pods//m", "pods/a/m/x"] {
            assert!(text.parse::<ObjectMetric>().is_err(), "{text}");
        }
    }
}
