//! Pods: the unit that nodes run.

pub mod default;
mod label_keys;
pub mod resources;
mod table;
pub mod validate;
mod warnings;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub(super) use warnings::workload_warnings;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, advance_generation, keep_generation, set_generation};
use super::walk::{Walk, carry_over, child, same, set};
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::FieldErrors;

/// Verbs of streams, which GET opens as well as POST.
const STREAM: &[&str] = &["create", "get"];
/// Verbs of proxies.
pub(crate) const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "Pod", "pods", Pods)
        .short_names(&["po"])
        .categories(&["all"])
        .sub("attach", ["", "v1", "PodAttachOptions"], STREAM)
        .sub("binding", ["", "v1", "Binding"], &["create"])
        .own_sub("ephemeralcontainers", &["get", "patch", "update"])
        .sub("eviction", ["policy", "v1", "Eviction"], &["create"])
        .sub("exec", ["", "v1", "PodExecOptions"], STREAM)
        .own_sub("log", &["get"])
        .sub("portforward", ["", "v1", "PodPortForwardOptions"], STREAM)
        .sub("proxy", ["", "v1", "PodProxyOptions"], PROXY)
        .own_sub("resize", &["get", "patch", "update"])
        .status()
        .build()
}

struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        default::default_pod(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        set_generation(object, 1);
        label_keys::merge(object);
        let mut status = json!({ "phase": "Pending", "qosClass": resources::qos_class(object) });
        if !object["spec"]["schedulingGates"].is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "observedGeneration": 1,
            }]);
        }
        set(object, "status", status);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        let changed = !same(&object["spec"], &old["spec"]);
        advance_generation(object, old, changed);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        keep_generation(object, old);
        if let Some(metadata) = child(object, "metadata") {
            carry_over(metadata, &old["metadata"], "ownerReferences");
        }
        if let Some(status) = child(object, "status") {
            // The class is settled at creation; a status without it would lose it.
            carry_over(status, &old["status"], "qosClass");
        }
    }

    fn prepare_subresource_update(&self, subresource: &str, object: &mut Value, old: &Value) {
        match subresource {
            "ephemeralcontainers" => {
                validate::subresources::take_ephemeral_containers(object, old);
            }
            "resize" => validate::subresources::take_resources(object, old),
            _ => self.prepare_status_update(object, old),
        }
    }

    fn validate_subresource_update(
        &self,
        subresource: &str,
        object: &Value,
        old: &Value,
    ) -> FieldErrors {
        match subresource {
            "ephemeralcontainers" => validate::validate_ephemeral_containers_update(object, old),
            "resize" => validate::validate_resize(object, old),
            _ => self.validate_status_update(object, old),
        }
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        validate::validate_pod_create(object)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        validate::validate_pod_update(object, old)
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> FieldErrors {
        validate::validate_pod_status_update(object, old)
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        // Hardly anything of a pod's spec changes: what was told at its creation is not told again.
        if old.is_some() {
            return Vec::new();
        }
        warnings::pod_warnings(object)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let address = status["podIPs"]
            .items()
            .first()
            .map_or(&status["podIP"], |a| &a["ip"]);
        vec![
            ("spec.nodeName".into(), spec["nodeName"].text().into()),
            (
                "spec.restartPolicy".into(),
                spec["restartPolicy"].text().into(),
            ),
            (
                "spec.schedulerName".into(),
                spec["schedulerName"].text().into(),
            ),
            (
                "spec.serviceAccountName".into(),
                spec["serviceAccountName"].text().into(),
            ),
            (
                "spec.hostNetwork".into(),
                spec["hostNetwork"].is_true().to_string(),
            ),
            ("status.phase".into(), status["phase"].text().into()),
            ("status.podIP".into(), address.text().into()),
            (
                "status.nominatedNodeName".into(),
                status["nominatedNodeName"].text().into(),
            ),
        ]
    }

    fn selectable_lists(&self) -> &'static [&'static str] {
        &["podIPs"]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ]
    }

    fn columns(&self) -> Vec<Column> {
        table::columns()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        table::row(object, now)
    }

    /// The spec's grace period; pods that never reached a node, or have ended, go at once.
    fn grace_period_seconds(&self, object: &Value) -> Option<i64> {
        let ended = matches!(object["status"]["phase"].text(), "Succeeded" | "Failed");
        if object["spec"]["nodeName"].is_empty() || ended {
            return Some(0);
        }
        // A negative grace period means one second, as upstream stores it.
        Some(
            match object["spec"]["terminationGracePeriodSeconds"].int() {
                Some(seconds) if seconds < 0 => 1,
                Some(seconds) => seconds,
                None => 30,
            },
        )
    }
}
