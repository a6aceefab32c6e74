//! A structural schema as OpenAPI publishes it.
//!
//! v3 has everything that the definition says. v2 leaves out what v2 cannot say and what kubectl's reading of v2
//! breaks on.
//!
//! Rules: apiextensions-apiserver `controller/openapi/builder/builder.go`, `controller/openapi/v2/conversion.go`.

use std::hash::{Hash as _, Hasher as _};

use serde_json::{Map, Value, json};

use super::formats;
use crate::kinds::walk::{Walk, remove, set};
use crate::openapi::CustomSchema;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const API_VERSION_HELP: &str = "APIVersion defines the versioned schema of this representation of an object. \
     Servers should convert recognized schemas to the latest internal value, and may reject unrecognized \
     values. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND_HELP: &str = "Kind is a string value representing the REST resource this object represents. Servers \
     may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More \
     info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA_HELP: &str = "Standard object's metadata. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

const SELECTABLE: &str = "x-kubernetes-selectable-fields";

/// What a schema is published as, with the version's `selectableFields` (KEP-4358).
#[must_use]
pub fn publish(schema: &Value, selectable: &Value) -> CustomSchema {
    let mut v3 = root(schema, false);
    let mut v2 = if schema["x-kubernetes-preserve-unknown-fields"].is_true() || !schema.is_object()
    {
        // kubectl would take anything else here for a list of all fields.
        json!({"type": "object"})
    } else {
        root(schema, true)
    };
    let fields = selectable.items().iter().map(|field| {
        let path = field["jsonPath"].text();
        json!({"fieldPath": path.strip_prefix('.').unwrap_or(path)})
    });
    let fields: Vec<Value> = fields.collect();
    if !fields.is_empty() {
        set(&mut v2, SELECTABLE, fields.clone());
        set(&mut v3, SELECTABLE, fields);
    }
    let mut hasher = std::hash::DefaultHasher::new();
    v2.to_string().hash(&mut hasher);
    v3.to_string().hash(&mut hasher);
    CustomSchema {
        v2,
        v3,
        fingerprint: hasher.finish(),
    }
}

fn root(schema: &Value, v2: bool) -> Value {
    let mut out = node(schema, v2);
    set_fixed(&mut out, v2);
    out
}

/// Puts in what every whole object has.
fn set_fixed(out: &mut Value, v2: bool) {
    let reference = if v2 {
        json!({"$ref": format!("#/definitions/{OBJECT_META}"), "description": METADATA_HELP})
    } else {
        let target = format!("#/components/schemas/{OBJECT_META}");
        json!({"allOf": [{"$ref": target}], "description": METADATA_HELP})
    };
    if !out["properties"].is_object() {
        set(out, "properties", Map::new());
    }
    let properties = &mut out["properties"];
    set(properties, "metadata", reference);
    let text = |help: &str| json!({"type": "string", "description": help});
    set(properties, "apiVersion", text(API_VERSION_HELP));
    set(properties, "kind", text(KIND_HELP));
}

fn node(schema: &Value, v2: bool) -> Value {
    let Some(map) = schema.as_object() else {
        return schema.clone();
    };
    let mut out = Map::new();
    for (key, value) in map {
        let kept = match key.as_str() {
            "properties" => members(value, v2),
            "items" | "not" => node(value, v2),
            "additionalProperties" if value.is_object() => node(value, v2),
            "allOf" | "anyOf" | "oneOf" => value.items().iter().map(|s| node(s, v2)).collect(),
            "format" if !formats::is_known(value.text()) => continue,
            _ => value.clone(),
        };
        out.insert(key.clone(), kept);
    }
    let mut out = Value::Object(out);
    if v2 {
        for_v2(&mut out, map);
    } else if schema["x-kubernetes-int-or-string"].is_true()
        && !["anyOf", "allOf"].iter().any(|key| schema[*key].is_array())
    {
        set(
            &mut out,
            "anyOf",
            json!([{"type": "integer"}, {"type": "string"}]),
        );
    }
    let embedded = schema["x-kubernetes-embedded-resource"].is_true();
    let open = schema["x-kubernetes-preserve-unknown-fields"].is_true();
    if embedded && !(v2 && open) {
        set_fixed(&mut out, v2);
    }
    out
}

fn members(properties: &Value, v2: bool) -> Value {
    properties
        .entries()
        .map(|(name, schema)| (name.clone(), node(schema, v2)))
        .collect::<Map<String, Value>>()
        .into()
}

fn for_v2(out: &mut Value, schema: &Map<String, Value>) {
    let flag = |key: &str| schema.get(key).is_some_and(Walk::is_true);
    for key in ["allOf", "anyOf", "oneOf", "not"] {
        remove(out, key);
    }
    let open = flag("x-kubernetes-preserve-unknown-fields");
    if flag("nullable") {
        for key in ["type", "nullable", "items", "properties"] {
            remove(out, key);
        }
    }
    if open {
        remove(out, "items");
        remove(out, "properties");
    }
    let type_ = out["type"].text();
    if (type_ == "array" && !out["items"].is_object()) || (open && type_ == "object") {
        remove(out, "type");
    }
    let nullable: Vec<String> = schema
        .get("properties")
        .into_iter()
        .flat_map(Walk::entries)
        .filter(|(_, s)| s["nullable"].is_true())
        .map(|(name, _)| name.clone())
        .collect();
    let values_nullable = schema
        .get("additionalProperties")
        .is_some_and(|s| s["nullable"].is_true());
    if let Some(required) = out.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|r| !nullable.iter().any(|n| n == r.text()));
        if required.is_empty() || values_nullable {
            remove(out, "required");
        }
    }
}
