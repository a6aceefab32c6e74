//! JSON bytes to protobuf in one pass: no value is built in between. Each object is written as
//! `k8s\0` and a `runtime.Unknown` that says its kind (apimachinery `runtime/serializer/protobuf`).

use std::borrow::Cow;
use std::fmt;

use balsa_api::object::{parse_time, split_api_version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::MAGIC;
use super::table::{Codec, Message, PLAN, Target};
use crate::render::ListMeta;

const META_VERSION: &str = "meta.k8s.io/v1";

/// Whether objects of a kind can be written.
#[must_use]
pub fn knows(group: &str, version: &str, kind: &str) -> bool {
    PLAN.kind(group, version, kind).is_some()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct OnlyMetadata<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// An object that says its kind. `None` when the kind is not known or the bytes are not of it.
#[must_use]
pub fn object(json: &[u8]) -> Option<Bytes> {
    let head: Head = serde_json::from_slice(json).ok()?;
    let (group, version) = split_api_version(&head.api_version);
    let message = PLAN.kind(group, version, &head.kind)?;
    let mut out = Envelope::open(&head.api_version, &head.kind, json.len());
    put_message(&mut out.bytes, json, message).ok()?;
    Some(out.close())
}

/// PartialObjectMetadata of an object.
#[must_use]
pub fn metadata(json: &[u8]) -> Option<Bytes> {
    let mut out = Envelope::open(META_VERSION, "PartialObjectMetadata", 512);
    put_metadata(&mut out.bytes, json)?;
    Some(out.close())
}

/// A list of a kind's objects.
#[must_use]
pub fn list<'a>(
    group: &str,
    version: &str,
    kind: &str,
    meta: &ListMeta,
    items: impl Iterator<Item = &'a [u8]>,
) -> Option<Bytes> {
    let message = PLAN.kind(group, version, kind)?;
    let api_version = balsa_api::object::join_api_version(group, version);
    let mut out = Envelope::open(&api_version, &format!("{kind}List"), 4096);
    put_list_meta(&mut out.bytes, meta);
    for item in items {
        let at = open(&mut out.bytes, 2);
        put_message(&mut out.bytes, item, message).ok()?;
        close(&mut out.bytes, at);
    }
    Some(out.close())
}

/// PartialObjectMetadataList.
#[must_use]
pub fn metadata_list<'a>(meta: &ListMeta, items: impl Iterator<Item = &'a [u8]>) -> Option<Bytes> {
    let mut out = Envelope::open(META_VERSION, "PartialObjectMetadataList", 4096);
    put_list_meta(&mut out.bytes, meta);
    for item in items {
        let at = open(&mut out.bytes, 2);
        put_metadata(&mut out.bytes, item)?;
        close(&mut out.bytes, at);
    }
    Some(out.close())
}

/// A frame of a watch response: four bytes of length, then a `WatchEvent` around an object of [`object`] or
/// [`metadata`].
#[must_use]
pub fn watch_frame(type_: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 32);
    out.extend_from_slice(&[0; 4]);
    put_bytes(&mut out, 1, type_.as_bytes());
    let raw = open(&mut out, 2);
    put_bytes(&mut out, 1, object);
    close(&mut out, raw);
    // No object is near 4 GiB.
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.into()
}

/// The wrapping of an object, its `raw` bytes open at the end.
struct Envelope {
    bytes: Vec<u8>,
    raw: usize,
}

impl Envelope {
    fn open(api_version: &str, kind: &str, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(room + 64);
        bytes.extend_from_slice(MAGIC);
        let type_meta = open(&mut bytes, 1);
        put_bytes(&mut bytes, 1, api_version.as_bytes());
        put_bytes(&mut bytes, 2, kind.as_bytes());
        close(&mut bytes, type_meta);
        let raw = open(&mut bytes, 2);
        Self { bytes, raw }
    }

    fn close(mut self) -> Bytes {
        close(&mut self.bytes, self.raw);
        // Content encoding and type, both empty: Go writes them too.
        put_bytes(&mut self.bytes, 3, b"");
        put_bytes(&mut self.bytes, 4, b"");
        self.bytes.into()
    }
}

fn put_list_meta(out: &mut Vec<u8>, meta: &ListMeta) {
    let at = open(out, 1);
    put_bytes(out, 2, meta.revision.to_string().as_bytes());
    if let Some(token) = &meta.continue_ {
        put_bytes(out, 3, token.as_bytes());
        if let Some(remaining) = meta.remaining {
            put_integer(out, 4, i64::try_from(remaining).unwrap_or(i64::MAX));
        }
    }
    close(out, at);
}

fn put_metadata(out: &mut Vec<u8>, json: &[u8]) -> Option<()> {
    let object: OnlyMetadata = serde_json::from_slice(json).ok()?;
    let message = PLAN.meta("ObjectMeta")?;
    let at = open(out, 1);
    put_message(out, object.metadata.get().as_bytes(), message).ok()?;
    close(out, at);
    Some(())
}

fn put_message(out: &mut Vec<u8>, json: &[u8], message: usize) -> serde_json::Result<()> {
    let mut input = serde_json::Deserializer::from_slice(json);
    input.deserialize_map(Fields {
        message: &PLAN.messages[message],
        out,
    })
}

// === wire format ===

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        // Seven bits and the mark that more follow.
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn key(out: &mut Vec<u8>, number: u32, wire: u8) {
    varint(out, u64::from(number) << 3 | u64::from(wire));
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    key(out, number, 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_integer(out: &mut Vec<u8>, number: u32, value: i64) {
    key(out, number, 0);
    varint(out, u64::from_ne_bytes(value.to_ne_bytes()));
}

/// Begins a message; its length takes one byte until [`close`] knows better.
fn open(out: &mut Vec<u8>, number: u32) -> usize {
    key(out, number, 2);
    out.push(0);
    out.len()
}

fn close(out: &mut Vec<u8>, start: usize) {
    let length = out.len() - start;
    if length < 0x80 {
        out[start - 1] = length as u8;
        return;
    }
    let mut prefix = Vec::with_capacity(8);
    varint(&mut prefix, length as u64);
    let end = out.len();
    out.resize(end + prefix.len() - 1, 0);
    out.copy_within(start..end, start + prefix.len() - 1);
    out[start - 1..start - 1 + prefix.len()].copy_from_slice(&prefix);
}

// === JSON ===

/// Writes the fields of a message.
struct Fields<'o> {
    message: &'static Message,
    out: &'o mut Vec<u8>,
}

struct Name(&'static Message);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static Target>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static Target>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.get(name))
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(target) = map.next_key_seed(Name(self.message))? {
            let Some(target) = target else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            // Parts of a message are merged by whoever reads them, so that each field may open its own.
            let opened: Vec<usize> = target.path.iter().map(|n| open(self.out, *n)).collect();
            map.next_value_seed(Put {
                codec: &target.codec,
                number: target.number,
                out: self.out,
            })?;
            for at in opened.into_iter().rev() {
                close(self.out, at);
            }
        }
        Ok(())
    }
}

/// Writes one value as a field of the open message; nothing for null.
struct Put<'o> {
    codec: &'static Codec,
    number: u32,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Put<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        match self.codec {
            Codec::Raw | Codec::Json => {
                let raw = <&RawValue>::deserialize(input)?.get();
                if raw != "null" || *self.codec == Codec::Json {
                    let at = open(self.out, self.number);
                    put_bytes(self.out, 1, raw.as_bytes());
                    close(self.out, at);
                }
                Ok(())
            }
            _ => input.deserialize_any(self),
        }
    }
}

impl Put<'_> {
    fn mismatch<E: Error>(&self, what: &str) -> E {
        E::custom(format_args!("{what} where {:?} belongs", self.codec))
    }

    fn message(self, write: impl FnOnce(&mut Vec<u8>)) {
        let at = open(self.out, self.number);
        write(self.out);
        close(self.out, at);
    }
}

impl<'de> Visitor<'de> for Put<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of {:?}", self.codec)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        match self.codec {
            Codec::Bool => put_integer(self.out, self.number, value.into()),
            Codec::OrBool { .. } => self.message(|out| put_integer(out, 1, value.into())),
            _ => return Err(self.mismatch("a boolean")),
        }
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        match self.codec {
            Codec::Integer => put_integer(self.out, self.number, value),
            Codec::Double => {
                key(self.out, self.number, 1);
                // JSON does not tell whole numbers from others; this is how floats are read.
                self.out.extend_from_slice(&(value as f64).to_le_bytes());
            }
            Codec::Quantity => self.message(|out| put_bytes(out, 1, value.to_string().as_bytes())),
            Codec::IntOrString => self.message(|out| {
                put_integer(out, 1, 0);
                put_integer(out, 2, value);
                put_bytes(out, 3, b"");
            }),
            _ => return Err(self.mismatch("a number")),
        }
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.visit_f64(value as f64),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        match self.codec {
            Codec::Double => {
                key(self.out, self.number, 1);
                self.out.extend_from_slice(&value.to_le_bytes());
            }
            Codec::Integer if value.fract() == 0.0 => {
                put_integer(self.out, self.number, value as i64);
            }
            Codec::Quantity => self.message(|out| put_bytes(out, 1, value.to_string().as_bytes())),
            _ => return Err(self.mismatch("a fraction")),
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match self.codec {
            Codec::Text => put_bytes(self.out, self.number, text.as_bytes()),
            Codec::Bytes => {
                let bytes = STANDARD.decode(text).map_err(E::custom)?;
                put_bytes(self.out, self.number, &bytes);
            }
            Codec::Quantity => self.message(|out| put_bytes(out, 1, text.as_bytes())),
            Codec::IntOrString => self.message(|out| {
                put_integer(out, 1, 1);
                put_integer(out, 2, 0);
                put_bytes(out, 3, text.as_bytes());
            }),
            Codec::Time => {
                let time = parse_time(text).ok_or_else(|| self.mismatch("no time"))?;
                self.message(|out| {
                    put_integer(out, 1, time.as_second());
                    put_integer(out, 2, time.subsec_nanosecond().into());
                });
            }
            _ => return Err(self.mismatch("a text")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        match self.codec {
            Codec::List(item) => put_items(seq, item, self.number, self.out),
            Codec::Wrapped(item) => {
                let at = open(self.out, self.number);
                put_items(seq, item, 1, self.out)?;
                close(self.out, at);
                Ok(())
            }
            Codec::OrList { item, .. } => {
                let at = open(self.out, self.number);
                put_items(seq, item, 2, self.out)?;
                close(self.out, at);
                Ok(())
            }
            _ => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Err(self.mismatch("a list"))
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let fields = |message: usize| &PLAN.messages[message];
        let at = match self.codec {
            Codec::Map(value) => {
                while let Some(name) = map.next_key::<Cow<'_, str>>()? {
                    let at = open(self.out, self.number);
                    put_bytes(self.out, 1, name.as_bytes());
                    map.next_value_seed(Put {
                        codec: value,
                        number: 2,
                        out: self.out,
                    })?;
                    close(self.out, at);
                }
                return Ok(());
            }
            Codec::Message(_) | Codec::OrList { .. } | Codec::OrBool { .. } => {
                open(self.out, self.number)
            }
            _ => return Err(self.mismatch("an object")),
        };
        match self.codec {
            Codec::Message(message) => Fields {
                message: fields(*message),
                out: self.out,
            }
            .visit_map(map)?,
            Codec::OrList { schema, .. } => {
                let inner = open(self.out, 1);
                Fields {
                    message: fields(*schema),
                    out: self.out,
                }
                .visit_map(map)?;
                close(self.out, inner);
            }
            Codec::OrBool { schema } => {
                put_integer(self.out, 1, 1);
                let inner = open(self.out, 2);
                Fields {
                    message: fields(*schema),
                    out: self.out,
                }
                .visit_map(map)?;
                close(self.out, inner);
            }
            _ => {}
        }
        close(self.out, at);
        Ok(())
    }
}

fn put_items<'de, A: SeqAccess<'de>>(
    mut seq: A,
    item: &'static Codec,
    number: u32,
    out: &mut Vec<u8>,
) -> Result<(), A::Error> {
    while seq
        .next_element_seed(Put {
            codec: item,
            number,
            out,
        })?
        .is_some()
    {}
    Ok(())
}
