//! The checks of a CustomResourceDefinition.
//!
//! Rules: apiextensions-apiserver `apis/apiextensions/validation/validation.go`. The types of its fields were
//! checked when it was decoded, and CEL expressions are compiled by the API server.

use std::collections::HashSet;

use serde_json::Value;

use super::jsonpath::JsonPath;
use super::schema::{Additional, Kind, ListType, Node};
use super::{defaults, lists, prune, structural, validate};
use crate::kinds::walk::Walk;
use crate::object;
use crate::status::FieldErrors;
use crate::validation::{Path, each_invalid, immutable, names};

const COLUMN_TYPES: &[&str] = &["integer", "number", "string", "boolean", "date"];
const COLUMN_FORMATS: &[&str] = &[
    "int32",
    "int64",
    "float",
    "double",
    "byte",
    "date",
    "date-time",
    "password",
];
const MAX_SELECTABLE_FIELDS: usize = 8;
const SCHEMA_TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

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
    conversion(spec, &path.child("conversion"), errors);
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
            one_version(version, &path.index(index), errors);
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

fn one_version(version: &Value, path: &Path, errors: &mut FieldErrors) {
    let schema = &version["schema"]["openAPIV3Schema"];
    let at = path.child("schema").child("openAPIV3Schema");
    if schema.is_object() {
        check_schema(schema, &version["subresources"], &at, errors);
    } else {
        errors.required(at, "schemas are required");
    }
    subresources(
        &version["subresources"],
        &path.child("subresources"),
        errors,
    );
    for (index, column) in version["additionalPrinterColumns"]
        .items()
        .iter()
        .enumerate()
    {
        let at = path.child("additionalPrinterColumns").index(index);
        printer_column(column, &at, errors);
    }
    selectable_fields(version, schema, &path.child("selectableFields"), errors);
}

/// Problems of a schema.
fn check_schema(schema: &Value, subresources: &Value, path: &Path, errors: &mut FieldErrors) {
    let before = errors.0.len();
    if subresources["status"].is_object() {
        const ALLOWED: [&str; 15] = [
            "type",
            "properties",
            "required",
            "description",
            "title",
            "format",
            "example",
            "externalDocs",
            "x-kubernetes-preserve-unknown-fields",
            "x-kubernetes-validations",
            "anyOf",
            "allOf",
            "oneOf",
            "not",
            "x-kubernetes-map-type",
        ];
        if schema
            .entries()
            .any(|(key, v)| !ALLOWED.contains(&key.as_str()) && !v.is_empty())
        {
            errors.invalid(
                path.clone(),
                schema.clone(),
                "only [\"description\", \"example\", \"externalDocs\", \"format\", \"properties\", \"required\", \"title\", \"type\", \"x-kubernetes-map-type\", \"x-kubernetes-preserve-unknown-fields\", \"x-kubernetes-validations\"] fields are allowed at the root of the schema if the status subresource is enabled",
            );
        }
    }
    if schema["nullable"].is_true() {
        errors.forbidden(
            path.child("nullable"),
            "nullable cannot be true at the root",
        );
    }
    structural::check(schema, path, errors);
    if errors.0.len() > before {
        return;
    }
    parts(schema, path, errors);
    if errors.0.len() > before {
        return;
    }
    let node = Node::parse(schema);
    default_values(&node, schema, path, true, errors);
}

/// Rules of single schemas, everywhere.
fn parts(s: &Value, path: &Path, errors: &mut FieldErrors) {
    if s["uniqueItems"].is_true() {
        errors.forbidden(
            path.child("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    for key in [
        "definitions",
        "dependencies",
        "patternProperties",
        "additionalItems",
        "$ref",
        "id",
    ] {
        if s.get(key).is_some_and(|v| !v.is_empty()) {
            errors.forbidden(path.child(key), format!("{key} is not supported"));
        }
    }
    let type_ = s["type"].text();
    if !type_.is_empty() && !SCHEMA_TYPES.contains(&type_) {
        errors.not_supported(path.child("type"), type_, SCHEMA_TYPES);
    }
    if s["items"].is_array() {
        errors.forbidden(
            path.child("items"),
            "items must be a schema object and not an array",
        );
    }
    list_types(s, path, errors);
    map_types(s, path, errors);
    rules(s, path, errors);
    for (name, property) in s["properties"].entries() {
        parts(property, &path.child("properties").key(name), errors);
    }
    for key in ["items", "additionalProperties", "not"] {
        if s[key].is_object() {
            parts(&s[key], &path.child(key), errors);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, nested) in s[key].items().iter().enumerate() {
            parts(nested, &path.child(key).index(index), errors);
        }
    }
}

fn list_types(s: &Value, path: &Path, errors: &mut FieldErrors) {
    let list_type = &s["x-kubernetes-list-type"];
    let keys = s["x-kubernetes-list-map-keys"].items();
    let at = path.child("x-kubernetes-list-type");
    if list_type.present() {
        if s["type"].text() != "array" {
            let where_ = path.child("type");
            let why = "must be array if x-kubernetes-list-type is specified";
            if s["type"].text().is_empty() {
                errors.required(where_, why);
            } else {
                errors.invalid(where_, s["type"].text(), why);
            }
        }
        if !matches!(list_type.text(), "atomic" | "set" | "map") {
            errors.not_supported(at, list_type.clone(), &["atomic", "set", "map"]);
        }
    }
    if !keys.is_empty() {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        if list_type.is_null() {
            errors.required(path.child("x-kubernetes-list-type"), why);
        } else if list_type.text() != "map" {
            errors.invalid(path.child("x-kubernetes-list-type"), list_type.clone(), why);
        }
    }
    match list_type.text() {
        "map" => list_map(s, keys, path, errors),
        "set" => {
            let item = &s["items"];
            if item["nullable"].is_true() {
                errors.forbidden(
                    path.child("items").child("nullable"),
                    "cannot be nullable when x-kubernetes-list-type is \"set\"",
                );
            }
            match item["type"].text() {
                "array" if item["x-kubernetes-list-type"].text() != "atomic" => errors.invalid(
                    path.child("items").child("x-kubernetes-list-type"),
                    item["x-kubernetes-list-type"].clone(),
                    "must be atomic as item of a list with x-kubernetes-list-type=set",
                ),
                "object" if item["x-kubernetes-map-type"].text() != "atomic" => errors.invalid(
                    path.child("items").child("x-kubernetes-map-type"),
                    item["x-kubernetes-map-type"].clone(),
                    "must be atomic as item of a list with x-kubernetes-list-type=set",
                ),
                _ => {}
            }
        }
        _ => {}
    }
}

fn list_map(s: &Value, keys: &[Value], path: &Path, errors: &mut FieldErrors) {
    let at = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.required(
            at.clone(),
            "must not be empty if x-kubernetes-list-type is map",
        );
    }
    let item = &s["items"];
    if !item.is_object() {
        errors.required(
            path.child("items"),
            "must have a schema if x-kubernetes-list-type is map",
        );
        return;
    }
    if item["type"].text() != "object" {
        errors.invalid(
            path.child("items").child("type"),
            item["type"].text(),
            "must be object if parent array's x-kubernetes-list-type is map",
        );
    }
    let mut seen = HashSet::new();
    for (index, key) in keys.iter().enumerate() {
        let name = key.text();
        if !seen.insert(name) {
            errors.duplicate(at.index(index), name);
        }
        let property = &item["properties"][name];
        if property.is_null() {
            errors.invalid(
                at.index(index),
                name,
                "entries must all be names of item properties",
            );
            continue;
        }
        let where_ = path.child("items").child("properties").key(name);
        if matches!(property["type"].text(), "array" | "object") {
            errors.invalid(
                where_.child("type"),
                property["type"].text(),
                "must be a scalar type if parent array's x-kubernetes-list-type is map",
            );
        }
        let required = item["required"].items().iter().any(|r| r.text() == name);
        if !required && property.get("default").is_none_or(Value::is_null) {
            errors.required(
                where_.child("default"),
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            );
        }
        if property["nullable"].is_true() {
            errors.forbidden(
                where_.child("nullable"),
                "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
            );
        }
    }
}

fn map_types(s: &Value, path: &Path, errors: &mut FieldErrors) {
    let map_type = &s["x-kubernetes-map-type"];
    if map_type.is_null() {
        return;
    }
    if !matches!(s["type"].text(), "object" | "") {
        errors.invalid(
            path.child("type"),
            s["type"].text(),
            "must be object if x-kubernetes-map-type is specified",
        );
    }
    if !matches!(map_type.text(), "atomic" | "granular") {
        errors.not_supported(
            path.child("x-kubernetes-map-type"),
            map_type.clone(),
            &["atomic", "granular"],
        );
    }
}

/// The parts of CEL rules that are no CEL.
fn rules(s: &Value, path: &Path, errors: &mut FieldErrors) {
    const REASONS: &[&str] = &[
        "FieldValueDuplicate",
        "FieldValueForbidden",
        "FieldValueInvalid",
        "FieldValueRequired",
    ];
    for (index, rule) in s["x-kubernetes-validations"].items().iter().enumerate() {
        let at = path.child("x-kubernetes-validations").index(index);
        if rule["rule"].text().trim().is_empty() {
            errors.required(at.child("rule"), "rule is not specified");
        }
        let message = rule["message"].text();
        if !message.is_empty() && message.trim().is_empty() {
            errors.invalid(
                at.child("message"),
                message,
                "message must be non-empty if specified",
            );
        } else if message.len() > 2048 {
            errors.invalid(
                at.child("message"),
                "",
                "message must have a maximum length of 2048 characters",
            );
        } else if message.contains('\n') {
            errors.invalid(
                at.child("message"),
                message,
                "message must not contain line breaks",
            );
        } else if message.is_empty() && rule["rule"].text().contains('\n') {
            errors.required(
                at.child("message"),
                "message must be specified if rule contains line breaks",
            );
        }
        let expression = rule["messageExpression"].text();
        if !expression.is_empty() && expression.trim().is_empty() {
            errors.required(
                at.child("messageExpression"),
                "messageExpression must be non-empty if specified",
            );
        }
        let reason = rule["reason"].text();
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.not_supported(at.child("reason"), reason, REASONS);
        }
        let field = rule["fieldPath"].text();
        if !field.is_empty()
            && let Err(why) = resolve_field_path(s, field)
        {
            errors.invalid(
                at.child("fieldPath"),
                field,
                format!("fieldPath must be a valid path: {why}"),
            );
        }
    }
}

/// Whether a rule's `fieldPath` leads to a field of the schema.
fn resolve_field_path(s: &Value, text: &str) -> Result<(), String> {
    let pointer = JsonPath::simple(text).map_err(|e| e.to_string())?;
    let mut at = s;
    for name in pointer.split('/').skip(1) {
        let name = name.replace("~1", "/").replace("~0", "~");
        at = match at["properties"].get(&name) {
            Some(next) => next,
            None if at["additionalProperties"].is_object() => &at["additionalProperties"],
            None => return Err(format!("does not refer to a valid field: {name}")),
        };
    }
    Ok(())
}

fn subresources(subresources: &Value, path: &Path, errors: &mut FieldErrors) {
    let scale = &subresources["scale"];
    if !scale.is_object() {
        return;
    }
    let path = path.child("scale");
    let mut check = |key: &str, prefixes: &[&str], required: bool| {
        let text = scale[key].text();
        let at = path.child(key);
        if text.is_empty() {
            if required {
                errors.required(at, "");
            }
            return;
        }
        let simple = JsonPath::simple(text);
        let pointer = match &simple {
            Ok(pointer) => pointer.as_str(),
            Err(why) => {
                errors.invalid(at, text, why.to_string());
                return;
            }
        };
        let below = |prefix: &&str| pointer.starts_with(&format!("/{prefix}/"));
        if !prefixes.iter().any(below) {
            let list: Vec<String> = prefixes.iter().map(|p| format!(".{p}")).collect();
            errors.invalid(
                at,
                text,
                format!("should be a json path under {}", list.join(" or ")),
            );
        }
    };
    check("specReplicasPath", &["spec"], true);
    check("statusReplicasPath", &["status"], true);
    check("labelSelectorPath", &["spec", "status"], false);
}

fn printer_column(column: &Value, path: &Path, errors: &mut FieldErrors) {
    if column["name"].text().is_empty() {
        errors.required(path.child("name"), "");
    }
    let type_ = column["type"].text();
    if type_.is_empty() {
        errors.required(
            path.child("type"),
            format!("must be one of {}", COLUMN_TYPES.join(",")),
        );
    } else if !COLUMN_TYPES.contains(&type_) {
        errors.invalid(
            path.child("type"),
            type_,
            format!("must be one of {}", COLUMN_TYPES.join(",")),
        );
    }
    let format = column["format"].text();
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        errors.invalid(
            path.child("format"),
            format,
            format!("must be one of {}", COLUMN_FORMATS.join(",")),
        );
    }
    let json_path = column["jsonPath"].text();
    let at = path.child("jsonPath");
    if json_path.is_empty() {
        errors.required(at, "");
    } else if !json_path.starts_with('.') {
        errors.invalid(
            at,
            json_path,
            "must be a json path under an object, starting with a dot",
        );
    } else if let Err(why) = JsonPath::parse(json_path) {
        errors.invalid(at, json_path, why.to_string());
    }
}

fn selectable_fields(version: &Value, schema: &Value, path: &Path, errors: &mut FieldErrors) {
    let fields = version["selectableFields"].items();
    if fields.len() > MAX_SELECTABLE_FIELDS {
        errors.too_many(path.clone(), fields.len(), MAX_SELECTABLE_FIELDS);
    }
    let mut seen = HashSet::new();
    for (index, field) in fields.iter().enumerate() {
        let text = field["jsonPath"].text();
        let at = path.index(index).child("jsonPath");
        if text.is_empty() {
            errors.required(at, "");
            continue;
        }
        let pointer = match JsonPath::simple(text) {
            Ok(pointer) => pointer,
            Err(why) => {
                errors.invalid(at, text, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if pointer.starts_with("/metadata/") || pointer == "/metadata" {
            errors.invalid(at, text, "must not point to fields in metadata");
            continue;
        }
        let mut found = schema;
        for name in pointer.split('/').skip(1) {
            found = &found["properties"][name];
        }
        match found["type"].text() {
            "string" | "boolean" | "integer" => {}
            "" => errors.invalid(
                at.clone(),
                text,
                "is an invalid path: does not refer to a valid field",
            ),
            _ => errors.invalid(
                at.clone(),
                text,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ),
        }
        if !seen.insert(text) {
            errors.duplicate(at, text);
        }
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

fn conversion(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let conversion = &spec["conversion"];
    let webhook = &conversion["webhook"];
    match conversion["strategy"].text() {
        "" if conversion.is_null() => {}
        "" => errors.required(path.child("strategy"), ""),
        "None" => {
            if webhook.present() {
                errors.forbidden(
                    path.child("webhook"),
                    "should not be set when strategy is not set to Webhook",
                );
            }
        }
        "Webhook" => webhook_conversion(webhook, &path.child("webhook"), errors),
        other => errors.not_supported(path.child("strategy"), other, &["None", "Webhook"]),
    }
}

fn webhook_conversion(webhook: &Value, path: &Path, errors: &mut FieldErrors) {
    let client = &webhook["clientConfig"];
    let at = path.child("clientConfig");
    if client.is_null() {
        errors.required(at, "required when strategy is set to Webhook");
    } else {
        match (client["url"].present(), client["service"].present()) {
            (true, true) | (false, false) => {
                errors.required(at, "exactly one of url or service is required");
            }
            (true, false) => {
                let url = client["url"].text();
                if !url.starts_with("https://") {
                    errors.invalid(
                        at.child("url"),
                        url,
                        "'https' is the only allowed URL scheme; desired format: https://host[/path]",
                    );
                }
            }
            (false, true) => {
                for key in ["name", "namespace"] {
                    if client["service"][key].text().is_empty() {
                        errors.required(
                            at.child("service").child(key),
                            format!("service {key} is required"),
                        );
                    }
                }
            }
        }
    }
    let at = path.child("conversionReviewVersions");
    let versions = webhook["conversionReviewVersions"].items();
    if versions.is_empty() {
        errors.required(at, "");
    } else if !versions
        .iter()
        .any(|v| matches!(v.text(), "v1" | "v1beta1"))
    {
        errors.invalid(
            at,
            webhook["conversionReviewVersions"].clone(),
            "must include at least one of v1, v1beta1",
        );
    }
}

/// A default must be what the schema asks for, have nothing that pruning would take away, and no nulls of its own.
fn default_values(node: &Node, s: &Value, path: &Path, root: bool, errors: &mut FieldErrors) {
    if let Some(default) = &node.default {
        let at = path.child("default");
        if root {
            errors.forbidden(at, "must not be set at the root");
        } else {
            one_default(node, default, &at, errors);
        }
    }
    for (name, property) in &node.properties {
        if root && name == "metadata" {
            continue;
        }
        default_values(
            property,
            &s["properties"][name],
            &path.child("properties").key(name),
            false,
            errors,
        );
    }
    if let Some(Additional::Schema(below)) = &node.additional {
        let at = path.child("additionalProperties");
        default_values(below, &s["additionalProperties"], &at, false, errors);
    }
    if let Some(item) = &node.items {
        default_values(item, &s["items"], &path.child("items"), false, errors);
    }
}

fn one_default(node: &Node, default: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut filled = default.clone();
    let wrapper = Node {
        kind: Kind::Object,
        properties: [("default".to_owned(), node.clone())].into(),
        ..Node::default()
    };
    let mut object = serde_json::json!({"default": filled.clone()});
    if !node.embedded && !prune::prune(&wrapper, &mut object).is_empty() {
        errors.invalid(
            path.clone(),
            default.clone(),
            "must not have unknown fields",
        );
        return;
    }
    defaults::fill(node, &mut filled);
    let text = String::from(path.clone());
    validate::check_at(node, &filled, &text, errors);
    if node.list_type != ListType::Atomic {
        lists::check(node, &filled, Some(path), errors);
    }
}
