//! Reading and filling in JSON objects without ever failing on a shape that is not as expected.

use serde_json::{Map, Value};

/// Reads a value as what a field of the right type would hold; a missing or odd value reads as the zero
/// value, as in Go. Use with indexing, which yields null for what is missing: `pod["spec"]["nodeName"].text()`.
pub trait Walk {
    /// The string, or empty.
    fn text(&self) -> &str;
    /// The integer, if it is one.
    fn int(&self) -> Option<i64>;
    /// The elements, or none.
    fn items(&self) -> &[Value];
    /// The members, or none.
    fn entries(&self) -> impl Iterator<Item = (&String, &Value)>;
    /// Whether it is `true`.
    fn is_true(&self) -> bool;
    /// Whether there is a value at all.
    fn present(&self) -> bool;
    /// Null, an empty string, list or map.
    fn is_empty(&self) -> bool;
}

impl Walk for Value {
    fn text(&self) -> &str {
        self.as_str().unwrap_or_default()
    }

    fn int(&self) -> Option<i64> {
        self.as_i64()
    }

    fn items(&self) -> &[Value] {
        self.as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.as_object().into_iter().flatten()
    }

    fn is_true(&self) -> bool {
        self.as_bool() == Some(true)
    }

    fn present(&self) -> bool {
        !self.is_null()
    }

    fn is_empty(&self) -> bool {
        match self {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            _ => false,
        }
    }
}

/// A member of an object for changing, if it is there and not null.
pub fn get_mut<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    object
        .as_object_mut()?
        .get_mut(key)
        .filter(|v| !v.is_null())
}

/// A member that is an object for changing, made when it is missing. `None` when `object` is none.
pub fn child<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let member = object.as_object_mut()?.entry(key).or_insert(Value::Null);
    if member.is_null() {
        *member = Value::Object(Map::new());
    }
    Some(member)
}

/// The elements of a list member for changing.
pub fn list_mut<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    get_mut(object, key)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// Sets a member that is missing or null.
pub fn fill(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        let member = map.entry(key).or_insert(Value::Null);
        if member.is_null() {
            *member = value.into();
        }
    }
}

/// Sets a member that is missing or the zero value of its type (`""` or `0`): fields that are no pointers in Go.
pub fn fill_zero(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        let member = map.entry(key).or_insert(Value::Null);
        if member.is_null() || member.as_str() == Some("") || member.as_i64() == Some(0) {
            *member = value.into();
        }
    }
}

/// Sets a member whatever it was.
pub fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value.into());
    }
}

/// Takes a member away.
pub fn remove(object: &mut Value, key: &str) -> Option<Value> {
    object.as_object_mut().and_then(|map| map.remove(key))
}

/// Makes a member what it is in `from`: copied, or absent.
pub fn carry_over(object: &mut Value, from: &Value, key: &str) {
    match from.get(key) {
        Some(value) => set(object, key, value.clone()),
        None => {
            remove(object, key);
        }
    }
}

/// Fields that are maps, or structs that are always there, in Go: empty, they are as good as absent. Other empty
/// objects say something (`emptyDir: {}`).
const EMPTY_IS_NONE: &[&str] = &[
    "annotations",
    "binaryData",
    "capacity",
    "data",
    "labels",
    "limits",
    "matchLabels",
    "metadata",
    "nodeSelector",
    "parameters",
    "requests",
    "resources",
    "status",
    "volumeAttributes",
];

/// Equality as apimachinery's semantic equality sees it: a null or empty list or map is as good as none.
#[must_use]
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let equal = |key: &String| match (member(x, key), member(y, key)) {
                (Some(v), Some(w)) => same(v, w),
                (v, w) => v.is_none() && w.is_none(),
            };
            x.keys()
                .chain(y.keys().filter(|k| !x.contains_key(*k)))
                .all(equal)
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w))
        }
        _ => a == b || (nothing(a) && nothing(b)),
    }
}

/// A member that says something.
fn member<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| match value {
        Value::Object(o) => !(o.is_empty() && EMPTY_IS_NONE.contains(&key)),
        value => !nothing(value),
    })
}

fn nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nulls_and_empty_lists_equal_nothing_and_empty_objects_do_not() {
        assert!(same(&json!({"a": null, "b": []}), &json!({})));
        assert!(!same(&json!({"emptyDir": {}}), &json!({})));
        assert!(!same(&json!({"a": [1]}), &json!({"a": [2]})));
    }

    #[test]
    fn empty_maps_and_structs_of_go_equal_nothing() {
        let bare = json!({"spec": {"containers": [{"name": "c"}]}});
        let full = json!({"metadata": {}, "status": {}, "spec": {"nodeSelector": {},
            "containers": [{"name": "c", "resources": {}}]}});
        assert!(same(&bare, &full) && same(&full, &bare));
        let labelled = json!({"metadata": {"labels": {"a": "b"}}});
        assert!(!same(&labelled, &json!({"metadata": {}})));
        assert!(!same(&json!({"metadata": {}}), &labelled));
    }

    #[test]
    fn filling_leaves_what_is_set() {
        let mut object = json!({"a": 0, "b": null, "c": ""});
        fill(&mut object, "a", 1);
        fill(&mut object, "b", 2);
        fill_zero(&mut object, "c", "x");
        assert_eq!(object, json!({"a": 0, "b": 2, "c": "x"}));
        fill(&mut json!(3), "a", 1);
    }
}
