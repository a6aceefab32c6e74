//! SubjectAccessReview and its kin: may somebody do something?

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::{FieldErrors, Status};
use serde_json::{Value, json};

use super::{selector, stamp, strings, text};
use crate::seam::{Attributes, Authorizer, Computed, Decision, User};

const API_VERSION: &str = "authorization.k8s.io/v1";

/// About whom a review asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// SubjectAccessReview.
    Anybody,
    /// LocalSubjectAccessReview: in the namespace of the request.
    AnybodyHere,
    /// SelfSubjectAccessReview.
    Oneself,
}

/// Answers access reviews.
pub struct AccessReview {
    about: About,
    authorizer: Arc<dyn Authorizer>,
}

impl AccessReview {
    /// Asks an authorizer.
    #[must_use]
    pub fn new(about: About, authorizer: Arc<dyn Authorizer>) -> Self {
        Self { about, authorizer }
    }

    fn kind(&self) -> &'static str {
        match self.about {
            About::Anybody => "SubjectAccessReview",
            About::AnybodyHere => "LocalSubjectAccessReview",
            About::Oneself => "SelfSubjectAccessReview",
        }
    }

    fn check(&self, namespace: &str, spec: &Value) -> Result<(), Status> {
        let mut errors = FieldErrors::default();
        if spec["resourceAttributes"].is_object() == spec["nonResourceAttributes"].is_object() {
            errors.invalid(
                "spec.resourceAttributes",
                spec["resourceAttributes"].clone(),
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            );
        }
        if self.about != About::Oneself
            && text(&spec["user"]).is_empty()
            && strings(&spec["groups"]).is_empty()
        {
            errors.invalid(
                "spec.user",
                "",
                "at least one of user or group must be specified",
            );
        }
        selector::check(&spec["resourceAttributes"], &mut errors);
        if self.about == About::AnybodyHere {
            if spec["nonResourceAttributes"].is_object() {
                errors.invalid(
                    "spec.nonResourceAttributes",
                    spec["nonResourceAttributes"].clone(),
                    "disallowed on this kind of request",
                );
            }
            let given = text(&spec["resourceAttributes"]["namespace"]);
            if given != namespace {
                return Err(Status::bad_request(format!(
                    "spec.resourceAttributes.namespace must match namespace: {given}"
                )));
            }
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid(
            self.kind(),
            "authorization.k8s.io",
            "",
            &errors,
        ))
    }
}

/// The request a review describes.
fn attributes(user: User, spec: &Value) -> Attributes {
    let user = Arc::new(user);
    let resource = &spec["resourceAttributes"];
    if resource.is_object() {
        return Attributes {
            user,
            verb: text(&resource["verb"]),
            namespace: text(&resource["namespace"]),
            group: text(&resource["group"]),
            version: text(&resource["version"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            name: text(&resource["name"]),
            path: String::new(),
            fields: selector::fields(&resource["fieldSelector"]),
        };
    }
    let path = &spec["nonResourceAttributes"];
    Attributes {
        user,
        verb: text(&path["verb"]),
        path: text(&path["path"]),
        ..Attributes::default()
    }
}

fn subject(spec: &Value) -> User {
    let extra = spec["extra"].as_object().into_iter().flatten();
    User {
        name: text(&spec["user"]),
        uid: text(&spec["uid"]),
        groups: strings(&spec["groups"]),
        extra: extra
            .map(|(k, v)| (k.to_ascii_lowercase(), strings(v)))
            .collect(),
    }
}

#[async_trait]
impl Computed for AccessReview {
    async fn create(
        &self,
        user: &User,
        namespace: &str,
        _name: &str,
        mut body: Value,
    ) -> Result<Value, Status> {
        let spec = body["spec"].clone();
        self.check(namespace, &spec)?;
        let who = if self.about == About::Oneself {
            user.clone()
        } else {
            subject(&spec)
        };
        let mut status = json!({});
        match self.authorizer.authorize(&attributes(who, &spec)).await {
            Decision::Allow(reason) => {
                status["allowed"] = true.into();
                if !reason.is_empty() {
                    status["reason"] = reason.into();
                }
            }
            Decision::NoOpinion(reason) => {
                status["allowed"] = false.into();
                if !reason.is_empty() {
                    status["reason"] = reason.into();
                }
            }
        }
        body["status"] = status;
        stamp(&mut body, API_VERSION, self.kind());
        Ok(body)
    }
}
