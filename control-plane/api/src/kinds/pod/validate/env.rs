//! Environment variables and references to keys, fields and resources.

use serde_json::Value;

use crate::kinds::amounts;
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::{Path, each_invalid, names};

/// Fields that an environment variable may refer to.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields that a file of a downward API volume may refer to.
pub(super) const VOLUME_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// `env` of a container.
pub(super) fn validate_env(variables: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, variable) in variables.items().iter().enumerate() {
        let path = path.index(i);
        let name = variable["name"].text();
        if name.is_empty() {
            errors.required(path.child("name"), "");
        } else {
            each_invalid(&path.child("name"), name, names::env_var_name(name), errors);
        }
        if variable["valueFrom"].present() {
            validate_value_from(variable, &path.child("valueFrom"), errors);
        }
    }
}

fn validate_value_from(variable: &Value, path: &Path, errors: &mut FieldErrors) {
    let source = &variable["valueFrom"];
    let mut sources = 0;
    if source["fieldRef"].present() {
        sources += 1;
        validate_field_ref(
            &source["fieldRef"],
            ENV_FIELDS,
            &path.child("fieldRef"),
            errors,
        );
    }
    if source["resourceFieldRef"].present() {
        sources += 1;
        validate_resource_ref(
            &source["resourceFieldRef"],
            false,
            &path.child("resourceFieldRef"),
            errors,
        );
    }
    for reference in ["configMapKeyRef", "secretKeyRef"] {
        if source[reference].present() {
            sources += 1;
            validate_key_ref(&source[reference], &path.child(reference), errors);
        }
    }
    if source["fileKeyRef"].present() {
        sources += 1;
        for field in ["volumeName", "path", "key"] {
            if source["fileKeyRef"][field].is_empty() {
                errors.required(path.child("fileKeyRef").child(field), "");
            }
        }
    }
    if !variable["value"].is_empty() {
        if sources > 0 {
            errors.invalid(path, "", "may not be specified when `value` is not empty");
        }
    } else if sources == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if sources > 1 {
        errors.invalid(
            path,
            "",
            "may not have more than one field specified at a time",
        );
    }
}

fn validate_key_ref(reference: &Value, path: &Path, errors: &mut FieldErrors) {
    if reference["name"].is_empty() {
        errors.required(path.child("name"), "");
    }
    match reference["key"].text() {
        "" => errors.required(path.child("key"), ""),
        key => each_invalid(&path.child("key"), key, names::config_map_key(key), errors),
    }
}

/// `metadata.labels['key']` taken apart.
fn subscript(field: &str) -> Option<(&str, &str)> {
    let (map, rest) = field.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

pub(super) fn validate_field_ref(
    reference: &Value,
    allowed: &[&str],
    path: &Path,
    errors: &mut FieldErrors,
) {
    if reference["apiVersion"].is_empty() {
        errors.required(path.child("apiVersion"), "");
        return;
    }
    let field = reference["fieldPath"].text();
    if field.is_empty() {
        errors.required(path.child("fieldPath"), "");
        return;
    }
    let path = path.child("fieldPath");
    if let Some((map, key)) = subscript(field) {
        match map {
            "metadata.annotations" => each_invalid(
                &path,
                key,
                names::qualified_name(&key.to_lowercase()),
                errors,
            ),
            "metadata.labels" => each_invalid(&path, key, names::qualified_name(key), errors),
            _ => errors.invalid(path, field, format!("does not support subscript: {map}")),
        }
        return;
    }
    let known = ENV_FIELDS.contains(&field) || VOLUME_FIELDS.contains(&field);
    if !known {
        let detail = format!("error converting fieldPath: field label not supported: {field}");
        errors.invalid(path, field, detail);
    } else if !allowed.contains(&field) {
        errors.not_supported(path, field, allowed);
    }
}

/// In a volume the container has to be named.
pub(super) fn validate_resource_ref(
    reference: &Value,
    volume: bool,
    path: &Path,
    errors: &mut FieldErrors,
) {
    if volume && reference["containerName"].is_empty() {
        errors.required(path.child("containerName"), "");
        return;
    }
    let resource = reference["resource"].text();
    if resource.is_empty() {
        errors.required(path.child("resource"), "");
        return;
    }
    let huge = ["limits.hugepages-", "requests.hugepages-"]
        .iter()
        .any(|p| resource.starts_with(p));
    if !RESOURCES.contains(&resource) && !huge {
        errors.not_supported(path.child("resource"), resource, RESOURCES);
        return;
    }
    validate_divisor(
        resource,
        &reference["divisor"],
        &path.child("divisor"),
        errors,
    );
}

fn validate_divisor(resource: &str, divisor: &Value, path: &Path, errors: &mut FieldErrors) {
    if divisor.is_empty() {
        return;
    }
    let Some(text) = amounts::canonical(divisor) else {
        errors.invalid(path, divisor.clone(), amounts::SYNTAX);
        return;
    };
    let (allowed, words): (&[&str], &str) = if resource.ends_with("cpu") {
        (
            &["0", "1m", "1"],
            "only divisor's values 1m and 1 are supported with the cpu resource",
        )
    } else if resource.ends_with("ephemeral-storage") {
        (
            &[
                "0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi",
                "1Ei",
            ],
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage resource",
        )
    } else {
        (
            &[
                "0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi",
                "1Ei",
            ],
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        )
    };
    if !allowed.contains(&text.as_str()) {
        errors.invalid(path, text, words);
    }
}

/// `envFrom` of a container.
pub(super) fn validate_env_from(sources: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, source) in sources.items().iter().enumerate() {
        let path = path.index(i);
        let prefix = source["prefix"].text();
        if !prefix.is_empty() {
            each_invalid(
                &path.child("prefix"),
                prefix,
                names::env_var_name(prefix),
                errors,
            );
        }
        let mut count = 0;
        for reference in ["configMapRef", "secretRef"] {
            if source[reference].present() {
                count += 1;
                let path = path.child(reference).child("name");
                match source[reference]["name"].text() {
                    "" => errors.required(path, ""),
                    name => each_invalid(&path, name, names::dns1123_subdomain(name), errors),
                }
            }
        }
        match count {
            0 => errors.invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            1 => {}
            _ => errors.invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            ),
        }
    }
}
