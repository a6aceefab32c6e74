//! ReplicaSets: a number of equal pods.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{
    Declaration, create_with_status, update_only_workload_status, update_with_status,
};
use super::pod::validate::validate_running_template;
use super::walk::{Walk, child, fill, set};
use super::workload;
use crate::kind::{Column, Kind, Name, ScalePaths, Strategy};
use crate::status::FieldErrors;
use crate::table::{
    age, age_column, column, count, name, name_column, workload_cells, workload_columns,
};
use crate::validation::{Path, immutable, non_negative};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("apps", "v1", "ReplicaSet", "replicasets", ReplicaSets)
        .short_names(&["rs"])
        .categories(&["all"])
        .scale()
        .status()
        .build()
}

struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        fill(spec, "replicas", 1);
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        create_with_status(object);
        // The count is never left out: kubectl and controllers read it.
        set(object, "status", json!({ "replicas": 0 }));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        update_with_status(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_workload_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        for field in ["replicas", "minReadySeconds"] {
            non_negative(&spec[field], &path.child(field), &mut errors);
        }
        workload::validate_selector(spec, "deployment", &path, &mut errors);
        let template = path.child("template");
        validate_running_template(
            &spec["template"],
            &spec["selector"],
            "ReplicaSet",
            &template,
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let path = Path::new("spec").child("selector");
        immutable(
            &object["spec"]["selector"],
            &old["spec"]["selector"],
            &path,
            &mut errors,
        );
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
        workload::validate_counts(&object["status"], &parts)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        let replicas = object["status"]["replicas"].int().unwrap_or_default();
        vec![("status.replicas".into(), replicas.to_string())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::warnings(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            name_column(),
            column("Desired", "integer", "How many pods are wanted."),
            column("Current", "integer", "How many pods there are."),
            column("Ready", "integer", "How many pods are ready."),
            age_column(),
        ];
        columns.extend(workload_columns());
        columns
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let mut cells = vec![
            name(object),
            count(&spec["replicas"]),
            count(&status["replicas"]),
            count(&status["readyReplicas"]),
            age(object, now),
        ];
        cells.extend(workload_cells(&spec["template"], &spec["selector"]));
        cells
    }

    fn scale(&self) -> Option<ScalePaths> {
        Some(workload::scale_paths())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::workload::fixture::{texts, workload};

    fn replica_set(spec: Value) -> Value {
        let mut object = workload(spec);
        ReplicaSets.default(&mut object);
        object
    }

    #[test]
    fn one_replica_of_always_running_pods_is_the_default() {
        let object = replica_set(json!({"selector": {"matchLabels": {"app": "web"}}}));
        assert_eq!(object["spec"]["replicas"], 1);
        assert_eq!(
            object["spec"]["template"]["spec"]["restartPolicy"],
            "Always"
        );
        assert!(ReplicaSets.validate_create(&object).is_empty());
    }

    #[test]
    fn the_selector_must_fit_the_template() {
        let object = replica_set(json!({"selector": {"matchLabels": {"app": "other"}}}));
        assert_eq!(
            texts(&ReplicaSets.validate_create(&object)),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"
            ]
        );
        assert_eq!(
            texts(&ReplicaSets.validate_create(&replica_set(json!({})))),
            ["spec.selector: Required value"]
        );
    }

    #[test]
    fn the_row_counts_replicas() {
        let mut object =
            replica_set(json!({"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}));
        object["status"] = json!({"replicas": 3, "readyReplicas": 2});
        let row = ReplicaSets.row(&object, "2026-01-01T00:01:33Z".parse().unwrap());
        assert_eq!(
            Value::from(row),
            json!(["web", 3, 3, 2, "93s", "c", "nginx:1", "app=web"])
        );
    }

    #[test]
    fn a_status_cannot_count_more_than_there_are() {
        let status = json!({"status": {"replicas": 1, "readyReplicas": 2}});
        assert_eq!(
            texts(&ReplicaSets.validate_status_update(&status, &status)),
            ["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"]
        );
    }
}
