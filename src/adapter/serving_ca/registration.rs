//! An `APIService` as far as serving needs it: whose it is, and which CAs kube-apiserver trusts for it.
//!
//! In: the object, and our Service. Out: a [`Registration`], and writes of `caBundle`. Never: a write to an APIService of
//! another Service, unless told to take it over.

use k8s_openapi::ByteString;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tracing::{info, warn};

use super::super::serving_certificate::chain;
use super::authority::{Authority, CaCertificate};
use super::problem::Problem;

/// Owner of `caBundle` in `metadata.managedFields`.
pub(super) const FIELD_MANAGER: &str = "headroom-serving-ca";

/// Recorded for what `--take-over` changed; another one, or a later apply of `caBundle` would remove these fields.
pub(super) const TAKE_OVER_MANAGER: &str = "headroom-take-over";

/// The Service that kube-apiserver should reach us by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OurService {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) port: u16,
}

/// One APIService, as last read or written.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) name: String,
    pub(super) state: RegistrationState,
}

#[derive(Debug)]
pub(super) enum RegistrationState {
    /// It points at our Service.
    Ours {
        resource_version: Option<String>,
        bundle: String,
    },
    /// It points elsewhere: `owner` in words.
    Foreign {
        resource_version: Option<String>,
        owner: String,
    },
    Missing,
    /// It could not be read: nothing is known.
    Unknown(kube::Error),
}

impl Registration {
    pub(super) async fn read(api: &Api<APIService>, name: &str, ours: &OurService) -> Self {
        let state = match api.get_opt(name).await {
            Ok(Some(object)) => RegistrationState::of(object, ours),
            Ok(None) => RegistrationState::Missing,
            Err(error) => RegistrationState::Unknown(error),
        };
        Self { name: name.to_owned(), state }
    }

    /// The CAs trusted for it, where it is ours.
    pub(super) fn bundle(&self) -> Option<&str> {
        match &self.state {
            RegistrationState::Ours { bundle, .. } => Some(bundle),
            _ => None,
        }
    }

    pub(super) fn trusts(&self, ca_der: &[u8]) -> bool {
        let trusted = CaCertificate::parse_all(self.bundle().unwrap_or_default());
        trusted.iter().any(|ca| ca.der() == ca_der)
    }

    /// Makes `caBundle` that of the authority, by server-side apply of this one field of exactly the version seen.
    pub(super) async fn publish(
        &mut self,
        api: &Api<APIService>,
        authority: &Authority,
        ours: &OurService,
    ) -> kube::Result<()> {
        let RegistrationState::Ours { resource_version, bundle } = &self.state else {
            return Ok(());
        };
        let wanted = authority.bundle();
        if *bundle == wanted {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": self.name, "resourceVersion": resource_version},
            "spec": {"caBundle": ByteString(wanted.into_bytes())},
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = api.patch(&self.name, &params, &Patch::Apply(&patch)).await?;
        info!(name = self.name, "the APIService trusts the serving CA");
        self.state = RegistrationState::of(written, ours);
        Ok(())
    }

    /// Points a foreign APIService, of exactly the version seen, at our Service and CA in one write.
    pub(super) async fn take_over(
        &mut self,
        api: &Api<APIService>,
        authority: &Authority,
        ours: &OurService,
    ) -> kube::Result<()> {
        let RegistrationState::Foreign { resource_version, owner } = &self.state else {
            return Ok(());
        };
        let patch = json!({
            "metadata": {"resourceVersion": resource_version},
            "spec": {
                "service": {"namespace": ours.namespace, "name": ours.name, "port": ours.port},
                // kube-apiserver refuses a bundle beside it.
                "insecureSkipTLSVerify": null,
                "caBundle": ByteString(authority.bundle().into_bytes()),
            },
        });
        let params = PatchParams {
            field_manager: Some(TAKE_OVER_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let written = api.patch(&self.name, &params, &Patch::Merge(&patch)).await?;
        warn!(name = self.name, owner, "took the APIService over");
        self.state = RegistrationState::of(written, ours);
        Ok(())
    }

    /// Why kube-apiserver does not reach us by this APIService with a leaf of this issuer, in one sentence.
    pub(super) fn problem(&self, issuer_der: &[u8]) -> Option<Problem> {
        let name = &self.name;
        Some(match &self.state {
            RegistrationState::Ours { .. } if self.trusts(issuer_der) => return None,
            RegistrationState::Ours { .. } => Problem::waiting(format!(
                "the Lease holder has not written the serving CA into the caBundle of APIService {name} yet"
            )),
            RegistrationState::Foreign { owner, .. } => Problem::needs_action(format!(
                "APIService {name} belongs to {owner}: it is left alone without --take-over"
            )),
            RegistrationState::Missing => {
                Problem::needs_action(format!("APIService {name} does not exist"))
            }
            RegistrationState::Unknown(error) => {
                Problem::failing(format!("cannot read APIService {name}: {}", chain(error)))
            }
        })
    }
}

impl RegistrationState {
    fn of(object: APIService, ours: &OurService) -> Self {
        let resource_version = object.metadata.resource_version;
        let spec = object.spec.unwrap_or_default();
        let Some(service) = spec.service else {
            return Self::Foreign { resource_version, owner: "kube-apiserver itself".to_owned() };
        };
        let (namespace, name) =
            (service.namespace.unwrap_or_default(), service.name.unwrap_or_default());
        if namespace != ours.namespace || name != ours.name {
            return Self::Foreign {
                resource_version,
                owner: format!("Service {namespace}/{name}"),
            };
        }
        let bundle = spec.ca_bundle.unwrap_or_default().0;
        Self::Ours { resource_version, bundle: String::from_utf8_lossy(&bundle).into_owned() }
    }
}
