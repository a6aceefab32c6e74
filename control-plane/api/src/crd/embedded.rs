//! Metadata of whole objects, at the root and where `x-kubernetes-embedded-resource` says that one is inside.

use serde_json::Value;

use super::schema::{Additional, Node};
use crate::kinds::walk::Walk;
use crate::schema::conform::conform;
use crate::schema::{Schema, Type};
use crate::status::FieldErrors;
use crate::validation::Path;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Brings all metadata in a whole object into form. Returns what was removed because metadata has no such field
/// (`unknown field "spec.template.metadata.x"`).
///
/// # Errors
/// The first value of a wrong type, in the words of Go's JSON decoder.
pub fn conform_metadata(node: &Node, object: &mut Value) -> Result<Vec<String>, String> {
    let Some(type_) = Schema::builtin().definition(OBJECT_META) else {
        return Ok(Vec::new());
    };
    let mut unknown = Vec::new();
    walk(node, object, type_, "", true, &mut unknown)?;
    Ok(unknown)
}

fn walk(
    node: &Node,
    value: &mut Value,
    type_: Type<'_>,
    path: &str,
    whole: bool,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    match value {
        Value::Object(map) => {
            let whole = whole || node.embedded;
            if whole && let Some(metadata) = map.get_mut("metadata") {
                if metadata.is_null() {
                    map.remove("metadata");
                } else {
                    let prefix = format!("unknown field \"{}.", below("metadata"));
                    for text in conform(type_, metadata)? {
                        unknown.push(text.replacen("unknown field \"", &prefix, 1));
                    }
                }
            }
            for (name, value) in map.iter_mut() {
                if whole && name == "metadata" {
                    continue;
                }
                let member = match (node.properties.get(name), &node.additional) {
                    (Some(member), _) => member,
                    (None, Some(Additional::Schema(member))) => member,
                    _ => continue,
                };
                walk(member, value, type_, &below(name), false, unknown)?;
            }
            Ok(())
        }
        Value::Array(items) => {
            let Some(item) = &node.items else {
                return Ok(());
            };
            for (index, value) in items.iter_mut().enumerate() {
                walk(
                    item,
                    value,
                    type_,
                    &format!("{path}[{index}]"),
                    false,
                    unknown,
                )?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Reports embedded objects without apiVersion or kind. `path` is `None` at the root.
pub fn check(node: &Node, value: &Value, path: Option<&Path>, errors: &mut FieldErrors) {
    match value {
        Value::Object(map) => {
            if node.embedded
                && let Some(path) = path
            {
                for key in ["apiVersion", "kind"] {
                    if value[key].text().is_empty() {
                        errors.required(path.child(key), "must not be empty");
                    }
                }
            }
            for (name, value) in map {
                let at = path.map_or_else(|| Path::new(name), |path| path.child(name));
                match (node.properties.get(name), &node.additional) {
                    (Some(member), _) => check(member, value, Some(&at), errors),
                    (None, Some(Additional::Schema(member))) => {
                        check(member, value, Some(&at), errors);
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            let root = path.cloned().unwrap_or_else(|| Path::new(""));
            if let Some(item) = &node.items {
                for (index, value) in items.iter().enumerate() {
                    check(item, value, Some(&root.index(index)), errors);
                }
            }
        }
        _ => {}
    }
}
