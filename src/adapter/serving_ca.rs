//! The serving certificate: a CA shared through a Secret, and this replica's leaf signed by it.
//!
//! In: Secret `headroom-serving-ca`, the APIServices, and whether this replica leads. Out: a certificate and key, given to
//! the listener by `install`; the CA in each APIService's `caBundle`. Never: a certificate that kube-apiserver does not
//! trust in place of one that it does, and never a write by a replica that does not lead.
//!
//! The leader makes the CA and publishes it; every replica signs its own leaf. A CA is replaced after two thirds of its
//! year: the new one goes into the bundle first, leaves follow once the bundle has been seen, and the old one leaves the
//! bundle when no leaf of it can be left (`authority.rs`). A Secret deleted by hand is made again in the same order. To
//! distrust a CA at once (a leaked key), stop the adapter, delete the Secret and `caBundle`, and start it again. A Secret
//! that holds something else is never overwritten.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

mod authority;
mod problem;
mod registration;

pub use self::authority::AuthorityError;
use self::authority::{Authority, CaCertificate, Leaf, LeafNames};
use self::problem::Problem;
use self::registration::{OurService, Registration, RegistrationState};
use super::serving_certificate::{InstallError, ServingMetrics, chain};
use crate::probes::{Beat, Condition, Progress};
use crate::time::{Timestamp, wall_now};

/// The Secret's name, in the adapter's namespace.
pub const SECRET_NAME: &str = "headroom-serving-ca";

/// The Secret and the APIServices are looked at so often.
const SETTLED_PERIOD: Duration = Duration::from_secs(10);

/// And so often while something is still to come.
const UNSETTLED_PERIOD: Duration = Duration::from_secs(2);

/// For one look and its writes.
const PASS_TIMEOUT: Duration = Duration::from_secs(10);

/// Several times the slowest round.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// Where the adapter is, and what it serves.
#[derive(Clone, Debug)]
pub struct ServingCaOptions {
    /// The adapter's namespace: of the Secret and the Service.
    pub namespace: String,
    /// The Service by which kube-apiserver reaches the adapter.
    pub service: String,
    /// The Service's port, for `take_over` only.
    pub service_port: u16,
    /// This pod's address, for clients that use it.
    pub pod_ip: Option<IpAddr>,
    /// Names of the APIServices, such as `v1beta1.external.metrics.k8s.io`.
    pub api_services: Vec<String>,
    /// Point an APIService of another Service at ours, in place of reporting it.
    pub take_over: bool,
}

/// Keeps this replica's serving certificate good.
pub struct ServingCa<I> {
    secrets: Api<Secret>,
    api_services: Api<APIService>,
    options: ServingCaOptions,
    leading: watch::Receiver<bool>,
    install: I,
    metrics: ServingMetrics,
    beat: Beat,
    certificate: Condition,
    registered: Condition,
    leaf: Option<InstalledLeaf>,
    /// The CA that every registration of ours was seen to trust in the pass before.
    trusted_before: Option<Vec<u8>>,
    /// What the Secret said to trust when it was last read.
    known: Vec<CaCertificate>,
    /// When kube-apiserver was last known to reach this replica.
    registered_at: Option<Timestamp>,
    problem: Option<Problem>,
}

/// What is remembered of the leaf in use.
#[derive(Debug)]
struct InstalledLeaf {
    issuer_der: Vec<u8>,
    renew_at: Timestamp,
    not_after: Timestamp,
}

#[derive(Debug, thiserror::Error)]
enum ServingCaError {
    #[error("waiting for the Lease holder to make Secret {SECRET_NAME}")]
    NoCaYet,
    #[error(
        "Secret {SECRET_NAME} holds no usable CA, and is not overwritten; delete it to have one made"
    )]
    Unusable(#[source] AuthorityError),
    #[error("cannot read Secret {SECRET_NAME}")]
    Read(#[source] kube::Error),
    #[error("cannot write Secret {SECRET_NAME}")]
    Write(#[source] kube::Error),
    #[error("cannot make a certificate")]
    Make(#[source] AuthorityError),
    #[error("the listener refused the certificate")]
    Install(#[source] InstallError),
    #[error("cannot write APIService {name}")]
    Register { name: String, source: kube::Error },
    #[error("no answer from the Kubernetes API within {PASS_TIMEOUT:?}")]
    Timeout,
}

impl ServingCaError {
    fn into_problem(self) -> Problem {
        let text = chain(&self);
        match self {
            Self::NoCaYet => Problem::waiting(text),
            Self::Read(_) | Self::Write(_) | Self::Register { .. } | Self::Timeout => {
                Problem::failing(text)
            }
            Self::Unusable(_) | Self::Make(_) | Self::Install(_) => Problem::needs_action(text),
        }
    }
}

impl<I> ServingCa<I>
where
    I: Fn(&[u8], &[u8]) -> Result<(), InstallError> + Send + Sync,
{
    /// Adds two readiness conditions to `progress`: a certificate is installed, and the APIServices that lead here trust it.
    /// `install` is given the certificate and the key, both PEM (PKCS #8).
    pub fn new(
        client: kube::Client,
        options: ServingCaOptions,
        leading: watch::Receiver<bool>,
        progress: &Progress,
        metrics: ServingMetrics,
        install: I,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &options.namespace),
            api_services: Api::all(client),
            options,
            leading,
            install,
            metrics,
            beat: progress.add_loop("serving CA", MAX_SILENCE),
            certificate: progress.add_condition("serving certificate"),
            registered: progress.add_condition("API registration"),
            leaf: None,
            trusted_before: None,
            known: Vec::new(),
            registered_at: None,
            problem: None,
        }
    }

    /// Looks and repairs until `shutdown`; at once when this replica begins to lead.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut leading = self.leading.clone();
        loop {
            self.beat.beat();
            let passed = tokio::select! {
                () = shutdown.cancelled() => return,
                passed = timeout(PASS_TIMEOUT, self.pass(wall_now())) => passed,
            };
            let settled = self.report(passed.unwrap_or(Err(ServingCaError::Timeout)), wall_now());
            let pause = if settled { SETTLED_PERIOD } else { UNSETTLED_PERIOD };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => {}
                // An error says that the election has ended; nobody leads then, and the leaf is still renewed.
                Ok(()) = leading.changed() => {}
            }
        }
    }

    /// One look. The leaf comes before the APIServices: what cannot be registered can still be served.
    async fn pass(&mut self, now: Timestamp) -> Result<Vec<Registration>, ServingCaError> {
        let ours = self.our_service();
        let mut registrations = Vec::new();
        for name in &self.options.api_services {
            registrations.push(Registration::read(&self.api_services, name, &ours).await);
        }
        let authority = self.authority(&registrations, now).await?;
        self.renew_leaf(&authority, &registrations, now)?;
        let issuer = authority.certificate().der();
        let trusted =
            registrations.iter().filter(|r| r.bundle().is_some()).all(|r| r.trusts(issuer));
        self.trusted_before = trusted.then(|| issuer.to_vec());
        self.known = authority.trusted().cloned().collect();
        // One that cannot be written does not keep the others from it.
        let mut outcome = Ok(());
        for registration in &mut registrations {
            // Asked again before each write: the Lease may be lost on the way.
            if *self.leading.borrow() {
                outcome = outcome.and(self.register(registration, &authority, &ours).await);
            }
        }
        outcome.map(|()| registrations)
    }

    /// The CA to sign with. The leader makes, rotates and prunes it.
    async fn authority(
        &self,
        registrations: &[Registration],
        now: Timestamp,
    ) -> Result<Authority, ServingCaError> {
        let secret = self.secrets.get_opt(SECRET_NAME).await.map_err(ServingCaError::Read)?;
        let held = secret.as_ref().map(Authority::from_secret).transpose();
        let held = held.map_err(ServingCaError::Unusable)?.flatten();
        let leads = *self.leading.borrow();
        let replacement = match held {
            None if !leads => return Err(ServingCaError::NoCaYet),
            Some(authority) if !leads => return Ok(authority),
            // The Secret is lost, not the leaves: what was trusted of ours stays trusted.
            None => {
                let known = self.known.iter().cloned();
                Authority::generate(now, known.chain(trusted_of_ours(registrations)).collect())
            }
            Some(authority) if authority.is_due(now) => {
                Authority::generate(now, authority.trusted().cloned().collect())
            }
            Some(authority) if authority.has_retired(now) => Ok(authority.without_retired(now)),
            Some(authority) => return Ok(authority),
        };
        self.store(replacement.map_err(ServingCaError::Make)?, secret).await
    }

    /// Writes the CA over the version of the Secret that was read. If someone was faster, theirs is the CA.
    async fn store(
        &self,
        authority: Authority,
        read: Option<Secret>,
    ) -> Result<Authority, ServingCaError> {
        let params = PostParams::default();
        let written = match read {
            Some(mut secret) => {
                secret.data = Some(authority.secret_data());
                self.secrets.replace(SECRET_NAME, &params, &secret).await
            }
            None => self.secrets.create(&params, &new_secret(&authority)).await,
        };
        match written {
            Ok(_) => {
                info!(name = SECRET_NAME, "wrote the serving CA");
                Ok(authority)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let winner =
                    self.secrets.get_opt(SECRET_NAME).await.map_err(ServingCaError::Read)?;
                let winner = winner.as_ref().map(Authority::from_secret).transpose();
                winner.map_err(ServingCaError::Unusable)?.flatten().ok_or(ServingCaError::NoCaYet)
            }
            Err(source) => Err(ServingCaError::Write(source)),
        }
    }

    fn renew_leaf(
        &mut self,
        authority: &Authority,
        registrations: &[Registration],
        now: Timestamp,
    ) -> Result<(), ServingCaError> {
        if let Some(leaf) = &self.leaf {
            let same_issuer = leaf.issuer_der == authority.certificate().der();
            let good = now < leaf.renew_at && same_issuer;
            let expired = leaf.not_after <= now;
            if good || !(same_issuer || expired || self.may_trade(leaf, authority, registrations)) {
                return Ok(());
            }
        }
        let leaf = authority.sign(&self.leaf_names(), now).map_err(ServingCaError::Make)?;
        (self.install)(leaf.certificate_pem.as_bytes(), leaf.key_pem.as_bytes())
            .map_err(ServingCaError::Install)?;
        let Leaf { issuer_der, renew_at, not_after, .. } = leaf;
        self.metrics.in_use(not_after);
        info!(not_after = %not_after, "installed a new serving certificate");
        self.leaf = Some(InstalledLeaf { issuer_der, renew_at, not_after });
        Ok(())
    }

    /// Whether a leaf of another CA may be replaced: the new CA was seen to be trusted twice, a pass apart (there may be
    /// several kube-apiservers, which learn of it in their own time), or the old one is trusted nowhere.
    fn may_trade(
        &self,
        leaf: &InstalledLeaf,
        authority: &Authority,
        registrations: &[Registration],
    ) -> bool {
        if any_unknown(registrations) {
            return false;
        }
        let issuer = authority.certificate().der();
        let mut ours = registrations.iter().filter(|r| r.bundle().is_some());
        let settled = self.trusted_before.as_deref() == Some(issuer)
            && ours.clone().all(|r| r.trusts(issuer));
        settled || ours.all(|r| !r.trusts(&leaf.issuer_der))
    }

    async fn register(
        &self,
        registration: &mut Registration,
        authority: &Authority,
        ours: &OurService,
    ) -> Result<(), ServingCaError> {
        let api = &self.api_services;
        if self.options.take_over {
            let taken = registration.take_over(api, authority, ours).await;
            taken.map_err(|source| register_error(registration, source))?;
        }
        let published = registration.publish(api, authority, ours).await;
        published.map_err(|source| register_error(registration, source))
    }

    /// Conditions, metric and log; says whether nothing is left to do. What worked once stays ready over a failed pass.
    fn report(
        &mut self,
        passed: Result<Vec<Registration>, ServingCaError>,
        now: Timestamp,
    ) -> bool {
        match &self.leaf {
            Some(leaf) if leaf.not_after > now => self.certificate.ready(),
            Some(_) => self.certificate.not_ready("the serving certificate has expired"),
            None => {}
        }
        let problem = match passed {
            Ok(registrations) => self.report_registrations(&registrations, now),
            Err(failure) => {
                if !matches!(failure, ServingCaError::NoCaYet) {
                    self.metrics.failed();
                }
                let problem = failure.into_problem();
                if self.leaf.is_none() {
                    self.certificate.not_ready(problem.text());
                } else if self.registered_at.is_none() {
                    self.registered.not_ready(problem.text());
                }
                Some(problem)
            }
        };
        // When it comes and when it goes, not with every pass.
        if self.problem != problem {
            match &problem {
                Some(problem) => problem.log(),
                None => info!("the serving certificate is installed and trusted"),
            }
            self.problem = problem;
        }
        self.problem.is_none()
    }

    fn report_registrations(
        &mut self,
        registrations: &[Registration],
        now: Timestamp,
    ) -> Option<Problem> {
        let issuer = self.leaf.as_ref().map_or(&[][..], |leaf| &leaf.issuer_der);
        let problem = registrations.iter().find_map(|registration| registration.problem(issuer));
        match &problem {
            // A group that is another adapter's, or not registered, does not take the others away.
            _ if reached(registrations, issuer) => {
                self.registered.ready();
                self.registered_at = Some(now);
            }
            None => {}
            // Nothing is known of it: what was true is not taken back.
            Some(_) if any_unknown(registrations) && self.registered_at.is_some() => {}
            Some(problem) => self.registered.not_ready(problem.text()),
        }
        problem
    }

    fn our_service(&self) -> OurService {
        let ServingCaOptions { namespace, service, service_port, .. } = &self.options;
        OurService { namespace: namespace.clone(), name: service.clone(), port: *service_port }
    }

    fn leaf_names(&self) -> LeafNames {
        let ServingCaOptions { namespace, service, pod_ip, .. } = &self.options;
        LeafNames { service: service.clone(), namespace: namespace.clone(), pod_ip: *pod_ip }
    }
}

/// Whether kube-apiserver reaches us by every APIService that leads here, and there is one.
fn reached(registrations: &[Registration], issuer_der: &[u8]) -> bool {
    let mut ours = registrations.iter().filter(|r| r.bundle().is_some()).peekable();
    ours.peek().is_some() && ours.all(|r| r.trusts(issuer_der))
}

fn any_unknown(registrations: &[Registration]) -> bool {
    registrations.iter().any(|r| matches!(r.state, RegistrationState::Unknown(_)))
}

fn trusted_of_ours(registrations: &[Registration]) -> Vec<CaCertificate> {
    let bundles = registrations.iter().filter_map(Registration::bundle);
    bundles.flat_map(CaCertificate::parse_all).filter(CaCertificate::is_ours).collect()
}

fn new_secret(authority: &Authority) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(SECRET_NAME.to_owned()), ..ObjectMeta::default() },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(authority.secret_data()),
        ..Secret::default()
    }
}

fn register_error(registration: &Registration, source: kube::Error) -> ServingCaError {
    ServingCaError::Register { name: registration.name.clone(), source }
}

#[cfg(test)]
mod tests;
