//! Claims for devices: the part that claims, templates and classes share.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::csi_driver::validate_driver_name;
use crate::kinds::walk::{Walk, fill, get_mut, list_mut};
use crate::status::{ErrorKind, FieldError, FieldErrors};
use crate::validation::{Path, names, one_of};

/// Most requests, constraints, configurations and selectors (resource.k8s.io/v1 limits).
const LIST_LIMIT: usize = 32;
/// Most alternatives of one request.
const ALTERNATIVES_LIMIT: usize = 8;
/// Longest CEL expression, in bytes.
const EXPRESSION_LIMIT: usize = 10 * 1024;
/// Longest opaque parameters, in bytes.
const PARAMETERS_LIMIT: usize = 10 * 1024;

/// Defaults of a claim's spec.
pub(super) fn default_claim_spec(spec: &mut Value) {
    let Some(devices) = get_mut(spec, "devices") else {
        return;
    };
    for request in list_mut(devices, "requests") {
        if let Some(exactly) = get_mut(request, "exactly") {
            default_request(exactly);
        }
        for alternative in list_mut(request, "firstAvailable") {
            default_request(alternative);
        }
    }
}

fn default_request(request: &mut Value) {
    if request["allocationMode"].is_empty() {
        crate::kinds::walk::set(request, "allocationMode", "ExactCount");
    }
    if request["allocationMode"] == "ExactCount" {
        crate::kinds::walk::fill_zero(request, "count", 1);
    }
    for toleration in list_mut(request, "tolerations") {
        fill(toleration, "operator", "Equal");
    }
}

fn too_many(list: &Value, limit: usize, path: &Path, errors: &mut FieldErrors) {
    let count = list.items().len();
    if count > limit {
        errors.0.push(FieldError {
            kind: ErrorKind::TooMany,
            field: path.to_string(),
            value: Some(count.into()),
            detail: format!("must have at most {limit} items"),
        });
    }
}

/// Problems of a claim's spec.
pub(super) fn validate_claim_spec(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let (devices, path) = (&spec["devices"], path.child("devices"));
    let mut known = BTreeSet::new();
    too_many(
        &devices["requests"],
        LIST_LIMIT,
        &path.child("requests"),
        errors,
    );
    for (i, request) in devices["requests"].items().iter().enumerate() {
        let at = path.child("requests").index(i);
        let name = request["name"].text();
        validate_name(name, &at.child("name"), &mut known, errors);
        validate_request(request, name, &at, &mut known, errors);
    }
    too_many(
        &devices["constraints"],
        LIST_LIMIT,
        &path.child("constraints"),
        errors,
    );
    for (i, constraint) in devices["constraints"].items().iter().enumerate() {
        let at = path.child("constraints").index(i);
        validate_references(
            &constraint["requests"],
            &known,
            &at.child("requests"),
            errors,
        );
        if constraint["matchAttribute"].is_empty() && constraint["distinctAttribute"].is_empty() {
            errors.required(at.child("matchAttribute"), "");
        }
    }
    for (i, config) in devices["config"].items().iter().enumerate() {
        let at = path.child("config").index(i).child("requests");
        validate_references(&config["requests"], &known, &at, errors);
    }
    validate_configs(&devices["config"], &path.child("config"), errors);
}

fn validate_name(name: &str, path: &Path, known: &mut BTreeSet<String>, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    for message in names::dns1123_label(name) {
        errors.invalid(path, name, message);
    }
    if !known.insert(name.to_owned()) {
        errors.duplicate(path, name);
    }
}

fn validate_request(
    request: &Value,
    name: &str,
    path: &Path,
    known: &mut BTreeSet<String>,
    errors: &mut FieldErrors,
) {
    let (exactly, alternatives) = (&request["exactly"], &request["firstAvailable"]);
    match (exactly.is_null(), alternatives.is_empty()) {
        (true, true) => errors.required(
            path,
            "exactly one of `exactly` or `firstAvailable` is required",
        ),
        (false, false) => errors.invalid(
            path,
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (false, true) => validate_exact(exactly, &path.child("exactly"), errors),
        (true, false) => {
            let path = path.child("firstAvailable");
            too_many(alternatives, ALTERNATIVES_LIMIT, &path, errors);
            let mut own = BTreeSet::new();
            for (i, alternative) in alternatives.items().iter().enumerate() {
                let at = path.index(i);
                let sub = alternative["name"].text();
                validate_name(sub, &at.child("name"), &mut own, errors);
                known.insert(format!("{name}/{sub}"));
                validate_exact(alternative, &at, errors);
            }
        }
    }
}

fn validate_exact(request: &Value, path: &Path, errors: &mut FieldErrors) {
    let class = request["deviceClassName"].text();
    if class.is_empty() {
        errors.required(path.child("deviceClassName"), "");
    } else {
        for message in names::dns1123_subdomain(class) {
            errors.invalid(path.child("deviceClassName"), class, message);
        }
    }
    validate_selectors(&request["selectors"], &path.child("selectors"), errors);
    let count = request["count"].int().unwrap_or_default();
    match request["allocationMode"].text() {
        "All" if count != 0 => errors.invalid(
            path.child("count"),
            count,
            "must not be specified when allocationMode is 'All'",
        ),
        "ExactCount" if count <= 0 => {
            errors.invalid(path.child("count"), count, "must be greater than zero")
        }
        "All" | "ExactCount" => {}
        other => errors.not_supported(path.child("allocationMode"), other, &["All", "ExactCount"]),
    }
    for (i, toleration) in request["tolerations"].items().iter().enumerate() {
        let at = path.child("tolerations").index(i);
        one_of(
            &toleration["operator"],
            &["Equal", "Exists"],
            &at.child("operator"),
            errors,
        );
        if toleration["operator"] == "Exists" && !toleration["value"].is_empty() {
            errors.invalid(
                at.child("value"),
                toleration["value"].text(),
                "must be empty for operator `Exists`",
            );
        }
    }
}

fn validate_references(
    requests: &Value,
    known: &BTreeSet<String>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let mut seen = BTreeSet::new();
    for (i, name) in requests.items().iter().map(Walk::text).enumerate() {
        if !known.contains(name) {
            errors.invalid(
                path.index(i),
                name,
                "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
            );
        }
        if !seen.insert(name) {
            errors.duplicate(path.index(i), name);
        }
    }
}

/// Selectors are CEL expressions.
pub(super) fn validate_selectors(selectors: &Value, path: &Path, errors: &mut FieldErrors) {
    too_many(selectors, LIST_LIMIT, path, errors);
    for (i, selector) in selectors.items().iter().enumerate() {
        let at = path.index(i).child("cel");
        if selector["cel"].is_null() {
            errors.required(at, "");
            continue;
        }
        let expression = selector["cel"]["expression"].text();
        if expression.is_empty() {
            errors.required(at.child("expression"), "");
        }
        if expression.len() > EXPRESSION_LIMIT {
            errors.too_long(at.child("expression"), EXPRESSION_LIMIT);
        }
    }
}

/// Parameters that only a driver understands.
pub(super) fn validate_configs(configs: &Value, path: &Path, errors: &mut FieldErrors) {
    too_many(configs, LIST_LIMIT, path, errors);
    for (i, config) in configs.items().iter().enumerate() {
        let (opaque, at) = (&config["opaque"], path.index(i).child("opaque"));
        if opaque.is_null() {
            errors.required(at, "");
            continue;
        }
        validate_driver_name(opaque["driver"].text(), &at.child("driver"), errors);
        let parameters = &opaque["parameters"];
        if parameters.is_null() {
            errors.required(at.child("parameters"), "");
        } else if !parameters.is_object() {
            errors.invalid(
                at.child("parameters"),
                "<value omitted>",
                "parameters must be a valid JSON object",
            );
        } else if parameters.to_string().len() > PARAMETERS_LIMIT {
            errors.too_long(at.child("parameters"), PARAMETERS_LIMIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_asks_for_one_device_by_default_and_is_named() {
        let mut spec = json!({"devices": {
            "requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}}],
            "constraints": [{"requests": ["gpu"], "matchAttribute": "example.com/numa"}],
        }});
        default_claim_spec(&mut spec);
        assert_eq!(
            spec["devices"]["requests"][0]["exactly"],
            json!({"deviceClassName": "gpu.example.com", "allocationMode": "ExactCount", "count": 1})
        );
        let mut errors = FieldErrors::default();
        validate_claim_spec(&spec, &Path::new("spec"), &mut errors);
        assert!(errors.is_empty());
        spec["devices"]["constraints"][0]["requests"] = json!(["other"]);
        spec["devices"]["requests"] = json!([{"name": "a"}]);
        validate_claim_spec(&spec, &Path::new("spec"), &mut errors);
        let fields: Vec<String> = errors.0.into_iter().map(|e| e.field).collect();
        assert_eq!(
            fields,
            [
                "spec.devices.requests[0]",
                "spec.devices.constraints[0].requests[0]"
            ]
        );
    }
}
