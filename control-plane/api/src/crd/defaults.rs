//! Filling in a schema's defaults.

use serde_json::Value;

use super::schema::{Additional, Node};

/// Fills in defaults, and removes nulls where a schema neither allows them nor has a default to put there.
pub fn fill(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, member) in &node.properties {
                let Some(default) = &member.default else {
                    continue;
                };
                let missing = match map.get(name) {
                    None => true,
                    Some(value) => value.is_null() && !member.nullable,
                };
                if missing {
                    map.insert(name.clone(), default.clone());
                }
            }
            map.retain(|name, value| match node.member(name) {
                Some(member) if value.is_null() => {
                    if member.nullable {
                        return true;
                    }
                    match &member.default {
                        Some(default) => {
                            *value = default.clone();
                            true
                        }
                        None => false,
                    }
                }
                Some(member) => {
                    fill(member, value);
                    true
                }
                None => true,
            });
        }
        Value::Array(items) => {
            let Some(item) = &node.items else { return };
            for value in items {
                if value.is_null()
                    && !item.nullable
                    && let Some(default) = &item.default
                {
                    *value = default.clone();
                }
                fill(item, value);
            }
        }
        _ => {}
    }
}

/// Whether [`fill`] could change a value at all.
#[must_use]
pub fn may_fill(node: &Node) -> bool {
    node.has_defaults
        || matches!(&node.additional, Some(Additional::Schema(below)) if below.has_defaults)
}
