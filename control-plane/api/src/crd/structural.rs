//! Is a schema structural? Works on the schema as it was written.
//!
//! Rules: apiextensions-apiserver `apiserver/schema/validation.go`, `complete.go`.

use serde_json::{Value, json};

use super::pattern::compile;
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::Path;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Nested deeper than this, a schema is refused: everything that walks it is recursive.
const MAX_DEPTH: usize = 100;

/// Reports where a schema is not structural.
pub(super) fn check(schema: &Value, path: &Path, errors: &mut FieldErrors) {
    if depth(schema) > MAX_DEPTH {
        errors.forbidden(
            path.clone(),
            format!("must not be nested deeper than {MAX_DEPTH} levels"),
        );
        return;
    }
    invariants(schema, Level::Root, path, errors);
    complete(schema, path, errors);
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.values().map(depth).max().unwrap_or_default() + 1,
        Value::Array(items) => items.iter().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

fn is_int_or_string_any(any_of: &Value) -> bool {
    *any_of == json!([{"type": "integer"}, {"type": "string"}])
}

fn invariants(s: &Value, level: Level, path: &Path, errors: &mut FieldErrors) {
    let type_ = s["type"].text();
    if type_ == "array" && !s["items"].is_object() {
        errors.required(path.child("items"), "must be specified");
    }
    if s["items"].is_object() {
        invariants(&s["items"], Level::Item, &path.child("items"), errors);
    }
    for (name, property) in s["properties"].entries() {
        invariants(
            property,
            Level::Field,
            &path.child("properties").key(name),
            errors,
        );
    }
    additional(s, level, path, errors);
    extensions(s, path, errors);
    let first_all_of = &s["allOf"]
        .items()
        .first()
        .map_or(&Value::Null, |a| &a["anyOf"]);
    values(
        s,
        is_int_or_string_any(&s["anyOf"]),
        is_int_or_string_any(first_all_of),
        path,
        errors,
    );
    types(s, type_, level, path, errors);
    metadata(s, level, path, errors);
    let embedded = s["x-kubernetes-embedded-resource"].is_true();
    if embedded
        && !s["x-kubernetes-preserve-unknown-fields"].is_true()
        && s["properties"].is_empty()
    {
        errors.required(
            path.child("properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        );
    }
}

fn additional(s: &Value, level: Level, path: &Path, errors: &mut FieldErrors) {
    let additional = &s["additionalProperties"];
    if additional.is_null() {
        return;
    }
    let at = path.child("additionalProperties");
    if level == Level::Root {
        errors.forbidden(at.clone(), "must not be used at the root");
    }
    if s["x-kubernetes-embedded-resource"].is_true() {
        errors.forbidden(
            at.clone(),
            "must not be used if x-kubernetes-embedded-resource is set",
        );
    }
    if !s["properties"].is_empty() {
        errors.forbidden(
            at.clone(),
            "additionalProperties and properties are mutual exclusive",
        );
    }
    if additional.is_object() {
        invariants(additional, Level::Field, &at, errors);
    }
}

fn extensions(s: &Value, path: &Path, errors: &mut FieldErrors) {
    if !s["x-kubernetes-int-or-string"].is_true() {
        return;
    }
    for key in [
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
    ] {
        if s[key].is_true() {
            errors.invalid(
                path.child(key),
                true,
                "must be false if x-kubernetes-int-or-string is true",
            );
        }
    }
}

fn types(s: &Value, type_: &str, level: Level, path: &Path, errors: &mut FieldErrors) {
    let at = path.child("type");
    if s["x-kubernetes-embedded-resource"].is_true() && type_ != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        if type_.is_empty() {
            errors.required(at.clone(), why);
        } else {
            errors.invalid(at.clone(), type_, why);
        }
    } else if type_.is_empty()
        && !s["x-kubernetes-int-or-string"].is_true()
        && !s["x-kubernetes-preserve-unknown-fields"].is_true()
    {
        errors.required(
            at.clone(),
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        );
    }
    if level == Level::Root && !type_.is_empty() && type_ != "object" {
        errors.invalid(at, type_, "must be object at the root");
    }
}

fn metadata(s: &Value, level: Level, path: &Path, errors: &mut FieldErrors) {
    let whole = level == Level::Root || s["x-kubernetes-embedded-resource"].is_true();
    let properties = &s["properties"];
    for key in ["kind", "apiVersion"] {
        let property = &properties[key];
        if whole && property.is_object() && property["type"].text() != "string" {
            errors.invalid(
                path.child("properties").key(key).child("type"),
                property["type"].text(),
                "must be string",
            );
        }
    }
    let metadata = &properties["metadata"];
    if !metadata.is_object() {
        return;
    }
    let at = path.child("properties").key("metadata");
    if whole && metadata["type"].text() != "object" {
        errors.invalid(at.child("type"), metadata["type"].text(), "must be object");
    }
    let names_only = metadata["properties"]
        .entries()
        .all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
    let nothing_else = metadata.entries().all(|(key, value)| {
        matches!(key.as_str(), "type" | "properties" | "default")
            || value.is_empty()
            || *value == false
    });
    if level == Level::Root && !(names_only && nothing_else) {
        errors.forbidden(
            at,
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        );
    }
}

/// What stands below `allOf`, `anyOf`, `oneOf` and `not`, with its path.
fn junctors<'s>(s: &'s Value, path: &Path) -> Vec<(&'s Value, Path, &'static str, usize)> {
    let mut found = Vec::new();
    for key in ["anyOf", "allOf", "oneOf"] {
        for (index, nested) in s[key].items().iter().enumerate() {
            found.push((nested, path.child(key).index(index), key, index));
        }
    }
    if s["not"].is_object() {
        found.push((&s["not"], path.child("not"), "not", 0));
    }
    found
}

fn values(s: &Value, skip_any: bool, skip_first: bool, path: &Path, errors: &mut FieldErrors) {
    for (below, at, key, index) in junctors(s, path) {
        match key {
            "anyOf" if skip_any => {}
            "allOf" => nested(below, skip_first && index == 0, &at, errors),
            _ => nested(below, false, &at, errors),
        }
    }
    let pattern = s["pattern"].text();
    if !pattern.is_empty()
        && let Err(error) = compile(pattern)
    {
        errors.invalid(
            path.child("pattern"),
            pattern,
            format!("must be a valid regular expression, but isn't: {error}"),
        );
    }
}

fn nested(s: &Value, skip_any: bool, path: &Path, errors: &mut FieldErrors) {
    values(s, skip_any, false, path, errors);
    if s["items"].is_object() {
        nested(&s["items"], false, &path.child("items"), errors);
    }
    for (name, property) in s["properties"].entries() {
        nested(property, false, &path.child("properties").key(name), errors);
    }
    for (key, why) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("externalDocs", "must be undefined to be structural"),
        (
            "x-kubernetes-list-map-keys",
            "must be empty to be structural",
        ),
        (
            "x-kubernetes-list-type",
            "must be undefined to be structural",
        ),
        (
            "x-kubernetes-map-type",
            "must be undefined to be structural",
        ),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ] {
        if s.get(key).is_some_and(|v| !v.is_empty()) {
            errors.forbidden(path.child(key), why);
        }
    }
    for key in [
        "nullable",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
    ] {
        if s[key].is_true() {
            errors.forbidden(path.child(key), "must be false to be structural");
        }
    }
    if s["properties"].get("metadata").is_some() {
        errors.forbidden(
            path.child("properties").key("metadata"),
            "must not be specified in a nested context",
        );
    }
}

/// Every field that a junctor speaks of must be in the structure.
fn complete(s: &Value, path: &Path, errors: &mut FieldErrors) {
    for (below, at, ..) in junctors(s, path) {
        covered(below, s, &at, path, errors);
    }
    if s["items"].is_object() {
        complete(&s["items"], &path.child("items"), errors);
    }
    for (name, property) in s["properties"].entries() {
        complete(property, &path.child("properties").key(name), errors);
    }
    if s["additionalProperties"].is_object() {
        complete(
            &s["additionalProperties"],
            &path.child("additionalProperties"),
            errors,
        );
    }
}

fn covered(below: &Value, s: &Value, at: &Path, path: &Path, errors: &mut FieldErrors) {
    for (deeper, at, ..) in junctors(below, at) {
        covered(deeper, s, &at, path, errors);
    }
    if below["items"].is_object() {
        if s["items"].is_object() {
            covered(
                &below["items"],
                &s["items"],
                &at.child("items"),
                &path.child("items"),
                errors,
            );
        } else {
            errors.required(
                path.child("items"),
                format!("because it is defined in {at}.items"),
            );
        }
    }
    for (name, property) in below["properties"].entries() {
        let (at, path) = (
            at.child("properties").key(name),
            path.child("properties").key(name),
        );
        match s["properties"].get(name) {
            Some(own) => covered(property, own, &at, &path, errors),
            None => errors.required(path, format!("because it is defined in {at}")),
        }
    }
}
