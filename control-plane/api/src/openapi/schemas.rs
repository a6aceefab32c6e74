//! Types as JSON Schema.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Dialect, Served};
use crate::schema::{Definition, Field, ListKind, Schema, Shape, Struct, Type};

/// Definitions that every document refers to.
const ALWAYS: &[&str] = &[
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent",
];

/// The type of a kind, looked for in the kind's own schema and then among the built-in ones.
pub(super) fn find<'a>(
    served: &Served<'a>,
    group: &str,
    version: &str,
    kind: &str,
) -> Option<Type<'a>> {
    let own = served.schema.kind(group, version, kind);
    own.or_else(|| Schema::builtin().kind(group, version, kind))
}

/// All definitions that the documents of some kinds need, by name.
pub(super) fn used_by<'a>(kinds: &[Served<'a>]) -> BTreeMap<&'a str, Definition<'a>> {
    let mut used = BTreeMap::new();
    for name in ALWAYS {
        collect(Schema::builtin().definition(name), &mut used);
    }
    for served in kinds {
        let kind = served.kind;
        collect(
            find(served, &kind.group, &kind.version, &kind.kind),
            &mut used,
        );
        collect(
            find(
                served,
                &kind.group,
                &kind.version,
                &format!("{}List", kind.kind),
            ),
            &mut used,
        );
        for sub in &kind.subresources {
            collect(find(served, &sub.group, &sub.version, &sub.kind), &mut used);
        }
    }
    used
}

fn collect<'a>(type_: Option<Type<'a>>, used: &mut BTreeMap<&'a str, Definition<'a>>) {
    let Some(type_) = type_ else { return };
    if let Some(definition) = type_.definition().filter(|d| !d.name().is_empty())
        && used.insert(definition.name(), definition).is_some()
    {
        return;
    }
    match type_.shape() {
        Shape::Struct(fields) => fields.fields().for_each(|f| collect(Some(f.type_()), used)),
        Shape::Map { value, .. } => collect(Some(value), used),
        Shape::List(list) => collect(Some(list.item()), used),
        Shape::SchemaOr(a, b) => {
            collect(Some(a), used);
            collect(Some(b), used);
        }
        _ => {}
    }
}

/// The body of a definition.
pub(super) fn definition(definition: Definition<'_>, dialect: Dialect) -> Value {
    let mut value = match definition.as_type().shape() {
        Shape::Struct(fields) => structure(fields, dialect),
        Shape::Quantity => match dialect {
            Dialect::V2 => json!({"type": "string"}),
            Dialect::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        },
        Shape::IntOrString => match dialect {
            Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
            Dialect::V3 => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
        },
        Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
        // Any JSON at all, or one of several forms, which OpenAPI v2 cannot say.
        Shape::SchemaOr(..) => json!({}),
        Shape::Any if definition.name().ends_with(".JSON") => json!({}),
        _ => json!({"type": "object"}),
    };
    if !definition.description().is_empty() {
        value["description"] = definition.description().into();
    }
    value
}

fn structure(fields: Struct<'_>, dialect: Dialect) -> Value {
    let mut map = Map::new();
    map.insert("type".to_owned(), "object".into());
    let properties: Map<String, Value> = fields
        .fields()
        .map(|f| (f.name().to_owned(), field(f, dialect)))
        .collect();
    if !properties.is_empty() {
        map.insert("properties".to_owned(), properties.into());
    }
    let required: Vec<Value> = fields
        .fields()
        .filter(|f| f.required())
        .map(|f| f.name().into())
        .collect();
    if !required.is_empty() {
        map.insert("required".to_owned(), required.into());
    }
    if fields.atomic {
        map.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    if fields.preserve_unknown {
        map.insert(
            "x-kubernetes-preserve-unknown-fields".to_owned(),
            true.into(),
        );
    }
    if fields.embedded && dialect == Dialect::V3 {
        map.insert("x-kubernetes-embedded-resource".to_owned(), true.into());
    }
    Value::Object(map)
}

fn field(field: Field<'_>, dialect: Dialect) -> Value {
    let mut value = type_value(field.type_(), dialect);
    // In v3 nothing may stand beside a reference.
    if dialect == Dialect::V3 && value.get("$ref").is_some() && !field.description().is_empty() {
        value = json!({"allOf": [value]});
    }
    if !field.description().is_empty() {
        value["description"] = field.description().into();
    }
    if let Some(default) = field.key_default() {
        value["default"] = default.into();
    }
    if let Some(key) = field.patch_merge_key() {
        value["x-kubernetes-patch-merge-key"] = key.into();
    }
    let strategies: Vec<&str> = [
        (field.patch_merge(), "merge"),
        (field.patch_replace(), "replace"),
        (field.patch_retain_keys(), "retainKeys"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect();
    if !strategies.is_empty() {
        value["x-kubernetes-patch-strategy"] = strategies.join(",").into();
    }
    value
}

/// A type where it is used: a reference when it has a name, else its shape.
pub(super) fn type_value(type_: Type<'_>, dialect: Dialect) -> Value {
    if let Some(definition) = type_.definition().filter(|d| !d.name().is_empty()) {
        return dialect.reference(definition.name());
    }
    match type_.shape() {
        Shape::Boolean => json!({"type": "boolean"}),
        Shape::Integer { bits } => json!({"type": "integer", "format": format!("int{bits}")}),
        Shape::Number => json!({"type": "number", "format": "double"}),
        Shape::Text { base64: true } => json!({"type": "string", "format": "byte"}),
        Shape::Text { base64: false } => json!({"type": "string"}),
        Shape::IntOrString => json!({"x-kubernetes-int-or-string": true}),
        Shape::Struct(fields) => structure(fields, dialect),
        Shape::Map { value, atomic } => {
            let mut map =
                json!({"type": "object", "additionalProperties": type_value(value, dialect)});
            if atomic {
                map["x-kubernetes-map-type"] = "atomic".into();
            }
            map
        }
        Shape::List(list) => {
            let mut value = json!({"type": "array", "items": type_value(list.item(), dialect)});
            match list.kind {
                ListKind::Atomic => value["x-kubernetes-list-type"] = "atomic".into(),
                ListKind::Set => value["x-kubernetes-list-type"] = "set".into(),
                ListKind::Map => {
                    value["x-kubernetes-list-type"] = "map".into();
                    value["x-kubernetes-list-map-keys"] = list.keys().collect::<Vec<_>>().into();
                }
            }
            value
        }
        _ => json!({}),
    }
}
