//! The v2 document in protobuf, as gnostic's `openapi.v2.Document` defines it. Only the messages and fields that
//! our documents use are written; the numbers in the code are the field numbers of that definition.

use serde_json::Value;

/// Encodes the whole document.
pub(super) fn document(
    version: &str,
    paths: impl IntoIterator<Item = (String, Value)>,
    definitions: impl IntoIterator<Item = (String, Value)>,
) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, "2.0");
    let mut info = Message::default();
    info.text(1, "Kubernetes");
    info.text(2, version);
    out.message(2, info);
    let mut list = Message::default();
    for (path, item) in paths {
        list.named(2, &path, path_item(&item));
    }
    out.message(8, list);
    let mut list = Message::default();
    for (name, definition) in definitions {
        list.named(1, &name, schema(&definition));
    }
    out.message(9, list);
    let mut requirement = Message::default();
    requirement.named(1, "BearerToken", Message::default());
    out.message(12, requirement);
    out.message(13, security());
    out.0
}

fn security() -> Message {
    let mut key = Message::default();
    key.text(1, "apiKey");
    key.text(2, "authorization");
    key.text(3, "header");
    key.text(4, "Bearer Token authentication");
    let mut item = Message::default();
    item.message(2, key);
    let mut list = Message::default();
    list.named(1, "BearerToken", item);
    list
}

/// A message under construction: its fields so far.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field << 3 | 2));
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u32, value: bool) {
        if value {
            self.varint(u64::from(field << 3));
            self.varint(1);
        }
    }

    fn message(&mut self, field: u32, message: Self) {
        self.bytes(field, &message.0);
    }

    /// A `Named...` message: name and value.
    fn named(&mut self, field: u32, name: &str, value: Self) {
        let mut entry = Self::default();
        entry.text(1, name);
        entry.message(2, value);
        self.message(field, entry);
    }

    fn texts(&mut self, field: u32, list: Option<&Value>) {
        for text in items(list) {
            self.bytes(field, text.as_str().unwrap_or_default().as_bytes());
        }
    }

    /// `x-...` members. Their values are YAML texts, of which JSON is a part.
    fn extensions(&mut self, field: u32, value: &Value) {
        for (name, value) in members(Some(value)).filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Self::default();
            any.text(2, &value.to_string());
            self.named(field, name, any);
        }
    }
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn members(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

fn schema(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, text(value, "$ref"));
    out.text(2, text(value, "format"));
    out.text(4, text(value, "description"));
    if let Some(default) = value.get("default") {
        let mut any = Message::default();
        any.text(2, &default.to_string());
        out.message(5, any);
    }
    out.texts(19, value.get("required"));
    if let Some(additional) = value.get("additionalProperties") {
        let mut item = Message::default();
        item.message(1, schema(additional));
        out.message(21, item);
    }
    if !text(value, "type").is_empty() {
        let mut type_ = Message::default();
        type_.text(1, text(value, "type"));
        out.message(22, type_);
    }
    if let Some(element) = value.get("items") {
        let mut item = Message::default();
        item.message(1, schema(element));
        out.message(23, item);
    }
    if value.get("properties").is_some() {
        let mut properties = Message::default();
        for (name, property) in members(value.get("properties")) {
            properties.named(1, name, schema(property));
        }
        out.message(25, properties);
    }
    out.extensions(31, value);
    out
}

fn path_item(value: &Value) -> Message {
    let mut out = Message::default();
    for (field, method) in [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (8, "patch"),
    ] {
        if let Some(found) = value.get(method) {
            out.message(field, operation(found));
        }
    }
    for found in items(value.get("parameters")) {
        out.message(9, parameter(found));
    }
    out
}

fn operation(value: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, value.get("tags"));
    out.text(3, text(value, "description"));
    out.text(5, text(value, "operationId"));
    out.texts(6, value.get("produces"));
    out.texts(7, value.get("consumes"));
    for found in items(value.get("parameters")) {
        out.message(8, parameter(found));
    }
    let mut responses = Message::default();
    for (code, found) in members(value.get("responses")) {
        let mut answer = Message::default();
        answer.text(1, text(found, "description"));
        if let Some(body) = found.get("schema") {
            let mut item = Message::default();
            item.message(1, schema(body));
            answer.message(2, item);
        }
        let mut either = Message::default();
        either.message(1, answer);
        responses.named(1, code, either);
    }
    out.message(9, responses);
    out.texts(10, value.get("schemes"));
    out.extensions(13, value);
    out
}

fn parameter(value: &Value) -> Message {
    let mut which = Message::default();
    if text(value, "in") == "body" {
        let mut body = Message::default();
        body.text(1, text(value, "description"));
        body.text(2, text(value, "name"));
        body.text(3, "body");
        body.flag(4, flag(value, "required"));
        body.message(5, schema(value.get("schema").unwrap_or(&Value::Null)));
        which.message(1, body);
    } else {
        let in_path = text(value, "in") == "path";
        let mut plain = Message::default();
        plain.flag(1, flag(value, "required"));
        plain.text(2, text(value, "in"));
        plain.text(3, text(value, "description"));
        plain.text(4, text(value, "name"));
        // A path parameter lacks allowEmptyValue, so all that follows is numbered one less.
        plain.text(if in_path { 5 } else { 6 }, text(value, "type"));
        plain.flag(if in_path { 19 } else { 20 }, flag(value, "uniqueItems"));
        let mut kind = Message::default();
        kind.message(if in_path { 4 } else { 3 }, plain);
        which.message(2, kind);
    }
    let mut item = Message::default();
    item.message(1, which);
    item
}
