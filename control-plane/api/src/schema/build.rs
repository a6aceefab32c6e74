//! Making a [`Schema`] from JSON Schemas: k8s-openapi's, or a CustomResourceDefinition's.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use k8s_openapi::schemars::JsonSchema as _;
use k8s_openapi::schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value};

use super::arena::{
    Definition, DefinitionId, FieldEntry, Form, Interner, ListKind, Node, NodeId, PATCH_MERGE,
    PATCH_REPLACE, PATCH_RETAIN_KEYS, Span,
};
use super::lists::{self, Merge};
use super::{Schema, roots};

const API_VERSION_HELP: &str = "APIVersion defines the versioned schema of this representation of an object. \
     Servers should convert recognized schemas to the latest internal value, and may reject unrecognized \
     values. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND_HELP: &str = "Kind is a string value representing the REST resource this object represents. Servers \
     may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More \
     info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA_HELP: &str = "Standard object's metadata. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_METADATA_HELP: &str = "Standard list metadata. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

fn generator() -> SchemaGenerator {
    SchemaSettings::draft07()
        .with(|s| s.transforms.clear())
        .into_generator()
}

/// The schema of all built-in kinds.
pub(super) fn builtin() -> Schema {
    let mut builder = Builder::default();
    let mut generator = generator();
    let mut found = Vec::new();
    roots::each(&mut generator, |root, generator| {
        builder.drain(generator);
        found.push(root);
    });
    builder.drain(&mut generator);
    for root in found {
        let id = builder.id_of(&root.definition);
        builder.schema.kinds.insert(
            (root.group.into(), root.version.into(), root.kind.into()),
            id,
        );
        if root.listed {
            builder.add_list([root.group, root.version, root.kind], &root.definition, id);
        }
    }
    builder.finish()
}

/// The schema of one custom kind.
pub(super) fn custom(group: &str, version: &str, kind: &str, schema: &Value) -> Schema {
    let mut builder = Builder {
        custom: true,
        ..Builder::default()
    };
    let mut generator = generator();
    generator.subschema_for::<ObjectMeta>();
    builder.drain(&mut generator);
    let name = format!(
        "{}.{version}.{kind}",
        group.rsplit('.').collect::<Vec<_>>().join(".")
    );
    let id = builder.id_of(&name);
    let form = builder.object_form(schema, "", true);
    builder.define(id, schema, form);
    builder
        .schema
        .kinds
        .insert((group.into(), version.into(), kind.into()), id);
    generator.subschema_for::<ListMeta>();
    builder.drain(&mut generator);
    builder.add_list([group, version, kind], &name, id);
    builder.finish()
}

#[derive(Default)]
struct Builder {
    schema: Schema,
    interner: Interner,
    /// Merge rules stand in the JSON Schema itself, not in our table.
    custom: bool,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

impl Builder {
    fn finish(mut self) -> Schema {
        self.schema.arena.shrink();
        self.schema.fingerprint = self.schema.arena.fingerprint();
        self.schema
    }

    fn span(&mut self, text: &str) -> Span {
        self.interner.text(&mut self.schema.arena, text)
    }

    fn node(&mut self, node: Node) -> NodeId {
        self.interner.node(&mut self.schema.arena, node)
    }

    /// Takes over the definitions that a generator has made. Only their names stay behind, by which the
    /// generator knows that it need not make them again.
    fn drain(&mut self, generator: &mut SchemaGenerator) {
        for (name, slot) in generator.definitions_mut() {
            if slot.is_object() {
                let definition = std::mem::replace(slot, Value::Bool(true));
                let id = self.id_of(name);
                let form = self.named_form(name, &definition);
                self.define(id, &definition, form);
            }
        }
    }

    /// The number of a definition, which may not have been read yet.
    fn id_of(&mut self, name: &str) -> DefinitionId {
        if let Some(id) = self.schema.names.get(name) {
            return *id;
        }
        let id = self.push_definition(name);
        self.schema.names.insert(name.into(), id);
        id
    }

    fn push_definition(&mut self, name: &str) -> DefinitionId {
        let entry = Definition {
            name: self.span(name),
            description: Span::default(),
            form: Form::Any,
        };
        self.schema.arena.definitions.push(entry);
        (self.schema.arena.definitions.len() - 1) as DefinitionId
    }

    fn define(&mut self, id: DefinitionId, schema: &Value, form: Form) {
        let description = self.span(text(schema, "description"));
        let entry = &mut self.schema.arena.definitions[id as usize];
        entry.description = description;
        entry.form = form;
    }

    fn named_form(&mut self, name: &str, schema: &Value) -> Form {
        match name.rsplit('.').next().unwrap_or_default() {
            "Quantity" => Form::Quantity,
            "Time" => Form::Time,
            "MicroTime" => Form::MicroTime,
            "IntOrString" => Form::IntOrString,
            _ => match schema
                .get("oneOf")
                .and_then(Value::as_array)
                .map(Vec::as_slice)
            {
                Some([first, second]) => Form::SchemaOr {
                    schema: self.convert(first, "", ""),
                    other: self.convert(second, "", ""),
                },
                _ if schema.get("properties").is_none() => Form::Any,
                _ => self.object_form(schema, name, false),
            },
        }
    }

    /// A struct. `definition` names it for the merge rules; `whole` adds what every object has.
    fn object_form(&mut self, schema: &Value, definition: &str, whole: bool) -> Form {
        let nothing = Map::new();
        let properties = schema
            .get("properties")
            .and_then(Value::as_object)
            .unwrap_or(&nothing);
        let embedded = flag(schema, "x-kubernetes-embedded-resource");
        let is_required = |name: &str| {
            let list = schema.get("required").and_then(Value::as_array);
            list.is_some_and(|l| l.iter().any(|v| v.as_str() == Some(name)))
        };
        let is_kind = properties.contains_key("apiVersion") && properties.contains_key("metadata");
        let mut fields = Vec::with_capacity(properties.len() + 3);
        for (name, property) in properties {
            let fixed = matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
            if (whole || embedded) && fixed {
                continue;
            }
            let required = is_required(name)
                && (self.custom || !lists::is_optional(definition, name, is_kind));
            fields.push(self.field(definition, name, property, required));
        }
        if whole || embedded {
            fields.extend(self.object_fields());
        }
        self.struct_form(schema, definition, fields, whole || embedded)
    }

    fn struct_form(
        &mut self,
        schema: &Value,
        definition: &str,
        mut fields: Vec<FieldEntry>,
        embedded: bool,
    ) -> Form {
        let arena = &mut self.schema.arena;
        fields.sort_by(|a, b| a.name.of(&arena.text).cmp(b.name.of(&arena.text)));
        let first = arena.fields.len() as u32;
        let count = fields.len() as u32;
        arena.fields.extend(fields);
        let atomic = if self.custom && !definition.starts_with("io.k8s.") {
            text(schema, "x-kubernetes-map-type") == "atomic"
        } else {
            lists::is_atomic(definition)
        };
        let preserve_unknown = flag(schema, "x-kubernetes-preserve-unknown-fields");
        Form::Struct {
            first,
            count,
            atomic,
            preserve_unknown,
            embedded,
        }
    }

    fn plain_field(&mut self, name: &str, description: &str, node: NodeId) -> FieldEntry {
        FieldEntry {
            name: self.span(name),
            description: self.span(description),
            node,
            required: false,
            patch: 0,
            merge_key: Span::default(),
            default: Span::default(),
        }
    }

    /// `apiVersion`, `kind` and `metadata` of a whole object.
    fn object_fields(&mut self) -> [FieldEntry; 3] {
        let text = self.node(Node::Text { base64: false });
        let id = self.id_of(&ObjectMeta::schema_name());
        let metadata = self.node(Node::Definition {
            id,
            granular: false,
        });
        [
            self.plain_field("apiVersion", API_VERSION_HELP, text),
            self.plain_field("kind", KIND_HELP, text),
            self.plain_field("metadata", METADATA_HELP, metadata),
        ]
    }

    fn field(
        &mut self,
        definition: &str,
        name: &str,
        property: &Value,
        required: bool,
    ) -> FieldEntry {
        let node = self.convert(property, definition, name);
        let mut entry = self.plain_field(name, text(property, "description"), node);
        entry.required = required;
        if let Some(rule) = lists::of(definition, name) {
            entry.merge_key = self.span(rule.merge_key);
            for strategy in rule.strategies {
                entry.patch |= match *strategy {
                    "merge" => PATCH_MERGE,
                    "replace" => PATCH_REPLACE,
                    _ => PATCH_RETAIN_KEYS,
                };
            }
        }
        let default = match property.get("default").and_then(Value::as_str) {
            Some(default) if self.custom => default,
            _ => lists::key_default(definition, name),
        };
        entry.default = self.span(default);
        entry
    }

    /// The node of a JSON Schema that stands in field `name` of `definition`.
    fn convert(&mut self, schema: &Value, definition: &str, name: &str) -> NodeId {
        let rule = lists::of(definition, name).map_or(Merge::Default, |r| r.merge);
        let node = if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let target = reference.rsplit('/').next().unwrap_or_default();
            Node::Definition {
                id: self.id_of(target),
                granular: rule == Merge::Granular,
            }
        } else if flag(schema, "x-kubernetes-int-or-string") {
            Node::IntOrString
        } else {
            match text(schema, "type") {
                "boolean" => Node::Boolean,
                "integer" => Node::Integer {
                    bits: if text(schema, "format") == "int32" {
                        32
                    } else {
                        64
                    },
                },
                "number" => Node::Number,
                "string" => Node::Text {
                    base64: !self.custom && text(schema, "format") == "byte",
                },
                "array" => self.list(schema, rule),
                "object" => self.map_or_struct(schema, rule),
                _ => Node::Any,
            }
        };
        self.node(node)
    }

    fn list(&mut self, schema: &Value, rule: Merge) -> Node {
        let item = self.convert(schema.get("items").unwrap_or(&Value::Null), "", "");
        let own_keys: Vec<&str> = schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .map(|keys| keys.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let (kind, keys) = match (rule, text(schema, "x-kubernetes-list-type")) {
            (Merge::Map(keys), _) => (ListKind::Map, keys.to_vec()),
            (Merge::Set, _) | (_, "set") => (ListKind::Set, Vec::new()),
            (_, "map") => (ListKind::Map, own_keys),
            _ => (ListKind::Atomic, Vec::new()),
        };
        let (keys_start, keys_count) = self.interner.keys(&mut self.schema.arena, &keys);
        Node::List {
            item,
            kind,
            keys_start,
            keys_count,
        }
    }

    fn map_or_struct(&mut self, schema: &Value, rule: Merge) -> Node {
        let atomic = rule == Merge::Atomic || text(schema, "x-kubernetes-map-type") == "atomic";
        let has_fields = schema.get("properties").is_some_and(Value::is_object);
        if let (Some(values), false) = (schema.get("additionalProperties"), has_fields) {
            return Node::Map {
                value: self.convert(values, "", ""),
                atomic,
            };
        }
        if !has_fields
            && (flag(schema, "x-kubernetes-preserve-unknown-fields") || !self.custom)
            && !flag(schema, "x-kubernetes-embedded-resource")
        {
            let value = self.node(Node::Any);
            return Node::Map { value, atomic };
        }
        let id = self.push_definition("");
        let form = self.object_form(schema, "", false);
        self.define(id, schema, form);
        Node::Definition {
            id,
            granular: false,
        }
    }

    /// The `...List` kind that goes with a kind.
    fn add_list(
        &mut self,
        [group, version, item_kind]: [&str; 3],
        definition: &str,
        item: DefinitionId,
    ) {
        let kind = format!("{item_kind}List");
        let id = self.id_of(&format!("{definition}List"));
        let item = self.node(Node::Definition {
            id: item,
            granular: false,
        });
        let items = self.node(Node::List {
            item,
            kind: ListKind::Atomic,
            keys_start: 0,
            keys_count: 0,
        });
        let text = self.node(Node::Text { base64: false });
        let meta = self.id_of(LIST_META);
        let metadata = self.node(Node::Definition {
            id: meta,
            granular: false,
        });
        let mut required = self.plain_field("items", "List of objects.", items);
        required.required = true;
        let fields = vec![
            self.plain_field("apiVersion", API_VERSION_HELP, text),
            required,
            self.plain_field("kind", KIND_HELP, text),
            self.plain_field("metadata", LIST_METADATA_HELP, metadata),
        ];
        let form = self.struct_form(&Value::Null, "", fields, false);
        let about = serde_json::json!({"description": format!("{kind} is a list of {item_kind}.")});
        self.define(id, &about, form);
        self.schema
            .kinds
            .insert((group.into(), version.into(), kind.into()), id);
    }
}
