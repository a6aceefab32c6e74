//! PriorityClasses.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, keep_generation, set_generation};
use super::walk::{Walk, fill};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, immutable, one_of};

const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
/// Names and values of the classes that the system makes.
pub const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-cluster-critical", 2 * HIGHEST_USER_PRIORITY),
    ("system-node-critical", 2 * HIGHEST_USER_PRIORITY + 1000),
];

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
        PriorityClasses,
    )
    .short_names(&["pc"])
    .build()
}

struct PriorityClasses;

impl Strategy for PriorityClasses {
    fn default(&self, object: &mut Value) {
        fill(object, "preemptionPolicy", "PreemptLowerPriority");
        fill(object, "value", 0);
    }

    fn prepare_create(&self, object: &mut Value) {
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep_generation(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        *object = old.clone();
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let name = object["metadata"]["name"].text();
        let value = object["value"].int().unwrap_or_default();
        if name.starts_with("system-") {
            if !SYSTEM_CLASSES.contains(&(name, value)) {
                errors.forbidden(
                    "metadata.name",
                    format!("priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known system priority class"),
                );
            }
        } else if value > HIGHEST_USER_PRIORITY {
            errors.forbidden(
                "value",
                format!(
                    "maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
                ),
            );
        }
        one_of(
            &object["preemptionPolicy"],
            &["PreemptLowerPriority", "Never"],
            &Path::new("preemptionPolicy"),
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        if object["value"] != old["value"] {
            errors.forbidden("value", "may not be changed in an update.");
        }
        let path = Path::new("preemptionPolicy");
        immutable(
            &object["preemptionPolicy"],
            &old["preemptionPolicy"],
            &path,
            &mut errors,
        );
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Value",
                "integer",
                "Priority of pods of this class; higher goes first.",
            ),
            column(
                "Global-Default",
                "boolean",
                "Whether pods without class get this one.",
            ),
            age_column(),
            column(
                "PreemptionPolicy",
                "string",
                "Whether pods of this class evict others.",
            ),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["value"].int().unwrap_or_default().into(),
            object["globalDefault"].is_true().into(),
            age(object, now),
            object["preemptionPolicy"].text().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn users_may_not_reach_system_priorities() {
        let class = |name: &str, value: i64| {
            let mut class = json!({"metadata": {"name": name}, "value": value});
            PriorityClasses.default(&mut class);
            PriorityClasses.validate_create(&class)
        };
        assert!(class("high", HIGHEST_USER_PRIORITY).is_empty());
        assert!(class("system-node-critical", 2_000_001_000).is_empty());
        assert_eq!(class("system-mine", 1).0[0].field, "metadata.name");
        assert_eq!(
            class("higher", HIGHEST_USER_PRIORITY + 1).0[0].text(),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000"
        );
    }

    #[test]
    fn the_value_stays() {
        let errors = PriorityClasses.validate_update(&json!({"value": 2}), &json!({"value": 1}));
        assert_eq!(
            errors.0[0].text(),
            "value: Forbidden: may not be changed in an update."
        );
    }
}
