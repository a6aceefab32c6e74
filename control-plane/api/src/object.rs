//! Reading and writing the parts that every object has: `apiVersion`, `kind` and `metadata`.
//!
//! Objects are plain JSON values. Readers never fail: what is absent or of the wrong type reads as empty,
//! because shapes have been checked against the schema before an object gets here.

use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value};

/// A JSON object.
pub type Object = Map<String, Value>;

/// Longest object name that [`generate_name`] makes, in bytes (a DNS label).
const MAX_GENERATED_NAME: usize = 63;
/// Length of the random part of a generated name.
const SUFFIX_LENGTH: usize = 5;
/// Letters of the random part: no vowels and nothing easily mistaken, so that no words appear.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `metadata`, if there is one.
#[must_use]
pub fn metadata(object: &Value) -> Option<&Object> {
    object.get("metadata")?.as_object()
}

/// `metadata` for writing; made when absent. Anything that is not an object is replaced by one.
pub fn metadata_mut(object: &mut Value) -> &mut Object {
    child_mut(as_map(object), "metadata")
}

fn as_map(value: &mut Value) -> &mut Object {
    if !value.is_object() {
        *value = Value::Object(Object::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// The object under `key` for writing; made when absent.
pub fn child_mut<'a>(parent: &'a mut Object, key: &str) -> &'a mut Object {
    as_map(
        parent
            .entry(key)
            .or_insert_with(|| Value::Object(Object::new())),
    )
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    metadata(object)
        .and_then(|m| m.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `apiVersion`, or empty.
#[must_use]
pub fn api_version(object: &Value) -> &str {
    object
        .get("apiVersion")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `kind`, or empty.
#[must_use]
pub fn kind(object: &Value) -> &str {
    object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Splits `apps/v1` into group and version; the core group's `v1` has an empty group.
#[must_use]
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Joins group and version as `apiVersion` writes them.
#[must_use]
pub fn join_api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// `metadata.name`, or empty.
#[must_use]
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.generateName`, or empty.
#[must_use]
pub fn generate_name_base(object: &Value) -> &str {
    text(object, "generateName")
}

/// `metadata.namespace`, or empty.
#[must_use]
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.uid`, or empty.
#[must_use]
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata.resourceVersion`, or empty.
#[must_use]
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// `metadata.creationTimestamp`, or empty.
#[must_use]
pub fn creation_timestamp(object: &Value) -> &str {
    text(object, "creationTimestamp")
}

/// `metadata.deletionTimestamp` when the object is being deleted.
#[must_use]
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    Some(text(object, "deletionTimestamp")).filter(|t| !t.is_empty())
}

/// Whether deletion has begun.
#[must_use]
pub fn is_deleting(object: &Value) -> bool {
    deletion_timestamp(object).is_some()
}

/// `metadata.deletionGracePeriodSeconds`.
#[must_use]
pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    metadata(object)?
        .get("deletionGracePeriodSeconds")?
        .as_i64()
}

/// `metadata.generation`, 0 when absent.
#[must_use]
pub fn generation(object: &Value) -> i64 {
    metadata(object)
        .and_then(|m| m.get("generation"))
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

/// `metadata.labels`.
#[must_use]
pub fn labels(object: &Value) -> Option<&Object> {
    metadata(object)?.get("labels")?.as_object()
}

/// One label.
#[must_use]
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

/// `metadata.annotations`.
#[must_use]
pub fn annotations(object: &Value) -> Option<&Object> {
    metadata(object)?.get("annotations")?.as_object()
}

/// One annotation.
#[must_use]
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

/// `metadata.finalizers`.
#[must_use]
pub fn finalizers(object: &Value) -> Vec<&str> {
    metadata(object)
        .and_then(|m| m.get("finalizers"))
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// Sets a text field of `metadata`; an empty value removes it.
pub fn set_text(object: &mut Value, field: &str, value: &str) {
    let metadata = metadata_mut(object);
    if value.is_empty() {
        metadata.remove(field);
    } else {
        metadata.insert(field.to_owned(), value.into());
    }
}

/// Sets `metadata.name`.
pub fn set_name(object: &mut Value, name: &str) {
    set_text(object, "name", name);
}

/// Sets `metadata.namespace`.
pub fn set_namespace(object: &mut Value, namespace: &str) {
    set_text(object, "namespace", namespace);
}

/// Sets `metadata.uid`.
pub fn set_uid(object: &mut Value, uid: &str) {
    set_text(object, "uid", uid);
}

/// Sets `metadata.resourceVersion`; empty removes it.
pub fn set_resource_version(object: &mut Value, version: &str) {
    set_text(object, "resourceVersion", version);
}

/// Sets `metadata.generation`.
pub fn set_generation(object: &mut Value, generation: i64) {
    metadata_mut(object).insert("generation".to_owned(), generation.into());
}

/// Sets one label.
pub fn set_label(object: &mut Value, key: &str, value: &str) {
    child_mut(metadata_mut(object), "labels").insert(key.to_owned(), value.into());
}

/// Sets one annotation.
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    child_mut(metadata_mut(object), "annotations").insert(key.to_owned(), value.into());
}

/// Adds a finalizer unless it is there. Says whether something changed.
pub fn add_finalizer(object: &mut Value, finalizer: &str) -> bool {
    if finalizers(object).contains(&finalizer) {
        return false;
    }
    let list = metadata_mut(object)
        .entry("finalizers")
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(list) = list {
        list.push(finalizer.into());
    } else {
        *list = Value::Array(vec![finalizer.into()]);
    }
    true
}

/// Removes a finalizer. Says whether something changed. An emptied list goes away.
pub fn remove_finalizer(object: &mut Value, finalizer: &str) -> bool {
    let metadata = metadata_mut(object);
    let Some(Value::Array(list)) = metadata.get_mut("finalizers") else {
        return false;
    };
    let before = list.len();
    list.retain(|f| f.as_str() != Some(finalizer));
    let changed = list.len() != before;
    if list.is_empty() {
        metadata.remove("finalizers");
    }
    changed
}

/// One entry of `metadata.ownerReferences`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerReference<'a> {
    /// For example `apps/v1`.
    pub api_version: &'a str,
    /// For example `ReplicaSet`.
    pub kind: &'a str,
    /// Name of the owner, in the same namespace or cluster-scoped.
    pub name: &'a str,
    /// UID of the owner.
    pub uid: &'a str,
    /// Whether this owner manages the object.
    pub controller: bool,
    /// Whether the owner waits for this object in a foreground deletion.
    pub block_owner_deletion: bool,
}

impl<'a> OwnerReference<'a> {
    fn read(value: &'a Value) -> Self {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let flag = |field: &str| {
            value
                .get(field)
                .and_then(Value::as_bool)
                .unwrap_or_default()
        };
        Self {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            controller: flag("controller"),
            block_owner_deletion: flag("blockOwnerDeletion"),
        }
    }

    /// As JSON, for an object about to be created. Flags that are false are left out.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut map = Object::new();
        map.insert("apiVersion".into(), self.api_version.into());
        map.insert("kind".into(), self.kind.into());
        map.insert("name".into(), self.name.into());
        map.insert("uid".into(), self.uid.into());
        if self.controller {
            map.insert("controller".into(), true.into());
        }
        if self.block_owner_deletion {
            map.insert("blockOwnerDeletion".into(), true.into());
        }
        Value::Object(map)
    }
}

/// `metadata.ownerReferences`.
#[must_use]
pub fn owner_references(object: &Value) -> Vec<OwnerReference<'_>> {
    metadata(object)
        .and_then(|m| m.get("ownerReferences"))
        .and_then(Value::as_array)
        .map(|list| list.iter().map(OwnerReference::read).collect())
        .unwrap_or_default()
}

/// The owner with `controller: true`.
#[must_use]
pub fn controller_of(object: &Value) -> Option<OwnerReference<'_>> {
    owner_references(object)
        .into_iter()
        .find(|owner| owner.controller)
}

/// A reference that makes `owner` the controller of what it is put on.
#[must_use]
pub fn controller_reference(owner: &Value) -> OwnerReference<'_> {
    OwnerReference {
        api_version: api_version(owner),
        kind: kind(owner),
        name: name(owner),
        uid: uid(owner),
        controller: true,
        block_owner_deletion: true,
    }
}

/// `base` with five random letters, cut so that the whole is a DNS label.
#[must_use]
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(MAX_GENERATED_NAME - SUFFIX_LENGTH);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], random_suffix(SUFFIX_LENGTH))
}

/// Random letters as generated names end with.
#[must_use]
pub fn random_suffix(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(SUFFIX_LETTERS[rng.random_range(0..SUFFIX_LETTERS.len())]))
        .collect()
}

/// Letters for a number, as template hashes are written: its decimal digits mapped to [`SUFFIX_LETTERS`].
///
/// Source: `rand.SafeEncodeString` of apimachinery.
#[must_use]
pub fn safe_encode(text: &str) -> String {
    text.bytes()
        .map(|b| char::from(SUFFIX_LETTERS[usize::from(b) % SUFFIX_LETTERS.len()]))
        .collect()
}

/// A new random UID (version 4).
#[must_use]
pub fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A `metav1.Time`: whole seconds, `2006-01-02T15:04:05Z`.
#[must_use]
pub fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A `metav1.MicroTime`: always six digits of fraction, `2006-01-02T15:04:05.000000Z`.
#[must_use]
pub fn format_micro_time(time: Timestamp) -> String {
    let micros = time.subsec_nanosecond().max(0) / 1000;
    format!("{}.{micros:06}Z", time.strftime("%Y-%m-%dT%H:%M:%S"))
}

/// What Go reads as no time at all (`IsZero`).
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Reads RFC 3339 in any offset, with or without fraction.
#[must_use]
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_generated_name_is_a_label_that_keeps_its_base() {
        let name = generate_name(&"x".repeat(80));
        assert_eq!(name.len(), 63);
        assert!(generate_name("web-").starts_with("web-"));
        assert_ne!(generate_name("web-"), generate_name("web-"));
    }

    #[test]
    fn times_print_as_upstream_prints_them() {
        let time = parse_time("2026-01-02T04:04:05.0071239+01:00").unwrap();
        assert_eq!(format_time(time), "2026-01-02T03:04:05Z");
        assert_eq!(format_micro_time(time), "2026-01-02T03:04:05.007123Z");
    }

    #[test]
    fn the_last_finalizer_takes_the_list_with_it() {
        let mut object = json!({"metadata": {"name": "a"}});
        assert!(add_finalizer(&mut object, "x/y"));
        assert!(!add_finalizer(&mut object, "x/y"));
        assert_eq!(finalizers(&object), ["x/y"]);
        assert!(remove_finalizer(&mut object, "x/y"));
        assert_eq!(object, json!({"metadata": {"name": "a"}}));
    }

    #[test]
    fn the_controller_is_found_among_owners() {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r", "uid": "u"}});
        let other = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "v"});
        let object = json!({"metadata": {"ownerReferences": [other, controller_reference(&owner).to_value()]}});
        assert_eq!(controller_of(&object).unwrap().uid, "u");
        assert_eq!(owner_references(&object).len(), 2);
    }

    #[test]
    fn safe_encoding_matches_upstream() {
        // The letter is alphabet[byte % 27]; for '1' (49) that is the 23rd.
        assert_eq!(safe_encode("1"), "5");
    }
}
