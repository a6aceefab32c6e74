//! ValidatingAdmissionPolicies: CEL expressions that writes must satisfy (KEP-3488).

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::GROUP;
use super::policies::{default_policy, policy_columns, policy_row, validate_common};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, with_status};
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::{Path, names};

/// Reasons that a refusal may carry.
const REASONS: [&str; 4] = [
    "Forbidden",
    "Invalid",
    "RequestEntityTooLarge",
    "Unauthorized",
];

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        GROUP,
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        Policies,
    )
    .categories(&["api-extensions"])
    .status()
    .build()
}

struct Policies;

impl Strategy for Policies {
    fn default(&self, object: &mut Value) {
        default_policy(object);
    }

    with_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        validate_common(spec, &path, &mut errors);
        if spec["validations"].is_empty() && spec["auditAnnotations"].is_empty() {
            let message = "validations or auditAnnotations must be non-empty";
            errors.required(
                path.child("validations"),
                format!("{message}; at least one of them must be specified"),
            );
            errors.required(
                path.child("auditAnnotations"),
                format!("{message}; at least one of them must be specified"),
            );
        }
        for (i, validation) in spec["validations"].items().iter().enumerate() {
            validate_validation(validation, &path.child("validations").index(i), &mut errors);
        }
        for (i, annotation) in spec["auditAnnotations"].items().iter().enumerate() {
            let path = path.child("auditAnnotations").index(i);
            let key = annotation["key"].text();
            if key.is_empty() {
                errors.required(path.child("key"), "");
            }
            let full = format!("{}/{key}", object["metadata"]["name"].text());
            for message in names::qualified_name(&full) {
                errors.invalid(path.child("key"), key, message);
            }
            if annotation["valueExpression"].text().trim().is_empty() {
                errors.required(path.child("valueExpression"), "");
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn columns(&self) -> Vec<Column> {
        policy_columns("Validations")
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        policy_row(object, "validations", now)
    }
}

fn validate_validation(validation: &Value, path: &Path, errors: &mut FieldErrors) {
    if validation["expression"].text().trim().is_empty() {
        errors.required(path.child("expression"), "expression is not specified");
    }
    let message = &validation["message"];
    if message.present() {
        let text = message.text();
        if text.trim().is_empty() {
            errors.invalid(
                path.child("message"),
                text,
                "message must be non-empty if specified",
            );
        } else if text.contains('\n') {
            errors.invalid(
                path.child("message"),
                text,
                "message must not contain line breaks",
            );
        }
    }
    let expression = &validation["messageExpression"];
    if expression.present() && expression.text().trim().is_empty() {
        errors.invalid(
            path.child("messageExpression"),
            expression.text(),
            "must be non-empty if specified",
        );
    }
    let reason = &validation["reason"];
    if reason.present() && !REASONS.contains(&reason.text()) {
        errors.not_supported(path.child("reason"), reason.text(), &REASONS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_policy_matches_something_and_says_what_must_hold() {
        let mut policy = json!({"metadata": {"name": "p"}, "spec": {
            "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]},
            "validations": [{"expression": "object.spec.replicas <= 5"}],
        }});
        Policies.default(&mut policy);
        assert!(Policies.validate_create(&policy).is_empty());
        assert_eq!(
            policy["spec"]["matchConstraints"]["resourceRules"][0]["scope"],
            "*"
        );
        policy["spec"] = json!({"failurePolicy": "Fail"});
        let fields: Vec<String> = Policies
            .validate_create(&policy)
            .0
            .into_iter()
            .map(|e| e.field)
            .collect();
        assert_eq!(
            fields,
            [
                "spec.matchConstraints",
                "spec.validations",
                "spec.auditAnnotations"
            ]
        );
    }
}
