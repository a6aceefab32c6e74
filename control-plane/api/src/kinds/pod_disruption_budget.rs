//! PodDisruptionBudgets: how many pods may be evicted at a time.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, with_status};
use super::walk::Walk;
use super::workload::{validate_int_or_percent, validate_not_over_100};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, count, name, name_column};
use crate::validation::selector::validate_label_selector;
use crate::validation::{Path, non_negative, one_of_or_none, validate_conditions};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        Budgets,
    )
    .short_names(&["pdb"])
    .status()
    .build()
}

struct Budgets;

impl Strategy for Budgets {
    with_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        if spec["minAvailable"].present() && spec["maxUnavailable"].present() {
            errors.invalid(
                &path,
                spec.clone(),
                "minAvailable and maxUnavailable cannot be both set",
            );
        }
        for field in ["minAvailable", "maxUnavailable"] {
            validate_int_or_percent(&spec[field], &path.child(field), &mut errors);
            validate_not_over_100(&spec[field], &path.child(field), &mut errors);
        }
        validate_label_selector(&spec["selector"], &path.child("selector"), &mut errors);
        one_of_or_none(
            &spec["unhealthyPodEvictionPolicy"],
            &["AlwaysAllow", "IfHealthyBudget"],
            &path.child("unhealthyPodEvictionPolicy"),
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (status, path) = (&object["status"], Path::new("status"));
        validate_conditions(
            &status["conditions"],
            &path.child("conditions"),
            &mut errors,
        );
        for count in [
            "disruptionsAllowed",
            "currentHealthy",
            "desiredHealthy",
            "expectedPods",
        ] {
            non_negative(&status[count], &path.child(count), &mut errors);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Min Available", "string", "How many pods must stay."),
            column("Max Unavailable", "string", "How many pods may be away."),
            column(
                "Allowed Disruptions",
                "integer",
                "How many pods may be evicted now.",
            ),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let shown = |value: &Value| match value {
            Value::Null => Value::from("N/A"),
            Value::String(text) => text.as_str().into(),
            other => other.to_string().into(),
        };
        let spec = &object["spec"];
        vec![
            name(object),
            shown(&spec["minAvailable"]),
            shown(&spec["maxUnavailable"]),
            count(&object["status"]["disruptionsAllowed"]),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_of_a_status_are_not_negative() {
        let counted = json!({"status": {"disruptionsAllowed": 0, "currentHealthy": -1}});
        let errors = Budgets.validate_status_update(&counted, &json!({}));
        assert_eq!(
            crate::kinds::workload::fixture::texts(&errors),
            ["status.currentHealthy: Invalid value: -1: must be greater than or equal to 0"]
        );
    }

    #[test]
    fn a_budget_is_said_in_one_way() {
        let errors =
            Budgets.validate_create(&json!({"spec": {"minAvailable": 1, "maxUnavailable": "50%"}}));
        assert!(
            errors.0[0]
                .text()
                .ends_with("minAvailable and maxUnavailable cannot be both set")
        );
        assert!(
            Budgets
                .validate_create(&json!({"spec": {"minAvailable": "50%"}}))
                .is_empty()
        );
        assert!(
            !Budgets
                .validate_create(&json!({"spec": {"minAvailable": "150%"}}))
                .is_empty()
        );
    }
}
