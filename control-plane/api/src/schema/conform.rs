//! Bringing a client's JSON into the form of its type: checking types, dropping nulls, writing quantities, times
//! and base64 canonically, and removing fields that the type does not have.
//!
//! Messages are those of Go's decoder, because clients and people know them.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{List, Shape, Struct, Type};
use crate::object;
use crate::quantity::Quantity;

/// Unknown fields reported at most; the rest is removed silently.
const MAX_REPORTED: usize = 100;
const CONDITION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Condition";
const TRANSITION: &str = "lastTransitionTime";

/// Makes `value` conform to a type. Returns what was removed because no such field exists, in upstream's words
/// (`unknown field "spec.foo"`).
///
/// # Errors
/// The first value of a wrong type, in the words of Go's JSON decoder.
pub fn conform(type_: Type<'_>, value: &mut Value) -> Result<Vec<String>, String> {
    let mut walk = Walk::default();
    walk.value(type_, value)?;
    Ok(walk.unknown)
}

/// As [`conform`], and puts Go's zero time where a `meta/v1` Condition has no `lastTransitionTime`: Go clients send
/// null for it, and readers in other languages cannot do without.
///
/// # Errors
/// Those of [`conform`].
pub fn conform_whole(type_: Type<'_>, value: &mut Value) -> Result<Vec<String>, String> {
    let mut walk = Walk {
        whole: true,
        ..Walk::default()
    };
    walk.value(type_, value)?;
    Ok(walk.unknown)
}

/// Removes fields that a type does not have, and changes nothing else.
pub fn prune(type_: Type<'_>, value: &mut Value) {
    match (type_.shape(), value) {
        (Shape::Struct(fields), Value::Object(map)) => {
            if !fields.preserve_unknown {
                map.retain(|name, _| fields.field(name).is_some());
            }
            for (name, value) in map {
                if let Some(field) = fields.field(name) {
                    prune(field.type_(), value);
                }
            }
        }
        (Shape::Map { value: type_, .. }, Value::Object(map)) => {
            map.values_mut().for_each(|v| prune(type_, v))
        }
        (Shape::List(list), Value::Array(items)) => {
            items.iter_mut().for_each(|v| prune(list.item(), v))
        }
        (Shape::SchemaOr(schema, _), value @ Value::Object(_)) => prune(schema, value),
        _ => {}
    }
}

#[derive(Default)]
struct Walk<'s> {
    /// Path with indices, as unknown fields are reported: `spec.containers[0].foo`.
    path: String,
    /// Path without indices, as Go reports wrong types: `spec.containers.name`.
    go_path: String,
    /// Go name of the innermost struct.
    owner: &'s str,
    unknown: Vec<String>,
    /// Conditions get a time.
    whole: bool,
}

fn json_type(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

impl<'s> Walk<'s> {
    fn mismatch(&self, what: &str, type_: Type<'_>) -> String {
        if self.go_path.is_empty() {
            return format!(
                "json: cannot unmarshal {what} into Go value of type {}",
                type_.go_name()
            );
        }
        format!(
            "json: cannot unmarshal {what} into Go struct field {}.{} of type {}",
            self.owner,
            self.go_path,
            type_.go_name()
        )
    }

    fn value(&mut self, type_: Type<'s>, value: &mut Value) -> Result<(), String> {
        match (type_.shape(), &mut *value) {
            (Shape::Any, _) => Ok(()),
            (Shape::Struct(fields), Value::Object(map)) => self.fields(type_, fields, map),
            (Shape::Map { value: item, .. }, Value::Object(map)) => self.map(item, map),
            (Shape::List(list), Value::Array(items)) => self.items(list, items),
            (Shape::SchemaOr(schema, other), value) => {
                let type_ = if value.is_object() { schema } else { other };
                self.value(type_, value)
            }
            (_, value) => self.scalar(type_, value),
        }
    }

    fn scalar(&self, type_: Type<'_>, value: &mut Value) -> Result<(), String> {
        match (type_.shape(), &*value) {
            (Shape::Boolean, Value::Bool(_))
            | (Shape::Text { base64: false }, Value::String(_)) => Ok(()),
            (Shape::Number, Value::Number(_)) | (Shape::IntOrString, Value::String(_)) => Ok(()),
            (Shape::Integer { bits }, Value::Number(number)) => {
                let fits = number
                    .as_i64()
                    .is_some_and(|n| bits == 64 || i32::try_from(n).is_ok());
                if fits {
                    Ok(())
                } else {
                    Err(self.mismatch(&format!("number {number}"), type_))
                }
            }
            (Shape::IntOrString, Value::Number(number)) => {
                let fits = number.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
                let message = || {
                    format!("json: cannot unmarshal number {number} into Go value of type int32")
                };
                if fits { Ok(()) } else { Err(message()) }
            }
            (Shape::IntOrString, other) => Err(format!(
                "json: cannot unmarshal {} into Go value of type int32",
                json_type(other)
            )),
            (Shape::Quantity, Value::String(_) | Value::Number(_)) => {
                let quantity = Quantity::from_value(value).map_err(|e| e.to_string())?;
                *value = quantity.to_string().into();
                Ok(())
            }
            (Shape::Time | Shape::MicroTime, Value::String(text)) => {
                let micro = matches!(type_.shape(), Shape::MicroTime);
                *value = canonical_time(text, micro)?.into();
                Ok(())
            }
            (Shape::Text { base64: true }, Value::String(text)) => {
                *value = canonical_base64(text)?.into();
                Ok(())
            }
            (_, other) => Err(self.mismatch(&json_type(other), type_)),
        }
    }

    fn fields(
        &mut self,
        type_: Type<'s>,
        fields: Struct<'s>,
        map: &mut Map<String, Value>,
    ) -> Result<(), String> {
        let owner = std::mem::replace(&mut self.owner, struct_name(type_));
        let (path, go_path) = (self.path.len(), self.go_path.len());
        let mut remove = Vec::new();
        for (name, value) in map.iter_mut() {
            let field = fields.field(name);
            if field.is_some() && value.is_null() {
                remove.push(name.clone());
                continue;
            }
            self.enter(name);
            match field {
                Some(field) => self.value(field.type_(), value)?,
                None if fields.preserve_unknown => {}
                None => {
                    if self.unknown.len() < MAX_REPORTED {
                        self.unknown
                            .push(format!("unknown field \"{}\"", self.path));
                    }
                    remove.push(name.clone());
                }
            }
            self.leave(path, go_path);
        }
        for name in remove {
            map.remove(&name);
        }
        if self.whole && self.owner == "Condition" && is_condition(type_) {
            map.entry(TRANSITION)
                .or_insert_with(|| object::ZERO_TIME.into());
        }
        self.owner = owner;
        Ok(())
    }

    fn map(&mut self, item: Type<'s>, map: &mut Map<String, Value>) -> Result<(), String> {
        let (path, go_path) = (self.path.len(), self.go_path.len());
        for (name, value) in map {
            // Go knows no keys of maps in its messages.
            if !self.path.is_empty() {
                self.path.push('.');
            }
            self.path.push_str(name);
            self.element(item, value)?;
            self.leave(path, go_path);
        }
        Ok(())
    }

    fn items(&mut self, list: List<'s>, items: &mut [Value]) -> Result<(), String> {
        let (path, go_path) = (self.path.len(), self.go_path.len());
        for (index, value) in items.iter_mut().enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(self.path, "[{index}]");
            self.element(list.item(), value)?;
            self.leave(path, go_path);
        }
        Ok(())
    }

    /// A value in a list or map, where null is Go's zero value and cannot be left out.
    fn element(&mut self, type_: Type<'s>, value: &mut Value) -> Result<(), String> {
        if !value.is_null() {
            return self.value(type_, value);
        }
        *value = match type_.shape() {
            Shape::Text { .. } => "".into(),
            Shape::Boolean => false.into(),
            Shape::Integer { .. } | Shape::Number | Shape::IntOrString => 0.into(),
            Shape::Quantity => "0".into(),
            Shape::Struct(_) => Value::Object(Map::new()),
            _ => Value::Null,
        };
        Ok(())
    }

    fn enter(&mut self, name: &str) {
        for path in [&mut self.path, &mut self.go_path] {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        }
    }

    fn leave(&mut self, path: usize, go_path: usize) {
        self.path.truncate(path);
        self.go_path.truncate(go_path);
    }
}

fn is_condition(type_: Type<'_>) -> bool {
    type_.definition().is_some_and(|d| d.name() == CONDITION)
}

fn struct_name(type_: Type<'_>) -> &str {
    let name = type_
        .definition()
        .map(super::Definition::name)
        .unwrap_or_default();
    name.rsplit('.').next().unwrap_or_default()
}

fn canonical_time(text: &str, micro: bool) -> Result<String, String> {
    match object::parse_time(text) {
        Some(time) if micro => Ok(object::format_micro_time(time)),
        Some(time) => Ok(object::format_time(time)),
        None => {
            let layout = if micro {
                "2006-01-02T15:04:05.000000Z07:00"
            } else {
                "2006-01-02T15:04:05Z07:00"
            };
            Err(format!(
                "parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""
            ))
        }
    }
}

fn canonical_base64(text: &str) -> Result<String, String> {
    let joined: String;
    let clean = if text.contains(['\r', '\n']) {
        joined = text.replace(['\r', '\n'], "");
        &joined
    } else {
        text
    };
    match STANDARD.decode(clean) {
        Ok(_) => Ok(clean.to_owned()),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(offset, _)
                | base64::DecodeError::InvalidLastSymbol(offset, _) => offset,
                _ => clean.len(),
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}
