//! Nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::amounts;
use super::declare::{Declaration, keep_generation};
use super::pod::PROXY;
use super::walk::{Walk, carry_over, get_mut, remove, same, set};
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column, or_none, wide};
use crate::validation::{Path, each_invalid, names};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster("", "v1", "Node", "nodes", Nodes)
        .short_names(&["no"])
        .sub("proxy", ["", "v1", "NodeProxyOptions"], PROXY)
        .status()
        .build()
}

struct Nodes;

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        if let Some(status) = get_mut(object, "status") {
            amounts::canonicalize(status, "capacity");
            amounts::canonicalize(status, "allocatable");
            if status["allocatable"].is_empty() && !status["capacity"].is_empty() {
                let capacity = status["capacity"].clone();
                set(status, "allocatable", capacity);
            }
        }
        if let Some(spec) = get_mut(object, "spec") {
            mirror_pod_cidr(spec);
        }
    }

    /// The status stays: agents register with it.
    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        keep_generation(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        keep_generation(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_taints(
            &object["spec"]["taints"],
            &Path::new("spec").child("taints"),
            &mut errors,
        );
        let path = Path::new("spec").child("podCIDRs");
        for (i, cidr) in object["spec"]["podCIDRs"].items().iter().enumerate() {
            each_invalid(
                &path.index(i),
                cidr.text(),
                names::cidr(cidr.text()),
                &mut errors,
            );
        }
        validate_status(object, &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let (new_spec, old_spec) = (&object["spec"], &old["spec"]);
        let path = Path::new("spec");
        if !old_spec["podCIDRs"].is_empty() && !same(&new_spec["podCIDRs"], &old_spec["podCIDRs"]) {
            errors.forbidden(
                path.child("podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
        if !old_spec["providerID"].is_empty() && new_spec["providerID"] != old_spec["providerID"] {
            errors.forbidden(
                path.child("providerID"),
                "node updates may not change providerID except from \"\" to valid",
            );
        }
        let rest = |spec: &Value| {
            let mut spec = if spec.is_null() {
                json!({})
            } else {
                spec.clone()
            };
            for field in [
                "podCIDR",
                "podCIDRs",
                "providerID",
                "taints",
                "unschedulable",
                "configSource",
            ] {
                remove(&mut spec, field);
            }
            spec
        };
        if !same(&rest(new_spec), &rest(old_spec)) {
            errors.forbidden(
                path,
                "node updates may only change labels, taints, or capacity",
            );
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_status(object, &mut errors);
        errors
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        vec![(
            "spec.unschedulable".into(),
            object["spec"]["unschedulable"].is_true().to_string(),
        )]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Status",
                "string",
                "Whether the node is ready and takes new pods.",
            ),
            column("Roles", "string", "Roles of the node, from its labels."),
            age_column(),
            column("Version", "string", "Version of the node agent."),
            wide("Internal-IP", "string", "Address inside the cluster."),
            wide("External-IP", "string", "Address outside the cluster."),
            wide("OS-Image", "string", "Operating system."),
            wide("Kernel-Version", "string", "Kernel."),
            wide(
                "Container-Runtime",
                "string",
                "Container runtime and its version.",
            ),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let info = &object["status"]["nodeInfo"];
        let known = |text: &str| {
            if text.is_empty() {
                json!("<unknown>")
            } else {
                text.into()
            }
        };
        vec![
            name(object),
            status(object).into(),
            roles(object),
            age(object, now),
            info["kubeletVersion"].text().into(),
            address(object, "InternalIP"),
            address(object, "ExternalIP"),
            known(info["osImage"].text()),
            known(info["kernelVersion"].text()),
            known(info["containerRuntimeVersion"].text()),
        ]
    }
}

/// `podCIDR` is the first of `podCIDRs`.
fn mirror_pod_cidr(spec: &mut Value) {
    match spec["podCIDRs"].items().first().cloned() {
        Some(first) => set(spec, "podCIDR", first),
        None => {
            let cidr = spec["podCIDR"].clone();
            if !cidr.is_empty() {
                set(spec, "podCIDRs", json!([cidr]));
            }
        }
    }
}

/// Taints of a node.
fn validate_taints(taints: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, taint) in taints.items().iter().enumerate() {
        let path = path.index(i);
        let (key, value, effect) = (
            taint["key"].text(),
            taint["value"].text(),
            taint["effect"].text(),
        );
        each_invalid(&path.child("key"), key, names::qualified_name(key), errors);
        each_invalid(
            &path.child("value"),
            value,
            names::label_value(value),
            errors,
        );
        match effect {
            "" => errors.required(path.child("effect"), ""),
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            other => errors.not_supported(
                path.child("effect"),
                other,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ),
        }
        if !seen.insert((key, effect)) {
            errors.0.push(crate::status::FieldError {
                kind: crate::status::ErrorKind::Duplicate,
                field: path.to_string(),
                value: Some(taint.clone()),
                detail: "taints must be unique by key and effect pair".into(),
            });
        }
    }
}

fn validate_status(object: &Value, errors: &mut FieldErrors) {
    let status = &object["status"];
    for list in ["capacity", "allocatable"] {
        for (name, amount) in status[list].entries() {
            let path = Path::new("status").child(list).key(name);
            each_invalid(&path, name, names::qualified_name(name), errors);
            amounts::validate_non_negative(amount, &path, errors);
        }
    }
    let addresses = status["addresses"].items();
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].contains(address) {
            errors.duplicate(
                Path::new("status").child("addresses").index(i),
                address.clone(),
            );
        }
    }
}

fn status(node: &Value) -> String {
    let mut parts: Vec<&str> = node["status"]["conditions"]
        .items()
        .iter()
        .filter(|c| c["type"] == "Ready")
        .map(|c| {
            if c["status"] == "True" {
                "Ready"
            } else {
                "NotReady"
            }
        })
        .collect();
    if parts.is_empty() {
        parts.push("Unknown");
    }
    if node["spec"]["unschedulable"].is_true() {
        parts.push("SchedulingDisabled");
    }
    parts.join(",")
}

fn roles(node: &Value) -> Value {
    let labels = &node["metadata"]["labels"];
    let roles: BTreeSet<&str> = labels
        .entries()
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role),
                None => (key == "kubernetes.io/role").then(|| value.text()),
            },
        )
        .filter(|role| !role.is_empty())
        .collect();
    or_none(&roles.into_iter().collect::<Vec<_>>().join(","))
}

fn address(node: &Value, type_: &str) -> Value {
    let addresses = node["status"]["addresses"].items();
    or_none(
        addresses
            .iter()
            .find(|a| a["type"] == type_)
            .map_or("", |a| a["address"].text()),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cordoned_control_plane_node_shows_status_and_roles() {
        let node = json!({
            "metadata": {"name": "s1", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "infra"}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.35.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "containerd://1.6"},
            },
        });
        let row = Nodes.row(&node, "2026-01-01T01:00:00Z".parse().unwrap());
        assert_eq!(
            row,
            [
                "s1",
                "Ready,SchedulingDisabled",
                "control-plane,infra",
                "60m",
                "v1.35.0",
                "10.0.0.1",
                "<none>",
                "Debian",
                "6.1",
                "containerd://1.6"
            ]
        );
    }

    #[test]
    fn the_pod_cidr_is_set_once() {
        let mut old = json!({"spec": {"podCIDR": "10.244.1.0/24"}});
        Nodes.default(&mut old);
        assert_eq!(old["spec"]["podCIDRs"], json!(["10.244.1.0/24"]));
        assert!(Nodes.validate_update(&old, &json!({"spec": {}})).is_empty());
        let errors = Nodes.validate_update(&json!({"spec": {"podCIDRs": ["10.244.2.0/24"]}}), &old);
        assert_eq!(errors.0[0].field, "spec.podCIDRs");
    }

    #[test]
    fn taints_need_an_effect_and_stand_once() {
        let taint = json!({"key": "k", "effect": "NoSchedule"});
        let errors =
            Nodes.validate_create(&json!({"spec": {"taints": [taint, {"key": "k"}, taint]}}));
        let texts: Vec<String> = errors
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect();
        assert_eq!(texts[0], "spec.taints[1].effect: Required value");
        assert!(
            texts[1].ends_with("taints must be unique by key and effect pair"),
            "{}",
            texts[1]
        );
    }
}
