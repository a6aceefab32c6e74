//! Deployments: ReplicaSets exchanged step by step.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{
    Declaration, advance_generation, create_with_status, update_only_workload_status,
};
use super::pod::validate::validate_running_template;
use super::walk::{Walk, carry_over, child, fill, fill_zero, same};
use super::workload::{self, is_none_of_it, validate_int_or_percent, validate_not_over_100};
use crate::kind::{Column, Kind, ScalePaths, Strategy};
use crate::status::FieldErrors;
use crate::table::{
    age, age_column, column, count, name, name_column, workload_cells, workload_columns,
};
use crate::validation::{Path, immutable, non_negative};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("apps", "v1", "Deployment", "deployments", Deployments)
        .short_names(&["deploy"])
        .categories(&["all"])
        .scale()
        .status()
        .build()
}

struct Deployments;

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        fill(spec, "replicas", 1);
        if let Some(strategy) = child(spec, "strategy") {
            fill_zero(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate"
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                fill(rolling, "maxUnavailable", "25%");
                fill(rolling, "maxSurge", "25%");
            }
        }
        fill(spec, "revisionHistoryLimit", 10);
        fill(spec, "progressDeadlineSeconds", 600);
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        create_with_status(object);
    }

    /// Annotations count for the generation too: they carry what controllers have to copy.
    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        let annotations = |o: &Value| match &o["metadata"]["annotations"] {
            Value::Null => json!({}),
            other => other.clone(),
        };
        let changed =
            !same(&object["spec"], &old["spec"]) || annotations(object) != annotations(old);
        advance_generation(object, old, changed);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_workload_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        non_negative(&spec["replicas"], &path.child("replicas"), &mut errors);
        workload::validate_selector(spec, "deployment", &path, &mut errors);
        let template = path.child("template");
        validate_running_template(
            &spec["template"],
            &spec["selector"],
            "ReplicaSet",
            &template,
            &mut errors,
        );
        validate_strategy(&spec["strategy"], &path.child("strategy"), &mut errors);
        for field in [
            "minReadySeconds",
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
        ] {
            non_negative(&spec[field], &path.child(field), &mut errors);
        }
        let ready = spec["minReadySeconds"].int().unwrap_or_default();
        if let Some(deadline) = spec["progressDeadlineSeconds"]
            .int()
            .filter(|d| *d <= ready)
        {
            errors.invalid(
                path.child("progressDeadlineSeconds"),
                deadline,
                "must be greater than minReadySeconds",
            );
        }
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

    fn validate_status_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_status(&object["status"], &mut errors);
        let count = |o: &Value| o["status"]["collisionCount"].int();
        if let Some(before) = count(old)
            && count(object).is_none_or(|now| now < before)
        {
            errors.invalid(
                "status.collisionCount",
                object["status"]["collisionCount"].clone(),
                "cannot be decremented",
            );
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::warnings(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            name_column(),
            column(
                "Ready",
                "string",
                "How many pods are ready, of those wanted.",
            ),
            column(
                "Up-to-date",
                "string",
                "How many pods have the newest template.",
            ),
            column(
                "Available",
                "string",
                "How many pods have been ready for long enough.",
            ),
            age_column(),
        ];
        columns.extend(workload_columns());
        columns
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let ready = status["readyReplicas"].int().unwrap_or_default();
        let mut cells = vec![
            name(object),
            format!("{ready}/{}", spec["replicas"].int().unwrap_or_default()).into(),
            count(&status["updatedReplicas"]),
            count(&status["availableReplicas"]),
            age(object, now),
        ];
        cells.extend(workload_cells(&spec["template"], &spec["selector"]));
        cells
    }

    fn scale(&self) -> Option<ScalePaths> {
        Some(workload::scale_paths())
    }
}

fn validate_strategy(strategy: &Value, path: &Path, errors: &mut FieldErrors) {
    let rolling = &strategy["rollingUpdate"];
    let rolling_path = path.child("rollingUpdate");
    match strategy["type"].text() {
        "Recreate" => {
            if rolling.present() {
                errors.forbidden(
                    rolling_path,
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            let path = rolling_path.child("maxUnavailable");
            validate_int_or_percent(unavailable, &path, errors);
            validate_int_or_percent(surge, &rolling_path.child("maxSurge"), errors);
            if is_none_of_it(unavailable) && is_none_of_it(surge) {
                errors.invalid(
                    &path,
                    unavailable.clone(),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            validate_not_over_100(unavailable, &path, errors);
        }
        "" => errors.required(path.child("type"), ""),
        other => errors.not_supported(path.child("type"), other, &["Recreate", "RollingUpdate"]),
    }
}

fn validate_status(status: &Value, errors: &mut FieldErrors) {
    let path = Path::new("status");
    let fields = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
    ];
    for field in fields {
        non_negative(&status[field], &path.child(field), errors);
    }
    let number = |field: &str| status[field].int().unwrap_or_default();
    for field in ["updatedReplicas", "readyReplicas", "availableReplicas"] {
        if number(field) > number("replicas") {
            errors.invalid(
                path.child(field),
                number(field),
                "cannot be greater than status.replicas",
            );
        }
    }
    if number("availableReplicas") > number("readyReplicas") {
        errors.invalid(
            path.child("availableReplicas"),
            number("availableReplicas"),
            "cannot be greater than readyReplicas",
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::workload::fixture::{texts, workload};

    fn deployment(mut spec: Value) -> Value {
        fill(
            &mut spec,
            "selector",
            json!({"matchLabels": {"app": "web"}}),
        );
        let mut object = workload(spec);
        Deployments.default(&mut object);
        object
    }

    #[test]
    fn a_minimal_deployment_rolls_by_a_quarter() {
        let object = deployment(json!({}));
        assert_eq!(
            object["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(
            (
                &object["spec"]["revisionHistoryLimit"],
                &object["spec"]["progressDeadlineSeconds"]
            ),
            (&json!(10), &json!(600))
        );
        assert_eq!(
            texts(&Deployments.validate_create(&object)),
            Vec::<String>::new()
        );
    }

    #[test]
    fn strategies_must_let_something_move() {
        let of = |strategy: Value| {
            texts(&Deployments.validate_create(&deployment(json!({ "strategy": strategy }))))
        };
        assert_eq!(
            of(json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}})),
            [
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"
            ]
        );
        assert_eq!(
            of(json!({"type": "Recreate", "rollingUpdate": {}})),
            [
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"
            ]
        );
        assert_eq!(
            of(json!({"type": "Sideways"})),
            [
                "spec.strategy.type: Unsupported value: \"Sideways\": supported values: \"Recreate\", \"RollingUpdate\""
            ]
        );
    }

    #[test]
    fn the_selector_stays() {
        let old = deployment(json!({}));
        let mut new = old.clone();
        new["spec"]["selector"] =
            json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]});
        let errors = texts(&Deployments.validate_update(&new, &old));
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].starts_with("spec.selector: Invalid value: ")
                && errors[0].ends_with(": field is immutable")
        );
    }

    #[test]
    fn spec_and_annotations_raise_the_generation_and_labels_do_not() {
        let old = deployment(json!({}));
        let generation = |change: fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new);
            Deployments.prepare_update(&mut new, &old);
            new["metadata"]["generation"].clone()
        };
        assert_eq!(generation(|_| {}), 1);
        assert_eq!(
            generation(|o| o["metadata"]["labels"] = json!({"a": "b"})),
            1
        );
        assert_eq!(
            generation(|o| o["metadata"]["annotations"] = json!({"a": "b"})),
            2
        );
        assert_eq!(generation(|o| o["spec"]["replicas"] = json!(5)), 2);
    }

    #[test]
    fn the_row_shows_ready_of_wanted() {
        let mut object = deployment(json!({"replicas": 3}));
        object["status"] = json!({"readyReplicas": 3, "updatedReplicas": 3, "availableReplicas": 3, "replicas": 3});
        let row = Deployments.row(&object, "2026-01-01T00:01:33Z".parse().unwrap());
        assert_eq!(
            Value::from(row),
            json!(["web", "3/3", 3, 3, "93s", "c", "nginx:1", "app=web"])
        );
    }
}
