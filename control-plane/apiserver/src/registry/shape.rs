//! Objects and lists in the format and shape that the client accepts.

use std::sync::Arc;

use balsa_api::kind::Kind;
use balsa_api::status::{FieldErrors, Status};
use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use serde_json::Value;

use super::Target;
use crate::cache::Stored;
use crate::http::decode::to_yaml;
use crate::http::negotiate::{Accepted, Format, Shape};
use crate::http::protobuf;
use crate::http::query::Query;
use crate::http::respond::{self, JSON, ListBody, YAML};
use crate::render::{self, Include, ListMeta};
use crate::seam::ResponseBody;

/// `includeObject` of Tables.
///
/// # Errors
/// 422 for unknown values.
pub fn include(query: &Query) -> Result<Include, Status> {
    match query.get("includeObject").unwrap_or_default() {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::None),
        "Object" => Ok(Include::Object),
        other => {
            let mut errors = FieldErrors::default();
            errors.not_supported("includeObject", other, &["Metadata", "None", "Object"]);
            Err(Status::invalid("TableOptions", "meta.k8s.io", "", &errors))
        }
    }
}

/// One object.
///
/// # Errors
/// 422 for bad Table options, 500 when it cannot be written in the format.
pub fn object(
    code: u16,
    kind: &Kind,
    object: Bytes,
    accepted: Accepted,
    query: &Query,
) -> Result<Response<ResponseBody>, Status> {
    let bytes = match accepted.shape {
        Shape::Metadata if accepted.format == Format::Protobuf => {
            let written = protobuf::metadata(&object).ok_or_else(unwritable)?;
            return Ok(respond::bytes(code, protobuf::MEDIA_TYPE, written));
        }
        Shape::Plain => object,
        Shape::Table => render::table_of_one(kind, &object, include(query)?, true).into(),
        Shape::Metadata => render::partial_metadata(&object).into(),
    };
    document(code, bytes, accepted.format)
}

/// A document that is already JSON.
///
/// # Errors
/// 500 when it cannot be written in the format.
pub fn document(code: u16, json: Bytes, format: Format) -> Result<Response<ResponseBody>, Status> {
    Ok(match format {
        Format::Json => respond::bytes(code, JSON, json),
        Format::Yaml => respond::bytes(code, YAML, as_yaml(&json)?),
        Format::Protobuf => {
            let written = protobuf::object(&json).ok_or_else(unwritable)?;
            respond::bytes(code, protobuf::MEDIA_TYPE, written)
        }
    })
}

/// 500: an object that is not what its kind says. Nothing of ours writes such.
fn unwritable() -> Status {
    Status::internal("the object could not be written in protobuf")
}

fn as_yaml(json: &[u8]) -> Result<Vec<u8>, Status> {
    to_yaml(&serde_json::from_slice::<Value>(json).map_err(Status::internal)?)
}

/// A list.
///
/// # Errors
/// As [`object`].
pub fn list(
    target: &Target,
    mut objects: Vec<Arc<Stored>>,
    meta: &ListMeta,
    accepted: Accepted,
    query: &Query,
) -> Result<Response<ResponseBody>, Status> {
    let kind = &target.kind;
    if target.convert.is_some() {
        for stored in &mut objects {
            *stored = Arc::new(stored.with_bytes(target.view(stored.bytes.clone())));
        }
    }
    if accepted.format == Format::Protobuf && accepted.shape != Shape::Table {
        return protobuf_list(kind, &objects, meta, accepted.shape);
    }
    let bytes: Bytes = match accepted.shape {
        Shape::Plain if accepted.format == Format::Json => {
            let body = ListBody::new(render::list_frame(kind, meta), objects);
            return Ok(respond::with_body(200, JSON, body.boxed_unsync()));
        }
        Shape::Plain => joined(
            render::list_frame(kind, meta),
            objects.iter().map(|o| o.bytes.clone()),
        ),
        Shape::Metadata => {
            let items = objects
                .iter()
                .map(|o| render::partial_metadata(&o.bytes).into());
            joined(render::metadata_list_frame(meta), items)
        }
        Shape::Table => render::table(kind, &objects, meta, include(query)?).into(),
    };
    document(200, bytes, accepted.format)
}

/// A list in protobuf. It says its length before its items, so all of them are written before the first is sent.
fn protobuf_list(
    kind: &Kind,
    objects: &[Arc<Stored>],
    meta: &ListMeta,
    shape: Shape,
) -> Result<Response<ResponseBody>, Status> {
    let write = || match shape {
        Shape::Metadata => {
            let items = objects.iter().map(|o| o.bytes.as_ref());
            protobuf::metadata_list(meta, items).map(respond::full)
        }
        _ => {
            let messages: Option<Vec<Bytes>> = objects.iter().map(|o| o.protobuf(kind)).collect();
            messages.map(|messages| protobuf::ListBody::new(kind, meta, messages).boxed_unsync())
        }
    };
    let body = if objects.len() < LARGE_LIST {
        write()
    } else {
        blocking(write)
    };
    let body = body.ok_or_else(unwritable)?;
    Ok(respond::with_body(200, protobuf::MEDIA_TYPE, body))
}

/// Objects whose encoding takes so long that other requests should not wait behind it.
const LARGE_LIST: usize = 500;

/// Runs something long on a thread that may be slow, where there are several.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|h| h.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn joined((head, tail): (Bytes, Bytes), items: impl Iterator<Item = Bytes>) -> Bytes {
    let mut out = head.to_vec();
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&item);
    }
    out.extend_from_slice(&tail);
    out.into()
}
