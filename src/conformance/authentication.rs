//! Cases 11 to 17: whom an adapter believes, and who may read.
//!
//! With the fixture contract the suite makes its own authorities and has the adapter believe them; without it the cases use
//! the certificates and users of the options.

use super::authorities::PROXY_NAME;
use super::case::{Case, Check, Outcome, Passed, Stop, expect};
use super::fixture::{Authentication, Fixture};
use super::handshake;
use super::options::ClientCertificate;
use super::suite::{KnownMetric, Suite};
use super::wire::{Answer, Ask, Credentials};

/// May read in fixtures.
const READER: &str = "conformance-reader";
/// May read in fixtures if its extra says so.
const GUEST: &str = "conformance-guest";

pub(super) const CASES: [Case; 7] = [
    Case {
        number: 11,
        name: "the front proxy speaks for the user in X-Remote-User",
        what: "With the front proxy's certificate: a user who may read gets 200, one who may not gets 403 that names them.",
        consequence_for_hpa: "every read is refused, or everybody may read everything",
        check: Check::OnTheWire(|suite| Box::pin(front_proxy(suite))),
    },
    Case {
        number: 12,
        name: "X-Remote headers of anybody else are ignored",
        what: "The same headers without a client certificate, or with one of the ordinary authority: 401, or 403 of the certificate's own user.",
        consequence_for_hpa: "none; whoever reaches the adapter's port is any user they name",
        check: Check::OnTheWire(|suite| Box::pin(impostors(suite))),
    },
    Case {
        number: 13,
        name: "a front-proxy certificate of another name is refused",
        what: "A certificate of the front proxy's authority whose common name is not in `requestheader-allowed-names`: 401.",
        consequence_for_hpa: "none; every holder of such a certificate is any user they name",
        check: Check::OnTheWire(|suite| Box::pin(another_name(suite))),
    },
    Case {
        number: 14,
        name: "X-Remote-Extra keys are percent-decoded",
        what: "`X-Remote-Extra-Foo%2Fbar: x` is the extra `foo/bar` of the user.",
        consequence_for_hpa: "authorizers that look at extra decide wrongly",
        check: Check::OnTheWire(|suite| Box::pin(extra(suite))),
    },
    Case {
        number: 15,
        name: "a rotated front-proxy authority counts at once, the old no more",
        what: "After `requestheader-client-ca-file` changes: certificates of the new authority are believed without a restart, those of the old are not.",
        consequence_for_hpa: "all reads are 401 after a rotation; or revoked keys stay good",
        check: Check::OnTheWire(|suite| Box::pin(rotation(suite))),
    },
    Case {
        number: 16,
        name: "TLS serves HTTP/1.1 and HTTP/2, and asks for the front proxy",
        what: "Both versions are served; the CertificateRequest names the front proxy's authority, or none. (Go sends a certificate only if its issuer is named.)",
        consequence_for_hpa: "the front proxy never shows its certificate: every read is 401",
        check: Check::OnTheWire(|suite| Box::pin(handshakes(suite))),
    },
    Case {
        number: 17,
        name: "who may not read a metric is told 403 in a Status",
        what: "A user without the right: 403 with a `metav1.Status` in JSON.",
        consequence_for_hpa: "its event has a generic sentence instead of who lacks what",
        check: Check::OnTheWire(|suite| Box::pin(forbidden(suite))),
    },
];

/// One series that [`READER`] may read, and the suite's own front proxy.
pub(super) fn believing(suite: &Suite, requestheader_ca: &str) -> Fixture {
    let authentication = Authentication {
        requestheader_client_ca: requestheader_ca.to_owned(),
        requestheader_allowed_names: vec![PROXY_NAME.to_owned()],
        client_ca: suite.clients.pem.clone(),
    };
    let fixture = suite.fixture().external(suite.queue(), &[], "42").authentication(authentication);
    fixture.reader(READER, &[]).reader(GUEST, &[("foo/bar", "x")])
}

fn read<'a>(suite: &'a Suite, certificate: &ClientCertificate, user: &str) -> Ask<'a> {
    let ask = suite.get(suite.external_path(suite.queue(), ""));
    ask.by(Credentials::Certificate(certificate.clone())).speaking_for(user, &[])
}

/// What a read of a metric that exists gives to who may.
fn is_read(answer: &Answer) -> Result<(), Stop> {
    answer.json().map(drop)
}

fn names(answer: &Answer, user: &str) -> Result<(), Stop> {
    let status = answer.is_refusal(&[403])?;
    let named = status["message"].as_str().is_some_and(|message| message.contains(user));
    expect(named, format!("a message that names {user}"), answer)
}

async fn front_proxy(suite: &Suite) -> Outcome {
    suite.must_be_direct()?;
    if suite.has_control() {
        suite.stage(&believing(suite, &suite.front_proxy.pem)).await?;
        let proxy = Suite::certificate(&suite.front_proxy, PROXY_NAME)?;
        is_read(&read(suite, &proxy, READER).send().await?)?;
        names(&read(suite, &proxy, "nobody-at-all").send().await?, "nobody-at-all")?;
        return Ok(Passed::Wholly);
    }
    let reason = "needs --client-cert and --client-key of the front proxy, or --control-url";
    suite.options.front_proxy.as_ref().ok_or_else(|| Stop::skip(reason))?;
    let KnownMetric { name, selector, .. } = suite.known_external().await?;
    let path = suite.external_path(&name, &selector);
    is_read(&suite.get(&path).send().await?)?;
    let nobody = &suite.options.unauthorized_user;
    names(&suite.get(&path).speaking_for(nobody, &[]).send().await?, nobody)?;
    Ok(Passed::Wholly)
}

async fn impostors(suite: &Suite) -> Outcome {
    suite.must_be_direct()?;
    let believed = "401, or 403 of another user";
    let own = |answer: &Answer, user: &str| {
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        let right = answer.status == 401 || (answer.status == 403 && !body.contains(user));
        expect(right, believed, answer)
    };
    if suite.has_control() {
        suite.stage(&believing(suite, &suite.front_proxy.pem)).await?;
        let path = suite.external_path(suite.queue(), "");
        let nobody = suite.get(&path).by(Credentials::Nobody).speaking_for(READER, &[]);
        own(&nobody.send().await?, READER)?;
        let impostor = Suite::certificate(&suite.clients, PROXY_NAME)?;
        own(&read(suite, &impostor, READER).send().await?, READER)?;
        return Ok(Passed::Wholly);
    }
    let path = suite.external_path(suite.queue(), "");
    let (admin, masters) = ("conformance-impostor", ["system:masters"]);
    let nobody = suite.get(&path).by(Credentials::Nobody).speaking_for(admin, &masters);
    own(&nobody.send().await?, admin)?;
    Ok(Passed::Without("a certificate of the ordinary authority: needs --control-url"))
}

async fn another_name(suite: &Suite) -> Outcome {
    suite.must_be_direct()?;
    suite.stage(&believing(suite, &suite.front_proxy.pem)).await?;
    let other = Suite::certificate(&suite.front_proxy, "somebody-else")?;
    read(suite, &other, READER).send().await?.is_refusal(&[401])?;
    Ok(Passed::Wholly)
}

async fn extra(suite: &Suite) -> Outcome {
    suite.must_be_direct()?;
    suite.stage(&believing(suite, &suite.front_proxy.pem)).await?;
    let proxy = Suite::certificate(&suite.front_proxy, PROXY_NAME)?;
    let with = read(suite, &proxy, GUEST).header("X-Remote-Extra-Foo%2Fbar", "x");
    is_read(&with.send().await?)?;
    read(suite, &proxy, GUEST).send().await?.is_refusal(&[403])?;
    Ok(Passed::Wholly)
}

async fn rotation(suite: &Suite) -> Outcome {
    suite.must_be_direct()?;
    let old = Suite::certificate(&suite.front_proxy, PROXY_NAME)?;
    let new = Suite::certificate(&suite.rotated, PROXY_NAME)?;
    suite.stage(&believing(suite, &suite.front_proxy.pem)).await?;
    is_read(&read(suite, &old, READER).send().await?)?;
    suite.stage(&believing(suite, &suite.rotated.pem)).await?;
    is_read(&read(suite, &new, READER).send().await?)?;
    let revoked = read(suite, &old, READER).send().await?;
    expect(revoked.status == 401, "401 for a certificate of the old authority", &revoked)?;
    Ok(Passed::Wholly)
}

async fn handshakes(suite: &Suite) -> Outcome {
    suite.must_be_direct()?;
    let reason = "needs an https:// URL";
    let at = suite.wire.tls_address().ok_or_else(|| Stop::skip(reason))?;
    let ask = || suite.get("/apis/external.metrics.k8s.io/v1beta1").by_aggregator(&[]);
    for (ask, version) in
        [(ask(), reqwest::Version::HTTP_2), (ask().http1_only(), reqwest::Version::HTTP_11)]
    {
        let answer = ask.send().await?;
        let got = format!("{:?} in {answer}", answer.version);
        expect(answer.version == version, format!("{version:?}"), got)?;
    }
    let proxy = if suite.has_control() {
        suite.stage(&believing(suite, &suite.front_proxy.pem)).await?;
        Some(Suite::certificate(&suite.front_proxy, PROXY_NAME)?)
    } else {
        suite.options.front_proxy.clone()
    };
    let name = suite.options.server_name.as_deref().unwrap_or("adapter.conformance.svc");
    let expected = "a CertificateRequest";
    let wanted = handshake::wanted(at, name).await;
    let wanted = wanted.map_err(|error| Stop::fail(expected, error))?;
    let wanted = wanted.ok_or_else(|| Stop::fail(expected, "a handshake without one"))?;
    let issuer = proxy.and_then(|proxy| handshake::issuer(&proxy.certificate_pem));
    match issuer {
        _ if wanted.is_empty() => Ok(Passed::Wholly),
        Some(issuer) => {
            let named = wanted.contains(&issuer);
            let got = format!("{} other names", wanted.len());
            expect(named, "the front proxy's authority in the CertificateRequest, or none", got)?;
            Ok(Passed::Wholly)
        }
        None => Ok(Passed::Without("the authorities it names: needs --client-cert")),
    }
}

async fn forbidden(suite: &Suite) -> Outcome {
    if suite.has_control() {
        suite.must_be_direct()?;
        suite.stage(&believing(suite, &suite.front_proxy.pem)).await?;
        let proxy = Suite::certificate(&suite.front_proxy, PROXY_NAME)?;
        read(suite, &proxy, "nobody-at-all").send().await?.is_refusal(&[403])?;
        return Ok(Passed::Wholly);
    }
    let name = suite.options.external_metric.as_ref().map_or(suite.queue(), |metric| &metric.name);
    let ask = suite.get(suite.external_path(name, ""));
    let ask = match (&suite.options.unauthorized_token, &suite.options.front_proxy) {
        (Some(token), _) => ask.by(Credentials::Token(token.clone())),
        (None, Some(_)) => ask.speaking_for(&suite.options.unauthorized_user, &[]),
        (None, None) => {
            let reason = "needs --unauthorized-token, --client-cert or --control-url";
            return Err(Stop::skip(reason));
        }
    };
    ask.send().await?.is_refusal(&[403])?;
    Ok(Passed::Wholly)
}
