//! Namespaces are deleted by the namespace controller, which empties them first: DELETE only says so, and
//! `finalize` takes away the controllers' finalizers in `spec`.

use balsa_api::object;
use balsa_api::status::Status;
use bytes::Bytes;
use http::Response;
use jiff::Timestamp;
use serde_json::Value;

use super::deletion::Verdict;
use super::update::{Change, How};
use super::{Registry, Target, admit, metadata, shape};
use crate::http::context::Context;
use crate::seam::ResponseBody;

/// What a DELETE of a namespace does.
#[must_use]
pub fn decide(namespace: &Value, now: Timestamp) -> Verdict {
    let waits = namespace
        .pointer("/spec/finalizers")
        .and_then(Value::as_array)
        .is_some_and(|f| !f.is_empty());
    let held = waits || !object::finalizers(namespace).is_empty();
    match (object::is_deleting(namespace), held) {
        (_, false) => Verdict::Remove,
        (true, true) => Verdict::Pending,
        (false, true) => {
            let mut new = namespace.clone();
            object::metadata_mut(&mut new)
                .insert("deletionTimestamp".into(), object::format_time(now).into());
            new["status"]["phase"] = "Terminating".into();
            Verdict::Begin(new)
        }
    }
}

impl Registry {
    /// PUT to `namespaces/NAME/finalize`: only `spec.finalizers` counts.
    pub async fn finalize(
        &self,
        cx: &Context,
        target: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let mut sent = admit::object_of(cx, target, body)?;
        metadata::check_name(&mut sent, &target.name)?;
        let produce = |old: &Value| {
            let mut new = old.clone();
            let version = object::resource_version(&sent).to_owned();
            if !version.is_empty() {
                object::set_resource_version(&mut new, &version);
            }
            if !new["spec"].is_object() {
                new["spec"] = Value::Object(serde_json::Map::new());
            }
            match sent.pointer("/spec/finalizers") {
                Some(Value::Array(list)) if !list.is_empty() => {
                    new["spec"]["finalizers"] = list.clone().into()
                }
                _ => {
                    if let Some(spec) = new["spec"].as_object_mut() {
                        spec.remove("finalizers");
                    }
                }
            }
            Ok(new)
        };
        let change = Change {
            how: How::Own,
            lens: None,
            subresource: "finalize",
            produce: &produce,
            track: false,
        };
        let bytes = self.modify(cx, target, &change).await?;
        shape::object(200, &target.kind, bytes, accepted, &cx.query)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_namespace_terminates_while_it_has_finalizers() {
        let now = object::parse_time("2026-01-01T00:00:00Z").unwrap();
        let active = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Verdict::Begin(terminating) = decide(&active, now) else {
            panic!("not begun")
        };
        assert_eq!(terminating["status"]["phase"], "Terminating");
        assert_eq!(decide(&terminating, now), Verdict::Pending);
        let empty = json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
        assert_eq!(decide(&empty, now), Verdict::Remove);
    }
}
