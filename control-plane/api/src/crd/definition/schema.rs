//! The checks of a version's schema: what is allowed where, and that defaults are what the schema asks for.

use std::collections::HashSet;

use serde_json::Value;

use crate::crd::jsonpath::JsonPath;
use crate::crd::schema::{Additional, Kind, ListType, Node};
use crate::crd::{defaults, lists, prune, structural, validate};
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::Path;

const SCHEMA_TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

/// Problems of a schema.
pub(super) fn check(schema: &Value, subresources: &Value, path: &Path, errors: &mut FieldErrors) {
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
            .any(|(key, v)| !ALLOWED.contains(&key.as_str()) && !v.is_empty() && *v != false)
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
        rule_texts(rule, &at, errors);
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

/// A rule and its message. Blanks around them do not count: YAML's block texts end with a line break.
fn rule_texts(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    let (text, given) = (rule["rule"].text().trim(), rule["message"].text());
    let (message, at) = (given.trim(), path.child("message"));
    if text.is_empty() {
        errors.required(path.child("rule"), "rule is not specified");
    } else if !given.is_empty() && message.is_empty() {
        errors.invalid(at, given, "message must be non-empty if specified");
    } else if given.len() > 2048 {
        let start: String = given.chars().take(10).collect();
        errors.invalid(
            at,
            format!("{start}..."),
            "message must have a maximum length of 2048 characters",
        );
    } else if message.contains(['\n', '\r']) {
        errors.invalid(at, given, "message must not contain line breaks");
    } else if message.is_empty() && text.contains(['\n', '\r']) {
        errors.required(at, "message must be specified if rule contains line breaks");
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
