//! Certificate requests: whoever approves or signs one needs the right to do so for its signer
//! (CertificateApproval, CertificateSigning), and nobody gets a client certificate of `system:masters`
//! (CertificateSubjectRestriction).

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::kinds::walk::Walk;
use balsa_api::status::Status;
use balsa_identity::GROUP_MASTERS;
use balsa_identity::csr::Request;
use base64::Engine as _;
use serde_json::Value;

use super::refuse;
use crate::authz::Authz;
use crate::registry::csr::{API_CLIENT, GROUP, RESOURCE};
use crate::seam::{Admission, AdmissionRequest, Attributes, Authorizer, Decision, Operation};

/// See the module.
pub struct Certificates {
    authz: Arc<Authz>,
}

impl Certificates {
    /// With what decides on rights.
    #[must_use]
    pub fn new(authz: Arc<Authz>) -> Self {
        Self { authz }
    }

    /// Whether the user may `approve` or `sign` for a signer, or for all of its domain.
    async fn may(&self, request: &AdmissionRequest<'_>, verb: &str, signer: &str) -> bool {
        let domain = signer.split('/').next().unwrap_or_default();
        let user = Arc::new(request.user.clone());
        for name in [signer.to_owned(), format!("{domain}/*")] {
            let attributes = Attributes {
                user: Arc::clone(&user),
                verb: verb.into(),
                group: GROUP.into(),
                version: "*".into(),
                resource: "signers".into(),
                name,
                ..Attributes::default()
            };
            if matches!(self.authz.authorize(&attributes).await, Decision::Allow(_)) {
                return true;
            }
        }
        false
    }
}

#[async_trait]
impl Admission for Certificates {
    async fn mutate(&self, _request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        if request.kind.group != GROUP || request.kind.plural != RESOURCE {
            return Ok(());
        }
        let Some(object) = request.object.as_deref() else {
            return Ok(());
        };
        let signer = object["spec"]["signerName"].text();
        match (request.operation, request.subresource, request.old) {
            (Operation::Create, "", _) if signer == API_CLIENT && is_master(object) => {
                let why =
                    format!("use of {signer} signer with system:masters group is not allowed");
                Err(refuse(request, &why))
            }
            (Operation::Update, "approval", Some(_)) => {
                if self.may(request, "approve", signer).await {
                    return Ok(());
                }
                let why =
                    format!("user not permitted to approve requests with signerName {signer:?}");
                Err(refuse(request, &why))
            }
            (Operation::Update, "status", Some(old)) => {
                let issued = object["status"]["certificate"] != old["status"]["certificate"];
                let failed = |o: &Value| {
                    let conditions = o["status"]["conditions"].items();
                    conditions.iter().any(|c| c["type"] == "Failed")
                };
                if !issued && failed(object) == failed(old) {
                    return Ok(());
                }
                let signer = old["spec"]["signerName"].text();
                if self.may(request, "sign", signer).await {
                    return Ok(());
                }
                let why = format!("user not permitted to sign requests with signerName {signer:?}");
                Err(refuse(request, &why))
            }
            _ => Ok(()),
        }
    }
}

fn is_master(object: &Value) -> bool {
    let engine = base64::engine::general_purpose::STANDARD;
    engine
        .decode(object["spec"]["request"].text())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| Request::from_pem(&text).ok())
        .is_some_and(|r| r.identity.organizations.iter().any(|o| o == GROUP_MASTERS))
}
