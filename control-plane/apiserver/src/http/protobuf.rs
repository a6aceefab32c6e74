//! Kubernetes' protobuf, which Go clients speak for built-in kinds: `k8s\0`, then a `runtime.Unknown` that says
//! the kind and holds the message.
//!
//! The messages are the Go structs, field by field, so the schema says what a value is and only the field
//! numbers are needed beside it (`protobuf/fields.txt`, brought together in `table.rs`). This file reads,
//! `encode.rs` writes. What Go leaves out of JSON because it is zero stands in protobuf all the same, except
//! behind pointers; [`POINTERS`] are the scalars whose zero means something.

mod encode;
mod json;
mod list;
mod table;

use balsa_api::schema::decode::Parsed;
use balsa_api::schema::{Field, Schema, Shape, Struct, Type};
use balsa_api::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

pub use encode::{
    Writer, by_hand, knows, message_of, metadata, metadata_list, object, watch_frame, wrapped,
};
pub use list::ListBody;
use table::MESSAGES;

/// Media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// Media type of a watch's frames.
pub const WATCH_MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";
const MAGIC: &[u8] = b"k8s\0";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
/// Messages in messages; the deepest of Kubernetes' own need about 12.
const MAX_DEPTH: usize = 64;

/// Scalars that are pointers in Go, so that a zero was meant; with the message where others have a field of the
/// same name that is none.
const POINTERS: &[&str] = &[
    "PersistentVolumeClaimSpec.storageClassName",
    "TypedLocalObjectReference.apiGroup",
    "TypedObjectReference.apiGroup",
    "VolumeNodeResources.count",
    "activeDeadlineSeconds",
    "adminAccess",
    "allNodes",
    "allocateLoadBalancerNodePorts",
    "allowMultipleAllocations",
    "allowPrivilegeEscalation",
    "allowVolumeExpansion",
    "attachRequired",
    "automountServiceAccountToken",
    "averageUtilization",
    "backoffLimit",
    "backoffLimitPerIndex",
    "bindsToNode",
    "blockOwnerDeletion",
    "bool",
    "borrowingLimitPercent",
    "capacity",
    "collisionCount",
    "completions",
    "controller",
    "currentCPUUtilizationPercentage",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "endPort",
    "errorCode",
    "expirationSeconds",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "holderIdentity",
    "hostProcess",
    "hostUsers",
    "immutable",
    "int",
    "leaseDurationSeconds",
    "leaseTransitions",
    "lendablePercent",
    "lun",
    "manualSelector",
    "maxExpirationSeconds",
    "maxFailedIndexes",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minDomains",
    "minItems",
    "minLength",
    "minProperties",
    "minReplicas",
    "minimum",
    "mode",
    "multipleOf",
    "namespaced",
    "nodeAllocatableUpdatePeriodSeconds",
    "nominalConcurrencyShares",
    "optional",
    "optionalOldSelf",
    "orphanDependents",
    "parallelism",
    "partition",
    "perDeviceNodeSelection",
    "podInfoOnMount",
    "port",
    "priority",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "recursiveReadOnlyMounts",
    "remainingItemCount",
    "replicas",
    "requiresRepublish",
    "retryAfterSeconds",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "seLinuxMount",
    "serviceAccountTokenInSecrets",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "stabilizationWindowSeconds",
    "started",
    "startingDeadlineSeconds",
    "storageCapacity",
    "succeededCount",
    "successfulJobsHistoryLimit",
    "supplementalGroupsPolicy",
    "suspend",
    "targetCPUUtilizationPercentage",
    "terminating",
    "terminatingReplicas",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
    "userNamespaces",
    "windowsGMSA",
    "x-kubernetes-preserve-unknown-fields",
];

/// Fields of such names that are no pointers.
const NO_POINTERS: &[&str] = &[
    "AWSElasticBlockStoreVolumeSource.partition",
    "CustomResourceColumnDefinition.priority",
    "DeploymentStatus.replicas",
    "GCEPersistentDiskVolumeSource.partition",
];

fn is_pointer(message: &str, field: &str) -> bool {
    let short = message.rsplit('.').next().unwrap_or(message);
    let full = format!("{short}.{field}");
    (POINTERS.contains(&field) || POINTERS.contains(&full.as_str()))
        && !NO_POINTERS.contains(&full.as_str())
}

/// Reads a body.
///
/// # Errors
/// 400 when it is no such message, or of a kind that is not known.
pub fn parse(body: &[u8]) -> Result<Parsed, Status> {
    read(body)
        .map(|value| Parsed {
            value,
            ..Parsed::default()
        })
        .map_err(|why| {
            Status::bad_request(format!(
                "the body could not be read as Kubernetes protobuf: {why}"
            ))
        })
}

fn read(body: &[u8]) -> Result<Value, String> {
    let envelope = body
        .strip_prefix(MAGIC)
        .ok_or("it does not begin with the format's magic number")?;
    let (mut type_meta, mut raw): (&[u8], &[u8]) = (b"", b"");
    for field in Fields(envelope) {
        match field? {
            (1, Wire::Bytes(bytes)) => type_meta = bytes,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (api_version, kind) = (text_field(type_meta, 1)?, text_field(type_meta, 2)?);
    let (group, version) = balsa_api::object::split_api_version(&api_version);
    let schema = Schema::builtin();
    let type_ = match kind.as_str() {
        "DeleteOptions" => schema.definition(DELETE_OPTIONS),
        kind => schema.kind(group, version, kind),
    };
    let unknown = || format!("no kind \"{kind}\" is registered for version \"{api_version}\"");
    let type_ = type_.ok_or_else(unknown)?;
    let mut value = struct_value(type_, raw, MAX_DEPTH)?;
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    Ok(value)
}

fn struct_value(type_: Type<'_>, bytes: &[u8], depth: usize) -> Result<Value, String> {
    let (Some(fields), Some(definition)) = (type_.as_struct(), type_.definition()) else {
        return Ok(Value::Null);
    };
    let mut out = Map::new();
    message(fields, definition.name(), bytes, &mut out, depth)?;
    Ok(Value::Object(out))
}

fn message(
    type_: Struct<'_>,
    name: &str,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    let depth = depth.checked_sub(1).ok_or("it is nested too deeply")?;
    // A message newer than the table, or fields newer than it, are passed over as protobuf wants it.
    let Some(table) = MESSAGES.get(name) else {
        return Ok(());
    };
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let Some(entry) = table.get(&number) else {
            continue;
        };
        match (type_.field(entry.name), &entry.inline, wire) {
            (Some(field), _, wire) => put(name, field, wire, out, depth)?,
            (None, Some(inline), Wire::Bytes(bytes)) => message(type_, inline, bytes, out, depth)?,
            _ => {}
        }
    }
    Ok(())
}

fn put(
    message: &str,
    field: Field<'_>,
    wire: Wire<'_>,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    match (field.type_().shape(), wire) {
        (Shape::List(list), wire) => {
            let slot = out
                .entry(field.name())
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(items) = slot {
                push(list.item(), wire, items, depth)?;
            }
        }
        (Shape::Map { value, .. }, Wire::Bytes(bytes)) => {
            let slot = out
                .entry(field.name())
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = slot {
                let (key, value) = map_entry(value, bytes, depth)?;
                map.insert(key, value);
            }
        }
        (_, wire) => {
            let Some(value) = single(field.type_(), wire, depth)? else {
                return Ok(());
            };
            let zero = matches!(&value, Value::Bool(false))
                || value.as_str() == Some("")
                || value.as_f64().is_some_and(|n| n == 0.0);
            if !zero || field.required() || is_pointer(message, field.name()) {
                out.insert(field.name().to_owned(), value);
            }
        }
    }
    Ok(())
}

fn push(
    item: Type<'_>,
    wire: Wire<'_>,
    items: &mut Vec<Value>,
    depth: usize,
) -> Result<(), String> {
    match (item.shape(), wire) {
        // Packed.
        (Shape::Integer { .. }, Wire::Bytes(mut bytes)) => {
            while !bytes.is_empty() {
                items.push(signed(varint(&mut bytes)?).into());
            }
        }
        (_, wire) => items.extend(single(item, wire, depth)?),
    }
    Ok(())
}

fn map_entry(value_type: Type<'_>, bytes: &[u8], depth: usize) -> Result<(String, Value), String> {
    let mut key = String::new();
    let mut value = None;
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Bytes(bytes)) => key = utf8(bytes)?,
            (2, Wire::Bytes(bytes)) if matches!(value_type.shape(), Shape::List(_)) => {
                value = Some(wrapped_list(value_type, bytes, depth)?);
            }
            (2, wire) => value = single(value_type, wire, depth)?,
            _ => {}
        }
    }
    // An absent value is its type's zero; only texts and bytes are maps' values that may be empty.
    Ok((key, value.unwrap_or_else(|| "".into())))
}

/// A list as the value of a map is a message around it.
fn wrapped_list(type_: Type<'_>, bytes: &[u8], depth: usize) -> Result<Value, String> {
    let mut items = Vec::new();
    if let Shape::List(list) = type_.shape() {
        for field in Fields(bytes) {
            let (_, wire) = field?;
            push(list.item(), wire, &mut items, depth)?;
        }
    }
    Ok(Value::Array(items))
}

/// One value; `None` for what stands for nothing (the zero time).
fn single(type_: Type<'_>, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, String> {
    Ok(match (type_.shape(), wire) {
        (Shape::Boolean, Wire::Number(n)) => Some((n != 0).into()),
        (Shape::Integer { .. }, Wire::Number(n)) => Some(signed(n).into()),
        (Shape::Number, Wire::Fixed(bits)) => Some(f64::from_bits(bits).into()),
        (Shape::Text { base64: false }, Wire::Bytes(bytes)) => Some(utf8(bytes)?.into()),
        (Shape::Text { base64: true }, Wire::Bytes(bytes)) => Some(STANDARD.encode(bytes).into()),
        (Shape::Quantity, Wire::Bytes(bytes)) => Some(text_field(bytes, 1)?.into()),
        (Shape::IntOrString, Wire::Bytes(bytes)) => Some(int_or_string(bytes)?),
        (Shape::Time, Wire::Bytes(bytes)) => {
            time(bytes)?.map(|t| balsa_api::object::format_time(t).into())
        }
        (Shape::MicroTime, Wire::Bytes(bytes)) => {
            time(bytes)?.map(|t| balsa_api::object::format_micro_time(t).into())
        }
        (Shape::Struct(_), Wire::Bytes(bytes)) => Some(struct_value(type_, bytes, depth)?),
        (Shape::SchemaOr(schema, other), Wire::Bytes(bytes)) => {
            schema_or(schema, other, bytes, depth)?
        }
        // RawExtension, FieldsV1, JSON: a message around JSON; or one without fields.
        (Shape::Any, Wire::Bytes(_)) if is_empty_message(type_) => Some(Map::new().into()),
        (Shape::Any, Wire::Bytes(bytes)) => {
            let json = bytes_field(bytes, 1)?;
            if json.is_empty() {
                None
            } else {
                Some(serde_json::from_slice(json).map_err(|e| e.to_string())?)
            }
        }
        _ => None,
    })
}

fn is_empty_message(type_: Type<'_>) -> bool {
    type_
        .definition()
        .is_some_and(|d| d.name().ends_with(".CustomResourceSubresourceStatus"))
}

/// `JSONSchemaPropsOrArray`, `OrBool`, `OrStringArray`: in field 1 the schema and in 2 the list; or in field 1 the
/// boolean and in 2 the schema.
fn schema_or(
    schema: Type<'_>,
    other: Type<'_>,
    bytes: &[u8],
    depth: usize,
) -> Result<Option<Value>, String> {
    let depth = depth.checked_sub(1).ok_or("it is nested too deeply")?;
    let mut items = Vec::new();
    let mut found = None;
    for field in Fields(bytes) {
        match (field?, other.shape()) {
            ((2, wire), Shape::List(list)) => push(list.item(), wire, &mut items, depth)?,
            ((1, Wire::Number(n)), Shape::Boolean) => {
                found = found.or_else(|| Some((n != 0).into()));
            }
            ((2, Wire::Bytes(bytes)), Shape::Boolean) | ((1, Wire::Bytes(bytes)), _) => {
                found = Some(struct_value(schema, bytes, depth)?);
            }
            _ => {}
        }
    }
    Ok(match (found, other.shape()) {
        (None, Shape::List(_)) => Some(Value::Array(items)),
        (None, _) => Some(Value::Bool(false)),
        (found, _) => found,
    })
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(n)) => is_text = n == 1,
            (2, Wire::Number(n)) => number = signed(n),
            (3, Wire::Bytes(bytes)) => text = utf8(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn time(bytes: &[u8]) -> Result<Option<Timestamp>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(n)) => seconds = signed(n),
            (2, Wire::Number(n)) => nanos = i32::try_from(signed(n)).unwrap_or_default(),
            _ => {}
        }
    }
    Timestamp::new(seconds, nanos)
        .map(Some)
        .map_err(|e| e.to_string())
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|e| e.to_string())
}

fn bytes_field(bytes: &[u8], wanted: u32) -> Result<&[u8], String> {
    for field in Fields(bytes) {
        if let (number, Wire::Bytes(found)) = field?
            && number == wanted
        {
            return Ok(found);
        }
    }
    Ok(b"")
}

fn text_field(bytes: &[u8], wanted: u32) -> Result<String, String> {
    utf8(bytes_field(bytes, wanted)?)
}

/// Integers travel in two's complement of 64 bits.
fn signed(number: u64) -> i64 {
    i64::from_ne_bytes(number.to_ne_bytes())
}

// === wire format ===

enum Wire<'a> {
    Number(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = b"";
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Wire<'a>), String> {
        let key = varint(&mut self.0)?;
        let number = u32::try_from(key >> 3).map_err(|_| "a field number is out of range")?;
        let wire = match key & 7 {
            0 => Wire::Number(varint(&mut self.0)?),
            1 => Wire::Fixed(u64::from_le_bytes(
                self.take(8)?.try_into().map_err(|_| "it ends too early")?,
            )),
            2 => {
                let length = usize::try_from(varint(&mut self.0)?)
                    .map_err(|_| "a length is out of range")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                // No field of Kubernetes has this type; it is passed over.
                Wire::Number(0)
            }
            other => return Err(format!("wire type {other} is unknown")),
        };
        Ok((number, wire))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (head, tail) = self.0.split_at_checked(length).ok_or("it ends too early")?;
        self.0 = tail;
        Ok(head)
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or("it ends too early")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is too long".to_owned())
}

#[cfg(test)]
mod tests;
