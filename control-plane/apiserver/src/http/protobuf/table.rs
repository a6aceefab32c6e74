//! The field numbers of `fields.txt`, and the plan that the encoder follows: the schema's types and these
//! numbers, brought together once.

use std::collections::HashMap;
use std::sync::LazyLock;

use balsa_api::schema::{Field as SchemaField, Schema, Shape, Type};

/// A field of a message.
pub(super) struct Entry {
    pub name: &'static str,
    /// The message whose fields JSON has in the parent.
    pub inline: Option<String>,
}

pub(super) type Messages = HashMap<String, HashMap<u32, Entry>>;

/// All messages by their full names.
pub(super) static MESSAGES: LazyLock<Messages> =
    LazyLock::new(|| read_table(include_str!("fields.txt")));

fn read_table(text: &'static str) -> Messages {
    let mut package = "";
    let mut messages = Messages::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            package = name;
            continue;
        }
        let mut words = line.split(' ');
        let Some(message) = words.next() else {
            continue;
        };
        let mut number = 0;
        let mut fields = HashMap::new();
        for word in words {
            let (explicit, rest) = word
                .split_once('=')
                .map_or((None, word), |(n, rest)| (n.parse().ok(), rest));
            number = explicit.unwrap_or(number + 1);
            let (name, inline) = rest
                .split_once('>')
                .map_or((rest, None), |(name, of)| (name, Some(of)));
            let inline = inline.map(|of| {
                if of.contains('.') {
                    of.to_owned()
                } else {
                    format!("{package}.{of}")
                }
            });
            fields.insert(number, Entry { name, inline });
        }
        messages.insert(format!("{package}.{message}"), fields);
    }
    messages
}

/// How a value is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Codec {
    Bool,
    Integer,
    Double,
    Text,
    /// Base64 in JSON, bytes here.
    Bytes,
    Quantity,
    IntOrString,
    Time,
    /// RawExtension and FieldsV1: JSON in a message.
    Raw,
    /// JSON as a value of its own: null counts.
    Json,
    /// A message of the plan.
    Message(usize),
    List(Box<Codec>),
    /// A list in a message of its own: as a map's value.
    Wrapped(Box<Codec>),
    Map(Box<Codec>),
    /// A schema, or a list in field 2.
    OrList {
        schema: usize,
        item: Box<Codec>,
    },
    /// A schema in field 2, or whether anything is allowed in field 1.
    OrBool {
        schema: usize,
    },
}

/// Where a JSON field goes.
#[derive(Debug)]
pub(super) struct Target {
    /// Messages to open around it: those whose fields JSON has in the parent.
    pub path: Vec<u32>,
    pub number: u32,
    pub codec: Codec,
}

/// A message to write, by the names of its JSON fields: a hash table for short names, asked for every field of
/// every object that is written.
#[derive(Debug, Default)]
pub(super) struct Message {
    fields: Vec<(&'static str, Target)>,
    /// Numbers of fields, from one; a power of two of them, or none.
    slots: Vec<u16>,
}

impl FromIterator<(&'static str, Target)> for Message {
    fn from_iter<I: IntoIterator<Item = (&'static str, Target)>>(fields: I) -> Self {
        let fields: Vec<_> = fields.into_iter().collect();
        let mut slots = vec![0; (fields.len() * 2 + 1).next_power_of_two()];
        for (at, (name, _)) in fields.iter().enumerate() {
            let mut slot = Self::slot(name) & (slots.len() - 1);
            while slots[slot] != 0 {
                slot = (slot + 1) & (slots.len() - 1);
            }
            // No message has nearly as many fields.
            slots[slot] = u16::try_from(at + 1).unwrap_or_default();
        }
        Self { fields, slots }
    }
}

impl Message {
    fn slot(name: &str) -> usize {
        let bytes = name.as_bytes();
        let at = |at: usize| bytes.get(at).map_or(0, |b| usize::from(*b));
        let (middle, end) = (bytes.len() / 2, bytes.len().saturating_sub(1));
        (at(0) * 7 + at(middle)) * 13 + at(end) * 3 + bytes.len() * 29
    }

    /// Where the field of a name goes.
    pub fn get(&self, name: &str) -> Option<&Target> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut slot = Self::slot(name) & mask;
        loop {
            let number = usize::from(*self.slots.get(slot)?);
            let (field, target) = self.fields.get(number.checked_sub(1)?)?;
            if *field == name {
                return Some(target);
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// All messages of the built-in schema.
pub(super) struct Plan {
    pub messages: Vec<Message>,
    by_name: HashMap<&'static str, usize>,
}

/// Made at the first use, in a few milliseconds.
pub(super) static PLAN: LazyLock<Plan> = LazyLock::new(Plan::new);

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// A list that is a message of its own though it is no map's value.
const VERBS: (&str, &str) = ("io.k8s.apimachinery.pkg.apis.meta.v1.APIResource", "verbs");

impl Plan {
    fn new() -> Self {
        let schema = Schema::builtin();
        let by_name: HashMap<&'static str, usize> = schema
            .definitions()
            .enumerate()
            .map(|(at, definition)| (definition.name(), at))
            .collect();
        let messages = schema
            .definitions()
            .map(|definition| {
                definition
                    .as_type()
                    .as_struct()
                    .map(|fields| {
                        let mut places = HashMap::new();
                        places_of(definition.name(), &mut Vec::new(), &mut places);
                        fields
                            .fields()
                            .filter_map(|field| target(definition.name(), field, &places, &by_name))
                            .collect()
                    })
                    .unwrap_or_default()
            })
            .collect();
        Self { messages, by_name }
    }

    /// The message of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<usize> {
        let definition = Schema::builtin().kind(group, version, kind)?.definition()?;
        let known = MESSAGES.contains_key(definition.name());
        self.by_name
            .get(definition.name())
            .copied()
            .filter(|_| known)
    }

    /// A message of `meta/v1`.
    pub fn meta(&self, name: &str) -> Option<usize> {
        self.by_name.get(format!("{META}.{name}").as_str()).copied()
    }
}

type Places = HashMap<&'static str, (Vec<u32>, u32)>;

/// Collects the fields of a message and of those that JSON has in it.
fn places_of(message: &str, path: &mut Vec<u32>, places: &mut Places) {
    for (number, entry) in MESSAGES.get(message).into_iter().flatten() {
        match &entry.inline {
            Some(inline) => {
                path.push(*number);
                places_of(inline, path, places);
                path.pop();
            }
            None => {
                places.insert(entry.name, (path.clone(), *number));
            }
        }
    }
}

fn target(
    message: &str,
    field: SchemaField<'static>,
    places: &Places,
    by_name: &HashMap<&'static str, usize>,
) -> Option<(&'static str, Target)> {
    let (path, number) = places.get(field.name())?.clone();
    let mut codec = codec(field.type_(), by_name)?;
    if (message, field.name()) == VERBS
        && let Codec::List(item) = codec
    {
        codec = Codec::Wrapped(item);
    }
    Some((
        field.name(),
        Target {
            path,
            number,
            codec,
        },
    ))
}

fn codec(type_: Type<'static>, by_name: &HashMap<&'static str, usize>) -> Option<Codec> {
    let name = type_.definition().map(|d| d.name()).unwrap_or_default();
    Some(match type_.shape() {
        Shape::Boolean => Codec::Bool,
        Shape::Integer { .. } => Codec::Integer,
        Shape::Number => Codec::Double,
        Shape::Text { base64: false } => Codec::Text,
        Shape::Text { base64: true } => Codec::Bytes,
        Shape::Quantity => Codec::Quantity,
        Shape::IntOrString => Codec::IntOrString,
        Shape::Time | Shape::MicroTime => Codec::Time,
        Shape::Any if name.ends_with(".JSON") => Codec::Json,
        // A message without fields, which JSON does not look into.
        Shape::Any if name.ends_with(".CustomResourceSubresourceStatus") => {
            Codec::Message(*by_name.get(name)?)
        }
        Shape::Any => Codec::Raw,
        Shape::Struct(_) => Codec::Message(*by_name.get(name)?),
        Shape::List(list) => Codec::List(Box::new(codec(list.item(), by_name)?)),
        Shape::Map { value, .. } => Codec::Map(Box::new(match codec(value, by_name)? {
            Codec::List(item) => Codec::Wrapped(item),
            other => other,
        })),
        Shape::SchemaOr(schema, other) => {
            let schema = *by_name.get(schema.definition()?.name())?;
            match codec(other, by_name)? {
                Codec::List(item) => Codec::OrList { schema, item },
                _ => Codec::OrBool { schema },
            }
        }
    })
}
