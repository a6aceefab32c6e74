//! ResourceClaims: devices that a pod needs, and those that it got.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::GROUP;
use super::requests::{default_claim_spec, validate_claim_spec};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, keep_generation, update_only_status};
use crate::kinds::walk::{Walk, carry_over, get_mut, same, set};
use crate::status::{ErrorKind, FieldError, FieldErrors};
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, immutable};

/// Most consumers of one claim.
const CONSUMERS_LIMIT: usize = 256;

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::namespaced(GROUP, "v1", "ResourceClaim", "resourceclaims", Claims)
        .status()
        .build()
}

struct Claims;

impl Strategy for Claims {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = get_mut(object, "spec") {
            default_claim_spec(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        keep_generation(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_claim_spec(&object["spec"], &Path::new("spec"), &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        immutable(
            &object["spec"],
            &old["spec"],
            &Path::new("spec"),
            &mut errors,
        );
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (status, path) = (&object["status"], Path::new("status"));
        let consumers = status["reservedFor"].items();
        let at = path.child("reservedFor");
        if consumers.len() > CONSUMERS_LIMIT {
            errors.0.push(FieldError {
                kind: ErrorKind::TooMany,
                field: at.to_string(),
                value: Some(consumers.len().into()),
                detail: format!("must have at most {CONSUMERS_LIMIT} items"),
            });
        }
        if !consumers.is_empty() && status["allocation"].is_null() {
            errors.forbidden(&at, "may not be specified when `allocated` is not set");
        }
        let mut seen = BTreeSet::new();
        for (i, consumer) in consumers.iter().enumerate() {
            for field in ["resource", "name", "uid"] {
                if consumer[field].is_empty() {
                    errors.required(at.index(i).child(field), "");
                }
            }
            if !seen.insert(consumer["uid"].text()) {
                errors.duplicate(at.index(i).child("uid"), consumer["uid"].text());
            }
        }
        let (allocation, before) = (&status["allocation"], &old["status"]["allocation"]);
        if before.present() && allocation.present() && !same(allocation, before) {
            errors.invalid(
                path.child("allocation"),
                allocation.clone(),
                "field is immutable",
            );
        }
        if before.present() && allocation.is_null() && !consumers.is_empty() {
            errors.forbidden(
                path.child("allocation"),
                "must not be deallocated while in use",
            );
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("State", "string", "Whether it is allocated, and in use."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), state(object).into(), age(object, now)]
    }
}

/// `pending`, or `allocated` with what else is true.
fn state(claim: &Value) -> String {
    let mut states = Vec::new();
    if claim["metadata"]["deletionTimestamp"].present() {
        states.push("deleted");
    }
    if claim["status"]["allocation"].is_null() {
        if states.is_empty() {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !claim["status"]["reservedFor"].is_empty() {
            states.push("reserved");
        }
    }
    states.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_keeps_its_spec_and_is_reserved_only_when_allocated() {
        let old = json!({"spec": {"devices": {}}, "status": {}});
        let mut new = old.clone();
        new["spec"]["devices"] = json!({"requests": [{"name": "a", "exactly": {"deviceClassName": "c", "allocationMode": "All"}}]});
        assert_eq!(Claims.validate_update(&new, &old).0[0].field, "spec");
        new["status"] = json!({"reservedFor": [{"resource": "pods", "name": "p", "uid": "1"}]});
        assert_eq!(
            Claims.validate_status_update(&new, &old).0[0].field,
            "status.reservedFor"
        );
        new["status"]["allocation"] = json!({"devices": {}});
        assert!(Claims.validate_status_update(&new, &old).is_empty());
        assert_eq!(state(&new), "allocated,reserved");
    }
}
