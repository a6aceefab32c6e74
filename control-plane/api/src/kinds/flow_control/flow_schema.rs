//! FlowSchemas: which requests belong together, and at which priority level.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{GROUP, validate_conditions};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, with_status};
use crate::kinds::walk::{Walk, child, fill_zero};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column, or_none};
use crate::validation::{Path, names};

const DEFAULT_PRECEDENCE: i64 = 1000;
const GREATEST_PRECEDENCE: i64 = 10_000;
const METHODS: [&str; 2] = ["ByNamespace", "ByUser"];
const VERBS: [&str; 9] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];
/// Kinds of subject with the member that describes them.
const SUBJECTS: [(&str, &str); 3] = [
    ("Group", "group"),
    ("ServiceAccount", "serviceAccount"),
    ("User", "user"),
];

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(GROUP, "v1", "FlowSchema", "flowschemas", Schemas)
        .status()
        .build()
}

struct Schemas;

impl Strategy for Schemas {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            fill_zero(spec, "matchingPrecedence", DEFAULT_PRECEDENCE);
        }
    }

    with_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = validate_conditions(object);
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let precedence = spec["matchingPrecedence"].int().unwrap_or_default();
        let at = path.child("matchingPrecedence");
        if precedence <= 0 {
            errors.invalid(&at, precedence, "must be a positive value");
        }
        if precedence > GREATEST_PRECEDENCE {
            errors.invalid(
                &at,
                precedence,
                format!("must not be greater than {GREATEST_PRECEDENCE}"),
            );
        }
        if precedence == 1 && object["metadata"]["name"] != "exempt" {
            errors.invalid(
                &at,
                precedence,
                "only the schema named 'exempt' may have matchingPrecedence 1",
            );
        }
        let method = &spec["distinguisherMethod"];
        if method.present() && !METHODS.contains(&method["type"].text()) {
            errors.not_supported(
                path.child("distinguisherMethod").child("type"),
                method["type"].text(),
                &METHODS,
            );
        }
        let (level, at) = (
            spec["priorityLevelConfiguration"]["name"].text(),
            path.child("priorityLevelConfiguration").child("name"),
        );
        if level.is_empty() {
            errors.required(at, "must reference a priority level");
        } else {
            for message in names::dns1123_subdomain(level) {
                errors.invalid(&at, level, message);
            }
        }
        for (i, rule) in spec["rules"].items().iter().enumerate() {
            validate_rule(rule, &path.child("rules").index(i), &mut errors);
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        validate_conditions(object)
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "PriorityLevel",
                "string",
                "The priority level of its requests.",
            ),
            column(
                "MatchingPrecedence",
                "string",
                "Lower numbers are asked first.",
            ),
            column(
                "DistinguisherMethod",
                "string",
                "How its requests are told apart.",
            ),
            age_column(),
            column(
                "MissingPL",
                "string",
                "Whether the priority level is missing.",
            ),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let missing = object["status"]["conditions"]
            .items()
            .iter()
            .find(|c| c["type"] == "Dangling")
            .map_or("?", |c| c["status"].text());
        vec![
            name(object),
            or_none(spec["priorityLevelConfiguration"]["name"].text()),
            spec["matchingPrecedence"].int().unwrap_or_default().into(),
            or_none(spec["distinguisherMethod"]["type"].text()),
            age(object, now),
            missing.into(),
        ]
    }
}

fn validate_rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    if rule["subjects"].is_empty() {
        errors.required(
            path.child("subjects"),
            "subjects must contain at least one value",
        );
    }
    for (i, subject) in rule["subjects"].items().iter().enumerate() {
        validate_subject(subject, &path.child("subjects").index(i), errors);
    }
    if rule["resourceRules"].is_empty() && rule["nonResourceRules"].is_empty() {
        errors.required(
            path,
            "at least one of resourceRules and nonResourceRules has to be non-empty",
        );
    }
    for (i, resource) in rule["resourceRules"].items().iter().enumerate() {
        validate_resource_rule(resource, &path.child("resourceRules").index(i), errors);
    }
    for (i, other) in rule["nonResourceRules"].items().iter().enumerate() {
        let path = path.child("nonResourceRules").index(i);
        validate_verbs(other, &path, errors);
        validate_urls(
            &other["nonResourceURLs"],
            &path.child("nonResourceURLs"),
            errors,
        );
    }
}

fn validate_subject(subject: &Value, path: &Path, errors: &mut FieldErrors) {
    let kind = subject["kind"].text();
    let kinds = SUBJECTS.map(|(kind, _)| kind);
    if !kinds.contains(&kind) {
        errors.not_supported(path.child("kind"), kind, &kinds);
        return;
    }
    for (other, field) in SUBJECTS {
        let at = path.child(field);
        if other != kind {
            if subject[field].present() {
                errors.forbidden(
                    at,
                    format!("{field} is forbidden when subject kind is not '{other}'"),
                );
            }
            continue;
        }
        if subject[field].is_null() {
            errors.required(
                at,
                format!("{field} is required when subject kind is '{kind}'"),
            );
            continue;
        }
        let name = subject[field]["name"].text();
        if name.is_empty() {
            errors.required(at.child("name"), "");
        }
        if kind == "ServiceAccount" {
            validate_account(&subject[field], name, &at, errors);
        }
    }
}

fn validate_account(account: &Value, name: &str, path: &Path, errors: &mut FieldErrors) {
    if !matches!(name, "" | "*") {
        for message in names::dns1123_subdomain(name) {
            errors.invalid(path.child("name"), name, message);
        }
    }
    let namespace = account["namespace"].text();
    if namespace.is_empty() {
        errors.required(
            path.child("namespace"),
            "must specify namespace for service account",
        );
    } else {
        for message in names::dns1123_label(namespace) {
            errors.invalid(path.child("namespace"), namespace, message);
        }
    }
}

fn has_wildcard(list: &Value) -> bool {
    list.items().iter().any(|item| item == "*")
}

fn alone(list: &Value, what: &str, path: Path, errors: &mut FieldErrors) {
    if has_wildcard(list) && list.items().len() > 1 {
        errors.invalid(
            path,
            list.clone(),
            format!("if '*' is present, must not specify other {what}"),
        );
    }
}

fn validate_verbs(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    let (verbs, at) = (&rule["verbs"], path.child("verbs"));
    if verbs.is_empty() {
        errors.required(&at, "verbs must contain at least one value");
    } else if !has_wildcard(verbs)
        && let Some(odd) = verbs.items().iter().find(|v| !VERBS.contains(&v.text()))
    {
        errors.not_supported(&at, odd.text(), &VERBS);
    }
    alone(verbs, "verbs", at, errors);
}

fn validate_resource_rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    validate_verbs(rule, path, errors);
    for (field, one, many) in [
        ("apiGroups", "api group", "api groups"),
        ("resources", "resource", "resources"),
    ] {
        if rule[field].is_empty() {
            errors.required(
                path.child(field),
                format!("resource rules must supply at least one {one}"),
            );
        }
        alone(&rule[field], many, path.child(field), errors);
    }
    let (namespaces, at) = (&rule["namespaces"], path.child("namespaces"));
    if namespaces.is_empty() && !rule["clusterScope"].is_true() {
        errors.required(
            &at,
            "resource rules that are not cluster scoped must supply at least one namespace",
        );
    }
    alone(namespaces, "namespaces", at.clone(), errors);
    if has_wildcard(namespaces) {
        return;
    }
    for (i, namespace) in namespaces.items().iter().map(Walk::text).enumerate() {
        for message in names::dns1123_label(namespace) {
            errors.invalid(
                at.index(i),
                namespace,
                format!("each member of this list must be '*' or a DNS-1123 label; {message}"),
            );
        }
    }
}

fn validate_urls(urls: &Value, path: &Path, errors: &mut FieldErrors) {
    if urls.is_empty() {
        errors.required(path, "nonResourceURLs must contain at least one value");
    }
    alone(urls, "non-resource URLs", path.clone(), errors);
    if has_wildcard(urls) {
        return;
    }
    for (i, url) in urls.items().iter().map(Walk::text).enumerate() {
        if let Some(message) = url_problem(url) {
            errors.invalid(path.index(i), url, message);
        }
    }
}

fn url_problem(url: &str) -> Option<&'static str> {
    let wildcards = url.matches('*').count();
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !url.starts_with('/') => Some("must start with slash"),
        _ if url.contains(' ') => Some("must not contain white-space"),
        _ if url.contains("//") => Some("must not contain double slash"),
        _ if wildcards > 1 || (wildcards == 1 && !url.ends_with("/*")) => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_names_a_level_subjects_and_requests() {
        let mut schema = json!({"metadata": {"name": "s"}, "spec": {
            "priorityLevelConfiguration": {"name": "workload-low"},
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "ann"}}],
                "resourceRules": [{"verbs": ["get"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/healthz/*"]}],
            }],
        }});
        Schemas.default(&mut schema);
        assert!(Schemas.validate_create(&schema).is_empty());
        schema["spec"]["matchingPrecedence"] = json!(1);
        schema["spec"]["rules"][0]["subjects"][0]["group"] = json!({"name": "g"});
        let fields: Vec<String> = Schemas
            .validate_create(&schema)
            .0
            .into_iter()
            .map(|e| e.field)
            .collect();
        assert_eq!(
            fields,
            ["spec.matchingPrecedence", "spec.rules[0].subjects[0].group"]
        );
    }
}
