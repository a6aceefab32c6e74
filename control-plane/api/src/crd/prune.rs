//! Removing what a schema does not know.

use serde_json::Value;

use super::schema::{Additional, Members, Node, is_fixed};

/// Paths reported at most; the rest is removed silently.
const MAX_REPORTED: usize = 100;

/// Removes unknown fields from a whole object. Returns their paths in upstream's words
/// (`unknown field "spec.foo"`).
pub fn prune(node: &Node, object: &mut Value) -> Vec<String> {
    let mut walk = Walk::default();
    walk.value(node, object, true);
    walk.unknown
}

#[derive(Default)]
struct Walk {
    path: String,
    unknown: Vec<String>,
}

impl Walk {
    fn value(&mut self, node: &Node, value: &mut Value, resource: bool) {
        match value {
            Value::Object(map) => self.members(node, map, resource || node.embedded),
            Value::Array(items) => {
                let Some(item) = &node.items else { return };
                let length = self.path.len();
                for (index, value) in items.iter_mut().enumerate() {
                    self.path.push_str(&format!("[{index}]"));
                    self.value(item, value, false);
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
    }

    fn members(&mut self, node: &Node, map: &mut Members, resource: bool) {
        let length = self.path.len();
        let keeps = node.keeps_unknown();
        map.retain(|name, value| {
            if resource && is_fixed(name) {
                return true;
            }
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(name);
            let known = match (node.properties.get(name), &node.additional) {
                (Some(member), _) => {
                    self.value(member, value, false);
                    true
                }
                (None, Some(Additional::Schema(member))) => {
                    self.value(member, value, false);
                    true
                }
                _ => keeps,
            };
            if !known && self.unknown.len() < MAX_REPORTED {
                self.unknown
                    .push(format!("unknown field \"{}\"", self.path));
            }
            self.path.truncate(length);
            known
        });
    }
}
