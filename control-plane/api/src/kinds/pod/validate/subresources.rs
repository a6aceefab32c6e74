//! What `/ephemeralcontainers` and `/resize` may change.
//!
//! Source of rules: KEP-277 (ephemeral containers), KEP-1287 (in-place resize) and upstream's
//! `ValidatePodEphemeralContainersUpdate` and `ValidatePodResize`.

use serde_json::Value;

use super::update::changes;
use super::validate_pod_spec;
use crate::kinds::declare::advance_generation;
use crate::kinds::pod::resources::{is_sidecar, qos_class};
use crate::kinds::walk::{Walk, carry_over, list_mut, same, set};
use crate::status::FieldErrors;
use crate::validation::Path;

/// Marks pods that a node agent runs from its own files; the API only mirrors them.
const MIRROR: &str = "kubernetes.io/config.mirror";
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Takes only the ephemeral containers from the new pod.
pub(in crate::kinds::pod) fn take_ephemeral_containers(pod: &mut Value, old: &Value) {
    let added = pod["spec"]["ephemeralContainers"].clone();
    keep_all_but(pod, old, |spec| {
        if added.is_empty() {
            crate::kinds::walk::remove(spec, "ephemeralContainers");
        } else {
            set(spec, "ephemeralContainers", added);
        }
    });
}

/// Lists whose containers are resized.
const LISTS: [&str; 2] = ["containers", "initContainers"];

/// Takes only resources and resize policies of containers from the new pod. One with other containers is left for
/// validation to refuse.
pub(in crate::kinds::pod) fn take_resources(pod: &mut Value, old: &Value) {
    if !validate_order(&pod["spec"], &old["spec"]).is_empty() {
        return;
    }
    let new = pod["spec"].clone();
    keep_all_but(pod, old, |spec| {
        for list in LISTS {
            for (container, new) in list_mut(spec, list).zip(new[list].items()) {
                carry_over(container, new, "resources");
                carry_over(container, new, "resizePolicy");
            }
        }
    });
}

/// The old pod with a changed spec, at the version that the client spoke of.
fn keep_all_but(pod: &mut Value, old: &Value, change: impl FnOnce(&mut Value)) {
    let mut kept = old.clone();
    let (sent, managed) = (
        pod["metadata"]["resourceVersion"].clone(),
        pod["metadata"]["managedFields"].clone(),
    );
    if let Some(metadata) = crate::kinds::walk::child(&mut kept, "metadata") {
        if sent.present() {
            set(metadata, "resourceVersion", sent);
        }
        if managed.present() {
            set(metadata, "managedFields", managed);
        }
    }
    if let Some(spec) = crate::kinds::walk::child(&mut kept, "spec") {
        change(spec);
    }
    let changed = !same(&kept["spec"], &old["spec"]);
    advance_generation(&mut kept, old, changed);
    *pod = kept;
}

fn is_static(pod: &Value) -> bool {
    pod["metadata"]["annotations"][MIRROR].present()
}

/// Problems of changed ephemeral containers: they are only added.
#[must_use]
pub fn validate_ephemeral_containers_update(pod: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    if is_static(old) {
        errors.forbidden("", "static pods do not support ephemeral containers");
        return errors;
    }
    let spec = Path::new("spec");
    validate_pod_spec(&pod["spec"], &spec, &mut errors);
    let path = spec.child("ephemeralContainers");
    let new = pod["spec"]["ephemeralContainers"].items();
    for before in old["spec"]["ephemeralContainers"].items() {
        let name = before["name"].text();
        match new.iter().find(|c| c["name"] == before["name"]) {
            None => errors.forbidden(
                &path,
                format!("existing ephemeral containers {name:?} may not be removed\n"),
            ),
            Some(now) if !same(now, before) => errors.forbidden(
                &path,
                format!("existing ephemeral containers {name:?} may not be changed\n"),
            ),
            Some(_) => {}
        }
    }
    errors
}

/// Problems of changed resources: cpu and memory of running containers, within the class of service.
#[must_use]
pub fn validate_resize(pod: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    if is_static(old) {
        errors.forbidden("", "static pods cannot be resized");
        return errors;
    }
    if old["spec"]["os"]["name"] == "windows" {
        errors.forbidden("", "windows pods cannot be resized");
        return errors;
    }
    let path = Path::new("spec");
    validate_pod_spec(&pod["spec"], &path, &mut errors);
    if qos_class(pod) != qos_class(old) {
        errors.invalid(
            "metadata",
            qos_class(pod),
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    let order = validate_order(&pod["spec"], &old["spec"]);
    if !order.is_empty() {
        errors.extend(order);
        return errors;
    }
    for list in LISTS {
        let pairs = pod["spec"][list]
            .items()
            .iter()
            .zip(old["spec"][list].items());
        for (i, (new, before)) in pairs.enumerate() {
            let path = path.child(list).index(i);
            let resized = !same(&new["resources"], &before["resources"]);
            if resized && list == "initContainers" && !is_sidecar(before) {
                errors.forbidden(
                    path.child("resources"),
                    "resources for non-sidecar init containers are immutable",
                );
                continue;
            }
            validate_kept(&new["resources"], &before["resources"], &path, &mut errors);
        }
    }
    let mut munged = pod["spec"].clone();
    set_back(&mut munged, &old["spec"]);
    if errors.is_empty() && !same(&munged, &old["spec"]) {
        let changes = changes(&munged, &old["spec"]);
        errors.forbidden(
            &path,
            format!(
                "only cpu and memory resources are mutable\n{}\n",
                changes.join("\n")
            ),
        );
    }
    errors
}

/// The same containers, one after the other.
fn validate_order(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    for list in LISTS {
        let path = Path::new("spec").child(list);
        let (new, old) = (new[list].items(), old[list].items());
        if new.len() != old.len() {
            let problem = format!("{list} may not be added or removed on resize");
            errors.forbidden(&path, problem);
            continue;
        }
        for (i, (new, old)) in new.iter().zip(old).enumerate() {
            if new["name"] != old["name"] {
                let problem = format!("{list} may not be renamed or reordered on resize");
                errors.forbidden(path.index(i).child("name"), problem);
            }
        }
    }
    errors
}

/// What was asked for once stays asked for.
fn validate_kept(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("resources");
    for side in ["requests", "limits"] {
        let mut before = old[side].entries();
        if before.any(|(name, amount)| amount.present() && new[side][name].is_null()) {
            errors.forbidden(
                path.child(side),
                format!("resource {side} cannot be removed"),
            );
        }
    }
}

/// Sets cpu, memory and the resize policies back, to see what else differs.
fn set_back(spec: &mut Value, old: &Value) {
    for list in LISTS {
        for (container, before) in list_mut(spec, list).zip(old[list].items()) {
            for side in ["limits", "requests"] {
                let old_side = &before["resources"][side];
                let Some(resources) = crate::kinds::walk::child(container, "resources") else {
                    continue;
                };
                if resources[side].is_null() && old_side.is_null() {
                    continue;
                }
                if let Some(amounts) = crate::kinds::walk::child(resources, side) {
                    for name in RESIZABLE {
                        carry_over(amounts, old_side, name);
                    }
                }
                if resources[side].is_empty() && old_side.is_null() {
                    crate::kinds::walk::remove(resources, side);
                }
            }
            carry_over(container, before, "resizePolicy");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::pod::default::default_pod;
    use serde_json::json;

    fn pod(requests: Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": "p", "generation": 1, "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}]},
        });
        default_pod(&mut pod);
        pod
    }

    #[test]
    fn ephemeral_containers_are_added_and_nothing_else_changes() {
        let old = pod(json!({"cpu": "1"}));
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({"a": "other"});
        new["spec"]["containers"][0]["image"] = json!("other");
        new["spec"]["ephemeralContainers"] =
            json!([{"name": "debug", "image": "busybox", "targetContainerName": "c"}]);
        default_pod(&mut new);
        take_ephemeral_containers(&mut new, &old);
        assert_eq!(new["metadata"]["labels"]["a"], "b");
        assert_eq!(new["metadata"]["generation"], 2);
        assert_eq!(new["spec"]["containers"], old["spec"]["containers"]);
        assert!(validate_ephemeral_containers_update(&new, &old).is_empty());
        let mut changed = new.clone();
        changed["spec"]["ephemeralContainers"][0]["image"] = json!("alpine");
        let errors = validate_ephemeral_containers_update(&changed, &new);
        assert!(errors.0[0].text().contains("\"debug\" may not be changed"));
        assert!(!validate_ephemeral_containers_update(&old, &new).is_empty());
    }

    #[test]
    fn an_ephemeral_container_looks_into_a_container_that_is_there() {
        let old = pod(json!({}));
        let mut new = old.clone();
        new["spec"]["ephemeralContainers"] =
            json!([{"name": "debug", "image": "busybox", "targetContainerName": "x"}]);
        default_pod(&mut new);
        assert_eq!(
            validate_ephemeral_containers_update(&new, &old).0[0].text(),
            "spec.ephemeralContainers[0].targetContainerName: Not found: \"x\""
        );
    }

    #[test]
    fn a_resize_changes_cpu_and_memory_within_the_class() {
        let old = pod(json!({"cpu": "1"}));
        let mut new = pod(json!({"cpu": "2", "memory": "1Gi"}));
        new["spec"]["containers"][0]["image"] = json!("other");
        take_resources(&mut new, &old);
        assert_eq!(new["spec"]["containers"][0]["image"], "i");
        assert_eq!(new["metadata"]["generation"], 2);
        assert!(validate_resize(&new, &old).is_empty());
        let errors = validate_resize(&pod(json!({})), &old);
        let texts: Vec<String> = errors
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "metadata: Invalid value: \"BestEffort\": Pod QOS Class may not change as a result of resizing",
                "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
            ]
        );
        let mut gpu = old.clone();
        gpu["spec"]["containers"][0]["resources"] =
            json!({"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}});
        assert_eq!(validate_resize(&gpu, &old).0[0].field, "spec");
    }

    #[test]
    fn a_resize_leaves_the_containers_what_they_are() {
        let two = json!({"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}});
        let texts = |mut new: Value| -> Vec<String> {
            let (mut old, sent) = (two.clone(), new.clone());
            default_pod(&mut old);
            take_resources(&mut new, &old);
            assert_eq!(new, sent, "left as it was sent");
            default_pod(&mut new);
            let errors = validate_resize(&new, &old).0;
            errors.iter().map(crate::status::FieldError::text).collect()
        };
        let containers = |names: &[&str]| -> Value {
            let list: Vec<Value> = names
                .iter()
                .map(|n| json!({"name": n, "image": "i"}))
                .collect();
            json!({"spec": {"containers": list}})
        };
        let other = "containers may not be renamed or reordered on resize";
        let both = [
            format!("spec.containers[0].name: Forbidden: {other}"),
            format!("spec.containers[1].name: Forbidden: {other}"),
        ];
        assert_eq!(texts(containers(&["b", "a"])), both);
        assert_eq!(texts(containers(&["c", "d"])), both);
        for names in [&["a", "b", "c"][..], &["a"]] {
            assert_eq!(
                texts(containers(names)),
                ["spec.containers: Forbidden: containers may not be added or removed on resize"]
            );
        }
    }
}
