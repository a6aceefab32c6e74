//! Questions to the API server: who am I, may I. Answered, never stored.

use std::sync::Arc;

use serde_json::Value;

use super::declare::{CREATE_ONLY, Declaration, default_table, without_status};
use super::walk::Walk;
use crate::kind::{Kind, Strategy};
use crate::status::FieldErrors;
use crate::validation::Path;

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// All review kinds.
pub(super) fn kinds() -> Vec<Arc<Kind>> {
    let review = |group, kind, plural, check| {
        Declaration::cluster(group, "v1", kind, plural, Review { check })
            .verbs(CREATE_ONLY)
            .build()
    };
    vec![
        review(
            AUTHENTICATION,
            "SelfSubjectReview",
            "selfsubjectreviews",
            |_, _| {},
        ),
        review(
            AUTHENTICATION,
            "TokenReview",
            "tokenreviews",
            validate_token,
        ),
        Declaration::namespaced(
            AUTHORIZATION,
            "v1",
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            Review {
                check: validate_local,
            },
        )
        .verbs(CREATE_ONLY)
        .build(),
        review(
            AUTHORIZATION,
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            validate_attributes,
        ),
        review(
            AUTHORIZATION,
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            |_, _| {},
        ),
        review(
            AUTHORIZATION,
            "SubjectAccessReview",
            "subjectaccessreviews",
            validate_subject,
        ),
    ]
}

/// A review with its check.
struct Review {
    check: fn(&Value, &mut FieldErrors),
}

impl Strategy for Review {
    without_status!();
    default_table!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        (self.check)(object, &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }
}

fn validate_token(object: &Value, errors: &mut FieldErrors) {
    if object["spec"]["token"].is_empty() {
        errors.required(
            "spec.token",
            "token is required for TokenReview in authentication",
        );
    }
}

fn validate_attributes(object: &Value, errors: &mut FieldErrors) {
    let (path, spec) = (Path::new("spec"), &object["spec"]);
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.present() && other.present() {
        errors.invalid(
            path.child("nonResourceAttributes"),
            other.clone(),
            "cannot be specified in combination with resourceAttributes",
        );
    }
    if resource.is_null() && other.is_null() {
        errors.invalid(
            path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        );
    }
}

fn validate_subject(object: &Value, errors: &mut FieldErrors) {
    validate_attributes(object, errors);
    let spec = &object["spec"];
    if spec["user"].is_empty() && spec["groups"].is_empty() {
        errors.invalid(
            "spec.user",
            "",
            "at least one of user or group must be specified",
        );
    }
}

fn validate_local(object: &Value, errors: &mut FieldErrors) {
    validate_subject(object, errors);
    let spec = &object["spec"];
    if spec["resourceAttributes"].present()
        && spec["resourceAttributes"]["namespace"].text() != object["metadata"]["namespace"].text()
    {
        errors.invalid(
            "spec.resourceAttributes.namespace",
            spec["resourceAttributes"]["namespace"].text(),
            "must match metadata.namespace",
        );
    }
    if spec["nonResourceAttributes"].present() {
        errors.invalid(
            "spec.nonResourceAttributes",
            spec["nonResourceAttributes"].clone(),
            "disallowed on this kind of request",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_question_is_about_one_thing_and_somebody() {
        let texts = |object: Value| {
            let mut errors = FieldErrors::default();
            validate_subject(&object, &mut errors);
            errors
                .0
                .iter()
                .map(crate::status::FieldError::text)
                .collect::<Vec<_>>()
        };
        assert!(
            texts(json!({"spec": {"user": "ann", "resourceAttributes": {"verb": "get"}}}))
                .is_empty()
        );
        assert_eq!(
            texts(json!({"spec": {}})),
            [
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
            ]
        );
    }
}
