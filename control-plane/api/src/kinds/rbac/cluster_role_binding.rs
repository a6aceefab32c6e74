//! ClusterRoleBindings: a cluster role granted everywhere.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    GROUP, binding_columns, binding_row, default_binding, validate_binding, validate_role_kept,
};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, without_status};
use crate::status::FieldErrors;

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        GROUP,
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        ClusterRoleBindings,
    )
    .build()
}

struct ClusterRoleBindings;

impl Strategy for ClusterRoleBindings {
    fn default(&self, object: &mut Value) {
        default_binding(object);
    }

    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_binding(object, &["ClusterRole"], false, &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        validate_role_kept(object, old, &mut errors);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        binding_columns()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        binding_row(object, now)
    }
}
