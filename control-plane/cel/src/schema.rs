//! Types from schemas: those of custom resources, and the built-in ones.
//!
//! Rules: KEP-2876. Texts, lists and maps without a limit are taken to be as large as fits into a request; that
//! bounds what a rule may cost. Names that are no identifiers of CEL are escaped.

use std::sync::Arc;

use balsa_api::schema::{Shape, Type as ApiType};
use serde_json::Value as Json;

use crate::types::{Field, Fields, Size, Type};

/// Largest request, in bytes.
const MAX_REQUEST: u64 = 3 * 1024 * 1024;

/// The type of values of an OpenAPI v3 schema. A `root` (and an embedded resource) has `apiVersion`, `kind` and
/// `metadata` with `name` and `generateName`, whatever the schema says.
#[must_use]
pub fn declared(schema: &Json, root: bool) -> Type {
    sized(schema, root, "object").0
}

/// A type, and the least bytes that its values take in JSON.
fn sized(schema: &Json, root: bool, name: &str) -> (Type, u64) {
    if schema["x-kubernetes-int-or-string"] == true {
        return (Type::Dyn, 1);
    }
    match schema["type"].as_str().unwrap_or_default() {
        "boolean" => (Type::Bool, 4),
        "integer" => (Type::Int, 1),
        "number" => (Type::Double, 1),
        "string" => text(schema),
        "array" => {
            let (item, least) = sized(&schema["items"], false, &format!("{name}.@idx"));
            let max = schema["maxItems"]
                .as_u64()
                .unwrap_or_else(|| fits(least + 1, 2));
            (Type::List(Arc::new(item), Size(max)), 2)
        }
        "object" => object(schema, root, name),
        _ => (Type::Dyn, 1),
    }
}

/// How many elements of a size fit into a request.
fn fits(each: u64, around: u64) -> u64 {
    (MAX_REQUEST - around) / each.max(1)
}

fn text(schema: &Json) -> (Type, u64) {
    let limit = schema["maxLength"].as_u64();
    match schema["format"].as_str().unwrap_or_default() {
        "byte" => (Type::Bytes(Size(limit.unwrap_or(MAX_REQUEST - 2))), 2),
        "duration" => (Type::Duration, 4),
        "date" | "date-time" => (Type::Timestamp, 12),
        format => {
            let longest = schema["enum"].as_array().map(|values| {
                let lengths = values.iter().filter_map(Json::as_str).map(str::len);
                lengths.max().unwrap_or(0) as u64
            });
            let known = match format {
                "uuid" => Some(36),
                "ipv4" => Some(15),
                "ipv6" => Some(45),
                _ => None,
            };
            let max = limit.or(longest).or(known).unwrap_or(MAX_REQUEST - 2);
            (Type::String(Size(max)), 2)
        }
    }
}

fn object(schema: &Json, root: bool, name: &str) -> (Type, u64) {
    let root = root || schema["x-kubernetes-embedded-resource"] == true;
    let additional = &schema["additionalProperties"];
    if additional.is_object() {
        let (value, least) = sized(additional, false, &format!("{name}.@prop"));
        let max = schema["maxProperties"]
            .as_u64()
            // A key takes its quotes and a colon, an entry its comma.
            .unwrap_or_else(|| fits(least + 4, 2));
        return (
            Type::Map(Arc::new(Type::STRING), Arc::new(value), Size(max)),
            2,
        );
    }
    let properties = schema["properties"].as_object();
    if properties.is_none_or(serde_json::Map::is_empty)
        && !root
        && (schema["x-kubernetes-preserve-unknown-fields"] == true || additional == true)
    {
        return (Type::Dyn, 2);
    }
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Json::as_str)
        .collect();
    let mut least = 2;
    let mut fields: Vec<(String, Arc<str>, Type)> = Vec::new();
    for (property, schema) in properties.into_iter().flatten() {
        if root && matches!(property.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        let (type_, bytes) = sized(schema, false, &format!("{name}.{property}"));
        if required.contains(&property.as_str()) && schema["default"].is_null() {
            least += bytes + property.len() as u64 + 4;
        }
        if let Some(escaped) = escape(property) {
            fields.push((escaped, property.as_str().into(), type_));
        }
    }
    if root {
        let text = || Type::String(Size(253));
        let metadata = Type::object(
            &format!("{name}.metadata"),
            vec![("name", text()), ("generateName", text())],
        );
        for (field, type_) in [
            ("apiVersion", text()),
            ("kind", text()),
            ("metadata", metadata),
        ] {
            fields.push((field.to_owned(), field.into(), type_));
        }
    }
    (Type::object_of(name, fields), least)
}

/// Words that CEL keeps for itself.
const KEYWORDS: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as expressions write it; `None` when they cannot.
#[must_use]
pub fn escape(property: &str) -> Option<String> {
    if KEYWORDS.contains(&property) {
        return Some(format!("__{property}__"));
    }
    let starts = property.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
    if !starts || !property.chars().all(fits) {
        return None;
    }
    Some(
        property
            .replace("__", "__underscores__")
            .replace('.', "__dot__")
            .replace('-', "__dash__")
            .replace('/', "__slash__"),
    )
}

/// The type of values of a built-in type, as upstream's type checking of policies sees it.
#[must_use]
pub fn builtin(type_: ApiType<'static>) -> Type {
    match type_.shape() {
        Shape::Boolean => Type::Bool,
        Shape::Integer { .. } => Type::Int,
        Shape::Number => Type::Double,
        Shape::Text { base64: true } => Type::BYTES,
        Shape::Text { base64: false } => Type::STRING,
        Shape::Time | Shape::MicroTime => Type::Timestamp,
        Shape::Any | Shape::IntOrString | Shape::Quantity | Shape::SchemaOr(..) => Type::Dyn,
        Shape::Map { value, .. } => Type::map(Type::STRING, builtin(value)),
        Shape::List(list) => Type::list(builtin(list.item())),
        Shape::Struct(_) => Type::Object(Arc::new(Builtin(type_))),
    }
}

struct Builtin(ApiType<'static>);

impl Fields for Builtin {
    fn name(&self) -> &str {
        self.0.definition().map_or("object", |d| d.name())
    }

    fn field(&self, name: &str) -> Option<Field> {
        let fields = self.0.as_struct()?;
        // `namespace` and the like may be written plainly or escaped.
        let found = fields.field(name).or_else(|| {
            fields
                .fields()
                .find(|f| escape(f.name()).as_deref() == Some(name))
        })?;
        Some(Field {
            json_name: found.name().into(),
            type_: builtin(found.type_()),
        })
    }
}
