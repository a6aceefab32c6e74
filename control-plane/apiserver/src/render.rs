//! Responses made from objects' bytes: lists, watch lines, Tables and PartialObjectMetadata. Copies bytes;
//! decodes only where a Table needs cells.

use std::io::Write;
use std::sync::Arc;

use balsa_api::kind::Kind;
use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::cache::Stored;
use crate::cache::stored::metadata_of;

/// What a Table row carries beside its cells (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Include {
    /// Nothing.
    None,
    /// PartialObjectMetadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// `metadata` of a list.
#[derive(Debug, Clone, Default)]
pub struct ListMeta {
    /// Revision of the list.
    pub revision: u64,
    /// Token for the next chunk.
    pub continue_: Option<String>,
    /// How many objects are left, where it is known.
    pub remaining: Option<usize>,
}

impl ListMeta {
    fn value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.continue_ {
            meta["continue"] = token.as_str().into();
            if let Some(remaining) = self.remaining {
                meta["remainingItemCount"] = remaining.into();
            }
        }
        meta
    }
}

/// A line of a watch response.
#[must_use]
pub fn watch_line(type_: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 40);
    let _ = write!(out, "{{\"type\":\"{type_}\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// Head and tail around the items of a list, which are separated by commas.
#[must_use]
pub fn list_frame(kind: &Kind, meta: &ListMeta) -> (Bytes, Bytes) {
    let list_kind = kind
        .strategy
        .list_kind()
        .map_or_else(|| format!("{}List", kind.kind), str::to_owned);
    let head = format!(
        "{{\"kind\":\"{list_kind}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        api_version(kind),
        meta.value()
    );
    (head.into(), Bytes::from_static(b"]}\n"))
}

/// The same for PartialObjectMetadataList.
#[must_use]
pub fn metadata_list_frame(meta: &ListMeta) -> (Bytes, Bytes) {
    let head = format!(
        "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{},\"items\":[",
        meta.value()
    );
    (head.into(), Bytes::from_static(b"]}\n"))
}

/// `group/version` or `version`.
#[must_use]
pub fn api_version(kind: &Kind) -> String {
    if kind.group.is_empty() {
        kind.version.to_string()
    } else {
        format!("{}/{}", kind.group, kind.version)
    }
}

/// PartialObjectMetadata of an object.
#[must_use]
pub fn partial_metadata(object: &[u8]) -> Vec<u8> {
    let metadata = metadata_of::<&RawValue>(object).map_or("{}", RawValue::get);
    let mut out = Vec::with_capacity(metadata.len() + 80);
    out.extend_from_slice(
        b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":",
    );
    out.extend_from_slice(metadata.as_bytes());
    out.push(b'}');
    out
}

fn columns(kind: &Kind) -> Value {
    kind.strategy
        .columns()
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description,
                "priority": c.priority})
        })
        .collect()
}

fn table_head(kind: &Kind, meta: &Value, with_columns: bool) -> Vec<u8> {
    let columns = if with_columns {
        columns(kind)
    } else {
        Value::Null
    };
    let mut out = Vec::new();
    let _ = write!(
        out,
        "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{meta},\"columnDefinitions\":{columns},\"rows\":["
    );
    out
}

fn row(
    out: &mut Vec<u8>,
    kind: &Kind,
    value: &Value,
    object: &[u8],
    include: Include,
    now: jiff::Timestamp,
) {
    let cells = kind.strategy.row(value, now);
    out.extend_from_slice(b"{\"cells\":");
    // Writing a Value to memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, &cells);
    match include {
        Include::None => {}
        Include::Metadata => {
            out.extend_from_slice(b",\"object\":");
            out.extend_from_slice(&partial_metadata(object));
        }
        Include::Object => {
            out.extend_from_slice(b",\"object\":");
            out.extend_from_slice(object);
        }
    }
    out.push(b'}');
}

/// A Table of one object.
#[must_use]
pub fn table_of_one(kind: &Kind, object: &[u8], include: Include, with_columns: bool) -> Vec<u8> {
    let value: Value = serde_json::from_slice(object).unwrap_or_default();
    let meta = json!({"resourceVersion": value.pointer("/metadata/resourceVersion").cloned().unwrap_or_default()});
    let mut out = table_head(kind, &meta, with_columns);
    row(
        &mut out,
        kind,
        &value,
        object,
        include,
        jiff::Timestamp::now(),
    );
    out.extend_from_slice(b"]}");
    out
}

/// A Table of a list.
#[must_use]
pub fn table(kind: &Kind, objects: &[Arc<Stored>], meta: &ListMeta, include: Include) -> Vec<u8> {
    let now = jiff::Timestamp::now();
    let mut out = table_head(kind, &meta.value(), true);
    for (i, stored) in objects.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        row(
            &mut out,
            kind,
            &stored.decode(),
            &stored.bytes,
            include,
            now,
        );
    }
    out.extend_from_slice(b"]}\n");
    out
}

/// A Table without rows: the closing and the periodic bookmarks of a Table watch.
#[must_use]
pub fn empty_table(kind: &Kind, metadata: &Value) -> Vec<u8> {
    let mut out = table_head(kind, metadata, true);
    out.extend_from_slice(b"]}");
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn partial_metadata_copies_the_metadata_verbatim() {
        let object =
            br#"{"kind":"Pod","metadata":{"resourceVersion":"3","name":"x"},"spec":{"a":1}}"#;
        let partial: Value = serde_json::from_slice(&partial_metadata(object)).unwrap();
        assert_eq!(
            partial["metadata"],
            json!({"resourceVersion": "3", "name": "x"})
        );
        assert_eq!(partial["kind"], "PartialObjectMetadata");
        assert!(partial.get("spec").is_none());
    }
}
