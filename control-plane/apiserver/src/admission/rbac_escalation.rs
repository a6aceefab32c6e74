//! RBAC escalation: see [`crate::authz::escalation`].

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::Status;

use super::shown_name;
use crate::authz::escalation::{Write, check};
use crate::authz::{Authz, rbac};
use crate::seam::{Admission, AdmissionRequest, Operation};

/// See the module.
pub struct RbacEscalation {
    authz: Arc<Authz>,
}

impl RbacEscalation {
    /// Asks an authorizer what the user holds.
    #[must_use]
    pub fn new(authz: Arc<Authz>) -> Self {
        Self { authz }
    }
}

#[async_trait]
impl Admission for RbacEscalation {
    async fn mutate(&self, _request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || request.kind.group != rbac::GROUP {
            return Ok(());
        }
        let Some(object) = request.object.as_deref() else {
            return Ok(());
        };
        let write = Write {
            resource: &request.kind.plural,
            namespace: request.namespace,
            name: shown_name(request),
            object,
            old: request.old,
        };
        check(&self.authz, request.user, write).await
    }
}
