//! What kinds that make pods from a template share.

use serde_json::Value;

use super::pod::default::default_pod_spec;
use super::pod::workload_warnings;
use super::walk::{Walk, child, same};
use crate::kind::ScalePaths;
use crate::status::FieldErrors;
use crate::validation::selector::{selects_everything, validate_label_selector};
use crate::validation::{Path, names, non_negative};

/// Defaults of `spec.template`.
pub(super) fn default_template(spec: &mut Value) {
    if let Some(pod_spec) = child(spec, "template").and_then(|t| child(t, "spec")) {
        default_pod_spec(pod_spec);
    }
}

/// Where `/scale` of all workloads finds its numbers.
pub(super) fn scale_paths() -> ScalePaths {
    ScalePaths {
        spec_replicas: "/spec/replicas".into(),
        status_replicas: "/status/replicas".into(),
        selector: Some("/spec/selector".into()),
    }
}

/// `spec.selector` of a workload: there, valid, and not of everything.
pub(super) fn validate_selector(spec: &Value, kind: &str, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("selector");
    let selector = &spec["selector"];
    if selector.is_null() {
        errors.required(path, "");
        return;
    }
    validate_label_selector(selector, &path, errors);
    if selects_everything(selector) {
        errors.invalid(
            path,
            selector.clone(),
            format!("empty selector is invalid for {kind}"),
        );
    }
}

/// Counts in a status: none is negative, `parts` are not above `replicas`, and no more pods are available than
/// ready.
pub(super) fn validate_counts(status: &Value, parts: &[&str]) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let path = Path::new("status");
    let replicas = status["replicas"].int().unwrap_or_default();
    non_negative(&status["replicas"], &path.child("replicas"), &mut errors);
    for field in parts
        .iter()
        .chain(&["observedGeneration", "collisionCount"])
    {
        non_negative(&status[*field], &path.child(field), &mut errors);
    }
    for field in parts {
        if let Some(number) = status[*field].int().filter(|n| *n > replicas) {
            errors.invalid(
                path.child(field),
                number,
                "cannot be greater than status.replicas",
            );
        }
    }
    let (ready, available) = (&status["readyReplicas"], &status["availableReplicas"]);
    if available.int().unwrap_or_default() > ready.int().unwrap_or_default() {
        errors.invalid(
            path.child("availableReplicas"),
            available.clone(),
            "cannot be greater than readyReplicas",
        );
    }
    errors
}

/// Warnings of a workload whose template stands in `spec.template`; of an update, when the template changed.
pub(super) fn warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let template = &object["spec"]["template"];
    if old.is_some_and(|old| same(&old["spec"]["template"], template)) {
        return Vec::new();
    }
    workload_warnings(object, template, &Path::new("spec").child("template"))
}

/// A count or a percentage.
pub(super) fn validate_int_or_percent(value: &Value, path: &Path, errors: &mut FieldErrors) {
    match value {
        Value::String(text) => {
            for message in names::percent(text) {
                errors.invalid(path, text.as_str(), message);
            }
        }
        _ => non_negative(value, path, errors),
    }
}

/// The number of a valid percentage.
pub(super) fn percent(value: &Value) -> Option<i64> {
    value.text().strip_suffix('%')?.parse().ok()
}

/// A percentage of at most 100.
pub(super) fn validate_not_over_100(value: &Value, path: &Path, errors: &mut FieldErrors) {
    if percent(value).is_some_and(|p| p > 100) {
        errors.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

/// Whether a count or percentage is nothing.
pub(super) fn is_none_of_it(value: &Value) -> bool {
    value.int() == Some(0) || percent(value) == Some(0)
}

#[cfg(test)]
pub(super) mod fixture {
    use serde_json::{Value, json};

    /// A workload of the kind with a minimal template for `app=web`.
    pub fn workload(mut spec: Value) -> Value {
        spec["template"] = json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "nginx:1"}]},
        });
        json!({
            "metadata": {"name": "web", "namespace": "default", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec,
        })
    }

    /// The texts of all errors.
    pub fn texts(errors: &crate::status::FieldErrors) -> Vec<String> {
        errors
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect()
    }
}
