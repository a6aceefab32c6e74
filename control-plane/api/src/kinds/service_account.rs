//! ServiceAccounts, and the body of their `/token`.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, without_status};
use super::walk::{Walk, child, fill};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "",
        "v1",
        "ServiceAccount",
        "serviceaccounts",
        ServiceAccounts,
    )
    .short_names(&["sa"])
    .sub(
        "token",
        ["authentication.k8s.io", "v1", "TokenRequest"],
        &["create"],
    )
    .build()
}

struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    without_status!();

    fn validate_create(&self, _object: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    fn validate_update(&self, _object: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Secrets", "string", "How many secrets pods of it may use."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["secrets"].items().len().into(),
            age(object, now),
        ]
    }
}

/// Defaults of a TokenRequest: an hour.
pub fn default_token_request(request: &mut Value) {
    if let Some(spec) = child(request, "spec") {
        fill(spec, "expirationSeconds", 3600);
    }
}

/// Problems of a TokenRequest.
#[must_use]
pub fn validate_token_request(request: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let seconds = request["spec"]["expirationSeconds"]
        .int()
        .unwrap_or_default();
    if seconds < 600 {
        errors.invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration less than 10 minutes",
        );
    } else if seconds > 1 << 32 {
        errors.invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_live_for_an_hour_and_at_least_ten_minutes() {
        let mut request = json!({"spec": {}});
        default_token_request(&mut request);
        assert_eq!(request["spec"]["expirationSeconds"], 3600);
        assert!(validate_token_request(&request).is_empty());
        let errors = validate_token_request(&json!({"spec": {"expirationSeconds": 60}}));
        assert_eq!(
            errors.0[0].text(),
            "spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes"
        );
    }
}
