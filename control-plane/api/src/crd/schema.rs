//! A structural schema (`openAPIV3Schema`) in the form in which it is worked with.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use super::pattern::compile;
use crate::kinds::walk::Walk;

/// JSON types of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// No type is said.
    #[default]
    Any,
    /// `object`
    Object,
    /// `array`
    Array,
    /// `string`
    String,
    /// `integer`
    Integer,
    /// `number`
    Number,
    /// `boolean`
    Boolean,
}

impl Kind {
    fn parse(text: &str) -> Self {
        match text {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => Self::Any,
        }
    }

    /// As it is written in a schema; empty for [`Kind::Any`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// `additionalProperties`.
#[derive(Debug, Clone)]
pub enum Additional {
    /// Anything, or nothing.
    Allowed(bool),
    /// Values of this schema.
    Schema(Box<Node>),
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    /// Owned as a whole.
    #[default]
    Atomic,
    /// Unique items.
    Set,
    /// Objects that are told apart by keys.
    Map,
}

/// One entry of `x-kubernetes-validations`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// CEL expression that must be true.
    pub rule: String,
    /// What to say when it is not.
    pub message: String,
    /// CEL expression that makes the message.
    pub message_expression: String,
    /// Reason of the field error: `FieldValueInvalid` and the like.
    pub reason: String,
    /// Path below the schema's value that the error is about.
    pub field_path: String,
    /// `oldSelf` is an optional, and the rule runs on creates too.
    pub optional_old_self: bool,
}

impl Rule {
    fn parse(value: &Value) -> Self {
        let text = |key: &str| value[key].text().to_owned();
        Self {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: value["optionalOldSelf"].is_true(),
        }
    }
}

/// Checks of values.
#[derive(Debug, Clone, Default)]
pub struct Checks {
    /// `format`
    pub format: String,
    /// `minimum`, and whether it is exclusive.
    pub minimum: Option<(f64, bool)>,
    /// `maximum`, and whether it is exclusive.
    pub maximum: Option<(f64, bool)>,
    /// `multipleOf`
    pub multiple_of: Option<f64>,
    /// `minLength`, in code points.
    pub min_length: Option<usize>,
    /// `maxLength`, in code points.
    pub max_length: Option<usize>,
    /// `pattern`: its text, and it compiled (`None` when it does not compile).
    pub pattern: Option<(String, Option<Regex>)>,
    /// `minItems`
    pub min_items: Option<usize>,
    /// `maxItems`
    pub max_items: Option<usize>,
    /// `uniqueItems`
    pub unique_items: bool,
    /// `minProperties`
    pub min_properties: Option<usize>,
    /// `maxProperties`
    pub max_properties: Option<usize>,
    /// `required`
    pub required: Vec<String>,
    /// `enum`
    pub allowed: Option<Vec<Value>>,
    /// `allOf`
    pub all_of: Vec<Node>,
    /// `anyOf`
    pub any_of: Vec<Node>,
    /// `oneOf`
    pub one_of: Vec<Node>,
    /// `not`
    pub not: Option<Box<Node>>,
}

/// A schema of one value.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// `type`
    pub kind: Kind,
    /// `nullable`
    pub nullable: bool,
    /// `default`
    pub default: Option<Value>,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`
    pub list_type: ListType,
    /// `x-kubernetes-list-map-keys`
    pub list_map_keys: Vec<String>,
    /// `properties`
    pub properties: BTreeMap<String, Node>,
    /// `additionalProperties`
    pub additional: Option<Additional>,
    /// `items`
    pub items: Option<Box<Node>>,
    /// Checks of values.
    pub checks: Checks,
    /// `x-kubernetes-validations`
    pub rules: Vec<Rule>,
    /// The number of this node in a walk of the whole schema: the key of what others compile from it.
    pub number: usize,
    /// Something below has a default.
    pub has_defaults: bool,
}

/// Schemas nested deeper than this are cut off; nothing of use is so deep, and walks are recursive.
const MAX_DEPTH: usize = 128;

impl Node {
    /// From an `openAPIV3Schema`. Odd parts read as absent: [`crate::crd::definition`] has refused them.
    #[must_use]
    pub fn parse(schema: &Value) -> Self {
        let mut numbers = 0;
        Self::read(schema, &mut numbers, 0)
    }

    fn read(schema: &Value, numbers: &mut usize, depth: usize) -> Self {
        let number = *numbers;
        *numbers += 1;
        if depth > MAX_DEPTH {
            return Self {
                preserve_unknown: true,
                number,
                ..Self::default()
            };
        }
        let mut child = |schema: &Value| Self::read(schema, numbers, depth + 1);
        let properties: BTreeMap<String, Self> = schema["properties"]
            .entries()
            .map(|(name, schema)| (name.clone(), child(schema)))
            .collect();
        let additional = match &schema["additionalProperties"] {
            Value::Bool(allowed) => Some(Additional::Allowed(*allowed)),
            value @ Value::Object(_) => Some(Additional::Schema(Box::new(child(value)))),
            _ => None,
        };
        let items = schema["items"]
            .is_object()
            .then(|| Box::new(child(&schema["items"])));
        let checks = Checks::read(schema, &mut child);
        let default = schema.get("default").filter(|d| !d.is_null()).cloned();
        let below = |additional: &Option<Additional>| match additional {
            Some(Additional::Schema(node)) => node.has_defaults,
            _ => false,
        };
        let has_defaults = default.is_some()
            || properties.values().any(|p| p.has_defaults)
            || items.as_ref().is_some_and(|i| i.has_defaults)
            || below(&additional);
        Self {
            kind: Kind::parse(schema["type"].text()),
            nullable: schema["nullable"].is_true(),
            default,
            preserve_unknown: schema["x-kubernetes-preserve-unknown-fields"].is_true(),
            embedded: schema["x-kubernetes-embedded-resource"].is_true(),
            int_or_string: schema["x-kubernetes-int-or-string"].is_true(),
            list_type: match schema["x-kubernetes-list-type"].text() {
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Atomic,
            },
            list_map_keys: texts(&schema["x-kubernetes-list-map-keys"]),
            properties,
            additional,
            items,
            checks,
            rules: schema["x-kubernetes-validations"]
                .items()
                .iter()
                .map(Rule::parse)
                .collect(),
            number,
            has_defaults,
        }
    }

    /// The schema of a member of an object, as far as `properties` and `additionalProperties` say.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Self> {
        match (self.properties.get(name), &self.additional) {
            (Some(node), _) => Some(node),
            (None, Some(Additional::Schema(node))) => Some(node),
            _ => None,
        }
    }

    /// Whether members that `properties` does not name are kept.
    #[must_use]
    pub fn keeps_unknown(&self) -> bool {
        self.preserve_unknown
            || self
                .additional
                .as_ref()
                .is_some_and(|a| !matches!(a, Additional::Allowed(false)))
    }

    /// Calls `visit` with every node that describes a value (not with those in `allOf` and the like).
    pub fn each<'a>(&'a self, visit: &mut dyn FnMut(&'a Self)) {
        visit(self);
        for node in self.properties.values() {
            node.each(visit);
        }
        if let Some(Additional::Schema(node)) = &self.additional {
            node.each(visit);
        }
        if let Some(node) = &self.items {
            node.each(visit);
        }
    }
}

impl Checks {
    fn read(schema: &Value, child: &mut dyn FnMut(&Value) -> Node) -> Self {
        let count = |key: &str| schema[key].as_u64().and_then(|n| usize::try_from(n).ok());
        let bound = |key: &str, exclusive: &str| {
            schema[key]
                .as_f64()
                .map(|limit| (limit, schema[exclusive].is_true()))
        };
        let pattern = schema["pattern"].text();
        let mut list = |key: &str| schema[key].items().iter().map(&mut *child).collect();
        Self {
            format: schema["format"].text().to_owned(),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: schema["multipleOf"].as_f64(),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            pattern: (!pattern.is_empty()).then(|| (pattern.to_owned(), compile(pattern).ok())),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: schema["uniqueItems"].is_true(),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            required: texts(&schema["required"]),
            allowed: schema["enum"].as_array().filter(|e| !e.is_empty()).cloned(),
            all_of: list("allOf"),
            any_of: list("anyOf"),
            one_of: list("oneOf"),
            not: schema["not"]
                .is_object()
                .then(|| Box::new(child(&schema["not"]))),
        }
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.items().iter().map(|v| v.text().to_owned()).collect()
}

/// Members of a whole object that are not the schema's business.
#[must_use]
pub fn is_fixed(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

/// The members of an object.
pub(super) type Members = Map<String, Value>;
