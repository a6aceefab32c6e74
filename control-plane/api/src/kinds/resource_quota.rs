//! ResourceQuotas: how much of everything a namespace may have.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::amounts;
use super::declare::{Declaration, keep_generation};
use super::walk::{Walk, carry_over, get_mut, same, set};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, each_invalid, names};

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "ResourceQuota", "resourcequotas", Quotas)
        .short_names(&["quota"])
        .status()
        .build()
}

/// Objects that have quotas without `count/` before them.
const COUNTED: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

fn is_counted(name: &str) -> bool {
    COUNTED.contains(&name) || name.starts_with("count/")
}

/// Names with a domain are anybody's; the others are known.
fn is_quota_resource(name: &str) -> bool {
    let compute = |name: &str| {
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
    };
    let side = name
        .strip_prefix("requests.")
        .or_else(|| name.strip_prefix("limits."));
    name.contains('/')
        || is_counted(name)
        || compute(name)
        || name == "requests.storage"
        || side.is_some_and(compute)
}

struct Quotas;

impl Strategy for Quotas {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = get_mut(object, "spec") {
            amounts::canonicalize(spec, "hard");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }

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
        let path = Path::new("spec");
        validate_amounts(&object["spec"]["hard"], &path.child("hard"), &mut errors);
        for scope in object["spec"]["scopes"].items() {
            if !SCOPES.contains(&scope.text()) {
                errors.invalid(
                    path.child("scopes"),
                    object["spec"]["scopes"].clone(),
                    "unsupported scope",
                );
            }
        }
        for selector in object["spec"]["scopeSelector"]["matchExpressions"].items() {
            let path = path.child("scopeSelector").child("matchExpressions");
            if !SCOPES.contains(&selector["scopeName"].text()) {
                errors.invalid(
                    path.child("scopeName"),
                    selector["scopeName"].text(),
                    "unsupported scope",
                );
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let path = Path::new("spec").child("scopes");
        if !same(&object["spec"]["scopes"], &old["spec"]["scopes"]) {
            errors.invalid(path, object["spec"]["scopes"].clone(), "field is immutable");
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        for part in ["hard", "used"] {
            let path = Path::new("status").child(part);
            validate_amounts(&object["status"][part], &path, &mut errors);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Request",
                "string",
                "What is used and allowed, except limits.",
            ),
            column("Limit", "string", "Limits that are used and allowed."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let status = &object["status"];
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        let mut hard: Vec<(&String, &Value)> = status["hard"].entries().collect();
        hard.sort_by_key(|(name, _)| *name);
        for (name, allowed) in hard {
            let used = amounts::amount(&status["used"][name.as_str()]).unwrap_or_default();
            let text = format!(
                "{name}: {used}/{}",
                amounts::canonical(allowed).unwrap_or_default()
            );
            if name.starts_with("limits") {
                limits.push(text)
            } else {
                requests.push(text)
            }
        }
        vec![
            name(object),
            requests.join(", ").into(),
            limits.join(", ").into(),
            age(object, now),
        ]
    }
}

/// Amounts of resources that a quota can count.
fn validate_amounts(list: &Value, path: &Path, errors: &mut FieldErrors) {
    for (name, amount) in list.entries() {
        let path = path.key(name);
        each_invalid(&path, name, names::qualified_name(name), errors);
        if !is_quota_resource(name) {
            errors.invalid(
                &path,
                name.as_str(),
                "must be a standard resource for quotas",
            );
        }
        let amount = amounts::validate_non_negative(amount, &path, errors);
        if let Some(amount) = amount.filter(|a| is_counted(name) && a.nanos() % 1_000_000_000 != 0)
        {
            errors.invalid(&path, amount.to_string(), "must be an integer");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_row_shows_used_of_allowed() {
        let quota = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "10", "requests.cpu": "2", "limits.cpu": "4"}, "used": {"pods": "3", "limits.cpu": "500m"}}});
        let row = Quotas.row(&quota, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(
            row,
            [
                "q",
                "pods: 3/10, requests.cpu: 0/2",
                "limits.cpu: 500m/4",
                "<unknown>"
            ]
        );
    }
}
