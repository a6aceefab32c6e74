//! Checks of values against a schema, in the words of kube-openapi's validator.
//!
//! On updates a value that is what it was is not checked again (ratcheting, KEP-4008): a stricter schema must not
//! stop changes elsewhere in the object. Values are compared where they can be told apart: members of objects by
//! name, items of map lists by their keys, other lists as a whole.

use serde_json::Value;

use super::formats;
use super::schema::{Additional, Checks, Kind, ListType, Node};
use crate::status::{FieldError, FieldErrors};

/// Errors after which checking ends: an answer with more helps nobody.
const MAX_ERRORS: usize = 100;

/// Checks a whole object. `old` is what it was before an update.
#[must_use]
pub fn check(node: &Node, object: &Value, old: Option<&Value>) -> FieldErrors {
    let mut walk = Walk::default();
    walk.value(node, object, old, "");
    walk.errors
}

/// Checks a value at a path, as it stands.
pub fn check_at(node: &Node, value: &Value, path: &str, errors: &mut FieldErrors) {
    let mut walk = Walk::default();
    walk.value(node, value, None, path);
    errors.extend(walk.errors);
}

/// The item of an old map list that has the keys of a new item.
#[must_use]
pub fn old_item<'a>(node: &Node, item: &Value, old: &'a Value) -> Option<&'a Value> {
    if node.list_type != ListType::Map {
        return None;
    }
    let same = |other: &&Value| {
        node.list_map_keys
            .iter()
            .all(|key| other.get(key) == item.get(key))
    };
    old.as_array()?.iter().find(same)
}

#[derive(Default)]
struct Walk {
    errors: FieldErrors,
}

fn field(path: &str) -> String {
    if path.is_empty() { "<nil>" } else { path }.to_owned()
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// JSON type of a value in the validator's words.
#[must_use]
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn has_type(kind: Kind, value: &Value) -> bool {
    match kind {
        Kind::Any => true,
        Kind::Object => value.is_object(),
        Kind::Array => value.is_array(),
        Kind::String => value.is_string(),
        Kind::Boolean => value.is_boolean(),
        Kind::Number => value.is_number(),
        Kind::Integer => match value {
            Value::Number(n) => n.as_f64().is_some_and(|f| f.fract() == 0.0),
            _ => false,
        },
    }
}

impl Walk {
    fn invalid(&mut self, path: &str, value: &Value, why: &str) {
        self.errors
            .invalid(field(path), value.clone(), format!("{path} in body {why}"));
    }

    fn wrong_type(&mut self, path: &str, wanted: &str, found: &str) {
        self.errors.type_invalid(
            field(path),
            found,
            format!("{path} in body must be of type {wanted}: \"{found}\""),
        );
    }

    fn value(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: &str) {
        if old == Some(value) || self.errors.0.len() >= MAX_ERRORS {
            return;
        }
        if value.is_null() && node.nullable {
            return;
        }
        if node.int_or_string {
            if !(value.is_string() || has_type(Kind::Integer, value)) {
                self.errors.invalid(
                    field(path),
                    "",
                    format!("\"{path}\" must validate at least one schema (anyOf)"),
                );
                self.wrong_type(path, "integer", type_name(value));
                return;
            }
        } else if !has_type(node.kind, value) {
            let wanted = if node.nullable {
                format!("{},null", node.kind.name())
            } else {
                node.kind.name().to_owned()
            };
            self.wrong_type(path, &wanted, type_name(value));
            return;
        }
        self.checks(&node.checks, value, path);
        match value {
            Value::Object(map) => {
                for (name, member) in map {
                    let below = join(path, name);
                    let old = old.and_then(|o| o.get(name));
                    match (node.properties.get(name), &node.additional) {
                        (Some(node), _) => self.value(node, member, old, &below),
                        (None, Some(Additional::Schema(node))) => {
                            self.value(node, member, old, &below);
                        }
                        _ => {}
                    }
                }
            }
            Value::Array(items) => {
                let Some(item) = &node.items else { return };
                for (index, value) in items.iter().enumerate() {
                    let old = old.and_then(|old| old_item(node, value, old));
                    self.value(item, value, old, &format!("{path}[{index}]"));
                }
            }
            _ => {}
        }
    }

    fn checks(&mut self, checks: &Checks, value: &Value, path: &str) {
        if let Some(allowed) = &checks.allowed
            && !allowed.iter().any(|a| same_json(a, value))
        {
            let texts: Vec<String> = allowed.iter().map(plain).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            self.errors
                .not_supported(field(path), value.clone(), &texts);
        }
        match value {
            Value::String(text) => self.text(checks, text, path),
            Value::Number(number) => self.number(checks, number, path),
            Value::Array(items) => self.list(checks, items, path),
            Value::Object(map) => {
                for name in checks.required.iter().filter(|n| !map.contains_key(*n)) {
                    self.errors.required(join(path, name), "");
                }
                let count = map.len();
                if checks.max_properties.is_some_and(|max| count > max) {
                    let max = checks.max_properties.unwrap_or_default();
                    self.errors.too_many(field(path), count, max);
                }
                if let Some(min) = checks.min_properties.filter(|min| count < *min) {
                    self.invalid(
                        path,
                        value,
                        &format!("should have at least {min} properties"),
                    );
                }
            }
            _ => {}
        }
        self.combined(checks, value, path);
    }

    fn text(&mut self, checks: &Checks, text: &str, path: &str) {
        let value = Value::from(text);
        let length = text.chars().count();
        if let Some(max) = checks.max_length.filter(|max| length > *max) {
            self.errors.too_long(field(path), max);
        }
        if let Some(min) = checks.min_length.filter(|min| length < *min) {
            self.invalid(
                path,
                &value,
                &format!("should be at least {min} chars long"),
            );
        }
        if let Some((pattern, Some(regex))) = &checks.pattern
            && !regex.is_match(text)
        {
            self.invalid(path, &value, &format!("should match '{pattern}'"));
        }
        if !checks.format.is_empty() && !formats::matches(&checks.format, text) {
            self.errors.type_invalid(
                field(path),
                text,
                format!("{path} in body must be of type {}: {value}", checks.format),
            );
        }
    }

    fn number(&mut self, checks: &Checks, number: &serde_json::Number, path: &str) {
        let value = Value::Number(number.clone());
        let Some(n) = number.as_f64() else { return };
        if let Some(factor) = checks.multiple_of.filter(|f| *f > 0.0) {
            let quotient = n / factor;
            if (quotient - quotient.round()).abs() > 1e-9 {
                self.invalid(path, &value, &format!("should be a multiple of {factor}"));
            }
        }
        match checks.maximum {
            Some((max, true)) if n >= max => {
                self.invalid(path, &value, &format!("should be less than {max}"));
            }
            Some((max, false)) if n > max => {
                self.invalid(
                    path,
                    &value,
                    &format!("should be less than or equal to {max}"),
                );
            }
            _ => {}
        }
        match checks.minimum {
            Some((min, true)) if n <= min => {
                self.invalid(path, &value, &format!("should be greater than {min}"));
            }
            Some((min, false)) if n < min => {
                self.invalid(
                    path,
                    &value,
                    &format!("should be greater than or equal to {min}"),
                );
            }
            _ => {}
        }
        if checks.format == "int32" && number.as_i64().is_none_or(|n| i32::try_from(n).is_err()) {
            self.invalid(path, &value, "must be of type int32");
        }
    }

    fn list(&mut self, checks: &Checks, items: &[Value], path: &str) {
        if let Some(max) = checks.max_items.filter(|max| items.len() > *max) {
            self.errors.too_many(field(path), items.len(), max);
        }
        if let Some(min) = checks.min_items.filter(|min| items.len() < *min) {
            self.invalid(
                path,
                &items.len().into(),
                &format!("should have at least {min} items"),
            );
        }
    }

    fn combined(&mut self, checks: &Checks, value: &Value, path: &str) {
        for node in &checks.all_of {
            let errors = errors_of(node, value, path);
            if !errors.is_empty() {
                self.errors.0.extend(errors);
                self.junctor(path, "must validate all the schemas (allOf)");
            }
        }
        if !checks.any_of.is_empty() {
            let results: Vec<Vec<FieldError>> = checks
                .any_of
                .iter()
                .map(|node| errors_of(node, value, path))
                .collect();
            if results.iter().all(|errors| !errors.is_empty()) {
                self.junctor(path, "must validate at least one schema (anyOf)");
                self.best(results);
            }
        }
        if !checks.one_of.is_empty() {
            let results: Vec<Vec<FieldError>> = checks
                .one_of
                .iter()
                .map(|node| errors_of(node, value, path))
                .collect();
            let valid = results.iter().filter(|errors| errors.is_empty()).count();
            if valid == 0 {
                self.junctor(
                    path,
                    "must validate one and only one schema (oneOf). Found none valid",
                );
                self.best(results);
            } else if valid > 1 {
                self.junctor(
                    path,
                    &format!("must validate one and only one schema (oneOf). Found {valid} valid alternatives"),
                );
            }
        }
        if let Some(node) = &checks.not
            && errors_of(node, value, path).is_empty()
        {
            self.junctor(path, "must not validate the schema (not)");
        }
    }

    fn junctor(&mut self, path: &str, why: &str) {
        self.errors
            .invalid(field(path), "", format!("\"{path}\" {why}"));
    }

    /// Adds the problems of the alternative that has the fewest.
    fn best(&mut self, results: Vec<Vec<FieldError>>) {
        if let Some(errors) = results.into_iter().min_by_key(Vec::len) {
            self.errors.0.extend(errors);
        }
    }
}

fn errors_of(node: &Node, value: &Value, path: &str) -> Vec<FieldError> {
    let mut walk = Walk::default();
    walk.value(node, value, None, path);
    walk.errors.0
}

/// 1 and 1.0 are the same number in JSON Schema.
fn same_json(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// Texts as they are, everything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
