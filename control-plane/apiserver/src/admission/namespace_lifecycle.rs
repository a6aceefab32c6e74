//! NamespaceLifecycle: no new objects in namespaces that are missing or going away, and some namespaces
//! are not deleted at all.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use balsa_api::kind::Scope;
use balsa_api::status::{Cause, Status};

use super::{is, refuse};
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

const PROTECTED: [&str; 3] = ["default", "kube-system", "kube-public"];
/// How long a namespace is waited for that this server may only not have seen yet: one made a moment ago
/// through another server.
const WAIT: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(100),
];

/// See the module.
pub struct NamespaceLifecycle {
    reader: Arc<dyn ObjectReader>,
}

impl NamespaceLifecycle {
    /// Over the namespaces of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    async fn namespace(&self, name: &str) -> Option<Arc<serde_json::Value>> {
        let look = || self.reader.get("", "namespaces", "", name);
        let mut found = look();
        for wait in WAIT {
            if found.is_some() {
                break;
            }
            tokio::time::sleep(wait).await;
            found = look();
        }
        found
    }
}

#[async_trait]
impl Admission for NamespaceLifecycle {
    /// Runs before the plugins that look for things in the namespace, so that the answer is about the
    /// namespace and not about them.
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if request.operation == Operation::Delete
            && is(request, "", "namespaces")
            && PROTECTED.contains(&request.name)
        {
            return Err(refuse(request, "this namespace may not be deleted"));
        }
        if request.kind.scope != Scope::Namespaced
            || request.operation != Operation::Create
            || request.kind.plural == "localsubjectaccessreviews"
        {
            return Ok(());
        }
        let name = request.namespace;
        let Some(namespace) = self.namespace(name).await else {
            return Err(Status::not_found("", "namespaces", name));
        };
        if namespace["status"]["phase"] != "Terminating"
            && namespace["metadata"]["deletionTimestamp"].is_null()
        {
            return Ok(());
        }
        let why = format!(
            "unable to create new content in namespace {name} because it is being terminated"
        );
        let mut status = refuse(request, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {name} is being terminated"),
                field: "metadata.namespace".into(),
            });
        }
        Err(status)
    }

    async fn validate(&self, _request: &AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}
