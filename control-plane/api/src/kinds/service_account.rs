//! ServiceAccounts: who pods are.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, without_status};
use super::walk::Walk;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_row_counts_secrets() {
        let account = json!({"metadata": {"name": "sa"}, "secrets": [{"name": "a"}]});
        let row = ServiceAccounts.row(&account, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(Value::from(row), json!(["sa", 1, "<unknown>"]));
    }
}
