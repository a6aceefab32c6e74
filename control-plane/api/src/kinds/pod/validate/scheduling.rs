//! Affinity, tolerations and topology spread.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::metadata::validate_labels;
use crate::validation::selector::validate_label_selector;
use crate::validation::{Path, each_invalid, names, one_of, one_of_or_none};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// All wishes of a pod about where it runs.
pub(super) fn validate(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let affinity = &spec["affinity"];
    let affinity_path = path.child("affinity");
    node_affinity(
        &affinity["nodeAffinity"],
        &affinity_path.child("nodeAffinity"),
        errors,
    );
    for field in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(&affinity[field], &affinity_path.child(field), errors);
    }
    validate_tolerations(&spec["tolerations"], &path.child("tolerations"), errors);
    spread(
        &spec["topologySpreadConstraints"],
        &path.child("topologySpreadConstraints"),
        errors,
    );
}

fn weight(term: &Value, path: &Path, errors: &mut FieldErrors) {
    let weight = term["weight"].int().unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.invalid(path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn node_affinity(affinity: &Value, path: &Path, errors: &mut FieldErrors) {
    if affinity[REQUIRED].present() {
        validate_node_selector(&affinity[REQUIRED], &path.child(REQUIRED), errors);
    }
    for (i, term) in affinity[PREFERRED].items().iter().enumerate() {
        let path = path.child(PREFERRED).index(i);
        weight(term, &path, errors);
        node_term(&term["preference"], &path.child("preference"), errors);
    }
}

/// A node selector: terms of which one has to match.
pub fn validate_node_selector(selector: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("nodeSelectorTerms");
    if selector["nodeSelectorTerms"].is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (i, term) in selector["nodeSelectorTerms"].items().iter().enumerate() {
        node_term(term, &path.index(i), errors);
    }
}

fn node_term(term: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, expression) in term["matchExpressions"].items().iter().enumerate() {
        node_expression(expression, &path.child("matchExpressions").index(i), errors);
    }
    for (i, field) in term["matchFields"].items().iter().enumerate() {
        node_field(field, &path.child("matchFields").index(i), errors);
    }
}

fn node_expression(expression: &Value, path: &Path, errors: &mut FieldErrors) {
    let values = expression["values"].items();
    match expression["operator"].text() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(
                    path.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(
                    path.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                errors.required(
                    path.child("values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                );
            }
        }
        other => errors.invalid(
            path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
    let key = expression["key"].text();
    each_invalid(&path.child("key"), key, names::qualified_name(key), errors);
    if matches!(expression["operator"].text(), "In" | "NotIn") {
        for (i, value) in values.iter().enumerate() {
            let path = path.child("values").index(i);
            each_invalid(
                &path,
                value.text(),
                names::label_value(value.text()),
                errors,
            );
        }
    }
}

fn node_field(field: &Value, path: &Path, errors: &mut FieldErrors) {
    let values = field["values"].items();
    match field["operator"].text() {
        "In" | "NotIn" => {
            if values.len() != 1 {
                errors.required(
                    path.child("values"),
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                );
            }
        }
        other => errors.invalid(
            path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
    if field["key"] == "metadata.name" {
        for (i, value) in values.iter().enumerate() {
            let path = path.child("values").index(i);
            each_invalid(
                &path,
                value.text(),
                names::dns1123_subdomain(value.text()),
                errors,
            );
        }
    } else {
        errors.invalid(
            path.child("key"),
            field["key"].text(),
            "not a valid field selector key",
        );
    }
}

fn pod_affinity(affinity: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, term) in affinity[REQUIRED].items().iter().enumerate() {
        pod_term(term, &path.child(REQUIRED).index(i), errors);
    }
    for (i, term) in affinity[PREFERRED].items().iter().enumerate() {
        let path = path.child(PREFERRED).index(i);
        weight(term, &path, errors);
        pod_term(
            &term["podAffinityTerm"],
            &path.child("podAffinityTerm"),
            errors,
        );
    }
}

fn pod_term(term: &Value, path: &Path, errors: &mut FieldErrors) {
    for field in ["labelSelector", "namespaceSelector"] {
        validate_label_selector(&term[field], &path.child(field), errors);
    }
    for namespace in term["namespaces"].items() {
        let name = namespace.text();
        each_invalid(
            &path.child("namespace"),
            name,
            names::dns1123_label(name),
            errors,
        );
    }
    topology_key(term, path, errors);
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        for (i, key) in term[list].items().iter().enumerate() {
            let path = path.child(list).index(i);
            each_invalid(&path, key.text(), names::qualified_name(key.text()), errors);
        }
        if !term[list].is_empty() && term["labelSelector"].is_null() {
            errors.forbidden(
                path.child(list),
                "must not be specified when labelSelector is not set",
            );
        }
    }
}

fn topology_key(holder: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("topologyKey");
    match holder["topologyKey"].text() {
        "" => errors.required(path, "can not be empty"),
        key => each_invalid(&path, key, names::qualified_name(key), errors),
    }
}

/// Tolerations of a pod.
pub(in crate::kinds) fn validate_tolerations(
    tolerations: &Value,
    path: &Path,
    errors: &mut FieldErrors,
) {
    for (i, toleration) in tolerations.items().iter().enumerate() {
        let path = path.index(i);
        let key = toleration["key"].text();
        let operator = toleration["operator"].text();
        if !key.is_empty() {
            validate_labels(&serde_json::json!({ key: "" }), &path.child("key"), errors);
        } else if operator != "Exists" {
            errors.invalid(
                path.child("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration["tolerationSeconds"].present() && toleration["effect"] != "NoExecute" {
            errors.invalid(
                path.child("effect"),
                toleration["effect"].text(),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        let value = toleration["value"].text();
        match operator {
            "" | "Equal" => each_invalid(
                &path.child("operator"),
                value,
                names::label_value(value),
                errors,
            ),
            "Exists" => {
                if !value.is_empty() {
                    errors.invalid(
                        path.child("operator"),
                        toleration.clone(),
                        "value must be empty when `operator` is 'Exists'",
                    );
                }
            }
            other => errors.not_supported(path.child("operator"), other, &["Equal", "Exists"]),
        }
        if !toleration["effect"].is_empty() {
            one_of(
                &toleration["effect"],
                EFFECTS,
                &path.child("effect"),
                errors,
            );
        }
    }
}

fn spread(constraints: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, constraint) in constraints.items().iter().enumerate() {
        let path = path.index(i);
        for field in ["maxSkew", "minDomains"] {
            let number = constraint[field].int();
            if number.is_some_and(|n| n <= 0) || (field == "maxSkew" && number.is_none()) {
                errors.invalid(
                    path.child(field),
                    number.unwrap_or_default(),
                    "must be greater than zero",
                );
            }
        }
        topology_key(constraint, &path, errors);
        let when = constraint["whenUnsatisfiable"].text();
        one_of(
            &constraint["whenUnsatisfiable"],
            &["DoNotSchedule", "ScheduleAnyway"],
            &path.child("whenUnsatisfiable"),
            errors,
        );
        if constraint["minDomains"].present() && when != "DoNotSchedule" {
            errors.invalid(
                path.child("minDomains"),
                constraint["minDomains"].clone(),
                format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}"),
            );
        }
        let pair = (constraint["topologyKey"].text(), when);
        if !seen.insert(pair) {
            errors.duplicate(
                path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{}, {}}}", pair.0, pair.1),
            );
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one_of_or_none(
                &constraint[field],
                &["Honor", "Ignore"],
                &path.child(field),
                errors,
            );
        }
        validate_label_selector(
            &constraint["labelSelector"],
            &path.child("labelSelector"),
            errors,
        );
    }
}
