//! DaemonSets: one pod on every fitting node.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{
    Declaration, create_with_status, update_only_workload_status, update_with_status,
};
use super::pod::validate::validate_running_template;
use super::walk::{Walk, child, fill, fill_zero, same, set};
use super::workload::{self, is_none_of_it, validate_int_or_percent, validate_not_over_100};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{
    age, age_column, column, count, labels, name, name_column, workload_cells, workload_columns,
};
use crate::validation::{Path, immutable, non_negative};

/// Counts changes of the template; older controllers and kubectl look at it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("apps", "v1", "DaemonSet", "daemonsets", DaemonSets)
        .short_names(&["ds"])
        .categories(&["all"])
        .status()
        .build()
}

struct DaemonSets;

impl Strategy for DaemonSets {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        if let Some(strategy) = child(spec, "updateStrategy") {
            fill_zero(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate"
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                fill(rolling, "maxUnavailable", 1);
                fill(rolling, "maxSurge", 0);
            }
        }
        fill(spec, "revisionHistoryLimit", 10);
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        create_with_status(object);
        let counts = [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
        ];
        let counts: serde_json::Map<String, Value> =
            counts.iter().map(|f| ((*f).into(), json!(0))).collect();
        set(object, "status", counts);
        set_template_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        update_with_status(object, old);
        let before = old["metadata"]["annotations"][TEMPLATE_GENERATION]
            .text()
            .parse()
            .unwrap_or(1);
        let changed = !same(&object["spec"]["template"], &old["spec"]["template"]);
        set_template_generation(object, before + i64::from(changed));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_workload_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        workload::validate_selector(spec, "daemonset", &path, &mut errors);
        let template = path.child("template");
        validate_running_template(
            &spec["template"],
            &spec["selector"],
            "DaemonSet",
            &template,
            &mut errors,
        );
        for field in ["minReadySeconds", "revisionHistoryLimit"] {
            non_negative(&spec[field], &path.child(field), &mut errors);
        }
        validate_strategy(
            &spec["updateStrategy"],
            &path.child("updateStrategy"),
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
        let mut errors = FieldErrors::default();
        for field in [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "observedGeneration",
            "collisionCount",
        ] {
            let path = Path::new("status").child(field);
            non_negative(&object["status"][field], &path, &mut errors);
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::warnings(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            name_column(),
            column("Desired", "integer", "How many nodes should have a pod."),
            column("Current", "integer", "How many nodes have one."),
            column("Ready", "integer", "How many pods are ready."),
            column(
                "Up-to-date",
                "integer",
                "How many pods have the newest template.",
            ),
            column(
                "Available",
                "integer",
                "How many pods have been ready for long enough.",
            ),
            column(
                "Node Selector",
                "string",
                "Labels of the nodes that get a pod.",
            ),
            age_column(),
        ];
        columns.extend(workload_columns());
        columns
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let mut cells = vec![name(object)];
        let counts = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ];
        cells.extend(counts.map(|field| count(&status[field])));
        cells.push(labels(&spec["template"]["spec"]["nodeSelector"]));
        cells.push(age(object, now));
        cells.extend(workload_cells(&spec["template"], &spec["selector"]));
        cells
    }
}

fn set_template_generation(object: &mut Value, generation: i64) {
    if let Some(annotations) = child(object, "metadata").and_then(|m| child(m, "annotations")) {
        set(annotations, TEMPLATE_GENERATION, generation.to_string());
    }
}

fn validate_strategy(strategy: &Value, path: &Path, errors: &mut FieldErrors) {
    match strategy["type"].text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = &strategy["rollingUpdate"];
            let path = path.child("rollingUpdate");
            let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            validate_int_or_percent(unavailable, &path.child("maxUnavailable"), errors);
            validate_int_or_percent(surge, &path.child("maxSurge"), errors);
            validate_not_over_100(unavailable, &path.child("maxUnavailable"), errors);
            validate_not_over_100(surge, &path.child("maxSurge"), errors);
            match (is_none_of_it(unavailable), is_none_of_it(surge)) {
                (true, true) => {
                    errors.required(
                        path.child("maxUnavailable"),
                        "cannot be 0 when maxSurge is 0",
                    );
                }
                (false, false) => errors.invalid(
                    path.child("maxSurge"),
                    surge.clone(),
                    "may not be set when maxUnavailable is non-zero",
                ),
                _ => {}
            }
        }
        other => errors.not_supported(path.child("type"), other, &["OnDelete", "RollingUpdate"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::workload::fixture::{texts, workload};

    #[test]
    fn a_minimal_daemon_set_rolls_one_node_at_a_time() {
        let mut object = workload(json!({"selector": {"matchLabels": {"app": "web"}}}));
        DaemonSets.default(&mut object);
        DaemonSets.prepare_create(&mut object);
        assert_eq!(
            object["spec"]["updateStrategy"]["rollingUpdate"],
            json!({"maxUnavailable": 1, "maxSurge": 0})
        );
        assert_eq!(
            texts(&DaemonSets.validate_create(&object)),
            Vec::<String>::new()
        );
        let mut new = object.clone();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = json!("nginx:2");
        DaemonSets.prepare_update(&mut new, &object);
        assert_eq!(new["metadata"]["annotations"][TEMPLATE_GENERATION], "2");
    }
}
