//! StatefulSets: pods with lasting names and volumes.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{
    Declaration, create_with_status, update_only_workload_status, update_with_status,
};
use super::persistent_volume_claim::default_claim;
use super::pod::validate::validate_running_template;
use super::walk::{Walk, child, fill, fill_zero, get_mut, list_mut, remove, same, set};
use super::workload;
use crate::kind::{Column, Kind, ScalePaths, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, container_cells, name, name_column, workload_columns};
use crate::validation::{Path, non_negative, one_of};

const CHANGEABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("apps", "v1", "StatefulSet", "statefulsets", StatefulSets)
        .short_names(&["sts"])
        .categories(&["all"])
        .scale()
        .status()
        .build()
}

struct StatefulSets;

impl Strategy for StatefulSets {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        fill_zero(spec, "podManagementPolicy", "OrderedReady");
        fill(spec, "replicas", 1);
        fill(spec, "revisionHistoryLimit", 10);
        if let Some(strategy) = child(spec, "updateStrategy") {
            fill_zero(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate"
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                fill(rolling, "partition", 0);
            }
        }
        if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
            fill_zero(policy, "whenDeleted", "Retain");
            fill_zero(policy, "whenScaled", "Retain");
        }
        for claim in list_mut(spec, "volumeClaimTemplates") {
            default_claim(claim);
            fill(claim, "apiVersion", "v1");
            fill(claim, "kind", "PersistentVolumeClaim");
            fill(claim, "status", json!({ "phase": "Pending" }));
        }
        workload::default_template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        create_with_status(object);
        set(
            object,
            "status",
            json!({ "replicas": 0, "availableReplicas": 0 }),
        );
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
        one_of(
            &spec["podManagementPolicy"],
            &["OrderedReady", "Parallel"],
            &path.child("podManagementPolicy"),
            &mut errors,
        );
        validate_strategy(
            &spec["updateStrategy"],
            &path.child("updateStrategy"),
            &mut errors,
        );
        let policy = path.child("persistentVolumeClaimRetentionPolicy");
        for field in ["whenDeleted", "whenScaled"] {
            one_of(
                &spec["persistentVolumeClaimRetentionPolicy"][field],
                &["Delete", "Retain"],
                &policy.child(field),
                &mut errors,
            );
        }
        for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
            non_negative(&spec[field], &path.child(field), &mut errors);
        }
        non_negative(
            &spec["ordinals"]["start"],
            &path.child("ordinals").child("start"),
            &mut errors,
        );
        workload::validate_selector(spec, "statefulset", &path, &mut errors);
        let template = path.child("template");
        validate_running_template(
            &with_claims(spec),
            &spec["selector"],
            "StatefulSet",
            &template,
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let fixed = |o: &Value| {
            let mut spec = o["spec"].clone();
            for field in CHANGEABLE {
                remove(&mut spec, field);
            }
            spec
        };
        if !same(&fixed(object), &fixed(old)) {
            errors.forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            );
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let parts = [
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
        ];
        workload::validate_counts(&object["status"], &parts)
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::warnings(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        let [containers, images, _] = workload_columns();
        vec![
            name_column(),
            column(
                "Ready",
                "string",
                "How many pods are ready, of those wanted.",
            ),
            age_column(),
            containers,
            images,
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let wanted = object["spec"]["replicas"].int().unwrap_or_default();
        let ready = object["status"]["readyReplicas"].int().unwrap_or_default();
        let [containers, images] = container_cells(&object["spec"]["template"]);
        vec![
            name(object),
            format!("{ready}/{wanted}").into(),
            age(object, now),
            containers,
            images,
        ]
    }

    fn scale(&self) -> Option<ScalePaths> {
        Some(workload::scale_paths())
    }
}

/// The template with a volume for each claim template, as its pods will have it: containers mount these, too.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let mut volumes = template["spec"]["volumes"].items().to_vec();
    for claim in spec["volumeClaimTemplates"].items() {
        let name = &claim["metadata"]["name"];
        volumes.retain(|v| v["name"] != *name);
        volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    }
    if let Some(pod_spec) = get_mut(&mut template, "spec") {
        set(pod_spec, "volumes", volumes);
    }
    template
}

fn validate_strategy(strategy: &Value, path: &Path, errors: &mut FieldErrors) {
    match strategy["type"].text() {
        "" => errors.required(path.child("type"), ""),
        "OnDelete" => {
            if strategy["rollingUpdate"].present() {
                errors.invalid(
                    path.child("rollingUpdate"),
                    strategy["rollingUpdate"].clone(),
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => non_negative(
            &strategy["rollingUpdate"]["partition"],
            &path.child("rollingUpdate").child("partition"),
            errors,
        ),
        other => errors.invalid(path, other, "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::workload::fixture::{texts, workload};

    #[test]
    fn a_stateful_set_keeps_what_its_pods_depend_on() {
        let mut old =
            workload(json!({"serviceName": "db", "selector": {"matchLabels": {"app": "web"}}}));
        StatefulSets.default(&mut old);
        assert_eq!(old["spec"]["podManagementPolicy"], "OrderedReady");
        assert_eq!(
            texts(&StatefulSets.validate_create(&old)),
            Vec::<String>::new()
        );
        let mut new = old.clone();
        new["spec"]["replicas"] = json!(5);
        assert!(StatefulSets.validate_update(&new, &old).is_empty());
        new["spec"]["serviceName"] = json!("other");
        assert!(
            texts(&StatefulSets.validate_update(&new, &old))[0].starts_with(
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas'"
            )
        );
    }

    #[test]
    fn containers_mount_what_the_claim_templates_provide() {
        let mut set = workload(json!({
            "serviceName": "db", "selector": {"matchLabels": {"app": "web"}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
            }}],
        }));
        set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data"}]);
        StatefulSets.default(&mut set);
        assert_eq!(
            texts(&StatefulSets.validate_create(&set)),
            Vec::<String>::new()
        );
        set["spec"]["volumeClaimTemplates"] = json!([]);
        assert_eq!(
            texts(&StatefulSets.validate_create(&set)),
            ["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"data\""]
        );
    }
}
