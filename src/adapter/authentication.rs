//! Who is asking.
//!
//! In: the certificate of the connection and the headers of a request. Out: an [`Identity`], nobody, or an error when the API
//! server cannot be asked. Never: a header believed without the front proxy's certificate. Source: apiserver
//! `pkg/authentication/request/headerrequest/requestheader.go`, `…/x509/x509.go`, `pkg/authentication/authenticatorfactory`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::client_cas::{
    ClientCaSettings, ClientCas, PeerCertificate, RequestHeaderSettings, Vouched,
};
use super::request_info::percent_decoded;
use super::review_cache::ReviewCache;
use super::shares::Shares;

/// The group whose members may do everything.
pub(super) const SUPERUSERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ANONYMOUS: &str = "system:anonymous";

/// How long the API server's word on a token stands, for or against it (upstream's default for delegated servers).
const TOKEN_STANDS_FOR: Duration = Duration::from_secs(10);
/// Tokens whose review is kept.
const TOKENS_KEPT: usize = 4096;
/// Longest token that is asked about. Service account tokens have about 1 KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// What the API server says of every token that none of its authenticators took, alone or in a list with what went wrong
/// in them (apiserver `pkg/authentication/request/bearertoken/bearertoken.go`).
const INVALID_TOKEN: &str = "invalid bearer token";
/// Reviews that may be under way at once; of one address, as many as are free.
const REVIEWS_AT_ONCE: usize = 64;

/// Someone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The user's name.
    pub user: String,
    /// The user's id, where the API server gave one.
    pub uid: Option<String>,
    /// Groups, with `system:authenticated` unless the user is anonymous.
    pub groups: Vec<String>,
    /// Extra attributes.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    fn new(user: String, groups: Vec<String>) -> Self {
        Self { user, groups, ..Self::default() }
    }

    fn with_authenticated_group(mut self) -> Self {
        let settled = |group: &String| group == AUTHENTICATED || group == UNAUTHENTICATED;
        if self.user != ANONYMOUS && !self.groups.iter().any(settled) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}

/// How someone was recognised. A closed set: it labels a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// By the front proxy's headers.
    RequestHeader,
    /// By a certificate of the cluster's client CA.
    ClientCertificate,
    /// By a token that the API server knows.
    Token,
    /// By the demo's token.
    StaticToken,
}

impl Means {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::RequestHeader, Self::ClientCertificate, Self::Token, Self::StaticToken];

    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequestHeader => "request_header",
            Self::ClientCertificate => "client_certificate",
            Self::Token => "token",
            Self::StaticToken => "static_token",
        }
    }
}

/// Why it cannot be said who is asking.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// The API server did not answer.
    #[error("cannot review a token")]
    Review(#[source] Box<kube::Error>),
    /// The API server answered that it could not find out, for example because its own webhook is away.
    #[error("the API server failed to review a token: {0}")]
    Failed(String),
    /// Too many tokens are being reviewed, or too many from one address. Anyone can send a token: those that wait must not
    /// take the place of requests that need no review, nor of the tokens of others.
    #[error("too many of the {REVIEWS_AT_ONCE} tokens that may be under review are")]
    Busy,
}

impl AuthenticationError {
    /// What whoever asked is told.
    pub(super) const fn sentence(&self) -> &'static str {
        match self {
            Self::Review(_) => "cannot tell who is asking: the API server does not answer",
            Self::Failed(_) => {
                "cannot tell who is asking: the API server failed to review the token"
            }
            Self::Busy => "cannot tell who is asking: too many tokens are under review",
        }
    }
}

/// The ways to tell who is asking. One is real, the other is for a demo without a cluster.
#[derive(Debug)]
pub enum Authentication {
    /// As the API server does, and with its help.
    Delegated(Delegated),
    /// One token, which makes its bearer a superuser.
    StaticToken(StaticToken),
}

impl Authentication {
    /// Who is asking, from `address`; `None` if nobody is recognised.
    ///
    /// # Errors
    /// [`AuthenticationError`] if a token is there and the API server cannot be asked about it.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&PeerCertificate>,
        address: IpAddr,
    ) -> Result<Option<(Identity, Means)>, AuthenticationError> {
        let found = match self {
            Self::Delegated(delegated) => delegated.authenticate(headers, peer, address).await?,
            Self::StaticToken(token) => token.authenticate(headers),
        };
        Ok(found.map(|(identity, means)| (identity.with_authenticated_group(), means)))
    }
}

impl Authentication {
    /// Whether clients are judged by CAs that are older than the cluster's word on them.
    pub(super) fn refused_cas(&self) -> bool {
        match self {
            Self::Delegated(delegated) => delegated.cas.refused(),
            Self::StaticToken(_) => false,
        }
    }
}

/// Front proxy headers, then client certificates, then tokens.
#[derive(Debug)]
pub struct Delegated {
    cas: Arc<ClientCas>,
    tokens: TokenReviews,
}

impl Delegated {
    /// Judges certificates by `cas` and asks `client` about tokens.
    #[must_use]
    pub fn new(cas: Arc<ClientCas>, client: Client) -> Self {
        Self { cas, tokens: TokenReviews::new(client) }
    }

    async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&PeerCertificate>,
        address: IpAddr,
    ) -> Result<Option<(Identity, Means)>, AuthenticationError> {
        if let Some(peer) = peer
            && let Some(found) = by_certificate(&self.cas.load(), headers, peer)
        {
            return Ok(Some(found));
        }
        match bearer(headers) {
            None => Ok(None),
            Some(token) => {
                let user = self.tokens.review(token, address).await?;
                Ok(user.map(|user| (user, Means::Token)))
            }
        }
    }
}

fn by_certificate(
    settings: &Arc<ClientCaSettings>,
    headers: &HeaderMap,
    peer: &PeerCertificate,
) -> Option<(Identity, Means)> {
    let Vouched { by_client_ca, by_request_header_ca } = peer.vouched(settings);
    if by_request_header_ca
        && let Some(request_header) = settings.request_header()
        && let Some(identity) = from_headers(request_header, headers, peer.common_name())
    {
        return Some((identity, Means::RequestHeader));
    }
    (by_client_ca && !peer.common_name().is_empty()).then(|| {
        let identity =
            Identity::new(peer.common_name().to_owned(), peer.organizations().to_owned());
        (identity, Means::ClientCertificate)
    })
}

/// The identity that the front proxy vouches for. The UID header is not trusted: delegated servers name none by default.
fn from_headers(
    settings: &RequestHeaderSettings,
    headers: &HeaderMap,
    common_name: &str,
) -> Option<Identity> {
    let may_speak = settings.allowed_names.is_empty()
        || settings.allowed_names.iter().any(|name| name == common_name);
    if !may_speak {
        return None;
    }
    let first = |name: &HeaderName| headers.get(name).and_then(|value| text(value.as_bytes()));
    let user = settings.username_headers.iter().filter_map(first).find(|name| !name.is_empty())?;
    let groups = settings.group_headers.iter().flat_map(|name| headers.get_all(name));
    // One more has a place: that of whoever is authenticated.
    let mut named = Vec::with_capacity(8);
    named.extend(groups.filter_map(|value| text(value.as_bytes())).map(str::to_owned));
    let mut identity = Identity::new(user.to_owned(), named);
    for prefix in &settings.extra_header_prefixes {
        for (name, value) in headers {
            let key = name.as_str().strip_prefix(prefix.as_str());
            if let (Some(key), Some(value)) = (key, text(value.as_bytes())) {
                let values = identity.extra.entry(percent_decoded(key)).or_default();
                values.push(value.to_owned());
            }
        }
    }
    Some(identity)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = text(headers.get(header::AUTHORIZATION)?.as_bytes())?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim_start();
    let token = token.split_once(' ').map_or(token, |(token, _)| token);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Asks the API server who a token belongs to, and remembers the answer for a short time.
struct TokenReviews {
    client: Client,
    known: ReviewCache<[u8; 32], Option<Identity>>,
    under_way: Arc<Shares>,
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenReviews")
    }
}

impl TokenReviews {
    fn new(client: Client) -> Self {
        Self {
            client,
            known: ReviewCache::new(TOKENS_KEPT),
            under_way: Shares::new(REVIEWS_AT_ONCE),
        }
    }

    /// Without audiences of its own, as upstream's delegated servers: the API server takes tokens that are meant for itself, and
    /// none that was made for another service.
    async fn review(
        &self,
        token: &str,
        address: IpAddr,
    ) -> Result<Option<Identity>, AuthenticationError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Ok(None);
        }
        let key = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.known.get(&key, Instant::now()) {
            return Ok(known);
        }
        let _share = self.under_way.take(&source_of(address)).ok_or(AuthenticationError::Busy)?;
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| AuthenticationError::Review(Box::new(error)))?;
        let status = answer.status.unwrap_or_default();
        let identity = match (status.authenticated, status.error.as_deref()) {
            (Some(true), _) => status.user.and_then(identity_of),
            (_, None | Some("" | INVALID_TOKEN)) => None,
            // The rest of the list may be a failure that is over at the next request.
            (_, Some(error)) if error.contains(INVALID_TOKEN) => return Ok(None),
            (_, Some(error)) => return Err(AuthenticationError::Failed(error.to_owned())),
        };
        self.known.put(key, identity.clone(), Instant::now(), TOKEN_STANDS_FOR);
        Ok(identity)
    }
}

/// Whom an address stands for: itself, or the /64 of IPv6, of which one machine can have every address.
pub(super) fn source_of(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits() & !u128::from(u64::MAX),
    }
}

fn identity_of(user: UserInfo) -> Option<Identity> {
    Some(Identity {
        user: user.username.filter(|name| !name.is_empty())?,
        uid: user.uid,
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    })
}

/// One token for everything: for `demo`, where no API server can be asked.
pub struct StaticToken {
    hash: [u8; 32],
}

impl StaticToken {
    /// Keeps the token's hash only. An empty token recognises nobody.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self { hash: Sha256::digest(token.as_bytes()).into() }
    }

    /// Compares hashes: how long that takes says nothing about the token.
    fn authenticate(&self, headers: &HeaderMap) -> Option<(Identity, Means)> {
        let given: [u8; 32] = Sha256::digest(bearer(headers)?.as_bytes()).into();
        (given == self.hash).then(|| {
            let groups = vec![SUPERUSERS.to_owned()];
            (Identity::new("headroom-demo".to_owned(), groups), Means::StaticToken)
        })
    }
}

impl std::fmt::Debug for StaticToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StaticToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_read_as_upstream_reads_it() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header value"));
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(read(" bearer abc ").as_deref(), Some("abc"));
        for nothing in ["Bearer", "Bearer ", "Basic abc", "abc", ""] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }

    #[tokio::test]
    async fn too_many_tokens_under_review_is_not_blamed_on_the_api_server() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
        });
        let reviews = Arc::new(TokenReviews::new(Client::new(silent, "default")));
        let (flooder, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut flood = tokio::task::JoinSet::new();
        for token in 0..REVIEWS_AT_ONCE / 2 {
            let reviews = reviews.clone();
            flood.spawn(async move { reviews.review(&token.to_string(), flooder).await });
        }
        tokio::task::yield_now().await;
        let refused =
            tokio::time::timeout(Duration::from_secs(20), reviews.review("token", flooder));
        let error = refused.await.expect("at once").expect_err("there is no place");
        assert_eq!(error.sentence(), "cannot tell who is asking: too many tokens are under review");
        let under_way = reviews.review("token", other);
        let waited = tokio::time::timeout(Duration::from_millis(1), under_way).await;
        assert!(waited.is_err(), "another address still has its tokens reviewed");
    }

    #[test]
    fn one_machine_is_one_source_whatever_address_of_its_network_it_takes() {
        let source = |text: &str| source_of(text.parse().expect("an address"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
    }

    #[test]
    fn the_anonymous_user_is_not_made_an_authenticated_one() {
        let groups = |user: &str, groups: &[&str]| {
            let groups = groups.iter().map(|group| (*group).to_owned()).collect();
            Identity::new(user.to_owned(), groups).with_authenticated_group().groups
        };
        assert_eq!(
            groups("system:anonymous", &["system:unauthenticated"]),
            ["system:unauthenticated"]
        );
        assert_eq!(groups("alice", &["dev"]), ["dev", "system:authenticated"]);
        assert_eq!(groups("alice", &["system:authenticated"]), ["system:authenticated"]);
    }
}
