//! Namespaces.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, keep_generation};
use super::walk::{Walk, carry_over, child, set};
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, names};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const FINALIZER: &str = "kubernetes";

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster("", "v1", "Namespace", "namespaces", Namespaces)
        .short_names(&["ns"])
        .verbs(&[
            "create", "delete", "get", "list", "patch", "update", "watch",
        ])
        .own_sub("finalize", &["update"])
        .status()
        .build()
}

struct Namespaces;

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        let name = object["metadata"]["name"].text().to_owned();
        if name.is_empty() {
            return;
        }
        if let Some(labels) = child(object, "metadata").and_then(|m| child(m, "labels")) {
            set(labels, NAME_LABEL, name);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({ "phase": "Active" }));
        let Some(spec) = child(object, "spec") else {
            return;
        };
        let mut finalizers = spec["finalizers"].items().to_vec();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.into());
        }
        set(spec, "finalizers", finalizers);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        carry_over(object, old, "status");
        keep_generation(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        keep_generation(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        for finalizer in object["spec"]["finalizers"].items().iter().map(Walk::text) {
            let path = Path::new("spec").child("finalizers");
            for message in names::qualified_name(finalizer) {
                errors.invalid(&path, finalizer, message);
            }
            if !finalizer.contains('/') && finalizer != FINALIZER {
                errors.invalid(
                    &path,
                    finalizer,
                    "name is neither a standard finalizer name nor is it fully qualified",
                );
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let phase = object["status"]["phase"].text();
        let deleted = object["metadata"]["deletionTimestamp"].present();
        if !deleted && phase != "Active" {
            errors.invalid(
                "status.Phase",
                phase,
                "may only be 'Active' if `deletionTimestamp` is empty",
            );
        } else if deleted && phase != "Terminating" {
            errors.invalid(
                "status.Phase",
                phase,
                "may only be 'Terminating' if `deletionTimestamp` is not empty",
            );
        }
        errors
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        vec![(
            "status.phase".into(),
            object["status"]["phase"].text().into(),
        )]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.phase"]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Status",
                "string",
                "Whether the namespace is in use or going away.",
            ),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["status"]["phase"].text().into(),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_active_labelled_and_held_by_its_finalizer() {
        let mut namespace = json!({"metadata": {"name": "n"}});
        Namespaces.default(&mut namespace);
        Namespaces.prepare_create(&mut namespace);
        assert_eq!(
            namespace,
            json!({
                "metadata": {"name": "n", "labels": {"kubernetes.io/metadata.name": "n"}},
                "spec": {"finalizers": ["kubernetes"]},
                "status": {"phase": "Active"},
            })
        );
    }

    #[test]
    fn an_ordinary_update_leaves_the_finalizers_alone() {
        let old = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let mut new = json!({"metadata": {"name": "n"}, "spec": {"finalizers": []}});
        Namespaces.prepare_update(&mut new, &old);
        assert_eq!(
            (&new["spec"], &new["status"]),
            (&old["spec"], &old["status"])
        );
    }

    #[test]
    fn the_phase_follows_the_deletion() {
        let object = json!({"metadata": {}, "status": {"phase": "Terminating"}});
        assert!(
            !Namespaces
                .validate_status_update(&object, &object)
                .is_empty()
        );
    }
}
