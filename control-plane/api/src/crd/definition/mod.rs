//! The checks of a CustomResourceDefinition: here its names and the list of its versions, in the other files what a
//! version says.
//!
//! Rules: apiextensions-apiserver `apis/apiextensions/validation/validation.go`. The types of its fields were
//! checked when it was decoded, and CEL expressions are compiled by the API server.

mod conversion;
mod schema;
mod version;

use std::collections::HashSet;

use serde_json::Value;

use crate::kinds::walk::Walk;
use crate::object;
use crate::status::FieldErrors;
use crate::validation::{Path, each_invalid, immutable, names};

/// Problems of a new definition.
#[must_use]
pub fn check_new(definition: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    name(definition, &mut errors);
    spec(&definition["spec"], None, &mut errors);
    errors
}

/// Problems of a changed definition.
#[must_use]
pub fn check_update(definition: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (new_spec, old_spec) = (&definition["spec"], &old["spec"]);
    spec(new_spec, Some(old_spec), &mut errors);
    let path = Path::new("spec");
    if super::naming::is_true(old, "Established") {
        immutable(
            &new_spec["scope"],
            &old_spec["scope"],
            &path.child("scope"),
            &mut errors,
        );
        immutable(
            &new_spec["names"]["kind"],
            &old_spec["names"]["kind"],
            &path.child("names").child("kind"),
            &mut errors,
        );
    }
    immutable(
        &new_spec["group"],
        &old_spec["group"],
        &path.child("group"),
        &mut errors,
    );
    immutable(
        &new_spec["names"]["plural"],
        &old_spec["names"]["plural"],
        &path.child("names").child("plural"),
        &mut errors,
    );
    stored_versions(definition, &mut errors);
    errors
}

/// Problems of a changed status.
#[must_use]
pub fn check_status(definition: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    naming(
        &definition["status"]["acceptedNames"],
        &Path::new("status").child("acceptedNames"),
        &mut errors,
    );
    stored_versions(definition, &mut errors);
    errors
}

fn stored_versions(definition: &Value, errors: &mut FieldErrors) {
    let path = Path::new("status").child("storedVersions");
    let stored = definition["status"]["storedVersions"].items();
    for (index, version) in stored.iter().enumerate() {
        let known = definition["spec"]["versions"]
            .items()
            .iter()
            .any(|v| v["name"] == *version);
        if !known {
            errors.invalid(
                path.index(index),
                version.clone(),
                format!(
                    "missing from spec.versions; {name} was previously a storage version, and must remain in \
                     spec.versions until a storage migration ensures no data remains persisted in {name} and \
                     removes {name} from status.storedVersions",
                    name = version.text()
                ),
            );
        }
    }
}

fn name(definition: &Value, errors: &mut FieldErrors) {
    let spec = &definition["spec"];
    let wanted = format!(
        "{}.{}",
        spec["names"]["plural"].text(),
        spec["group"].text()
    );
    let name = object::name(definition);
    if name != wanted {
        errors.invalid(
            "metadata.name",
            name,
            "must be spec.names.plural+\".\"+spec.group",
        );
    }
    let group = spec["group"].text();
    let protected = group == "k8s.io"
        || group == "kubernetes.io"
        || group.ends_with(".k8s.io")
        || group.ends_with(".kubernetes.io");
    if protected {
        approval(definition, errors);
    }
}

/// Definitions in Kubernetes' own groups carry the URL of their approval (KEP-1111).
fn approval(definition: &Value, errors: &mut FieldErrors) {
    const ANNOTATION: &str = "api-approved.kubernetes.io";
    let path = Path::new("metadata").child("annotations").key(ANNOTATION);
    match object::annotation(definition, ANNOTATION) {
        None => errors.required(
            path,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
        Some(text) if text.starts_with("unapproved") => {}
        Some(text) if text.split_once("://").is_some_and(|(_, rest)| !rest.is_empty()) => {}
        Some(text) => errors.invalid(
            path,
            text,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
    }
}

fn spec(spec: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    let group = spec["group"].text();
    let at = path.child("group");
    if group.is_empty() {
        errors.required(at, "");
    } else {
        let problems = names::dns1123_subdomain(group);
        if !problems.is_empty() {
            errors.invalid(at, group, problems.join(","));
        } else if !group.contains('.') {
            errors.invalid(at, group, "should be a domain with at least one dot");
        }
    }
    match spec["scope"].text() {
        "" => errors.required(path.child("scope"), ""),
        "Cluster" | "Namespaced" => {}
        other => errors.not_supported(path.child("scope"), other, &["Cluster", "Namespaced"]),
    }
    versions(spec, old, &path.child("versions"), errors);
    for key in ["plural", "singular", "kind", "listKind"] {
        if spec["names"][key].text().is_empty() {
            errors.required(path.child("names").child(key), "");
        }
    }
    naming(&spec["names"], &path.child("names"), errors);
    if spec["preserveUnknownFields"].is_true()
        && !old.is_some_and(|o| o["preserveUnknownFields"].is_true())
    {
        errors.invalid(
            path.child("preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
    conversion::check(spec, &path.child("conversion"), errors);
}

fn versions(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut FieldErrors) {
    let list = spec["versions"].items();
    let mut seen = HashSet::new();
    let mut unique = true;
    for (index, version) in list.iter().enumerate() {
        let name = version["name"].text();
        unique &= seen.insert(name);
        let problems = names::dns1035_label(name);
        if !problems.is_empty() {
            errors.invalid(path.index(index).child("name"), name, problems.join(","));
        }
        let warning = version["deprecationWarning"].text();
        if !warning.is_empty() && !version["deprecated"].is_true() {
            errors.invalid(
                path.index(index).child("deprecationWarning"),
                warning,
                "can only be set for deprecated versions",
            );
        }
        if warning.len() > 256 {
            errors.too_long(path.index(index).child("deprecationWarning"), 256);
        }
        let before = old.and_then(|old| {
            old["versions"]
                .items()
                .iter()
                .find(|v| v["name"].text() == name)
        });
        // What was accepted once is not refused because rules have become stricter.
        if before != Some(version) {
            version::check(version, &path.index(index), errors);
        }
    }
    if !unique {
        errors.invalid(
            path.clone(),
            spec["versions"].clone(),
            "must contain unique version names",
        );
    }
    if list.iter().filter(|v| v["storage"].is_true()).count() != 1 {
        errors.invalid(
            path.clone(),
            spec["versions"].clone(),
            "must have exactly one version marked as storage version",
        );
    }
    if list.is_empty() {
        errors.required(path.clone(), "");
    }
}

fn naming(wanted: &Value, path: &Path, errors: &mut FieldErrors) {
    for key in ["plural", "singular"] {
        let text = wanted[key].text();
        if !text.is_empty() {
            let problems = names::dns1035_label(text);
            if !problems.is_empty() {
                errors.invalid(path.child(key), text, problems.join(","));
            }
        }
    }
    for key in ["kind", "listKind"] {
        let text = wanted[key].text();
        let problems = names::dns1035_label(&text.to_lowercase());
        if !text.is_empty() && !problems.is_empty() {
            errors.invalid(
                path.child(key),
                text,
                format!(
                    "may have mixed case, but should otherwise match: {}",
                    problems.join(",")
                ),
            );
        }
    }
    for key in ["shortNames", "categories"] {
        for (index, text) in wanted[key].items().iter().enumerate() {
            each_invalid(
                &path.child(key).index(index),
                text.text(),
                names::dns1035_label(text.text()),
                errors,
            );
        }
    }
    let kind = wanted["kind"].text();
    if !kind.is_empty() && kind == wanted["listKind"].text() {
        errors.invalid(
            path.child("listKind"),
            kind,
            "kind and listKind may not be the same",
        );
    }
}
