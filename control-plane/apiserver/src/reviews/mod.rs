//! Resources that are answered instead of stored: who am I, what may somebody do, whose token is this, and
//! tokens for ServiceAccounts.

pub mod access;
mod audience;
pub mod rules;
mod selector;
pub mod token_request;
pub mod tokens;

use std::sync::Arc;

use balsa_identity::ServiceAccountKeys;
use serde_json::{Value, json};

use crate::authn::{Oidc, TokenVerifier};
use crate::authz::Authz;
use crate::seam::{Computed, ObjectReader, User};

/// A computed resource and where it is served.
pub struct Served {
    /// API group.
    pub group: &'static str,
    /// Resource.
    pub resource: &'static str,
    /// Subresource or empty.
    pub subresource: &'static str,
    /// Answers.
    pub handler: Arc<dyn Computed>,
}

/// All of them.
#[must_use]
pub fn all(
    authz: &Arc<Authz>,
    keys: &Arc<ServiceAccountKeys>,
    reader: &Arc<dyn ObjectReader>,
    oidc: Option<Arc<Oidc>>,
) -> Vec<Served> {
    const AUTHORIZATION: &str = "authorization.k8s.io";
    const AUTHENTICATION: &str = "authentication.k8s.io";
    let serve = |group, resource, subresource, handler| Served {
        group,
        resource,
        subresource,
        handler,
    };
    let review =
        |about| -> Arc<dyn Computed> { Arc::new(access::AccessReview::new(about, authz.clone())) };
    let verifier = TokenVerifier::new(Arc::clone(keys), Arc::clone(reader));
    let request = token_request::TokenRequest::new(
        Arc::clone(keys),
        Arc::clone(reader),
        Arc::clone(authz) as _,
    );
    vec![
        serve(
            AUTHORIZATION,
            "subjectaccessreviews",
            "",
            review(access::About::Anybody),
        ),
        serve(
            AUTHORIZATION,
            "localsubjectaccessreviews",
            "",
            review(access::About::AnybodyHere),
        ),
        serve(
            AUTHORIZATION,
            "selfsubjectaccessreviews",
            "",
            review(access::About::Oneself),
        ),
        serve(
            AUTHORIZATION,
            "selfsubjectrulesreviews",
            "",
            Arc::new(rules::RulesReview::new(authz.rbac())),
        ),
        serve(
            AUTHENTICATION,
            "selfsubjectreviews",
            "",
            Arc::new(tokens::WhoAmI),
        ),
        serve(
            AUTHENTICATION,
            "tokenreviews",
            "",
            Arc::new(tokens::TokenReview::new(verifier, oidc)),
        ),
        serve("", "serviceaccounts", "token", Arc::new(request)),
    ]
}

/// `UserInfo` of `authentication.k8s.io/v1`.
fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = user.groups.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// Sets what an answer always says about itself.
fn stamp(body: &mut Value, api_version: &str, kind: &str) {
    body["apiVersion"] = api_version.into();
    body["kind"] = kind.into();
    if !body["metadata"].is_object() {
        body["metadata"] = json!({});
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests;
