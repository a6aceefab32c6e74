//! ReplicationControllers: ReplicaSets of old, with a plain map as selector.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, create_with_status, update_only_status, update_with_status};
use super::pod::validate::validate_running_template;
use super::walk::{Walk, child, fill, set};
use super::workload;
use crate::kind::{Column, Kind, Name, ScalePaths, Strategy};
use crate::status::FieldErrors;
use crate::table::{
    age, age_column, column, container_cells, count, labels, name, name_column, workload_columns,
};
use crate::validation::{Path, non_negative};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
        Controllers,
    )
    .short_names(&["rc"])
    .categories(&["all"])
    .scale()
    .status()
    .build()
}

struct Controllers;

impl Strategy for Controllers {
    fn orphans_by_default(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        let of_pods = spec["template"]["metadata"]["labels"].clone();
        if !of_pods.is_empty() && spec["selector"].is_empty() {
            set(spec, "selector", of_pods.clone());
        }
        fill(spec, "replicas", 1);
        workload::default_template(spec);
        if !of_pods.is_empty()
            && object["metadata"]["labels"].is_empty()
            && let Some(metadata) = child(object, "metadata")
        {
            set(metadata, "labels", of_pods);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        create_with_status(object);
        set(object, "status", json!({ "replicas": 0 }));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        update_with_status(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        for field in ["replicas", "minReadySeconds"] {
            non_negative(&spec[field], &path.child(field), &mut errors);
        }
        if spec["selector"].is_empty() {
            errors.required(path.child("selector"), "");
        }
        let selector = json!({ "matchLabels": spec["selector"] });
        let template = path.child("template");
        validate_running_template(
            &spec["template"],
            &selector,
            "ReplicationController",
            &template,
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        let replicas = object["status"]["replicas"].int().unwrap_or_default();
        vec![("status.replicas".into(), replicas.to_string())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
        workload::validate_counts(&object["status"], &parts)
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
        cells.extend(container_cells(&spec["template"]));
        cells.push(labels(&spec["selector"]));
        cells
    }

    fn scale(&self) -> Option<ScalePaths> {
        Some(workload::scale_paths())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::workload::fixture::{texts, workload};

    #[test]
    fn the_selector_comes_from_the_template() {
        let mut object = workload(json!({}));
        Controllers.default(&mut object);
        assert_eq!(object["spec"]["selector"], json!({"app": "web"}));
        assert_eq!(
            texts(&Controllers.validate_create(&object)),
            Vec::<String>::new()
        );
    }
}
