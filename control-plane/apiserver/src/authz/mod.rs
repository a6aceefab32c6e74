//! Authorization: `system:masters` may do everything, then the node authorizer, then RBAC.

pub mod bootstrap;
pub mod escalation;
#[cfg(test)]
pub(crate) mod fake;
pub mod node;
pub mod rbac;
pub mod rules;

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::{Details, Status};

use crate::seam::{Attributes, Authorizer, Decision, ObjectReader, User};

pub use bootstrap::{Ensure, bootstrap_objects, reconcile};
pub use node::{NodeAuthorizer, node_of};
pub use rbac::Rbac;

/// All authorizers, asked in turn.
pub struct Authz {
    node: NodeAuthorizer,
    rbac: Arc<Rbac>,
}

impl Authz {
    /// Over the objects of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self {
            node: NodeAuthorizer::new(Arc::clone(&reader)),
            rbac: Arc::new(Rbac::new(reader)),
        }
    }

    /// The RBAC part, which reviews and escalation checks ask for rules.
    #[must_use]
    pub fn rbac(&self) -> Arc<Rbac> {
        Arc::clone(&self.rbac)
    }
}

/// Whether a user is in the group that is asked for nothing.
#[must_use]
pub fn privileged(user: &User) -> bool {
    user.groups
        .iter()
        .any(|g| g == balsa_identity::GROUP_MASTERS)
}

#[async_trait]
impl Authorizer for Authz {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        if privileged(&attributes.user) {
            return Decision::Allow(String::new());
        }
        let by_node = match self.node.decide(attributes) {
            allowed @ Decision::Allow(_) => return allowed,
            Decision::NoOpinion(why) => why,
        };
        match self.rbac.decide(attributes) {
            Decision::NoOpinion(why) if why.is_empty() => Decision::NoOpinion(by_node),
            other => other,
        }
    }
}

/// The 403 for a request that nobody allows, in upstream's words.
#[must_use]
pub fn forbidden(attributes: &Attributes, reason: &str) -> Status {
    let user = &attributes.user.name;
    let suffix = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    if attributes.resource.is_empty() {
        let message = format!(
            "forbidden: User {user:?} cannot {} path {:?}{suffix}",
            attributes.verb, attributes.path
        );
        let mut status = Status::new(403, "Forbidden", message);
        status.details = Some(Details::default());
        return status;
    }
    let resource = if attributes.subresource.is_empty() {
        attributes.resource.clone()
    } else {
        format!("{}/{}", attributes.resource, attributes.subresource)
    };
    let place = if attributes.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", attributes.namespace)
    };
    let why = format!(
        "User {user:?} cannot {} resource {resource:?} in API group {:?} {place}{suffix}",
        attributes.verb, attributes.group
    );
    Status::forbidden(
        &attributes.group,
        &attributes.resource,
        &attributes.name,
        &why,
    )
}

#[cfg(test)]
mod tests;
