//! What of a pod may change: images, a lower deadline, added tolerations, lifted scheduling gates, metadata.

use serde_json::{Value, json};

use super::containers::validate_images;
use super::validate_pod_spec;
use crate::kinds::walk::{Walk, list_mut, remove, same, set};
use crate::status::FieldErrors;
use crate::validation::{Path, names};

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Problems of a changed Pod, beside those of its metadata.
#[must_use]
pub fn validate_pod_update(pod: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let path = Path::new("spec");
    let (new_spec, old_spec) = (&pod["spec"], &old["spec"]);
    validate_pod_spec(new_spec, &path, &mut errors);
    validate_images(new_spec, &path, &mut errors);
    for (list, what) in [
        ("containers", "containers"),
        ("initContainers", "init containers"),
    ] {
        if new_spec[list].items().len() != old_spec[list].items().len() {
            errors.forbidden(
                path.child(list),
                format!("pod updates may not add or remove {what}"),
            );
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    validate_deadline(new_spec, old_spec, &path, &mut errors);
    validate_tolerations(new_spec, old_spec, &path, &mut errors);
    validate_gates(new_spec, old_spec, &path, &mut errors);
    validate_rest(new_spec, old_spec, &path, &mut errors);
    errors
}

fn validate_deadline(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("activeDeadlineSeconds");
    match (
        new["activeDeadlineSeconds"].int(),
        old["activeDeadlineSeconds"].int(),
    ) {
        (Some(new), Some(old)) if new > old => {
            errors.invalid(path, new, "must be less than or equal to previous value");
        }
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            errors.invalid(path, new, names::range_error(0, i64::from(i32::MAX)));
        }
        (None, Some(_)) => {
            errors.invalid(
                path,
                Value::Null,
                "must not update from a positive integer to nil value",
            );
        }
        _ => {}
    }
}

/// All old tolerations stay, but for their seconds.
fn validate_tolerations(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let bare = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let new: Vec<Value> = new["tolerations"].items().iter().map(bare).collect();
    for toleration in old["tolerations"].items() {
        if !new.contains(&bare(toleration)) {
            errors.forbidden(
                path.child("tolerations"),
                "existing toleration can not be modified except its tolerationSeconds",
            );
        }
    }
}

fn validate_gates(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    for gate in new["schedulingGates"].items() {
        if !old["schedulingGates"].items().contains(gate) {
            errors.forbidden(
                path.child("schedulingGates").key(gate["name"].text()),
                format!(
                    "only deletion is allowed, but found new scheduling gate '{}'",
                    gate["name"].text()
                ),
            );
        }
    }
}

fn validate_rest(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let munged = munge(new, old);
    if same(&munged, old) {
        return;
    }
    let changes = changes(&munged, old);
    errors.forbidden(path, format!("{ALLOWED}\n{}\n", changes.join("\n")));
}

/// The new spec with everything that may change set back.
fn munge(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        for (container, before) in list_mut(&mut munged, list).zip(old[list].items()) {
            set(container, "image", before["image"].clone());
        }
    }
    let mut back = vec!["activeDeadlineSeconds", "schedulingGates", "tolerations"];
    if old["terminationGracePeriodSeconds"]
        .int()
        .is_some_and(|s| s < 0)
        && new["terminationGracePeriodSeconds"] == 1
    {
        back.push("terminationGracePeriodSeconds");
    }
    if !old["schedulingGates"].is_empty() {
        if narrower_node_selector(new, old) {
            back.push("nodeSelector");
        }
        if narrower_affinity(&mut munged, old) {
            back.push("affinity");
        }
    }
    for field in back {
        crate::kinds::walk::carry_over(&mut munged, old, field);
    }
    munged
}

/// While a pod is gated, its node selector may get more conditions.
fn narrower_node_selector(new: &Value, old: &Value) -> bool {
    old["nodeSelector"]
        .entries()
        .all(|(key, value)| new["nodeSelector"].get(key) == Some(value))
}

/// While a pod is gated, its required node affinity may get more conditions in each term (or be set if it was
/// not), and its preferences may change.
fn narrower_affinity(munged: &mut Value, old: &Value) -> bool {
    let required = |spec: &Value| {
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            .clone()
    };
    let others = |spec: &Value| {
        let mut affinity = spec["affinity"].clone();
        remove(&mut affinity, "nodeAffinity");
        if affinity.is_null() {
            json!({})
        } else {
            affinity
        }
    };
    if !same(&others(munged), &others(old)) {
        return false;
    }
    let (new_terms, old_terms) = (required(munged), required(old));
    if old_terms.is_empty() {
        return true;
    }
    new_terms.items().len() == old_terms.items().len()
        && new_terms
            .items()
            .iter()
            .zip(old_terms.items())
            .all(|(new, old)| {
                ["matchExpressions", "matchFields"].iter().all(|list| {
                    old[*list]
                        .items()
                        .iter()
                        .all(|c| new[*list].items().contains(c))
                })
            })
}

/// The changed fields, one line each, for people to find what they changed.
pub(super) fn changes(new: &Value, old: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    diff(new, old, "spec", &mut lines);
    lines
}

fn diff(new: &Value, old: &Value, path: &str, lines: &mut Vec<String>) {
    match (new, old) {
        (Value::Object(n), Value::Object(o)) => {
            let keys: std::collections::BTreeSet<&String> = n.keys().chain(o.keys()).collect();
            for key in keys {
                let (n, o) = (
                    n.get(key).unwrap_or(&Value::Null),
                    o.get(key).unwrap_or(&Value::Null),
                );
                if !same(n, o) {
                    diff(n, o, &format!("{path}.{key}"), lines);
                }
            }
        }
        (Value::Array(n), Value::Array(o)) if n.len() == o.len() => {
            for (i, (n, o)) in n.iter().zip(o).enumerate() {
                if !same(n, o) {
                    diff(n, o, &format!("{path}[{i}]"), lines);
                }
            }
        }
        _ => {
            lines.push(format!("- \t{path}: {old}"));
            lines.push(format!("+ \t{path}: {new}"));
        }
    }
}

/// Problems of a changed status: a container that ended for good may not run again.
#[must_use]
pub fn validate_pod_status_update(pod: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let path = Path::new("status");
    let policy = old["spec"]["restartPolicy"].text();
    if !matches!(policy, "OnFailure" | "Never") {
        return errors;
    }
    let statuses = &pod["status"]["containerStatuses"];
    for before in old["status"]["containerStatuses"].items() {
        let ended = &before["state"]["terminated"];
        let final_ = ended.present() && (policy == "Never" || ended["exitCode"].int() == Some(0));
        if !final_ || has_own_restart_rules(&old["spec"], before["name"].text()) {
            continue;
        }
        let now = statuses
            .items()
            .iter()
            .enumerate()
            .find(|(_, s)| s["name"] == before["name"]);
        if let Some((i, _)) = now.filter(|(_, s)| s["state"]["terminated"].is_null()) {
            errors.forbidden(
                path.child("containerStatuses").index(i).child("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
    errors
}

fn has_own_restart_rules(spec: &Value, name: &str) -> bool {
    spec["containers"].items().iter().any(|c| {
        c["name"] == name && (c["restartPolicy"].present() || !c["restartPolicyRules"].is_empty())
    })
}
