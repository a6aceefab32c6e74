//! MutatingAdmissionPolicies: CEL expressions that change writes (KEP-3962).

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::GROUP;
use super::policies::{default_policy, policy_columns, policy_row, validate_common};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, advance_generation, set_generation};
use crate::kinds::walk::{Walk, same};
use crate::status::FieldErrors;
use crate::validation::{Path, one_of};

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        GROUP,
        "v1beta1",
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        Policies,
    )
    .categories(&["api-extensions"])
    .build()
}

struct Policies;

impl Strategy for Policies {
    fn default(&self, object: &mut Value) {
        default_policy(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let changed = !same(&object["spec"], &old["spec"]);
        advance_generation(object, old, changed);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        *object = old.clone();
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        validate_common(spec, &path, &mut errors);
        if spec["mutations"].is_empty() {
            errors.required(
                path.child("mutations"),
                "mutations must contain at least one item",
            );
        }
        for (i, mutation) in spec["mutations"].items().iter().enumerate() {
            validate_mutation(mutation, &path.child("mutations").index(i), &mut errors);
        }
        one_of(
            &spec["reinvocationPolicy"],
            &["IfNeeded", "Never"],
            &path.child("reinvocationPolicy"),
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn columns(&self) -> Vec<Column> {
        policy_columns("Mutations")
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        policy_row(object, "mutations", now)
    }
}

/// Exactly the member that goes with the patch type.
fn validate_mutation(mutation: &Value, path: &Path, errors: &mut FieldErrors) {
    let types = [
        ("ApplyConfiguration", "applyConfiguration"),
        ("JSONPatch", "jsonPatch"),
    ];
    one_of(
        &mutation["patchType"],
        &types.map(|(type_, _)| type_),
        &path.child("patchType"),
        errors,
    );
    for (type_, field) in types {
        let (chosen, there) = (mutation["patchType"] == type_, mutation[field].present());
        if chosen && mutation[field]["expression"].text().trim().is_empty() {
            errors.required(
                path.child(field).child("expression"),
                "expression is not specified",
            );
        } else if !chosen && there {
            errors.invalid(
                path.child(field),
                mutation[field].clone(),
                format!("must not be specified when patchType is not {type_}"),
            );
        }
    }
}
