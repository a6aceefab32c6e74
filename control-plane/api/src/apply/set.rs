//! Sets of field paths, as `managedFields[].fieldsV1` stores them.
//!
//! A path element is kept in its written form: `f:name` for a field or map key, `k:{...}` for the keys of a list
//! item, `v:...` for a scalar list item, `i:0` for a position.
//!
//! Source: sigs.k8s.io/structured-merge-diff, `fieldpath`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::{Shape, Type};

/// The member that a set writes for "this very path".
const SELF: &str = ".";
/// Nesting followed when reading foreign sets; the API's own types are far shallower.
const MAX_DEPTH: usize = 128;

/// A path, outermost element first.
pub(super) type Path = Vec<String>;

/// A set of paths, stored as a trie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set {
    nodes: BTreeMap<String, Node>,
}

/// What a set has of one element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// The path that ends here is in the set.
    pub(super) member: bool,
    /// Paths that go on.
    pub(super) below: Set,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

/// The element for a field or map key.
pub(super) fn field_element(name: &str) -> String {
    ["f:", name].concat()
}

impl Set {
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.values().all(Node::is_empty)
    }

    pub(super) fn insert(&mut self, path: &[String]) {
        if let [head, tail @ ..] = path {
            let node = self.nodes.entry(head.clone()).or_default();
            if tail.is_empty() {
                node.member = true;
            } else {
                node.below.insert(tail);
            }
        }
    }

    /// Takes in all that there is at a path, in place of what the set has there.
    pub(super) fn graft(&mut self, path: &[String], node: Node) {
        match path {
            [] => {}
            [last] => self.put(last.clone(), node),
            [head, tail @ ..] => {
                let below = &mut self.nodes.entry(head.clone()).or_default().below;
                below.graft(tail, node);
            }
        }
    }

    /// Takes in all that there is at an element, in place of what the set has there.
    pub(super) fn put(&mut self, element: String, node: Node) {
        self.nodes.insert(element, node);
    }

    /// Removes just the paths of these elements, not what is below them.
    pub(super) fn forget(&mut self, elements: &[&str]) {
        self.nodes.retain(|element, node| {
            node.member &= !elements.contains(&element.as_str());
            !node.is_empty()
        });
    }

    /// The same with paths of two elements, of which this is the first.
    pub(super) fn forget_below(&mut self, element: &str, elements: &[&str]) {
        if let Some(node) = self.nodes.get_mut(element) {
            node.below.forget(elements);
        }
    }

    /// Removes the path of one element and all below it.
    pub(super) fn remove_tree(&mut self, element: &str) {
        self.nodes.remove(element);
    }

    /// Whether the path of this one element is in the set.
    pub(super) fn has(&self, element: &str) -> bool {
        self.nodes.get(element).is_some_and(|n| n.member)
    }

    /// What is in the set below an element.
    pub(super) fn below(&self, element: &str) -> Option<&Self> {
        self.nodes
            .get(element)
            .map(|n| &n.below)
            .filter(|s| !s.is_empty())
    }

    pub(super) fn union(mut self, other: Self) -> Self {
        if self.nodes.is_empty() {
            return other;
        }
        for (element, node) in other.nodes {
            let mine = self.nodes.entry(element).or_default();
            mine.member |= node.member;
            mine.below = std::mem::take(&mut mine.below).union(node.below);
        }
        self
    }

    pub(super) fn difference(mut self, other: &Self) -> Self {
        self.nodes.retain(|element, mine| {
            if let Some(theirs) = other.nodes.get(element) {
                mine.member &= !theirs.member;
                mine.below = std::mem::take(&mut mine.below).difference(&theirs.below);
            }
            !mine.is_empty()
        });
        self
    }

    pub(super) fn intersection(mut self, other: &Self) -> Self {
        self.nodes
            .retain(|element, mine| match other.nodes.get(element) {
                Some(theirs) => {
                    mine.member &= theirs.member;
                    mine.below = std::mem::take(&mut mine.below).intersection(&theirs.below);
                    !mine.is_empty()
                }
                None => false,
            });
        self
    }

    /// Makes every declared field on the way to a member a member too, so that a struct disappears with the last
    /// owned thing in it.
    pub(super) fn with_named_fields(mut self, type_: Option<Type<'_>>) -> Self {
        for (element, node) in &mut self.nodes {
            let inner = type_.and_then(|t| type_below(t, element));
            let declared =
                matches!(type_.map(Type::shape), Some(Shape::Struct(_))) && inner.is_some();
            let below = std::mem::take(&mut node.below);
            node.member |= declared && !below.is_empty();
            node.below = below.with_named_fields(inner);
        }
        self
    }

    /// All paths.
    pub(super) fn paths(&self) -> Vec<Path> {
        let mut found = Vec::new();
        self.collect(&mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, prefix: &mut Path, found: &mut Vec<Path>) {
        for (element, node) in &self.nodes {
            prefix.push(element.clone());
            if node.member {
                found.push(prefix.clone());
            }
            node.below.collect(prefix, found);
            prefix.pop();
        }
    }

    /// Writes `fieldsV1`.
    pub(super) fn into_value(self) -> Value {
        let entries = self.nodes.into_iter().filter(|(_, node)| !node.is_empty());
        let map: Map<String, Value> = entries
            .map(|(element, node)| {
                let is_both = node.member && !node.below.is_empty();
                let mut below = node.below.into_value();
                if let (true, Value::Object(map)) = (is_both, &mut below) {
                    map.insert(SELF.to_owned(), Value::Object(Map::new()));
                }
                (element, below)
            })
            .collect();
        Value::Object(map)
    }

    /// Reads `fieldsV1`; `None` when it is no such thing.
    pub(super) fn from_value(value: &Value) -> Option<Self> {
        Self::read(value, MAX_DEPTH)
    }

    fn read(value: &Value, depth: usize) -> Option<Self> {
        let mut set = Self::default();
        for (key, value) in value.as_object()? {
            if key == SELF {
                continue;
            }
            let inner = value.as_object()?;
            let member = inner.is_empty() || inner.contains_key(SELF);
            let below = Self::read(value, depth.checked_sub(1)?)?;
            set.nodes.insert(canonical(key)?, Node { member, below });
        }
        Some(set)
    }
}

/// Checks a foreign element and writes it as we do.
fn canonical(element: &str) -> Option<String> {
    let (tag, rest) = element.split_once(':')?;
    match tag {
        "f" => Some(element.to_owned()),
        "i" => rest.parse::<u64>().ok().map(|_| element.to_owned()),
        "v" | "k" => {
            let value: Value = serde_json::from_str(rest).ok()?;
            if tag == "k" && !value.is_object() {
                return None;
            }
            Some(format!("{tag}:{value}"))
        }
        _ => None,
    }
}

/// The type that an element leads to.
pub(super) fn type_below<'s>(type_: Type<'s>, element: &str) -> Option<Type<'s>> {
    match element.strip_prefix("f:") {
        Some(name) => type_.field_type(name),
        None => type_.as_list().map(|list| list.item()),
    }
}

/// A path as people read it: `.spec.containers[name="a"].image`.
pub(super) fn display(path: &[String]) -> String {
    path.iter()
        .map(|element| display_element(element))
        .collect()
}

fn display_element(element: &str) -> String {
    match element.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("i", index)) => format!("[{index}]"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let list: Vec<String> = keys
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            format!("[{}]", list.join(","))
        }
        _ => element.to_owned(),
    }
}
