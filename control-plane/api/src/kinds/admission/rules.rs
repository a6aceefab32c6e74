//! Which requests a webhook or a policy is for.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::kinds::walk::{Walk, fill, list_mut};
use crate::status::FieldErrors;
use crate::validation::selector::validate_label_selector;
use crate::validation::{Path, names};

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
/// Most match conditions of a webhook or policy.
const CONDITIONS_LIMIT: usize = 64;

/// Defaults of the rules in a list member.
pub(super) fn default_rules(holder: &mut Value, key: &str) {
    for rule in list_mut(holder, key) {
        fill(rule, "scope", "*");
    }
}

/// Defaults of MatchResources (policies and bindings).
pub(super) fn default_match_resources(resources: &mut Value) {
    fill(resources, "matchPolicy", "Equivalent");
    fill(resources, "namespaceSelector", json!({}));
    fill(resources, "objectSelector", json!({}));
    default_rules(resources, "resourceRules");
    default_rules(resources, "excludeResourceRules");
}

fn has_wildcard(list: &[Value]) -> bool {
    list.iter().any(|item| item == "*")
}

/// A rule with operations, groups, versions, resources and scope.
pub(super) fn validate_rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    let operations = rule["operations"].items();
    let at = path.child("operations");
    if operations.is_empty() {
        errors.required(&at, "");
    }
    if operations.len() > 1 && has_wildcard(operations) {
        errors.invalid(
            &at,
            rule["operations"].clone(),
            "if '*' is present, must not specify other operations",
        );
    }
    for (i, operation) in operations.iter().map(Walk::text).enumerate() {
        if !OPERATIONS.contains(&operation) {
            errors.not_supported(at.index(i), operation, &OPERATIONS);
        }
    }
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let list = rule[field].items();
        if list.is_empty() {
            errors.required(path.child(field), "");
        }
        if list.len() > 1 && has_wildcard(list) {
            errors.invalid(
                path.child(field),
                rule[field].clone(),
                format!("if '*' is present, must not specify other {what}"),
            );
        }
    }
    for (i, version) in rule["apiVersions"].items().iter().enumerate() {
        if version.text().is_empty() {
            errors.required(path.child("apiVersions").index(i), "");
        }
    }
    validate_resources(&rule["resources"], &path.child("resources"), errors);
    if rule["scope"].present() && !SCOPES.contains(&rule["scope"].text()) {
        errors.not_supported(path.child("scope"), rule["scope"].text(), &SCOPES);
    }
}

fn validate_resources(resources: &Value, path: &Path, errors: &mut FieldErrors) {
    let list = resources.items();
    if list.is_empty() {
        errors.required(path, "");
    }
    // Resources whose subresources are all meant, and subresources that are meant of all resources.
    let (mut whole, mut everywhere) = (BTreeSet::new(), BTreeSet::new());
    for (i, text) in list.iter().map(Walk::text).enumerate() {
        if text.is_empty() {
            errors.required(path.index(i), "");
            continue;
        }
        let (resource, sub) = text.split_once('/').unwrap_or((text, ""));
        if !sub.is_empty() && whole.contains(resource) {
            errors.invalid(
                path.index(i),
                text,
                format!("if '{resource}/*' is present, must not specify {text}"),
            );
        }
        if !sub.is_empty() && everywhere.contains(sub) {
            errors.invalid(
                path.index(i),
                text,
                format!("if '*/{sub}' is present, must not specify {text}"),
            );
        }
        if sub == "*" {
            whole.insert(resource);
        }
        if resource == "*" && !sub.is_empty() {
            everywhere.insert(sub);
        }
    }
    if list.len() > 1 && list.iter().any(|r| r == "*/*") {
        errors.invalid(
            path,
            resources.clone(),
            "if '*/*' is present, must not specify other resources",
        );
    }
    let plain = |r: &Value| !r.text().contains('/') && r != "*";
    if has_wildcard(list) && list.iter().any(plain) {
        errors.invalid(
            path,
            resources.clone(),
            "if '*' is present, must not specify other resources without subresources",
        );
    }
}

/// MatchResources of a policy or binding.
pub(super) fn validate_match_resources(resources: &Value, path: &Path, errors: &mut FieldErrors) {
    crate::validation::one_of(
        &resources["matchPolicy"],
        &["Equivalent", "Exact"],
        &path.child("matchPolicy"),
        errors,
    );
    for field in ["namespaceSelector", "objectSelector"] {
        if resources[field].is_null() {
            errors.required(path.child(field), "");
        } else {
            validate_label_selector(&resources[field], &path.child(field), errors);
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in resources[field].items().iter().enumerate() {
            let path = path.child(field).index(i);
            validate_rule(rule, &path, errors);
            let mut seen = BTreeSet::new();
            for (j, name) in rule["resourceNames"]
                .items()
                .iter()
                .map(Walk::text)
                .enumerate()
            {
                let path = path.child("resourceNames").index(j);
                for message in names::path_segment(name, false) {
                    errors.invalid(&path, name, message);
                }
                if !seen.insert(name) {
                    errors.duplicate(&path, name);
                }
            }
        }
    }
}

/// CEL conditions that are asked before anything else.
pub(super) fn validate_match_conditions(conditions: &Value, path: &Path, errors: &mut FieldErrors) {
    let list = conditions.items();
    if list.len() > CONDITIONS_LIMIT {
        errors.0.push(crate::status::FieldError {
            kind: crate::status::ErrorKind::TooMany,
            field: path.to_string(),
            value: Some(list.len().into()),
            detail: format!("must have at most {CONDITIONS_LIMIT} items"),
        });
    }
    let mut seen = BTreeSet::new();
    for (i, condition) in list.iter().enumerate() {
        let (path, name) = (path.index(i), condition["name"].text());
        if condition["expression"].text().trim().is_empty() {
            errors.required(path.child("expression"), "");
        }
        if name.is_empty() {
            errors.required(path.child("name"), "");
            continue;
        }
        for message in names::qualified_name(name) {
            errors.invalid(path.child("name"), name, message);
        }
        if !seen.insert(name) {
            errors.duplicate(path.child("name"), name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_alone() {
        let rule = json!({"operations": ["CREATE", "*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["*", "pods", "pods/*", "pods/log"]});
        let mut errors = FieldErrors::default();
        validate_rule(&rule, &Path::new("r"), &mut errors);
        let fields: Vec<String> = errors.0.into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["r.operations", "r.resources[3]", "r.resources"]);
    }
}
