//! Checks of `metadata`, the same for all kinds but for the rule of the name.
//!
//! Source of rules: apimachinery `api/validation/objectmeta.go`.

use serde_json::Value;

use super::{Path, names};
use crate::kind::{Kind, Scope};
use crate::kinds::walk::{Walk, same};
use crate::status::FieldErrors;

const IMMUTABLE: &str = "field is immutable";
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// What names of a kind's objects must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 label.
    Label,
    /// RFC 1123 subdomain.
    Subdomain,
    /// DNS-1035 label.
    Label1035,
    /// Anything that fits into a URL path.
    PathSegment,
}

impl NameRule {
    /// The rule of a kind. Kinds that are not built in follow the one of subdomains.
    #[must_use]
    pub fn of(kind: &Kind) -> Self {
        match (kind.group.as_ref(), kind.kind.as_ref()) {
            ("", "Namespace") => Self::Label,
            ("", "Service") => Self::Label1035,
            ("rbac.authorization.k8s.io", _)
            | ("apiregistration.k8s.io", "APIService")
            | ("certificates.k8s.io", "CertificateSigningRequest")
            | ("networking.k8s.io", "IPAddress") => Self::PathSegment,
            ("apps", "StatefulSet") => Self::Label,
            _ => Self::Subdomain,
        }
    }

    /// What is wrong with a name, or with the prefix of one (`generateName`).
    #[must_use]
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        // The dash at a prefix's end is followed by random letters.
        let masked;
        let name = match name.strip_suffix('-') {
            Some(head) if prefix && self != Self::PathSegment => {
                masked = format!("{head}a");
                &masked
            }
            _ => name,
        };
        match self {
            Self::Label => names::dns1123_label(name),
            Self::Subdomain => names::dns1123_subdomain(name),
            Self::Label1035 => names::dns1035_label(name),
            Self::PathSegment => names::path_segment(name, prefix),
        }
    }
}

/// Problems of the metadata of a new object, whose name has already been generated.
#[must_use]
pub fn validate_metadata_create(kind: &Kind, object: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let path = Path::new("metadata");
    let metadata = &object["metadata"];
    let rule = NameRule::of(kind);
    let generate = metadata["generateName"].text();
    if !generate.is_empty() {
        for message in rule.check(generate, true) {
            errors.invalid(path.child("generateName"), generate, message);
        }
    }
    let name = metadata["name"].text();
    if name.is_empty() {
        errors.required(path.child("name"), "name or generateName is required");
    } else {
        for message in rule.check(name, false) {
            errors.invalid(path.child("name"), name, message);
        }
    }
    validate_namespace(kind, metadata["namespace"].text(), &mut errors);
    if let Some(generation) = metadata["generation"].int().filter(|g| *g < 0) {
        errors.invalid(
            path.child("generation"),
            generation,
            "must be greater than or equal to 0",
        );
    }
    validate_common(metadata, &mut errors);
    errors
}

fn validate_namespace(kind: &Kind, namespace: &str, errors: &mut FieldErrors) {
    match kind.scope {
        Scope::Namespaced if namespace.is_empty() => errors.required("metadata.namespace", ""),
        Scope::Namespaced => {
            for message in names::dns1123_label(namespace) {
                errors.invalid("metadata.namespace", namespace, message);
            }
        }
        Scope::Cluster if !namespace.is_empty() => {
            errors.forbidden("metadata.namespace", "not allowed on this type");
        }
        Scope::Cluster => {}
    }
}

/// Problems of changed metadata.
#[must_use]
pub fn validate_metadata_update(_kind: &Kind, object: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let path = Path::new("metadata");
    let (metadata, before) = (&object["metadata"], &old["metadata"]);
    if before["deletionTimestamp"].present() {
        no_new_finalizers(
            &metadata["finalizers"],
            &before["finalizers"],
            &path.child("finalizers"),
            &mut errors,
        );
    }
    if metadata["resourceVersion"].text().is_empty() {
        errors.invalid(
            path.child("resourceVersion"),
            "",
            "must be specified for an update",
        );
    }
    let generation = metadata["generation"].int().unwrap_or_default();
    if generation < before["generation"].int().unwrap_or_default() {
        errors.invalid(
            path.child("generation"),
            generation,
            "must not be decremented",
        );
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        if !same(&metadata[field], &before[field]) {
            errors.invalid(path.child(field), metadata[field].clone(), IMMUTABLE);
        }
    }
    validate_common(metadata, &mut errors);
    errors
}

fn no_new_finalizers(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut added: Vec<&str> = new
        .items()
        .iter()
        .filter(|f| !old.items().contains(f))
        .map(Walk::text)
        .collect();
    if added.is_empty() {
        return;
    }
    added.sort_unstable();
    let list: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
    errors.forbidden(
        path,
        format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            list.join(", ")
        ),
    );
}

fn validate_common(metadata: &Value, errors: &mut FieldErrors) {
    let path = Path::new("metadata");
    validate_labels(&metadata["labels"], &path.child("labels"), errors);
    validate_annotations(&metadata["annotations"], &path.child("annotations"), errors);
    validate_owners(
        &metadata["ownerReferences"],
        &path.child("ownerReferences"),
        errors,
    );
    validate_finalizers(&metadata["finalizers"], &path.child("finalizers"), errors);
}

/// Problems of a map of labels (also node selectors and match labels).
pub fn validate_labels(labels: &Value, path: &Path, errors: &mut FieldErrors) {
    for (key, value) in labels.entries() {
        for message in names::qualified_name(key) {
            errors.invalid(path, key.as_str(), message);
        }
        for message in names::label_value(value.text()) {
            errors.invalid(path, value.text(), message);
        }
    }
}

/// Problems of a map of annotations.
pub fn validate_annotations(annotations: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut size = 0;
    for (key, value) in annotations.entries() {
        size += key.len() + value.text().len();
        for message in names::qualified_name(&key.to_lowercase()) {
            errors.invalid(path, key.as_str(), message);
        }
    }
    if size > ANNOTATIONS_LIMIT {
        errors.too_long(path, ANNOTATIONS_LIMIT);
    }
}

fn validate_owners(owners: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut controller: Option<String> = None;
    for owner in owners.items() {
        let api_version = owner["apiVersion"].text();
        let version = api_version.rsplit('/').next().unwrap_or_default();
        if version.is_empty() {
            errors.invalid(
                path.child("apiVersion"),
                api_version,
                "version must not be empty",
            );
        }
        for field in ["kind", "name", "uid"] {
            if owner[field].text().is_empty() {
                errors.invalid(path.child(field), "", "must not be empty");
            }
        }
        if api_version == "v1" && owner["kind"] == "Event" {
            errors.invalid(
                path,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            );
        }
        if owner["controller"].is_true() {
            let this = format!("{}/{}", owner["kind"].text(), owner["name"].text());
            match &controller {
                Some(first) => errors.invalid(
                    path,
                    owners.clone(),
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"),
                ),
                None => controller = Some(this),
            }
        }
    }
}

fn validate_finalizers(finalizers: &Value, path: &Path, errors: &mut FieldErrors) {
    for finalizer in finalizers.items().iter().map(Walk::text) {
        for message in names::qualified_name(finalizer) {
            errors.invalid(path, finalizer, message);
        }
    }
    let has = |name: &str| finalizers.items().iter().any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        errors.invalid(
            path,
            finalizers.clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn texts(errors: &FieldErrors) -> Vec<String> {
        errors
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect()
    }

    fn config_map() -> std::sync::Arc<Kind> {
        crate::kinds::builtin()
            .into_iter()
            .find(|k| k.kind == "ConfigMap")
            .unwrap()
    }

    #[test]
    fn a_nameless_object_needs_a_name() {
        let errors = validate_metadata_create(
            &config_map(),
            &json!({"metadata": {"namespace": "default"}}),
        );
        assert_eq!(
            texts(&errors),
            ["metadata.name: Required value: name or generateName is required"]
        );
    }

    #[test]
    fn a_prefix_may_end_with_a_dash_and_a_name_may_not() {
        assert!(NameRule::Subdomain.check("web-", true).is_empty());
        assert!(!NameRule::Subdomain.check("web-", false).is_empty());
        assert!(NameRule::PathSegment.check("system:node-", true).is_empty());
    }

    #[test]
    fn identity_does_not_change_and_versions_are_needed() {
        let old = json!({"metadata": {"name": "a", "namespace": "n", "uid": "1", "generation": 2}});
        let new = json!({"metadata": {"name": "a", "namespace": "n", "uid": "2", "generation": 1}});
        assert_eq!(
            texts(&validate_metadata_update(&config_map(), &new, &old)),
            [
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.generation: Invalid value: 1: must not be decremented",
                "metadata.uid: Invalid value: \"2\": field is immutable",
            ]
        );
    }

    #[test]
    fn an_object_being_deleted_gets_no_new_finalizers() {
        let old = json!({"metadata": {"name": "a", "resourceVersion": "1", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["a/b", "c/d"]);
        let errors = validate_metadata_update(&config_map(), &new, &old);
        assert_eq!(
            texts(&errors),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"c/d\"}"
            ]
        );
        new["metadata"]["finalizers"] = json!([]);
        assert!(validate_metadata_update(&config_map(), &new, &old).is_empty());
    }

    #[test]
    fn labels_owners_and_annotations_are_checked() {
        let object = json!({"metadata": {
            "name": "a", "namespace": "n",
            "labels": {"a b": "c"},
            "annotations": {"x": "y".repeat(300_000)},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "1", "controller": true},
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": "", "controller": true},
            ],
        }});
        let fields: Vec<_> = validate_metadata_create(&config_map(), &object)
            .0
            .into_iter()
            .map(|e| e.field)
            .collect();
        assert_eq!(
            fields,
            [
                "metadata.labels",
                "metadata.annotations",
                "metadata.ownerReferences.uid",
                "metadata.ownerReferences"
            ]
        );
    }
}
