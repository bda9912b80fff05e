//! Requests as the aggregator and the HPA send them, and answers as they came.
//!
//! In: a path, and who asks. Out: an [`Answer`]. Never: a redirect followed, a retry, or a proxy.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, redirect};
use serde_json::Value;
use tokio::time::Instant;

use super::case::{Stop, expect};
use super::options::{ClientCertificate, Options};
use super::suite::ConformanceError;

/// The aggregator's own limit for discovery is 5 s (kube-aggregator `remote_available_controller.go`); its limit for metrics
/// is a minute, of which nobody should wait more than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of a body that a report shows.
const SHOWN_CHARACTERS: usize = 160;

/// As whom the API server asks for discovery.
pub(super) const AGGREGATOR: &str = "system:kube-aggregator";

/// Opens connections to the adapter.
#[derive(Debug)]
pub(super) struct Wire {
    options: Options,
    base: String,
    at: Option<SocketAddr>,
    usual: reqwest::Client,
}

/// How a request shows who sends it.
#[derive(Clone, Debug)]
pub(super) enum Credentials {
    /// As the options say.
    Usual,
    /// Nothing.
    Nobody,
    /// `Authorization: Bearer`.
    Token(String),
    /// A TLS client certificate.
    Certificate(ClientCertificate),
}

/// A request before it is sent.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    wire: &'a Wire,
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    speaks_for: Option<Vec<(String, String)>>,
    credentials: Credentials,
    http1_only: bool,
}

/// What came back.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// Method and path.
    pub(super) request: String,
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) took: Duration,
    pub(super) version: reqwest::Version,
}

impl Wire {
    /// # Errors
    /// A URL, certificate or key that is none.
    pub(super) async fn new(options: &Options) -> Result<Self, ConformanceError> {
        let mut base = options.url.trim_end_matches('/').to_owned();
        let mut url: reqwest::Url =
            base.parse().map_err(|_| ConformanceError::Url(options.url.clone()))?;
        let address = async |host: &str, port: u16| {
            let found = tokio::net::lookup_host((host.trim_matches(['[', ']']), port)).await;
            found.ok().and_then(|mut addresses| addresses.next())
        };
        let (host, port) = url
            .host_str()
            .zip(url.port_or_known_default())
            .ok_or_else(|| ConformanceError::Url(options.url.clone()))?;
        let at = address(host, port).await;
        if let Some(name) = &options.server_name {
            url.set_host(Some(name)).map_err(|_| ConformanceError::Url(name.clone()))?;
            base = url.as_str().trim_end_matches('/').to_owned();
        }
        let own = match &options.front_proxy {
            Some(certificate) => Credentials::Certificate(certificate.clone()),
            None => Credentials::Nobody,
        };
        let usual = client(options, at, &own, false).map_err(ConformanceError::Client)?;
        Ok(Self { options: options.clone(), base, at, usual })
    }

    pub(super) fn get(&self, path: impl Into<String>) -> Ask<'_> {
        Ask {
            wire: self,
            method: Method::GET,
            path: path.into(),
            headers: Vec::new(),
            speaks_for: None,
            credentials: Credentials::Usual,
            http1_only: false,
        }
    }

    /// Where the TLS connection goes, if it is one.
    pub(super) fn tls_address(&self) -> Option<SocketAddr> {
        self.at.filter(|_| self.base.starts_with("https://"))
    }
}

fn client(
    options: &Options,
    at: Option<SocketAddr>,
    credentials: &Credentials,
    http1_only: bool,
) -> Result<reqwest::Client, reqwest::Error> {
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(PATIENCE)
        .tls_danger_accept_invalid_certs(options.accept_any_certificate);
    if let Some(pem) = &options.ca_pem {
        builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    if let (Some(name), Some(at)) = (&options.server_name, at) {
        builder = builder.resolve(name, at);
    }
    if let Credentials::Certificate(certificate) = credentials {
        let both = [&certificate.certificate_pem[..], b"\n", &certificate.key_pem].concat();
        builder = builder.identity(reqwest::Identity::from_pem(&both)?);
    }
    if http1_only {
        builder = builder.http1_only();
    }
    builder.build()
}

impl Ask<'_> {
    pub(super) fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn accept(self, media_types: &str) -> Self {
        self.header(ACCEPT.as_str(), media_types)
    }

    pub(super) fn by(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    pub(super) fn http1_only(mut self) -> Self {
        self.http1_only = true;
        self
    }

    /// X-Remote headers, as the front proxy sends them.
    pub(super) fn speaking_for(mut self, user: &str, groups: &[&str]) -> Self {
        let user = [("X-Remote-User".to_owned(), user.to_owned())];
        let groups = groups.iter().map(|group| ("X-Remote-Group".to_owned(), (*group).to_owned()));
        self.speaks_for = Some(user.into_iter().chain(groups).collect());
        self
    }

    /// As the aggregator asks for its own purposes, where the suite has the front proxy's certificate.
    pub(super) fn by_aggregator(self, groups: &[&str]) -> Self {
        if self.wire.options.front_proxy.is_none() {
            return self;
        }
        self.speaking_for(AGGREGATOR, groups)
    }

    /// Sends it; no answer is a failure of the case.
    pub(super) async fn send(self) -> Result<Answer, Stop> {
        let request = format!("{} {}", self.method, self.path);
        let url = format!("{}{}", self.wire.base, self.path);
        let no_answer = |error: &reqwest::Error| {
            Stop::fail("an answer", format!("{request}: {}", chain(error)))
        };
        let started = Instant::now();
        let sent = self.prepare(&url).map_err(|error| no_answer(&error))?.send().await;
        let mut answer = sent.map_err(|error| no_answer(&error))?;
        let (status, version) = (answer.status().as_u16(), answer.version());
        let headers = std::mem::take(answer.headers_mut());
        let body = answer.bytes().await.map_err(|error| no_answer(&error))?.to_vec();
        Ok(Answer { request, status, headers, body, took: started.elapsed(), version })
    }

    fn prepare(self, url: &str) -> Result<reqwest::RequestBuilder, reqwest::Error> {
        let options = &self.wire.options;
        let usual = matches!(self.credentials, Credentials::Usual);
        let credentials = match (self.credentials, &options.front_proxy) {
            (Credentials::Usual, Some(proxy)) => Credentials::Certificate(proxy.clone()),
            (Credentials::Usual, None) => {
                options.token.clone().map_or(Credentials::Nobody, Credentials::Token)
            }
            (shown, _) => shown,
        };
        let http = if usual && !self.http1_only {
            self.wire.usual.clone()
        } else {
            client(options, self.wire.at, &credentials, self.http1_only)?
        };
        let mut request = http.request(self.method, url);
        if let Credentials::Token(token) = &credentials {
            request = request.bearer_auth(token);
        }
        let own = usual && options.front_proxy.is_some();
        let own =
            own.then(|| vec![("X-Remote-User".to_owned(), options.requestheader_user.clone())]);
        for (name, value) in self.speaks_for.or(own).into_iter().flatten().chain(self.headers) {
            request = request.header(name, value);
        }
        Ok(request)
    }
}

impl Answer {
    /// The media type, without its parameters.
    pub(super) fn media_type(&self) -> &str {
        self.content_type().split(';').next().unwrap_or_default().trim()
    }

    pub(super) fn content_type(&self) -> &str {
        self.header(CONTENT_TYPE.as_str()).unwrap_or_default()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn has_status(&self, expected: u16) -> Result<(), Stop> {
        expect(self.status == expected, expected.to_string(), self)
    }

    /// The body, of a 200 in JSON that says so.
    pub(super) fn json(&self) -> Result<Value, Stop> {
        self.has_status(200)?;
        let expected = "Content-Type: application/json";
        expect(self.media_type() == "application/json", expected, self)?;
        serde_json::from_slice(&self.body).map_err(|_| Stop::fail("a JSON body", self))
    }

    /// The body, if it is an object of this kind.
    pub(super) fn kind(&self, kind: &str) -> Result<Value, Stop> {
        let body = self.json()?;
        expect(body["kind"] == kind, format!("kind {kind}"), self)?;
        Ok(body)
    }

    /// A refusal or failure with one of these codes, whose `metav1.Status` carries the message to the HPA's event.
    pub(super) fn is_refusal(&self, codes: &[u16]) -> Result<Value, Stop> {
        let shown: Vec<String> = codes.iter().map(u16::to_string).collect();
        let expected = format!("{} with a metav1.Status in JSON", shown.join(" or "));
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let right = codes.contains(&self.status)
            && self.media_type() == "application/json"
            && body["kind"] == "Status"
            && body["code"] == self.status
            && body["message"].as_str().is_some_and(|message| !message.is_empty());
        expect(right, expected, self)?;
        Ok(body)
    }
}

/// As a report shows it: the request, the status, the type and how the body begins.
impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.body);
        let clean = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let shown: String = clean.chars().take(SHOWN_CHARACTERS).collect();
        let more = if clean.chars().count() > SHOWN_CHARACTERS { "…" } else { "" };
        let of = match self.content_type() {
            "" => "without Content-Type",
            known => known,
        };
        write!(f, "{}: {} {of} {shown}{more}", self.request, self.status)
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = next.source();
    }
    text
}
