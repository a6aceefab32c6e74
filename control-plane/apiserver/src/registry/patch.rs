//! PATCH in its four forms.

use balsa_api::apply::check_options;
use balsa_api::object;
use balsa_api::patch::{Patch, PatchType};
use balsa_api::schema::decode::FieldValidation;
use balsa_api::status::Status;
use bytes::Bytes;
use http::Response;
use serde_json::Value;

use super::update::{Change, How};
use super::{Registry, Target, admit, metadata, shape};
use crate::adapter;
use crate::http::context::Context;
use crate::http::decode;
use crate::http::negotiate::{self, BodyFormat};
use crate::render::api_version;
use crate::seam::ResponseBody;

impl Registry {
    /// PATCH of an object or its status.
    pub async fn patch(
        &self,
        cx: &Context,
        target: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let subresource = cx.info.subresource.as_str();
        let how = if subresource.is_empty() {
            How::Main
        } else {
            How::Status
        };
        let form = PatchType::from_content_type(
            negotiate::raw_content_type(&cx.headers),
            target.custom.is_none() && target.builtin_type.is_some(),
        )?;
        if form == PatchType::Apply {
            let (code, bytes) = self.apply(cx, target, body, how).await?;
            return shape::object(code, &target.kind, bytes, accepted, &cx.query);
        }
        check_options(&cx.field_manager(), cx.query.tristate("force"), false)?;
        let patch = Patch::read(form, body)?;
        let produce = |old: &Value| admit::patched(cx, target, &patch, old);
        let change = Change {
            how,
            lens: None,
            subresource,
            produce: &produce,
            track: true,
        };
        let bytes = self.modify(cx, target, &change).await?;
        shape::object(200, &target.kind, bytes, accepted, &cx.query)
    }

    /// Server-side apply: creates the object when it is not there.
    async fn apply(
        &self,
        cx: &Context,
        target: &Target,
        body: &Bytes,
        how: How,
    ) -> Result<(u16, Bytes), Status> {
        let manager = cx.query.get("fieldManager").unwrap_or_default();
        check_options(manager, cx.query.tristate("force"), true)?;
        let force = cx.query.flag("force");
        let parsed = decode::parse(body, BodyFormat::Yaml)?;
        let mut applied = parsed.value;
        let api_version = api_version(&target.kind);
        metadata::check_type_applied(&api_version, &applied)?;
        metadata::check_type_as(&target.kind.kind, &api_version, &mut applied)?;
        metadata::check_name(&mut applied, &target.name)?;
        metadata::check_namespace(&target.kind, &mut applied, &target.namespace)?;
        let subresource = cx.info.subresource.as_str();
        let repeated = parsed.duplicates.in_apply_patch();
        let validation = cx.field_validation()?;
        if let (FieldValidation::Warn, Some((_, warnings))) = (validation, &repeated) {
            warnings.iter().for_each(|warning| cx.warn(warning.clone()));
        }
        // What does not fit the schema is told before what is written twice.
        let apply = |old: Option<&Value>| {
            let new = adapter::apply(target, old, &applied, manager, subresource, force)?;
            match &repeated {
                Some((refusal, _)) if validation == FieldValidation::Strict => {
                    Err(Status::bad_request(refusal.clone()))
                }
                _ => Ok(new),
            }
        };
        let produce = |old: &Value| apply(Some(old));
        let change = Change {
            how,
            lens: None,
            subresource,
            produce: &produce,
            track: false,
        };
        match self.modify(cx, target, &change).await {
            Err(status) if status.code == 404 && how == How::Main => {
                check_meant_to_be_new(target, &applied)?;
                let mut new = apply(None)?;
                let fields = object::metadata_mut(&mut new)
                    .remove("managedFields")
                    .unwrap_or_default();
                object::set_resource_version(&mut new, "");
                self.create_object(cx, target, new, Some(fields))
                    .await
                    .map(|bytes| (201, bytes))
            }
            other => other.map(|bytes| (200, bytes)),
        }
    }
}

/// Who applies with a UID means the object that had it, and not a new one of its name.
fn check_meant_to_be_new(target: &Target, applied: &Value) -> Result<(), Status> {
    let uid = object::uid(applied);
    if uid.is_empty() {
        return Ok(());
    }
    Err(target.conflict(&format!(
        "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
    )))
}
