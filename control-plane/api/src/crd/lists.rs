//! Items that must be unique: `x-kubernetes-list-type` `set` and `map`.

use serde_json::{Map, Value};

use super::schema::{Additional, ListType, Node};
use crate::status::FieldErrors;
use crate::validation::Path;

/// Reports items that stand twice, everywhere below a value. `path` is `None` at the root of an object.
pub fn check(node: &Node, value: &Value, path: Option<&Path>, errors: &mut FieldErrors) {
    match value {
        Value::Array(items) => {
            let root = path.cloned().unwrap_or_else(|| Path::new(""));
            unique(node, items, &root, errors);
            if let Some(item) = &node.items {
                for (index, value) in items.iter().enumerate() {
                    check(item, value, Some(&root.index(index)), errors);
                }
            }
        }
        Value::Object(map) => {
            for (name, value) in map {
                let at = |path: Option<&Path>| {
                    path.map_or_else(|| Path::new(name), |path| path.child(name))
                };
                match (node.properties.get(name), &node.additional) {
                    (Some(member), _) => check(member, value, Some(&at(path)), errors),
                    (None, Some(Additional::Schema(member))) => {
                        let path = path.map_or_else(|| Path::new(name), |path| path.key(name));
                        check(member, value, Some(&path), errors);
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

fn unique(node: &Node, items: &[Value], path: &Path, errors: &mut FieldErrors) {
    let identities: Vec<Value> = match node.list_type {
        ListType::Atomic => return,
        ListType::Set => items.to_vec(),
        ListType::Map => items.iter().map(|item| keys(node, item)).collect(),
    };
    let mut seen = std::collections::HashSet::new();
    let mut reported = std::collections::HashSet::new();
    for (index, identity) in identities.into_iter().enumerate() {
        let text = identity.to_string();
        if !seen.insert(text.clone()) && reported.insert(text) {
            errors.duplicate(path.index(index), identity);
        }
    }
}

/// The key fields of an item.
fn keys(node: &Node, item: &Value) -> Value {
    let mut keys = Map::new();
    for key in &node.list_map_keys {
        if let Some(value) = item.get(key) {
            keys.insert(key.clone(), value.clone());
        }
    }
    keys.into()
}
