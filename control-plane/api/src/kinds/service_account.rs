//! ServiceAccounts: who pods are.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, without_status};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, name, name_column};

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
        vec![name_column(), age_column()]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), age(object, now)]
    }
}
