//! From the bytes of a request to an object of the right type, with upstream's field validation.

use std::fmt;
use std::fmt::Write as _;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::Type;
use super::conform::conform_whole;
use super::duplicates::Duplicates;
use crate::object;
use crate::status::{FieldErrors, Status};

/// What happens to unknown and duplicate fields: `fieldValidation` of create, update and patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped, and the client is told in `Warning` headers. The server's default.
    #[default]
    Warn,
    /// Refused with 400.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; absent or empty is [`FieldValidation::Warn`].
    ///
    /// # Errors
    /// 422 for any other text. `options` is the kind named in the error, for example `CreateOptions`.
    pub fn parse(parameter: Option<&str>, options: &str) -> Result<Self, Status> {
        match parameter.unwrap_or_default() {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => {
                let mut errors = FieldErrors::default();
                errors.not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]);
                Err(Status::invalid(options, "meta.k8s.io", "", &errors))
            }
        }
    }
}

/// A document read, before its type is known.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parsed {
    /// The document. Of a field written twice, the last.
    pub value: Value,
    /// Fields written twice.
    pub duplicates: Duplicates,
}

/// Reads JSON.
///
/// # Errors
/// 400 with the reader's complaint.
pub fn parse_json(bytes: &[u8]) -> Result<Parsed, Status> {
    read_json(bytes).map_err(|e| malformed("json", &e))
}

/// Reads JSON, with the reader's own complaint.
pub(crate) fn read_json(bytes: &[u8]) -> Result<Parsed, serde_json::Error> {
    let mut notes = Notes::default();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Tree(&mut notes)
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))?;
    let duplicates = match notes.duplicates {
        none if none.is_empty() => Duplicates::default(),
        fields => Duplicates::of_json(fields, keys_in_order(bytes)),
    };
    Ok(Parsed { value, duplicates })
}

/// Paths of all keys of a document that has been read before, in its own order.
fn keys_in_order(bytes: &[u8]) -> Vec<String> {
    let mut notes = Notes {
        keys: Some(Vec::new()),
        ..Notes::default()
    };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    // It was read before, so this cannot fail.
    let _ = Tree(&mut notes).deserialize(&mut reader);
    notes.keys.unwrap_or_default()
}

/// Reads YAML, of which JSON is a part.
///
/// # Errors
/// 400 with the reader's complaint.
pub fn parse_yaml(bytes: &[u8]) -> Result<Parsed, Status> {
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
        && let Ok(parsed) = parse_json(bytes)
        && parsed.duplicates.is_empty()
    {
        return Ok(parsed);
    }
    let text = std::str::from_utf8(bytes).map_err(|e| malformed("yaml", &e))?;
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let mut notes = Notes::default();
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        Tree(&mut notes).deserialize(reader)
    })
    .map_err(|e| malformed("yaml", &e))?;
    let duplicates = if notes.duplicates.is_empty() {
        Duplicates::default()
    } else {
        Duplicates::of_yaml(text)
    };
    Ok(Parsed { value, duplicates })
}

fn malformed(language: &str, error: &dyn fmt::Display) -> Status {
    Status::bad_request(format!(
        "couldn't get version/kind; {language} parse error: {error}"
    ))
}

/// Group, version and kind that a request's path calls for.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// API group; empty for core.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
}

/// Makes an object of the expected kind: checks apiVersion and kind (absent ones are filled in), types and
/// fields. Returns it with the warnings to send.
///
/// # Errors
/// 400 in upstream's words.
pub fn decode(
    expected: Expected<'_>,
    type_: Type<'_>,
    parsed: Parsed,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let Parsed {
        mut value,
        duplicates,
    } = parsed;
    identify(expected, &mut value)?;
    let unknown =
        conform_whole(type_, &mut value).map_err(|why| unhandled(expected, expected.kind, &why))?;
    let warnings = judge(expected, &duplicates, unknown, validation)?;
    Ok((value, warnings))
}

/// Makes an object of the expected kind out of what a patch has made. Returns it with its unknown fields, which are
/// gone from it, in upstream's words.
///
/// # Errors
/// The first value of a wrong type, told by `refuse`; 400 for another apiVersion or kind.
pub fn decode_patched(
    expected: Expected<'_>,
    type_: Type<'_>,
    mut value: Value,
    refuse: impl FnOnce(&str) -> Status,
) -> Result<(Value, Vec<String>), Status> {
    identify(expected, &mut value)?;
    let unknown = conform_whole(type_, &mut value).map_err(|why| refuse(&why))?;
    Ok((value, unknown))
}

/// What becomes of duplicate and unknown fields: warnings, or a refusal.
///
/// # Errors
/// 400 that names them all under [`FieldValidation::Strict`].
pub fn judge(
    expected: Expected<'_>,
    duplicates: &Duplicates,
    unknown: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(duplicates.warnings(unknown)),
        FieldValidation::Strict => {
            let problems = duplicates.problems(unknown);
            if problems.is_empty() {
                Ok(Vec::new())
            } else {
                Err(strict_error(expected, &problems))
            }
        }
    }
}

/// The 400 for unknown and duplicate fields under [`FieldValidation::Strict`].
fn strict_error(expected: Expected<'_>, problems: &[String]) -> Status {
    unhandled(
        expected,
        expected.kind,
        &format!("strict decoding error: {}", problems.join(", ")),
    )
}

fn unhandled(expected: Expected<'_>, found: &str, why: &str) -> Status {
    Status::bad_request(format!(
        "{found} in version {:?} cannot be handled as a {}: {why}",
        expected.version, expected.kind
    ))
}

/// Checks `apiVersion` and `kind`, and fills them in where they are absent.
fn identify(expected: Expected<'_>, value: &mut Value) -> Result<(), Status> {
    let Value::Object(map) = value else {
        let why = "couldn't get version/kind; json parse error: json: cannot unmarshal into Go value of type \
                   struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
                   \"json:\\\"kind,omitempty\\\"\" }";
        return Err(Status::bad_request(why));
    };
    let api_version = object::join_api_version(expected.group, expected.version);
    let given_version = map
        .get("apiVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let given_kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    if !given_version.is_empty() && given_version != api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({api_version})"
        )));
    }
    if !given_kind.is_empty() && given_kind != expected.kind {
        let why = format!(
            "converting ({version}.{given_kind}) to ({version}.{}): unknown conversion",
            expected.kind,
            version = expected.version
        );
        return Err(unhandled(expected, given_kind, &why));
    }
    map.insert("apiVersion".to_owned(), api_version.into());
    map.insert("kind".to_owned(), expected.kind.into());
    Ok(())
}

// === reading with notes of duplicates ===

#[derive(Default)]
struct Notes {
    path: String,
    /// Paths of keys that were there before.
    duplicates: Vec<String>,
    /// Paths of all keys, when they are wanted.
    keys: Option<Vec<String>>,
}

impl Notes {
    fn enter(&mut self, key: &str) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        length
    }
}

/// Reads any document into a [`Value`].
struct Tree<'n>(&'n mut Notes);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let length = self.0.path.len();
        loop {
            // Writing to a String cannot fail.
            let _ = write!(self.0.path, "[{}]", items.len());
            let item = list.next_element_seed(Tree(self.0));
            self.0.path.truncate(length);
            match item? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key)? {
            let length = self.0.enter(&key);
            if map.contains_key(&key) {
                self.0.duplicates.push(self.0.path.clone());
            }
            if let Some(keys) = &mut self.0.keys {
                keys.push(self.0.path.clone());
            }
            let value = entries.next_value_seed(Tree(self.0))?;
            self.0.path.truncate(length);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Reads a key. YAML keys that look like numbers or booleans are texts too.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<String, D::Error> {
        match reader.deserialize_any(Tree(&mut Notes::default()))? {
            Value::String(text) => Ok(text),
            Value::Bool(value) => Ok(value.to_string()),
            Value::Number(value) => Ok(value.to_string()),
            _ => Err(D::Error::custom("keys must be strings")),
        }
    }
}
