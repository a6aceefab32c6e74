//! One object as the cache holds it, and its two encodings: the store's (without resourceVersion) and the
//! clients' (with it spliced in, never re-encoded).

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, OnceLock};

use balsa_api::kind::{Kind, Name};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::kept::Kept;
use super::skeleton;
use crate::http::protobuf;

const METADATA: &[u8] = b"\"metadata\":{";

/// An object at one revision.
pub struct Stored {
    /// `namespace/name` or `name`.
    pub key: Arc<str>,
    /// Final JSON, resourceVersion included.
    pub bytes: Bytes,
    /// Revision that wrote it: its resourceVersion.
    pub revision: u64,
    /// Its labels; a slice, since a map of two takes more room than many an object.
    pub labels: Box<[(String, String)]>,
    /// Selectable fields beside name and namespace.
    pub fields: Vec<(Name, String)>,
    /// Where the digits of the resourceVersion stand in `bytes`.
    version_at: std::ops::Range<usize>,
    value: OnceLock<Arc<Value>>,
    /// How versions of a custom resource show it, by the version's number.
    views: Mutex<Vec<(u64, View)>>,
    protobuf: Kept,
}

/// How one version of a custom resource shows an object.
#[derive(Clone)]
pub enum View {
    /// As it is stored.
    Same,
    /// Otherwise.
    Other(Arc<Stored>),
}

/// Versions whose views of one object are kept.
const VIEWS: usize = 4;

#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Stored {
    /// Makes the cached form of what the store holds. `None` when the bytes are no JSON object with
    /// metadata: nothing of ours writes that, and it must not take the server down.
    #[must_use]
    pub fn new(kind: &Kind, key: &str, raw: &[u8], revision: u64) -> Option<Self> {
        let (labels, fields) = if kind.strategy.selectable_field_names().is_empty() {
            let metadata: Labelled = metadata_of(raw)?;
            let labels = metadata.labels.unwrap_or_default();
            (labels.into_iter().collect(), Vec::new())
        } else {
            let value = skeleton::read(raw, kind.strategy.selectable_lists()).ok()?;
            (labels_of(&value), kind.strategy.selectable_fields(&value))
        };
        let (bytes, version_at) = splice(raw, revision)?;
        Some(Self {
            key: key.into(),
            bytes,
            revision,
            labels,
            fields,
            version_at,
            value: OnceLock::new(),
            views: Mutex::default(),
            protobuf: Kept::default(),
        })
    }

    /// The same object with other bytes: those of another shape, for one answer.
    #[must_use]
    pub fn with_bytes(&self, bytes: Bytes) -> Self {
        Self {
            key: Arc::clone(&self.key),
            bytes,
            revision: self.revision,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            version_at: 0..0,
            value: OnceLock::new(),
            views: Mutex::default(),
            protobuf: Kept::default(),
        }
    }

    /// The object as a version of its kind shows it: the same revision, another value.
    #[must_use]
    pub fn shown_as(&self, kind: &Kind, value: &Value) -> Self {
        let (bytes, version_at) =
            splice(&encode_for_store(value), self.revision).unwrap_or_default();
        Self {
            key: Arc::clone(&self.key),
            bytes,
            revision: self.revision,
            labels: labels_of(value),
            fields: kind.strategy.selectable_fields(value),
            version_at,
            value: OnceLock::new(),
            views: Mutex::default(),
            protobuf: Kept::default(),
        }
    }

    /// Its message in protobuf, kept for the next who asks if there is room. `None` for an object that is not what
    /// its kind says.
    #[must_use]
    pub fn protobuf(&self, kind: &Kind) -> Option<Bytes> {
        self.protobuf
            .get_or_make(|| protobuf::message_of(kind, &self.bytes))
    }

    /// The view of a version, where it has been made.
    #[must_use]
    pub fn view(&self, version: u64) -> Option<View> {
        let views = self.views.lock();
        views
            .iter()
            .find(|(number, _)| *number == version)
            .map(|(_, view)| view.clone())
    }

    /// Keeps the view of a version; an old one makes room.
    pub fn keep_view(&self, version: u64, view: View) {
        let mut views = self.views.lock();
        if views.iter().any(|(number, _)| *number == version) {
            return;
        }
        if views.len() >= VIEWS {
            views.remove(0);
        }
        views.push((version, view));
    }

    /// Namespace, empty for cluster-scoped objects.
    #[must_use]
    pub fn namespace(&self) -> &str {
        super::keys::split_object(&self.key).0
    }

    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        super::keys::split_object(&self.key).1
    }

    /// The decoded object, kept once it was asked for and shared by all readers.
    #[must_use]
    pub fn value(&self) -> Arc<Value> {
        Arc::clone(self.value.get_or_init(|| Arc::new(self.decode())))
    }

    /// The decoded object, for a caller that will change it.
    #[must_use]
    pub fn decode(&self) -> Value {
        match self.value.get() {
            Some(value) => Value::clone(value),
            // Its metadata was read when it was made, and nothing of ours writes what is no JSON behind it.
            None => serde_json::from_slice(&self.bytes).unwrap_or_default(),
        }
    }

    /// The same bytes under another resourceVersion (for the last event of an object).
    #[must_use]
    pub fn bytes_at(&self, revision: u64) -> Bytes {
        let mut out = Vec::with_capacity(self.bytes.len() + 4);
        out.extend_from_slice(&self.bytes[..self.version_at.start]);
        let _ = write!(out, "{revision}");
        out.extend_from_slice(&self.bytes[self.version_at.end..]);
        out.into()
    }

    /// Value of a selectable field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => self
                .fields
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.as_str()),
        }
    }
}

/// The metadata of an object in JSON, which is read no further than that: metadata stands at the beginning, and every
/// server reads every change. `None` where there is none, or it is not as expected.
pub(crate) fn metadata_of<'de, T: Deserialize<'de>>(object: &'de [u8]) -> Option<T> {
    let mut found = None;
    let mut reader = serde_json::Deserializer::from_slice(object);
    // The reader complains of an object that goes on behind what was wanted.
    let _ = reader.deserialize_map(MetadataOnly(&mut found));
    found
}

/// Leaves the metadata of an object in its place.
struct MetadataOnly<'f, T>(&'f mut Option<T>);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Part {
    Metadata,
    #[serde(other)]
    Other,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for MetadataOnly<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut parts: M) -> Result<(), M::Error> {
        while let Some(part) = parts.next_key()? {
            match part {
                Part::Metadata => {
                    *self.0 = Some(parts.next_value()?);
                    break;
                }
                Part::Other => drop(parts.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Labels of a decoded object.
#[must_use]
pub fn labels_of(value: &Value) -> Box<[(String, String)]> {
    let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
    labels
        .map(|labels| {
            labels
                .iter()
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect()
        })
        .unwrap_or_default()
}

/// Encodes an object for the store: kind, apiVersion and metadata first (so that [`splice`] finds its place
/// without parsing), resourceVersion left out.
#[must_use]
pub fn encode_for_store(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    let empty = serde_json::Map::new();
    let object = value.as_object().unwrap_or(&empty);
    for first in ["kind", "apiVersion"] {
        if let Some(v) = object.get(first) {
            member(&mut out, first, v);
        }
    }
    out.extend_from_slice(METADATA);
    let metadata = object
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    for (name, v) in metadata
        .iter()
        .filter(|(name, _)| *name != "resourceVersion")
    {
        member(&mut out, name, v);
    }
    trim_comma(&mut out);
    out.extend_from_slice(b"},");
    for (name, v) in object
        .iter()
        .filter(|(n, _)| !matches!(n.as_str(), "kind" | "apiVersion" | "metadata"))
    {
        member(&mut out, name, v);
    }
    trim_comma(&mut out);
    out.push(b'}');
    out
}

fn member(out: &mut Vec<u8>, name: &str, value: &Value) {
    // Writing a Value to memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, name);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
    out.push(b',');
}

fn trim_comma(out: &mut Vec<u8>) {
    if out.last() == Some(&b',') {
        out.pop();
    }
}

/// Puts the resourceVersion into an object as the store holds it; also says where its digits stand.
#[must_use]
pub fn splice(raw: &[u8], revision: u64) -> Option<(Bytes, std::ops::Range<usize>)> {
    // Only kind and apiVersion stand before it, both short and without escapes.
    let window = &raw[..raw.len().min(512)];
    let found = window.windows(METADATA.len()).position(|w| w == METADATA)?;
    let at = found + METADATA.len();
    let mut out = Vec::with_capacity(raw.len() + 40);
    out.extend_from_slice(&raw[..at]);
    out.extend_from_slice(b"\"resourceVersion\":\"");
    let start = out.len();
    let _ = write!(out, "{revision}");
    let end = out.len();
    out.push(b'"');
    if raw.get(at) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&raw[at..]);
    Some((out.into(), start..end))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn splicing_equals_encoding_with_the_version() {
        for metadata in [json!({}), json!({"name": "a", "labels": {"metadata": "x"}})] {
            let value = json!({"spec": {"metadata": {}}, "kind": "Pod", "apiVersion": "v1", "metadata": metadata});
            let (bytes, at) = splice(&encode_for_store(&value), 42).unwrap();
            let mut want = value;
            want["metadata"]["resourceVersion"] = "42".into();
            assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), want);
            assert_eq!(&bytes[at], b"42");
        }
    }

    #[test]
    fn metadata_is_read_without_the_rest() {
        let labels = |object: &str| {
            let found: Option<Labelled> = metadata_of(object.as_bytes());
            found.map(|l| {
                l.labels
                    .unwrap_or_default()
                    .into_values()
                    .collect::<String>()
            })
        };
        let object = r#"{"kind":"A","metadata":{"labels":{"a":"1","b":"2"},"name":"x"},"data":{"metadata":{}}}"#;
        assert_eq!(labels(object).unwrap(), "12");
        assert_eq!(
            labels(r#"{"spec":{"metadata":1},"metadata":{"name":"x"}}"#).unwrap(),
            ""
        );
        for wrong in [
            r#"{"kind":"A"}"#,
            r#"{"metadata":{"labels":{"a":"1"}"#,
            "[]",
            "rubbish",
            "",
        ] {
            assert_eq!(labels(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_old_version_is_left_out_of_the_store() {
        let raw = encode_for_store(
            &json!({"kind": "A", "metadata": {"resourceVersion": "3", "name": "x"}}),
        );
        assert_eq!(raw, br#"{"kind":"A","metadata":{"name":"x"}}"#);
    }
}
