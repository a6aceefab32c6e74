//! `/scale` (autoscaling/v1 Scale) of kinds that say where their numbers are.

use balsa_api::apply::check_options;
use balsa_api::kind::ScalePaths;
use balsa_api::object;
use balsa_api::patch::{Patch, PatchType};
use balsa_api::selector::Selector;
use balsa_api::status::{FieldErrors, Status};
use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};

use super::scale_table::SCALE;
use super::update::{Change, How, Lens};
use super::{Registry, Target, admit, metadata, options, scale_apply, shape};
use crate::http::context::Context;
use crate::http::decode;
use crate::http::negotiate::{self, BodyFormat};
use crate::seam::ResponseBody;

fn paths(target: &Target) -> Result<ScalePaths, Status> {
    target.kind.strategy.scale().ok_or_else(|| {
        Status::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    })
}

/// The Scale of an object.
fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let number = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_i64)
            .unwrap_or_default()
    };
    let mut metadata = serde_json::Map::new();
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    let mut spec = json!({});
    let replicas = number(&paths.spec_replicas);
    if replicas != 0 {
        spec["replicas"] = replicas.into();
    }
    let mut status = json!({"replicas": number(&paths.status_replicas)});
    let selector = paths
        .selector
        .as_ref()
        .and_then(|p| object.pointer(p))
        .map(selector_text)
        .unwrap_or_default();
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A selector as text: LabelSelectors and plain maps (ReplicationController) are written out.
fn selector_text(selector: &Value) -> String {
    match selector {
        Value::String(text) => text.clone(),
        Value::Object(map)
            if map.contains_key("matchLabels") || map.contains_key("matchExpressions") =>
        {
            let labels = map
                .get("matchLabels")
                .and_then(Value::as_object)
                .filter(|m| !m.is_empty());
            let labels = labels.map(|m| Selector::from_map(Some(m)).to_string());
            let rest = json!({"matchExpressions": map.get("matchExpressions")});
            let rest = Selector::from_label_selector(Some(&rest))
                .map(|s| s.to_string())
                .unwrap_or_default();
            let parts: Vec<String> = labels
                .into_iter()
                .chain((!rest.is_empty()).then_some(rest))
                .collect();
            parts.join(",")
        }
        Value::Object(map) => Selector::from_map(Some(map)).to_string(),
        _ => String::new(),
    }
}

/// The object with the replicas of a Scale.
fn with_scale(
    target: &Target,
    old: &Value,
    scale: &Value,
    paths: &ScalePaths,
) -> Result<Value, Status> {
    let replicas = scale
        .pointer("/spec/replicas")
        .and_then(Value::as_i64)
        .unwrap_or_default();
    if replicas < 0 {
        let mut errors = FieldErrors::default();
        errors.invalid(
            "spec.replicas",
            replicas,
            "must be greater than or equal to 0",
        );
        return Err(Status::invalid(
            "Scale",
            "autoscaling",
            &target.name,
            &errors,
        ));
    }
    let mut new = old.clone();
    let version = object::resource_version(scale).to_owned();
    if !version.is_empty() {
        object::set_resource_version(&mut new, &version);
    }
    let uid = object::uid(scale).to_owned();
    if !uid.is_empty() {
        object::set_uid(&mut new, &uid);
    }
    let mut at = &mut new;
    for part in paths.spec_replicas.split('/').filter(|p| !p.is_empty()) {
        if !at.is_object() {
            // A custom resource may have no spec yet.
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = replicas.into();
    Ok(new)
}

impl Registry {
    /// GET.
    pub async fn get_scale(
        &self,
        cx: &Context,
        target: &Target,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let paths = paths(target)?;
        self.freshen(options::get_freshness(&cx.query)?).await?;
        let stored = target
            .resource
            .get(&target.key())
            .ok_or_else(|| target.not_found())?;
        let stored = target.present(&stored).await?;
        let bytes = serde_json::to_vec(&scale_of(&stored.decode(), &paths)).unwrap_or_default();
        shape::object(200, &SCALE, bytes.into(), accepted, &cx.query)
    }

    /// PUT and PATCH.
    pub async fn put_scale(
        &self,
        cx: &Context,
        target: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(false)?;
        let paths = paths(target)?;
        let wanted = if cx.info.verb == "patch" {
            let form =
                PatchType::from_content_type(negotiate::raw_content_type(&cx.headers), true)?;
            if form == PatchType::Apply {
                Wanted::Applied(applied(cx, target, body)?)
            } else {
                check_options(&cx.field_manager(), cx.query.tristate("force"), false)?;
                Wanted::Patch(Patch::read(form, body)?)
            }
        } else {
            let scale = admit::body_of(cx, "autoscaling", "v1", "Scale", body)?;
            let given = object::name(&scale);
            if !given.is_empty() && given != target.name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({given}) does not match the name on the URL ({})",
                    target.name
                )));
            }
            Wanted::Whole(scale)
        };
        let produce = |old: &Value| {
            let scale = match &wanted {
                Wanted::Whole(scale) => scale.clone(),
                Wanted::Patch(patch) => {
                    let kind = ("autoscaling", "v1", "Scale");
                    admit::patched_body(cx, kind, patch, &scale_of(old, &paths))?
                }
                Wanted::Applied(applied) => {
                    let manager = cx.query.get("fieldManager").unwrap_or_default();
                    let how = (manager, cx.query.flag("force"));
                    let live = scale_of(old, &paths);
                    let (scale, managed) = scale_apply::apply(old, live, applied, &paths, how)?;
                    let mut new = with_scale(target, old, &scale, &paths)?;
                    object::metadata_mut(&mut new).insert("managedFields".into(), managed.into());
                    return Ok(new);
                }
            };
            with_scale(target, old, &scale, &paths)
        };
        let change = Change {
            how: How::Main,
            lens: Some(Lens {
                kind: ("autoscaling", "v1", "Scale"),
                show: &|object| scale_of(object, &paths),
                put: &|object, scale| with_scale(target, object, scale, &paths),
            }),
            subresource: "scale",
            produce: &produce,
            track: !matches!(wanted, Wanted::Applied(_)),
        };
        let bytes = self.modify(cx, target, &change).await?;
        let object: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
        let bytes = serde_json::to_vec(&scale_of(&object, &paths)).unwrap_or_default();
        shape::document(200, bytes.into(), accepted.format)
    }
}

enum Wanted {
    Whole(Value),
    Patch(Patch),
    Applied(Value),
}

/// The Scale that is to be applied.
fn applied(cx: &Context, target: &Target, body: &Bytes) -> Result<Value, Status> {
    let manager = cx.query.get("fieldManager").unwrap_or_default();
    check_options(manager, cx.query.tristate("force"), true)?;
    let mut applied = decode::parse(body, BodyFormat::Yaml)?.value;
    metadata::check_type_applied("autoscaling/v1", &applied)?;
    metadata::check_type_as("Scale", "autoscaling/v1", &mut applied)?;
    metadata::check_name(&mut applied, &target.name)?;
    metadata::check_namespace(&target.kind, &mut applied, &target.namespace)?;
    Ok(applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> ScalePaths {
        ScalePaths {
            spec_replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: Some("/spec/selector".into()),
        }
    }

    #[test]
    fn a_scale_shows_numbers_and_the_selector_as_text() {
        let object = json!({"metadata": {"name": "a", "uid": "u", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 2}});
        let scale = scale_of(&object, &paths());
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"]["replicas"], 2);
        assert!(
            scale["status"]["selector"]
                .as_str()
                .is_some_and(|s| s.contains("app") && s.contains("web"))
        );
        assert_eq!(scale["metadata"], json!({"name": "a", "uid": "u"}));
    }
}
