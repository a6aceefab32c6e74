//! MutatingAdmissionPolicyBindings: where a policy counts, with which parameters.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::GROUP;
use super::policies::{binding_columns, binding_row, default_binding, validate_binding};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, advance_generation, set_generation};
use crate::kinds::walk::same;
use crate::status::FieldErrors;
use crate::validation::Path;

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        GROUP,
        "v1beta1",
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        Bindings,
    )
    .categories(&["api-extensions"])
    .build()
}

struct Bindings;

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        default_binding(object);
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
        validate_binding(spec, &path, &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn columns(&self) -> Vec<Column> {
        binding_columns()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        binding_row(object, now)
    }
}
