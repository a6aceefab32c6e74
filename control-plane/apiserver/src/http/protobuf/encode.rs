//! JSON bytes to protobuf in one pass: no value is built in between. Each object is written as
//! `k8s\0` and a `runtime.Unknown` that says its kind (apimachinery `runtime/serializer/protobuf`).

use std::borrow::Cow;

use balsa_api::kind::Kind;
use balsa_api::object::{join_api_version, parse_time, split_api_version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::MAGIC;
use super::json::Reader;
use super::table::{Codec, Message, PLAN};
use crate::render::ListMeta;

const META_VERSION: &str = "meta.k8s.io/v1";

/// Whether objects of a kind can be written.
#[must_use]
pub fn knows(group: &str, version: &str, kind: &str) -> bool {
    PLAN.kind(group, version, kind).is_some()
}

/// What an object says of itself: apiVersion and kind. They stand first in what we store.
fn head(json: &[u8]) -> Option<(Cow<'_, str>, Cow<'_, str>)> {
    let mut json = Reader::new(json)?;
    let (mut api_version, mut kind) = (None, None);
    json.enter(b'{')?;
    let mut first = true;
    while (api_version.is_none() || kind.is_none())
        && let Some(name) = json.next_name(&mut first)?
    {
        match name.as_ref() {
            "apiVersion" => api_version = Some(json.text()?),
            "kind" => kind = Some(json.text()?),
            _ => {
                json.value()?;
            }
        }
    }
    Some((api_version?, kind?))
}

/// An object that says its kind. `None` when the kind is not known or the bytes are not of it.
#[must_use]
pub fn object(json: &[u8]) -> Option<Bytes> {
    let (api_version, kind) = head(json)?;
    let (group, version) = split_api_version(&api_version);
    let message = PLAN.kind(group, version, &kind)?;
    let mut out = Envelope::open(&api_version, &kind, json.len());
    put_message(&mut out.bytes, json, message)?;
    Some(out.close())
}

/// The message of an object, without what says its kind: what lists have as items.
#[must_use]
pub fn message_of(kind: &Kind, json: &[u8]) -> Option<Bytes> {
    let message = PLAN.kind(&kind.group, &kind.version, &kind.kind)?;
    let mut out = Vec::with_capacity(json.len());
    put_message(&mut out, json, message)?;
    out.shrink_to_fit();
    Some(out.into())
}

/// An object that says its kind, around a message of [`message_of`].
#[must_use]
pub fn wrapped(kind: &Kind, message: &[u8]) -> Bytes {
    let api_version = join_api_version(&kind.group, &kind.version);
    let mut out = Envelope::open(&api_version, &kind.kind, message.len());
    out.bytes.extend_from_slice(message);
    out.close()
}

/// PartialObjectMetadata of an object.
#[must_use]
pub fn metadata(json: &[u8]) -> Option<Bytes> {
    let mut out = Envelope::open(META_VERSION, "PartialObjectMetadata", 512);
    put_metadata(&mut out.bytes, json)?;
    Some(out.close())
}

/// An object of a kind that the schema does not know, by somebody who knows its fields. `None` when that one gives up.
#[must_use]
pub fn by_hand(
    api_version: &str,
    kind: &str,
    write: impl FnOnce(&mut Writer<'_>) -> Option<()>,
) -> Option<Bytes> {
    let mut out = Envelope::open(api_version, kind, 512);
    write(&mut Writer(&mut out.bytes))?;
    Some(out.close())
}

/// A message that is being written by hand.
pub struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    /// A text field.
    pub fn text(&mut self, number: u32, text: &str) {
        put_bytes(self.0, number, text.as_bytes());
    }

    /// An integer field.
    pub fn integer(&mut self, number: u32, value: i64) {
        put_integer(self.0, number, value);
    }

    /// A message in a field.
    pub fn message(
        &mut self,
        number: u32,
        write: impl FnOnce(&mut Writer<'_>) -> Option<()>,
    ) -> Option<()> {
        let at = open(self.0, number);
        write(&mut Writer(self.0))?;
        close(self.0, at);
        Some(())
    }

    /// The metadata of an object, in field 1 as everywhere.
    pub fn metadata(&mut self, object: &[u8]) -> Option<()> {
        put_metadata(self.0, object)
    }
}

/// What stands before and behind the items of a list of a kind, which together are `items` bytes long.
pub(super) fn list_frame(kind: &Kind, meta: &ListMeta, items: usize) -> (Bytes, Bytes) {
    let api_version = join_api_version(&kind.group, &kind.version);
    let mut out = Vec::with_capacity(128);
    put_head(&mut out, &api_version, &format!("{}List", kind.kind));
    let mut own = Vec::with_capacity(64);
    put_list_meta(&mut own, meta);
    key(&mut out, RAW, 2);
    varint(&mut out, (own.len() + items) as u64);
    out.extend_from_slice(&own);
    let mut tail = Vec::new();
    put_tail(&mut tail);
    (out.into(), tail.into())
}

/// What stands before an item of a list.
pub(super) fn put_item_head(out: &mut Vec<u8>, length: usize) {
    key(out, 2, 2);
    varint(out, length as u64);
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

/// The field of `runtime.Unknown` that holds the object.
const RAW: u32 = 2;

/// The wrapping of an object, its `raw` bytes open at the end.
struct Envelope {
    bytes: Vec<u8>,
    raw: usize,
}

impl Envelope {
    fn open(api_version: &str, kind: &str, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(room + 64);
        put_head(&mut bytes, api_version, kind);
        let raw = open(&mut bytes, RAW);
        Self { bytes, raw }
    }

    fn close(mut self) -> Bytes {
        close(&mut self.bytes, self.raw);
        put_tail(&mut self.bytes);
        self.bytes.into()
    }
}

fn put_head(out: &mut Vec<u8>, api_version: &str, kind: &str) {
    out.extend_from_slice(MAGIC);
    let type_meta = open(out, 1);
    put_bytes(out, 1, api_version.as_bytes());
    put_bytes(out, 2, kind.as_bytes());
    close(out, type_meta);
}

/// Content encoding and type, both empty: Go writes them too.
fn put_tail(out: &mut Vec<u8>) {
    put_bytes(out, 3, b"");
    put_bytes(out, 4, b"");
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
    let message = PLAN.meta("ObjectMeta")?;
    let mut json = Reader::new(json)?;
    json.enter(b'{')?;
    let mut first = true;
    while let Some(name) = json.next_name(&mut first)? {
        if name == "metadata" {
            let at = open(out, 1);
            put_fields(&mut json, &PLAN.messages[message], out)?;
            close(out, at);
            return Some(());
        }
        json.value()?;
    }
    None
}

fn put_message(out: &mut Vec<u8>, json: &[u8], message: usize) -> Option<()> {
    put_fields(&mut Reader::new(json)?, &PLAN.messages[message], out)
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
    // Room for the longer length, behind the message first.
    let end = out.len();
    varint(out, (length >> 7) as u64);
    let longer = out.len() - end;
    let mut rest = [0; 10];
    rest[..longer].copy_from_slice(&out[end..]);
    out.copy_within(start..end, start + longer);
    out[start - 1] = (length & 0x7f) as u8 | 0x80;
    out[start..start + longer].copy_from_slice(&rest[..longer]);
}

// === JSON ===

/// Writes the fields of the object that comes next.
fn put_fields(json: &mut Reader<'_>, message: &'static Message, out: &mut Vec<u8>) -> Option<()> {
    json.enter(b'{')?;
    let mut first = true;
    while let Some(name) = json.next_name(&mut first)? {
        let Some(target) = message.get(&name) else {
            json.value()?;
            continue;
        };
        if target.path.is_empty() {
            put(json, &target.codec, target.number, out)?;
            continue;
        }
        // Parts of a message are merged by whoever reads them, so that each field may open its own.
        let opened: Vec<usize> = target.path.iter().map(|n| open(out, *n)).collect();
        put(json, &target.codec, target.number, out)?;
        for at in opened.into_iter().rev() {
            close(out, at);
        }
    }
    Some(())
}

/// Writes the value that comes next as a field of the open message; nothing for null.
fn put(json: &mut Reader<'_>, codec: &'static Codec, number: u32, out: &mut Vec<u8>) -> Option<()> {
    if matches!(codec, Codec::Raw | Codec::Json) {
        let raw = json.value()?;
        if raw != "null" || *codec == Codec::Json {
            put_within(out, number, |out| put_bytes(out, 1, raw.as_bytes()));
        }
        return Some(());
    }
    match json.peek()? {
        b'"' => put_text(&json.text()?, codec, number, out),
        b'{' => put_object(json, codec, number, out),
        b'[' => put_list(json, codec, number, out),
        _ => match json.word()? {
            "null" => Some(()),
            "true" => put_bool(true, codec, number, out),
            "false" => put_bool(false, codec, number, out),
            digits => put_number(digits, codec, number, out),
        },
    }
}

fn put_within(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let at = open(out, number);
    write(out);
    close(out, at);
}

fn put_bool(value: bool, codec: &Codec, number: u32, out: &mut Vec<u8>) -> Option<()> {
    match codec {
        Codec::Bool => put_integer(out, number, value.into()),
        Codec::OrBool { .. } => put_within(out, number, |out| put_integer(out, 1, value.into())),
        _ => return None,
    }
    Some(())
}

fn put_number(digits: &str, codec: &Codec, number: u32, out: &mut Vec<u8>) -> Option<()> {
    match codec {
        Codec::Integer => put_integer(out, number, integer(digits)?),
        Codec::Double => {
            key(out, number, 1);
            out.extend_from_slice(&digits.parse::<f64>().ok()?.to_le_bytes());
        }
        Codec::Quantity => {
            digits.parse::<f64>().ok()?;
            put_within(out, number, |out| put_bytes(out, 1, digits.as_bytes()));
        }
        Codec::IntOrString => {
            let value = integer(digits)?;
            put_within(out, number, |out| {
                put_integer(out, 1, 0);
                put_integer(out, 2, value);
                put_bytes(out, 3, b"");
            });
        }
        _ => return None,
    }
    Some(())
}

/// Whole numbers, `1e3` too.
fn integer(digits: &str) -> Option<i64> {
    digits.parse().ok().or_else(|| {
        let value = digits.parse::<f64>().ok()?;
        (value.fract() == 0.0).then_some(value as i64)
    })
}

fn put_text(text: &str, codec: &Codec, number: u32, out: &mut Vec<u8>) -> Option<()> {
    match codec {
        Codec::Text => put_bytes(out, number, text.as_bytes()),
        Codec::Bytes => put_bytes(out, number, &STANDARD.decode(text).ok()?),
        Codec::Quantity => put_within(out, number, |out| put_bytes(out, 1, text.as_bytes())),
        Codec::IntOrString => put_within(out, number, |out| {
            put_integer(out, 1, 1);
            put_integer(out, 2, 0);
            put_bytes(out, 3, text.as_bytes());
        }),
        Codec::Time => {
            let time = parse_time(text)?;
            put_within(out, number, |out| {
                put_integer(out, 1, time.as_second());
                put_integer(out, 2, time.subsec_nanosecond().into());
            });
        }
        _ => return None,
    }
    Some(())
}

fn put_list(
    json: &mut Reader<'_>,
    codec: &'static Codec,
    number: u32,
    out: &mut Vec<u8>,
) -> Option<()> {
    match codec {
        Codec::List(item) => put_items(json, item, number, out),
        Codec::Wrapped(item) => {
            let at = open(out, number);
            put_items(json, item, 1, out)?;
            close(out, at);
            Some(())
        }
        Codec::OrList { item, .. } => {
            let at = open(out, number);
            put_items(json, item, 2, out)?;
            close(out, at);
            Some(())
        }
        _ => None,
    }
}

fn put_items(
    json: &mut Reader<'_>,
    item: &'static Codec,
    number: u32,
    out: &mut Vec<u8>,
) -> Option<()> {
    json.enter(b'[')?;
    let mut first = true;
    while json.next_item(&mut first)? {
        put(json, item, number, out)?;
    }
    Some(())
}

fn put_object(
    json: &mut Reader<'_>,
    codec: &'static Codec,
    number: u32,
    out: &mut Vec<u8>,
) -> Option<()> {
    if let Codec::Map(value) = codec {
        return put_map(json, value, number, out);
    }
    let at = open(out, number);
    match codec {
        Codec::Message(message) => put_fields(json, &PLAN.messages[*message], out)?,
        Codec::OrList { schema, .. } => {
            let inner = open(out, 1);
            put_fields(json, &PLAN.messages[*schema], out)?;
            close(out, inner);
        }
        Codec::OrBool { schema } => {
            put_integer(out, 1, 1);
            let inner = open(out, 2);
            put_fields(json, &PLAN.messages[*schema], out)?;
            close(out, inner);
        }
        _ => return None,
    }
    close(out, at);
    Some(())
}

fn put_map(
    json: &mut Reader<'_>,
    value: &'static Codec,
    number: u32,
    out: &mut Vec<u8>,
) -> Option<()> {
    json.enter(b'{')?;
    let mut first = true;
    while let Some(name) = json.next_name(&mut first)? {
        let at = open(out, number);
        put_bytes(out, 1, name.as_bytes());
        put(json, value, 2, out)?;
        close(out, at);
    }
    Some(())
}
