//! Leases: who holds something, and since when.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, without_status};
use super::walk::Walk;
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("coordination.k8s.io", "v1", "Lease", "leases", Leases).build()
}

struct Leases;

impl Strategy for Leases {
    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let spec = &object["spec"];
        if let Some(seconds) = spec["leaseDurationSeconds"].int().filter(|s| *s <= 0) {
            errors.invalid(
                "spec.leaseDurationSeconds",
                seconds,
                "must be greater than 0",
            );
        }
        if let Some(count) = spec["leaseTransitions"].int().filter(|c| *c < 0) {
            errors.invalid(
                "spec.leaseTransitions",
                count,
                "must be greater than or equal to 0",
            );
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Holder", "string", "Who holds the lease."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["spec"]["holderIdentity"].text().into(),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lease_lasts_some_time() {
        let errors = Leases
            .validate_create(&json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}));
        let texts: Vec<String> = errors
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }
}
