//! Strategic merge patch: a merge patch that knows which lists merge by key, and obeys directives.
//!
//! | directive | where | meaning |
//! |---|---|---|
//! | `$patch: replace` | map, or an item of a list | take the patch's value for the whole |
//! | `$patch: delete` | map, or an item of a list | empty the map; remove the item with this key |
//! | `$retainKeys: [..]` | map | remove all keys but these |
//! | `$setElementOrder/F: [..]` | map | order of list F afterwards |
//! | `$deleteFromPrimitiveList/F: [..]` | map | values to remove from list F |
//!
//! Source: apimachinery `strategicpatch`, with its errors' words.

use serde_json::{Map, Value};

use super::{order, unprocessable};
use crate::schema::{Field, Shape, Type};
use crate::status::Status;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

/// What the schema says of the field being merged.
#[derive(Clone, Copy)]
struct Rules<'s> {
    /// The field's type, when it is known.
    type_: Option<Type<'s>>,
    merge_list: bool,
    replace_map: bool,
    merge_key: &'s str,
}

impl<'s> Rules<'s> {
    fn of_field(field: Field<'s>) -> Self {
        Self {
            type_: Some(field.type_()),
            merge_list: field.patch_merge(),
            replace_map: field.patch_replace(),
            merge_key: field.patch_merge_key().unwrap_or_default(),
        }
    }

    fn unknown(type_: Option<Type<'s>>) -> Self {
        Self {
            type_,
            merge_list: false,
            replace_map: false,
            merge_key: "",
        }
    }

    fn item(self) -> Option<Type<'s>> {
        self.type_?.as_list().map(|list| list.item())
    }
}

fn rules<'s>(type_: Option<Type<'s>>, name: &str) -> Rules<'s> {
    match type_.map(Type::shape) {
        Some(Shape::Struct(fields)) => fields
            .field(name)
            .map_or_else(|| Rules::unknown(None), Rules::of_field),
        Some(Shape::Map { value, .. }) => Rules::unknown(Some(value)),
        _ => Rules::unknown(None),
    }
}

/// Applies a strategic merge patch to an object of a type. Without a type no list merges.
///
/// # Errors
/// 400 for a malformed directive, 422 for a patch that contradicts itself.
pub fn strategic_merge(
    type_: Option<Type<'_>>,
    original: Value,
    patch: Value,
) -> Result<Value, Status> {
    match (original, patch) {
        (Value::Object(original), Value::Object(patch)) => {
            merge_map(type_, original, patch).map(Value::Object)
        }
        _ => Err(bad("invalid JSON document")),
    }
}

fn bad(message: impl Into<String>) -> Status {
    Status::bad_request(message)
}

fn merge_map(
    type_: Option<Type<'_>>,
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<Map<String, Value>, Status> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Map::new()),
            _ => Err(bad(format!(
                "unknown patch type: {} in map: {}",
                plain(&directive),
                Value::Object(patch)
            ))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    order_lists(type_, &mut original, &mut patch)?;
    for (key, value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_PREFIX) {
            Some(field) => (field.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.get_mut(&key).map(Value::take), value) {
            (None, value) if !deletes => drop_directives(value),
            (None, _) => None,
            (Some(Value::Object(old)), Value::Object(new)) => {
                let rules = rules(type_, &key);
                let merged = if rules.replace_map {
                    new
                } else {
                    merge_map(rules.type_, old, new)?
                };
                Some(Value::Object(merged))
            }
            (Some(Value::Array(old)), Value::Array(new)) => Some(Value::Array(merge_list(
                rules(type_, &key),
                old,
                new,
                deletes,
            )?)),
            (Some(old), _) if deletes => Some(old),
            (Some(_), value) => drop_directives(value),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

/// Obeys `$retainKeys`.
fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), Status> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(bad("invalid patch format of retainKeys"));
    };
    let kept = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    for (key, value) in &*patch {
        let directive = key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX);
        if !directive && !value.is_null() && !kept(key) {
            return Err(unprocessable(
                "patch contains fields not in retainKeys list",
            ));
        }
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// Obeys `$setElementOrder/...`: merges each list that has one and puts it in order.
fn order_lists(
    type_: Option<Type<'_>>,
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), Status> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|k| k.starts_with(ORDER_PREFIX))
        .cloned()
        .collect();
    for directive in directives {
        let Some(Value::Array(wanted)) = patch.remove(&directive) else {
            return Err(bad("invalid patch format of setElementOrder list"));
        };
        let field = &directive[ORDER_PREFIX.len()..];
        let rules = rules(type_, field);
        let new = take_list(patch, field)?;
        let old = take_list(original, field)?;
        if let Some(new) = &new {
            order::check_covers(new, &wanted, rules.merge_key)?;
        }
        let server_order = old.clone().unwrap_or_default();
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => drop_from_list(new),
            (Some(old), Some(new)) if rules.merge_list => merge_list(rules, old, new, false)?,
            (Some(_), Some(new)) => new,
        };
        let ordered = order::arrange(merged, &wanted, &server_order, rules.merge_key)?;
        original.insert(field.to_owned(), Value::Array(ordered));
    }
    Ok(())
}

fn take_list(map: &mut Map<String, Value>, field: &str) -> Result<Option<Vec<Value>>, Status> {
    match map.remove(field) {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(bad(format!(
            "expected a list in {field}, but received {}",
            plain(&other)
        ))),
    }
}

fn merge_list(
    rules: Rules<'_>,
    original: Vec<Value>,
    patch: Vec<Value>,
    deletes: bool,
) -> Result<Vec<Value>, Status> {
    if !rules.merge_list && !deletes {
        return Ok(patch);
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    if original.iter().chain(&patch).any(Value::is_array) {
        return Err(unprocessable("lists of lists are not supported"));
    }
    let maps = original
        .iter()
        .chain(&patch)
        .filter(|v| v.is_object())
        .count();
    if maps == 0 {
        return merge_scalars(original, patch, deletes);
    }
    if maps < original.len() + patch.len() {
        return Err(bad("list element types are not identical: map and scalar"));
    }
    if rules.merge_key.is_empty() {
        return Err(bad("cannot merge lists without merge key"));
    }
    let (original, patch) = apply_item_directives(original, patch, rules.merge_key)?;
    let server_order = original.clone();
    let wanted = patch.clone();
    let merged = merge_items(rules, original, patch)?;
    order::arrange(merged, &wanted, &server_order, rules.merge_key)
}

fn merge_scalars(
    original: Vec<Value>,
    patch: Vec<Value>,
    deletes: bool,
) -> Result<Vec<Value>, Status> {
    if deletes {
        return Ok(original
            .into_iter()
            .filter(|v| !patch.contains(v))
            .collect());
    }
    let mut merged: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
    for value in original.iter().chain(&patch) {
        if !merged.contains(value) {
            merged.push(value.clone());
        }
    }
    order::arrange(merged, &patch, &original, "")
}

/// Obeys `$patch` of items: deletions happen in the original, `replace` empties it.
fn apply_item_directives(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>), Status> {
    let mut plain_items = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        let Some(directive) = item.get(DIRECTIVE) else {
            plain_items.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let key = item
                    .get(merge_key)
                    .ok_or_else(|| no_merge_key(&item, merge_key))?;
                original.retain(|o| o.get(merge_key).is_none_or(|k| !same_key(k, key)));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(bad("merging lists cannot yet be specified in the patch")),
            _ => {
                return Err(bad(format!(
                    "unknown patch type: {} in map: {item}",
                    plain(directive)
                )));
            }
        }
    }
    if replace {
        Ok((plain_items, Vec::new()))
    } else {
        Ok((original, plain_items))
    }
}

fn merge_items(
    rules: Rules<'_>,
    mut original: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    for item in patch {
        let key = item
            .get(rules.merge_key)
            .ok_or_else(|| no_merge_key(&item, rules.merge_key))?;
        let found = original.iter().position(|o| {
            o.get(rules.merge_key)
                .is_some_and(|other| same_key(other, key))
        });
        match (found, item) {
            (Some(index), Value::Object(new)) => {
                if let Value::Object(old) = original[index].take() {
                    original[index] = Value::Object(merge_map(rules.item(), old, new)?);
                }
            }
            (_, item) => original.extend(drop_directives(item)),
        }
    }
    Ok(original)
}

pub(super) fn no_merge_key(item: &Value, merge_key: &str) -> Status {
    bad(format!(
        "map: {item} does not contain declared merge key: {merge_key}"
    ))
}

/// Keys compare by how they print, so `80` equals `"80"`.
pub(super) fn same_key(a: &Value, b: &Value) -> bool {
    a == b || plain(a) == plain(b)
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What remains of a patch value that has nothing to merge with: no directives, no nulls. `None` for an item
/// that is only a directive.
fn drop_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return None;
            }
            let only_directive = map.len() == 1 && map.contains_key(DIRECTIVE);
            let kept: Map<String, Value> = map
                .into_iter()
                .filter(|(key, value)| !is_directive(key) && !value.is_null())
                .filter_map(|(key, value)| Some((key, drop_directives(value)?)))
                .collect();
            (!only_directive).then_some(Value::Object(kept))
        }
        Value::Array(items) => Some(Value::Array(drop_from_list(items))),
        other => Some(other),
    }
}

fn drop_from_list(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(drop_directives).collect()
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE
        || key == RETAIN_KEYS
        || key.starts_with(DELETE_PREFIX)
        || key.starts_with(ORDER_PREFIX)
}
