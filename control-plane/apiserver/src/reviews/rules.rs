//! SelfSubjectRulesReview: all a user may do in a namespace, as far as roles tell.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::Status;
use serde_json::{Value, json};

use super::{stamp, text};
use crate::authz::{Rbac, node_of};
use crate::seam::{Computed, User};

/// Answers rules reviews.
pub struct RulesReview {
    rbac: Arc<Rbac>,
}

impl RulesReview {
    /// Asks the RBAC authorizer.
    #[must_use]
    pub fn new(rbac: Arc<Rbac>) -> Self {
        Self { rbac }
    }
}

#[async_trait]
impl Computed for RulesReview {
    async fn create(
        &self,
        user: &User,
        _namespace: &str,
        _name: &str,
        mut body: Value,
    ) -> Result<Value, Status> {
        let namespace = text(&body["spec"]["namespace"]);
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let rules = self.rbac.rules_of(user, &namespace);
        let (paths, resources): (Vec<_>, Vec<_>) = rules.iter().partition(|r| !r.urls.is_empty());
        let json = |list: Vec<&crate::authz::rules::Rule>| -> Vec<Value> {
            list.iter().map(|r| r.to_json()).collect()
        };
        let mut status = json!({
            "resourceRules": json(resources),
            "nonResourceRules": json(paths),
            "incomplete": false,
        });
        if node_of(user).is_some() {
            status["incomplete"] = true.into();
            status["evaluationError"] =
                "node authorizer does not support user rule resolution".into();
        }
        body["status"] = status;
        stamp(
            &mut body,
            "authorization.k8s.io/v1",
            "SelfSubjectRulesReview",
        );
        Ok(body)
    }
}
