//! What server-side apply does with values: which fields one has, how two differ, merging, and removing.
//!
//! Source: structured-merge-diff, `typed`: its field set, compare, merging and removing walkers.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{Node, Path, Set, field_element};
use crate::schema::{List, ListKind, Shape, Type};

/// Structs that Go's types hold by value: an empty one exists in every object, so nobody adds or removes it.
const BY_VALUE: &[&str] = &[
    "f:metadata",
    "f:spec",
    "f:status",
    "f:template",
    "f:strategy",
    "f:updateStrategy",
    "f:resources",
    "f:jobTemplate",
    "f:state",
    "f:lastState",
    "f:daemonEndpoints",
    "f:nodeInfo",
    "f:names",
];

/// How the walkers see a value of some type.
enum View<'v, 's> {
    /// Owned as a whole.
    Leaf,
    Map(&'v Map<String, Value>),
    List(List<'s>, &'v [Value]),
}

fn view<'v, 's>(type_: Option<Type<'s>>, value: &'v Value) -> View<'v, 's> {
    match (type_.map(Type::shape), value) {
        (Some(Shape::Struct(fields)), Value::Object(map)) if !fields.atomic => View::Map(map),
        (Some(Shape::Map { atomic: false, .. }), Value::Object(map)) => View::Map(map),
        (Some(Shape::List(list)), Value::Array(items)) if list.kind != ListKind::Atomic => {
            View::List(list, items)
        }
        _ => View::Leaf,
    }
}

fn is_struct(type_: Option<Type<'_>>) -> bool {
    matches!(type_.map(Type::shape), Some(Shape::Struct(_)))
}

/// The path element of a list item. Items that lack a key without default are told apart by position.
fn element(list: List<'_>, index: usize, item: &Value) -> String {
    try_element(list, item).unwrap_or_else(|_| format!("i:{index}"))
}

/// The path element of a list item, or what is wrong with it.
fn try_element(list: List<'_>, item: &Value) -> Result<String, String> {
    if list.kind == ListKind::Set {
        return Ok(format!("v:{item}"));
    }
    if !item.is_object() {
        return Err("associative list with keys may not have non-map elements".to_owned());
    }
    let fields = list.item().as_struct();
    let mut keys = Map::new();
    for key in list.keys() {
        let default = || {
            fields
                .and_then(|f| f.field(key))
                .and_then(|f| f.key_default())
                .map(Value::from)
        };
        // Of several keys some may be left out (the share of a device).
        if let Some(value) = item.get(key).cloned().or_else(default) {
            keys.insert(key.to_owned(), value);
        }
    }
    if keys.is_empty() {
        let names: Vec<&str> = list.keys().collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields {names:?} (and doesn't have default values for any key fields)"
        ));
    }
    Ok(format!("k:{}", Value::Object(keys)))
}

/// Problems of list items in a configuration about to be applied: missing keys, duplicates.
pub(super) fn check_lists(type_: Option<Type<'_>>, value: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    check(type_, value, &mut Vec::new(), &mut problems);
    problems
}

fn check(type_: Option<Type<'_>>, value: &Value, path: &mut Path, problems: &mut Vec<String>) {
    match view(type_, value) {
        View::Leaf => {}
        View::Map(map) => {
            for (name, value) in map {
                path.push(field_element(name));
                check(
                    type_.and_then(|t| t.field_type(name)),
                    value,
                    path,
                    problems,
                );
                path.pop();
            }
        }
        View::List(list, items) => {
            let mut seen = std::collections::BTreeSet::new();
            for (index, item) in items.iter().enumerate() {
                let element = match try_element(list, item) {
                    Ok(element) => element,
                    Err(why) => {
                        problems.push(format!(
                            "{}: element {index}: {why}",
                            super::set::display(path)
                        ));
                        continue;
                    }
                };
                path.push(element.clone());
                if !seen.insert(element) {
                    let (parent, key) = path.split_at(path.len() - 1);
                    let (parent, key) = (super::set::display(parent), super::set::display(key));
                    problems.push(format!("{parent}: duplicate entries for key {key}"));
                }
                check(Some(list.item()), item, path, problems);
                path.pop();
            }
        }
    }
}

/// The fields that a value sets.
pub(super) fn field_set(type_: Option<Type<'_>>, value: &Value) -> Set {
    let mut set = Set::default();
    collect(type_, value, &mut Vec::new(), &mut set);
    set
}

fn collect(type_: Option<Type<'_>>, value: &Value, path: &mut Path, set: &mut Set) {
    match view(type_, value) {
        View::Leaf => set.insert(path),
        View::Map(map) => {
            for (name, value) in map {
                path.push(field_element(name));
                let inner = type_.and_then(|t| t.field_type(name));
                collect(inner, value, path, set);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if empty || !is_struct(type_) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        View::List(list, items) => {
            for (index, item) in items.iter().enumerate() {
                path.push(element(list, index, item));
                collect(Some(list.item()), item, path, set);
                set.insert(path);
                path.pop();
            }
        }
    }
}

/// How two values differ.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

/// Compares an old with a new value.
pub(super) fn compare(type_: Option<Type<'_>>, old: &Value, new: &Value) -> Comparison {
    let mut comparison = Comparison::default();
    descend(type_, old, new, &mut Vec::new(), &mut comparison);
    comparison
}

fn is_hollow(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

fn descend(
    type_: Option<Type<'_>>,
    old: &Value,
    new: &Value,
    path: &mut Path,
    out: &mut Comparison,
) {
    // Most of two objects is the same.
    if old == new {
        return;
    }
    let leaf = |v: &Value| !v.is_null() && matches!(view(type_, v), View::Leaf);
    if leaf(old) || leaf(new) || (is_hollow(old) && is_hollow(new)) {
        out.modified.insert(path);
        return;
    }
    for (element, inner, old, new) in pairs(type_, old, new) {
        path.push(element);
        let element = path.last().map_or("", String::as_str);
        match (old, new) {
            (Some(old), Some(new)) => descend(inner, old, new, path, out),
            (None, Some(new)) => out.added.graft(path, all_of(inner, new, element)),
            (Some(old), None) => out.removed.graft(path, all_of(inner, old, element)),
            (None, None) => {}
        }
        path.pop();
    }
}

/// All fields of a value that is added or removed as a whole, and whose path ends with `element`.
fn all_of(type_: Option<Type<'_>>, value: &Value, element: &str) -> Node {
    let mut below = Set::default();
    if !is_hollow(value) {
        match view(type_, value) {
            View::Leaf => {}
            View::Map(map) => {
                for (name, value) in map {
                    let inner = type_.and_then(|t| t.field_type(name));
                    let name = field_element(name);
                    let node = all_of(inner, value, &name);
                    below.put(name, node);
                }
            }
            View::List(list, items) => {
                for (index, item) in items.iter().enumerate() {
                    let name = self::element(list, index, item);
                    let node = all_of(Some(list.item()), item, &name);
                    below.put(name, node);
                }
            }
        }
    }
    let by_value = is_struct(type_) && BY_VALUE.contains(&element);
    Node {
        member: below.is_empty() || !by_value,
        below,
    }
}

type Pair<'v, 's> = (
    String,
    Option<Type<'s>>,
    Option<&'v Value>,
    Option<&'v Value>,
);

/// The parts of two values side by side.
fn pairs<'v, 's>(type_: Option<Type<'s>>, old: &'v Value, new: &'v Value) -> Vec<Pair<'v, 's>> {
    let mut found: BTreeMap<String, Pair<'v, 's>> = BTreeMap::new();
    for (side, value) in [old, new].into_iter().enumerate() {
        let parts: Vec<(String, Option<Type<'s>>, &'v Value)> = match view(type_, value) {
            View::Map(map) => map
                .iter()
                .map(|(name, v)| {
                    (
                        field_element(name),
                        type_.and_then(|t| t.field_type(name)),
                        v,
                    )
                })
                .collect(),
            View::List(list, items) => items
                .iter()
                .enumerate()
                .map(|(i, v)| (element(list, i, v), Some(list.item()), v))
                .collect(),
            View::Leaf => Vec::new(),
        };
        for (element, inner, value) in parts {
            let pair = found
                .entry(element.clone())
                .or_insert((element, inner, None, None));
            if side == 0 {
                pair.2 = Some(value)
            } else {
                pair.3 = Some(value)
            }
        }
    }
    found.into_values().collect()
}

/// Puts what `config` says over `live`.
pub(super) fn merge(type_: Option<Type<'_>>, live: &Value, config: &Value) -> Value {
    match (view(type_, live), view(type_, config)) {
        (View::Map(old), View::Map(new)) => {
            let mut out = old.clone();
            for (name, value) in new {
                let inner = type_.and_then(|t| t.field_type(name));
                let merged = old
                    .get(name)
                    .map_or_else(|| value.clone(), |o| merge(inner, o, value));
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (View::List(list, old), View::List(_, new)) => Value::Array(merge_lists(list, old, new)),
        _ => config.clone(),
    }
}

/// Items of both lists, each once: those of the configuration in its order, the others where they stood.
fn merge_lists(list: List<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let key = |items: &[Value]| -> Vec<String> {
        items
            .iter()
            .enumerate()
            .map(|(i, v)| element(list, i, v))
            .collect()
    };
    let (live_keys, config_keys) = (key(live), key(config));
    let in_live = |k: &String| live_keys.iter().position(|other| other == k);
    let merged_item = |index: usize| match in_live(&config_keys[index]) {
        Some(old) => merge(Some(list.item()), &live[old], &config[index]),
        None => config[index].clone(),
    };
    let mut shared = config_keys.iter().filter(|k| live_keys.contains(k));
    let mut next_shared = shared.next();
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let (mut l, mut r) = (0, 0);
    while l < live.len() || r < config.len() {
        if l < live.len() && r < config.len() && live_keys[l] == config_keys[r] {
            out.push(merged_item(r));
            (l, r) = (l + 1, r + 1);
            next_shared = shared.next();
            continue;
        }
        if l < live.len() {
            if !config_keys.contains(&live_keys[l]) {
                out.push(live[l].clone());
                l += 1;
                continue;
            }
            // A shared item, but it goes where the configuration has it.
            if r >= config.len() || next_shared != Some(&live_keys[l]) {
                l += 1;
                continue;
            }
        }
        if r < config.len() {
            out.push(merged_item(r));
            if next_shared == Some(&config_keys[r]) {
                next_shared = shared.next();
            }
            r += 1;
        }
    }
    out
}

/// Removes the paths of a set with all below them. What becomes empty goes away; `None` when nothing is left.
pub(super) fn remove(type_: Option<Type<'_>>, value: &Value, set: &Set) -> Option<Value> {
    match view(type_, value) {
        View::Leaf => Some(value.clone()),
        View::Map(map) => {
            let kept: Map<String, Value> = map
                .iter()
                .filter_map(|(name, value)| {
                    let inner = type_.and_then(|t| t.field_type(name));
                    Some((name.clone(), keep(&field_element(name), inner, value, set)?))
                })
                .collect();
            (map.is_empty() || !kept.is_empty()).then_some(Value::Object(kept))
        }
        View::List(list, items) => {
            let kept: Vec<Value> = items
                .iter()
                .enumerate()
                .filter_map(|(i, item)| keep(&element(list, i, item), Some(list.item()), item, set))
                .collect();
            (items.is_empty() || !kept.is_empty()).then_some(Value::Array(kept))
        }
    }
}

fn keep(element: &str, type_: Option<Type<'_>>, value: &Value, set: &Set) -> Option<Value> {
    if set.has(element) {
        return None;
    }
    match set.below(element) {
        Some(below) => remove(type_, value, below),
        None => Some(value.clone()),
    }
}
