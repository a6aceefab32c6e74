//! Reads of an object only what selectors can ask for.
//!
//! Every server looks at every object that anybody writes. Most of one, a pod's containers or who manages which field,
//! is in lists, and no selectable field is: reading them into memory only to drop them took a tenth of what pods cost.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// An object from its JSON, without annotations and without lists other than those of these names.
///
/// # Errors
/// It is no JSON.
pub(super) fn read(object: &[u8], lists: &'static [&'static str]) -> serde_json::Result<Value> {
    let mut reader = serde_json::Deserializer::from_slice(object);
    let place = Place::Object;
    let value = Skeleton { place, lists }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Where in an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Object,
    Metadata,
    Elsewhere,
}

impl Place {
    /// The place of a member.
    fn of(self, member: &str) -> Self {
        match (self, member) {
            (Self::Object, "metadata") => Self::Metadata,
            _ => Self::Elsewhere,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Skeleton {
    place: Place,
    lists: &'static [&'static str],
}

impl<'de> DeserializeSeed<'de> for Skeleton {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skeleton {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if self.place == Place::Metadata && name == "annotations" {
                members.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = if self.lists.contains(&name.as_str()) {
                members.next_value()?
            } else {
                let place = self.place.of(&name);
                members.next_value_seed(Self { place, ..self })?
            };
            if !value.is_null() {
                object.insert(name, value);
            }
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balsa_api::kinds::builtin;
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_annotations_are_left_out_and_nothing_else() {
        let object = json!({
            "kind": "Pod",
            "metadata": {
                "name": "p", "labels": {"a": "b"}, "annotations": {"long": "text"},
                "managedFields": [{"manager": "m"}], "generation": 3,
            },
            "spec": {
                "annotations": {"kept": "here"}, "hostNetwork": true, "nothing": null,
                "containers": [{"name": "c"}], "deep": {"deeper": {"number": -1.5}},
            },
        });
        let left = json!({
            "kind": "Pod",
            "metadata": {"name": "p", "labels": {"a": "b"}, "generation": 3},
            "spec": {"annotations": {"kept": "here"}, "hostNetwork": true, "deep": {"deeper": {"number": -1.5}}},
        });
        assert_eq!(read(object.to_string().as_bytes(), &[]).unwrap(), left);
    }

    /// Fields are where their names say, but for what stands here.
    #[test]
    fn selectable_fields_of_all_kinds_are_those_of_the_whole_object() {
        for kind in builtin() {
            let mut object = json!({
                "metadata": {"name": "n"},
                "deprecatedSource": {"component": "c"},
                "status": {"podIPs": [{"ip": "10.0.0.1"}], "succeeded": 3},
                "source": {"component": "c"},
                "spec": {"unschedulable": true, "hostNetwork": true},
            });
            for name in kind.strategy.selectable_field_names() {
                let mut at = &mut object;
                let mut parts = name.split('.').peekable();
                while let Some(part) = parts.next() {
                    at = &mut at[part];
                    if parts.peek().is_none() && at.is_null() {
                        *at = json!(format!("of {name}"));
                    }
                }
            }
            let lists = kind.strategy.selectable_lists();
            let skeleton = read(object.to_string().as_bytes(), lists).unwrap();
            let whole = kind.strategy.selectable_fields(&object);
            let told = whole.iter().filter(|(_, value)| !value.is_empty());
            assert_eq!(told.count(), whole.len(), "{}: {whole:?}", kind.kind);
            assert_eq!(
                kind.strategy.selectable_fields(&skeleton),
                whole,
                "{}",
                kind.kind
            );
        }
    }

    #[test]
    fn what_is_no_json_is_no_object() {
        for broken in [r#"{"a": ["#, r#"{"a": 1} 2"#, ""] {
            assert!(read(broken.as_bytes(), &[]).is_err(), "{broken}");
        }
    }
}
