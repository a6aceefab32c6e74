//! ControllerRevisions: what a controller's template was.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, without_status};
use super::walk::Walk;
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, immutable, non_negative};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevisions",
        ControllerRevisions,
    )
    .build()
}

struct ControllerRevisions;

impl Strategy for ControllerRevisions {
    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        if object["data"].is_null() {
            errors.required("data", "data is mandatory");
        }
        non_negative(&object["revision"], &Path::new("revision"), &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        immutable(
            &object["data"],
            &old["data"],
            &Path::new("data"),
            &mut errors,
        );
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Controller", "string", "Whose revision it is."),
            column("Revision", "integer", "Number of the revision."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let owners = object["metadata"]["ownerReferences"].items();
        let controller = owners
            .iter()
            .find(|o| o["controller"].is_true())
            .map_or_else(
                || "<none>".to_owned(),
                |owner| {
                    let kind = owner["kind"].text().to_lowercase();
                    match owner["apiVersion"].text().split_once('/') {
                        Some((group, _)) => format!("{kind}.{group}/{}", owner["name"].text()),
                        None => format!("{kind}/{}", owner["name"].text()),
                    }
                },
            );
        vec![
            name(object),
            controller.into(),
            object["revision"].int().unwrap_or_default().into(),
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
    fn the_row_names_the_controller() {
        let object = json!({"metadata": {"name": "web-1", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true}]}, "data": {}, "revision": 2});
        let row = ControllerRevisions.row(&object, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(
            Value::from(row),
            json!(["web-1", "statefulset.apps/web", 2, "<unknown>"])
        );
    }

    #[test]
    fn the_data_stays() {
        let errors = ControllerRevisions
            .validate_update(&json!({"data": {"a": 1}}), &json!({"data": {"a": 2}}));
        assert_eq!(
            errors.0[0].text(),
            "data: Invalid value: {\"a\":1}: field is immutable"
        );
    }
}
