//! `metadata.managedFields`: who owns which fields.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::Set;
use crate::object;

/// Update entries kept at most; the oldest ones are merged into one.
const MAX_UPDATE_MANAGERS: usize = 10;
/// Manager of that one.
const ANCIENT: &str = "ancient-changes";

/// What tells entries apart. Appliers are one whatever version they apply.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// `Apply` or `Update`; sorts as the entries do.
    pub(super) operation: &'static str,
    pub(super) manager: String,
    /// Empty for appliers.
    pub(super) version: String,
    pub(super) subresource: String,
}

pub(super) const APPLY: &str = "Apply";
pub(super) const UPDATE: &str = "Update";

impl Key {
    /// As conflicts name a manager: `"kubectl-edit" using apps/v1`.
    pub(super) fn display(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == UPDATE {
            text.push_str(&format!(" using {}", self.version));
        }
        text
    }
}

/// One manager's fields.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Entry {
    pub(super) api_version: String,
    pub(super) time: String,
    pub(super) set: Set,
}

/// All managers of an object.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Managed(pub(super) BTreeMap<Key, Entry>);

impl Managed {
    /// Reads the entries of an object; unreadable ones make all of them count as absent, as upstream has it.
    pub(super) fn read(object: &Value) -> Self {
        let list = object::metadata(object)
            .and_then(|m| m.get("managedFields"))
            .and_then(Value::as_array);
        let read = |entries: &Vec<Value>| {
            entries
                .iter()
                .map(read_entry)
                .collect::<Option<BTreeMap<_, _>>>()
        };
        Self(list.and_then(read).unwrap_or_default())
    }

    /// For an update: the entries that the client sent, unless it sent none. A list of one empty entry resets.
    pub(super) fn read_sent(new: &Value, old: Option<&Value>) -> Self {
        let sent = object::metadata(new)
            .and_then(|m| m.get("managedFields"))
            .and_then(Value::as_array);
        let reset = |list: &Vec<Value>| matches!(list.as_slice(), [one] if one.as_object().is_some_and(Map::is_empty));
        if sent.is_some_and(reset) {
            return Self::default();
        }
        let managed = Self::read(new);
        match old {
            Some(old) if managed.0.is_empty() => Self::read(old),
            _ => managed,
        }
    }

    /// Removes managers that own nothing.
    pub(super) fn drop_empty(&mut self) {
        self.0.retain(|_, entry| !entry.set.is_empty());
    }

    /// Merges the oldest update entries when there are too many.
    pub(super) fn cap(&mut self) {
        if self.0.len() <= MAX_UPDATE_MANAGERS {
            return;
        }
        let mut updates: Vec<(String, Key)> = self
            .0
            .iter()
            .filter(|(key, _)| key.operation == UPDATE && key.subresource.is_empty())
            .map(|(key, entry)| (entry.time.clone(), key.clone()))
            .collect();
        if updates.len() <= MAX_UPDATE_MANAGERS {
            return;
        }
        updates.sort();
        let surplus = updates.len() - MAX_UPDATE_MANAGERS + 1;
        for (_, key) in updates.into_iter().take(surplus) {
            let Some(entry) = self.0.remove(&key) else {
                continue;
            };
            let merged_key = Key {
                manager: ANCIENT.to_owned(),
                ..key
            };
            let ancient = self.0.entry(merged_key).or_default();
            ancient.set = std::mem::take(&mut ancient.set).union(entry.set);
            ancient.api_version = entry.api_version;
            ancient.time = ancient.time.clone().max(entry.time);
        }
    }

    /// Writes the entries into an object, in upstream's order.
    pub(super) fn write(self, object: &mut Value) {
        let mut entries: Vec<(Key, Entry)> = self.0.into_iter().collect();
        entries.sort_by(|(a, x), (b, y)| {
            (
                a.operation,
                &x.time,
                &a.manager,
                &x.api_version,
                &a.subresource,
            )
                .cmp(&(
                    b.operation,
                    &y.time,
                    &b.manager,
                    &y.api_version,
                    &b.subresource,
                ))
        });
        let list: Vec<Value> = entries
            .into_iter()
            .map(|(key, entry)| write_entry(key, entry))
            .collect();
        let metadata = object::metadata_mut(object);
        if list.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), list.into());
        }
    }
}

fn read_entry(value: &Value) -> Option<(Key, Entry)> {
    let text = |field: &str| {
        value
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let operation = match text("operation").as_str() {
        APPLY => APPLY,
        UPDATE => UPDATE,
        _ => return None,
    };
    let api_version = text("apiVersion");
    let empty = Value::Object(Map::new());
    let set = Set::from_value(value.get("fieldsV1").unwrap_or(&empty))?;
    let version = if operation == APPLY {
        String::new()
    } else {
        api_version.clone()
    };
    let key = Key {
        operation,
        manager: text("manager"),
        version,
        subresource: text("subresource"),
    };
    Some((
        key,
        Entry {
            api_version,
            time: text("time"),
            set,
        },
    ))
}

fn write_entry(key: Key, entry: Entry) -> Value {
    let texts = [
        ("manager", key.manager),
        ("operation", key.operation.to_owned()),
        ("apiVersion", entry.api_version),
        ("time", entry.time),
        ("fieldsType", "FieldsV1".to_owned()),
        ("subresource", key.subresource),
    ];
    let mut map = Map::new();
    for (name, text) in texts {
        if !text.is_empty() {
            map.insert(name.to_owned(), text.into());
        }
    }
    map.insert("fieldsV1".to_owned(), entry.set.into_value());
    Value::Object(map)
}

/// A copy of an object without its managed fields.
pub(super) fn without(object: &Value) -> Value {
    let Value::Object(map) = object else {
        return Value::Object(Map::new());
    };
    let copy: Map<String, Value> = map
        .iter()
        .map(|(name, value)| match (name.as_str(), value) {
            ("metadata", Value::Object(metadata)) => {
                let kept = metadata.iter().filter(|(n, _)| *n != "managedFields");
                (
                    name.clone(),
                    kept.map(|(n, v)| (n.clone(), v.clone())).collect(),
                )
            }
            _ => (name.clone(), value.clone()),
        })
        .collect();
    Value::Object(copy)
}
