//! The schema of the API: which fields there are, of what type, and how lists and maps of them merge.
//!
//! One schema serves pruning, strict field validation, strategic merge patches, server-side apply and the
//! OpenAPI documents. The built-in one comes from k8s-openapi's JSON Schemas and [`lists`]'s merge rules; a
//! CustomResourceDefinition's structural schema makes the same value ([`Schema::for_custom`]).

mod arena;
mod build;
pub mod conform;
pub mod decode;
pub mod duplicates;
mod lists;
mod roots;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::LazyLock;

use arena::{Arena, DefinitionId, FieldEntry, Form, Node, NodeId};
use serde_json::Value;

pub use arena::ListKind;

static BUILTIN: LazyLock<Schema> = LazyLock::new(build::builtin);

type GroupVersionKind = (Box<str>, Box<str>, Box<str>);

/// Types, looked up by group, version and kind, or by definition name.
#[derive(Debug, Default)]
pub struct Schema {
    arena: Arena,
    fingerprint: u64,
    names: HashMap<Box<str>, DefinitionId>,
    kinds: HashMap<GroupVersionKind, DefinitionId>,
}

impl Schema {
    /// The schema of all built-in kinds. Made on first use, in some tens of milliseconds.
    #[must_use]
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// A schema with one kind, from an `openAPIV3Schema`. `apiVersion`, `kind` and `metadata` are as for
    /// built-in kinds whatever the given schema says of them.
    #[must_use]
    pub fn for_custom(group: &str, version: &str, kind: &str, schema: &Value) -> Self {
        build::custom(group, version, kind, schema)
    }

    /// The type of a kind's objects.
    #[must_use]
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<Type<'_>> {
        let id = self
            .kinds
            .get(&(group.into(), version.into(), kind.into()))?;
        Some(self.type_of(*id))
    }

    /// The type of a definition, for example `io.k8s.api.core.v1.PodSpec`.
    #[must_use]
    pub fn definition(&self, name: &str) -> Option<Type<'_>> {
        self.names.get(name).map(|id| self.type_of(*id))
    }

    /// All definitions, in no particular order.
    pub fn definitions(&self) -> impl Iterator<Item = Definition<'_>> {
        (0..self.arena.definitions.len()).map(|id| Definition {
            schema: self,
            id: id as DefinitionId,
        })
    }

    /// All kinds: group, version, kind and type.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &str, &str, Type<'_>)> {
        self.kinds
            .iter()
            .map(|((g, v, k), id)| (&**g, &**v, &**k, self.type_of(*id)))
    }

    /// A number that differs between schemas that differ, for telling clients that a document has changed.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn type_of(&self, id: DefinitionId) -> Type<'_> {
        Type {
            schema: self,
            node: Node::Definition {
                id,
                granular: false,
            },
        }
    }

    fn type_at(&self, node: NodeId) -> Type<'_> {
        Type {
            schema: self,
            node: self.arena.nodes[node as usize],
        }
    }
}

/// A type with a name.
#[derive(Clone, Copy)]
pub struct Definition<'s> {
    schema: &'s Schema,
    id: DefinitionId,
}

impl<'s> Definition<'s> {
    fn entry(self) -> &'s arena::Definition {
        &self.schema.arena.definitions[self.id as usize]
    }

    /// For example `io.k8s.api.core.v1.PodSpec`; empty for types without a name.
    #[must_use]
    pub fn name(self) -> &'s str {
        self.schema.arena.str(self.entry().name)
    }

    /// What it is for.
    #[must_use]
    pub fn description(self) -> &'s str {
        self.schema.arena.str(self.entry().description)
    }

    /// As a type.
    #[must_use]
    pub fn as_type(self) -> Type<'s> {
        self.schema.type_of(self.id)
    }
}

/// A type. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Type<'s> {
    schema: &'s Schema,
    node: Node,
}

/// What values of a type look like.
#[derive(Clone, Copy)]
pub enum Shape<'s> {
    /// Any JSON; not looked into.
    Any,
    /// `true` or `false`.
    Boolean,
    /// Signed, of 32 or 64 bits.
    Integer {
        /// 32 or 64.
        bits: u8,
    },
    /// Floating point.
    Number,
    /// Text.
    Text {
        /// Whether it is standard base64.
        base64: bool,
    },
    /// A whole number or a text.
    IntOrString,
    /// A quantity, as text or number.
    Quantity,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// Known fields.
    Struct(Struct<'s>),
    /// Text keys of the client's choice.
    Map {
        /// Type of the values.
        value: Type<'s>,
        /// Replaced and owned as a whole.
        atomic: bool,
    },
    /// A list.
    List(List<'s>),
    /// An object of the first type, or something of the second (JSON Schema has a few such fields).
    SchemaOr(Type<'s>, Type<'s>),
}

impl<'s> Type<'s> {
    /// The shape of its values.
    #[must_use]
    pub fn shape(self) -> Shape<'s> {
        match self.node {
            Node::Any => Shape::Any,
            Node::Boolean => Shape::Boolean,
            Node::Integer { bits } => Shape::Integer { bits },
            Node::Number => Shape::Number,
            Node::Text { base64 } => Shape::Text { base64 },
            Node::IntOrString => Shape::IntOrString,
            Node::Map { value, atomic } => Shape::Map {
                value: self.schema.type_at(value),
                atomic,
            },
            Node::List {
                item,
                kind,
                keys_start,
                keys_count,
            } => Shape::List(List {
                schema: self.schema,
                item,
                kind,
                keys_start,
                keys_count,
            }),
            Node::Definition { id, granular } => self.definition_shape(id, granular),
        }
    }

    fn definition_shape(self, id: DefinitionId, granular: bool) -> Shape<'s> {
        match self.schema.arena.definitions[id as usize].form {
            Form::Any => Shape::Any,
            Form::Quantity => Shape::Quantity,
            Form::Time => Shape::Time,
            Form::MicroTime => Shape::MicroTime,
            Form::IntOrString => Shape::IntOrString,
            Form::SchemaOr { schema, other } => {
                Shape::SchemaOr(self.schema.type_at(schema), self.schema.type_at(other))
            }
            Form::Struct {
                first,
                count,
                atomic,
                preserve_unknown,
                embedded,
            } => Shape::Struct(Struct {
                schema: self.schema,
                fields: self.schema.arena.fields_of(first, count),
                atomic: atomic && !granular,
                preserve_unknown,
                embedded,
            }),
        }
    }

    /// The named definition it is, if it is one.
    #[must_use]
    pub fn definition(self) -> Option<Definition<'s>> {
        match self.node {
            Node::Definition { id, .. } => Some(Definition {
                schema: self.schema,
                id,
            }),
            _ => None,
        }
    }

    /// As a struct, when it is one.
    #[must_use]
    pub fn as_struct(self) -> Option<Struct<'s>> {
        match self.shape() {
            Shape::Struct(fields) => Some(fields),
            _ => None,
        }
    }

    /// As a list, when it is one.
    #[must_use]
    pub fn as_list(self) -> Option<List<'s>> {
        match self.shape() {
            Shape::List(list) => Some(list),
            _ => None,
        }
    }

    /// The type of a field of a struct or of a key of a map; `None` when there is no such field or the type has
    /// neither.
    #[must_use]
    pub fn field_type(self, name: &str) -> Option<Type<'s>> {
        match self.shape() {
            Shape::Struct(fields) => fields.field(name).map(Field::type_),
            Shape::Map { value, .. } => Some(value),
            _ => None,
        }
    }

    /// Go's name of the type, for messages: `v1.PodSpec`, `[]v1.Container`, `map[string]string`, `int32`.
    #[must_use]
    pub fn go_name(self) -> String {
        match self.shape() {
            Shape::Boolean => "bool".to_owned(),
            Shape::Integer { bits } => format!("int{bits}"),
            Shape::Number => "float64".to_owned(),
            Shape::Text { base64: true } => "[]uint8".to_owned(),
            Shape::Text { base64: false } => "string".to_owned(),
            Shape::Map { value, .. } => format!("map[string]{}", value.go_name()),
            Shape::List(list) => format!("[]{}", list.item().go_name()),
            _ => match self.definition().map(Definition::name) {
                Some(name) if !name.is_empty() => last_two_parts(name).to_owned(),
                _ => "map[string]interface {}".to_owned(),
            },
        }
    }
}

/// A type with known fields.
#[derive(Clone, Copy)]
pub struct Struct<'s> {
    schema: &'s Schema,
    fields: &'s [FieldEntry],
    /// `x-kubernetes-map-type: atomic`: replaced and owned as a whole.
    pub atomic: bool,
    /// Unknown fields are kept.
    pub preserve_unknown: bool,
    /// A whole object with `apiVersion`, `kind` and `metadata`.
    pub embedded: bool,
}

impl<'s> Struct<'s> {
    /// A field by its JSON name.
    #[must_use]
    pub fn field(self, name: &str) -> Option<Field<'s>> {
        let arena = &self.schema.arena;
        // Fields are sorted by name: they were read from sorted maps.
        let index = self
            .fields
            .binary_search_by(|f| arena.str(f.name).cmp(name))
            .ok()?;
        Some(Field {
            schema: self.schema,
            entry: &self.fields[index],
        })
    }

    /// All fields, sorted by name.
    pub fn fields(self) -> impl Iterator<Item = Field<'s>> {
        self.fields.iter().map(move |entry| Field {
            schema: self.schema,
            entry,
        })
    }
}

/// One field of a struct.
#[derive(Clone, Copy)]
pub struct Field<'s> {
    schema: &'s Schema,
    entry: &'s FieldEntry,
}

impl<'s> Field<'s> {
    /// JSON name.
    #[must_use]
    pub fn name(self) -> &'s str {
        self.schema.arena.str(self.entry.name)
    }

    /// What it is for.
    #[must_use]
    pub fn description(self) -> &'s str {
        self.schema.arena.str(self.entry.description)
    }

    /// Its type.
    #[must_use]
    pub fn type_(self) -> Type<'s> {
        self.schema.type_at(self.entry.node)
    }

    /// Whether OpenAPI lists it as required.
    #[must_use]
    pub fn required(self) -> bool {
        self.entry.required
    }

    /// `x-kubernetes-patch-strategy` has `merge`: strategic merge patches merge the list.
    #[must_use]
    pub fn patch_merge(self) -> bool {
        self.entry.patch & arena::PATCH_MERGE != 0
    }

    /// `x-kubernetes-patch-strategy` has `replace`.
    #[must_use]
    pub fn patch_replace(self) -> bool {
        self.entry.patch & arena::PATCH_REPLACE != 0
    }

    /// `x-kubernetes-patch-strategy` has `retainKeys`.
    #[must_use]
    pub fn patch_retain_keys(self) -> bool {
        self.entry.patch & arena::PATCH_RETAIN_KEYS != 0
    }

    /// `x-kubernetes-patch-merge-key`.
    #[must_use]
    pub fn patch_merge_key(self) -> Option<&'s str> {
        Some(self.schema.arena.str(self.entry.merge_key)).filter(|k| !k.is_empty())
    }

    /// The default that counts when the field is a list-map key.
    #[must_use]
    pub fn key_default(self) -> Option<&'s str> {
        Some(self.schema.arena.str(self.entry.default)).filter(|d| !d.is_empty())
    }
}

/// A list type.
#[derive(Clone, Copy)]
pub struct List<'s> {
    schema: &'s Schema,
    item: NodeId,
    /// How items are told apart.
    pub kind: ListKind,
    keys_start: u32,
    keys_count: u8,
}

impl<'s> List<'s> {
    /// The type of the items.
    #[must_use]
    pub fn item(self) -> Type<'s> {
        self.schema.type_at(self.item)
    }

    /// `x-kubernetes-list-map-keys`, for [`ListKind::Map`].
    pub fn keys(self) -> impl Iterator<Item = &'s str> {
        let start = self.keys_start as usize;
        let spans = &self.schema.arena.keys[start..start + usize::from(self.keys_count)];
        spans.iter().map(move |span| self.schema.arena.str(*span))
    }
}

/// `io.k8s.api.core.v1.Pod` -> `v1.Pod`.
fn last_two_parts(name: &str) -> &str {
    name.rmatch_indices('.')
        .nth(1)
        .map_or(name, |(index, _)| &name[index + 1..])
}
