//! Compact storage of a schema: plain vectors of small values that refer to each other by number, and one
//! string for all texts. The whole of Kubernetes' API takes about two megabytes.

use std::collections::HashMap;
use std::hash::{Hash as _, Hasher as _};

/// A piece of [`Arena::text`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub(super) fn of(self, text: &str) -> &str {
        &text[self.start as usize..self.end as usize]
    }
}

/// Index into [`Arena::nodes`].
pub(super) type NodeId = u32;
/// Index into [`Arena::definitions`].
pub(super) type DefinitionId = u32;

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Node {
    Any,
    Boolean,
    Integer {
        bits: u8,
    },
    Number,
    Text {
        base64: bool,
    },
    IntOrString,
    /// `granular` makes a field of an atomic struct type granular again.
    Definition {
        id: DefinitionId,
        granular: bool,
    },
    Map {
        value: NodeId,
        atomic: bool,
    },
    List {
        item: NodeId,
        kind: ListKind,
        keys_start: u32,
        keys_count: u8,
    },
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// Replaced and owned as a whole.
    Atomic,
    /// Items are unique scalars.
    Set,
    /// Items are objects told apart by key fields.
    Map,
}

/// What a definition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Struct {
        first: u32,
        count: u32,
        atomic: bool,
        preserve_unknown: bool,
        embedded: bool,
    },
    Any,
    Quantity,
    Time,
    MicroTime,
    IntOrString,
    /// A schema, or what stands beside it in `JSONSchemaPropsOr...`.
    SchemaOr {
        schema: NodeId,
        other: NodeId,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Definition {
    pub(super) name: Span,
    pub(super) description: Span,
    pub(super) form: Form,
}

/// Bits of [`FieldEntry::patch`].
pub(super) const PATCH_MERGE: u8 = 1;
pub(super) const PATCH_REPLACE: u8 = 2;
pub(super) const PATCH_RETAIN_KEYS: u8 = 4;

#[derive(Debug, Clone, Copy)]
pub(super) struct FieldEntry {
    pub(super) name: Span,
    pub(super) description: Span,
    pub(super) node: NodeId,
    pub(super) required: bool,
    pub(super) patch: u8,
    pub(super) merge_key: Span,
    /// Default that takes part in list-map keys, empty when there is none.
    pub(super) default: Span,
}

#[derive(Debug, Default)]
pub(super) struct Arena {
    pub(super) text: String,
    pub(super) nodes: Vec<Node>,
    pub(super) definitions: Vec<Definition>,
    pub(super) fields: Vec<FieldEntry>,
    pub(super) keys: Vec<Span>,
}

impl Arena {
    pub(super) fn str(&self, span: Span) -> &str {
        span.of(&self.text)
    }

    pub(super) fn fields_of(&self, first: u32, count: u32) -> &[FieldEntry] {
        &self.fields[first as usize..(first + count) as usize]
    }

    /// A number that differs between arenas that differ.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        self.text.hash(&mut hasher);
        self.nodes.hash(&mut hasher);
        for field in &self.fields {
            (field.node, field.required, field.patch).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Gives back memory reserved while building.
    pub(super) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.nodes.shrink_to_fit();
        self.definitions.shrink_to_fit();
        self.fields.shrink_to_fit();
        self.keys.shrink_to_fit();
    }
}

/// Adds to an arena, each text and each node once.
#[derive(Default)]
pub(super) struct Interner {
    texts: HashMap<Box<str>, Span>,
    nodes: HashMap<Node, NodeId>,
}

impl Interner {
    pub(super) fn text(&mut self, arena: &mut Arena, text: &str) -> Span {
        if text.is_empty() {
            return Span::default();
        }
        if let Some(span) = self.texts.get(text) {
            return *span;
        }
        let start = arena.text.len() as u32;
        arena.text.push_str(text);
        let span = Span {
            start,
            end: arena.text.len() as u32,
        };
        self.texts.insert(text.into(), span);
        span
    }

    pub(super) fn node(&mut self, arena: &mut Arena, node: Node) -> NodeId {
        *self.nodes.entry(node).or_insert_with(|| {
            arena.nodes.push(node);
            (arena.nodes.len() - 1) as NodeId
        })
    }

    pub(super) fn keys(&mut self, arena: &mut Arena, keys: &[&str]) -> (u32, u8) {
        let spans: Vec<Span> = keys.iter().map(|k| self.text(arena, k)).collect();
        let found = arena
            .keys
            .windows(spans.len().max(1))
            .position(|w| w == spans);
        let start = found.unwrap_or(arena.keys.len());
        if found.is_none() {
            arena.keys.extend(&spans);
        }
        (start as u32, spans.len() as u8)
    }
}
