//! `pods/NAME/binding`: the scheduler's word on where a pod runs.
//!
//! Rules: `registry/core/pod/storage.BindingREST`.

use balsa_api::object;
use balsa_api::status::{FieldErrors, Status};
use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};

use super::admit::{self, Question};
use super::update::{Change, How};
use super::{Registry, Target};
use crate::http::context::Context;
use crate::http::respond;
use crate::seam::{Operation, ResponseBody};

impl Registry {
    /// POST of a Binding, to the pod's subresource or to `bindings` (then the Binding's name is the pod's).
    pub async fn bind(
        &self,
        cx: &Context,
        pod: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        cx.accepted(false)?;
        let mut binding = admit::body_of(cx, "", "v1", "Binding", body)?;
        let name = if pod.name.is_empty() {
            object::name(&binding).to_owned()
        } else {
            pod.name.clone()
        };
        let pod = pod.named(&name);
        let node = check(&binding, &name)?;
        let dry_run = cx.dry_run()?;
        let question = Question::new(cx, &pod, Operation::Create, dry_run)
            .on("binding")
            .of_kind("", "v1", "Binding");
        self.mutate(question, Some(&mut binding), None).await?;
        self.validate_admission(question, Some(&mut binding), None)
            .await?;
        let now = object::format_time(jiff::Timestamp::now());
        let produce = |old: &Value| assign(&pod, old, &binding, &node, &now);
        let change = Change {
            how: How::Own,
            lens: None,
            subresource: "binding",
            produce: &produce,
            // As upstream: nobody owns the node of a pod that was scheduled.
            track: false,
        };
        self.modify(cx, &pod, &change).await?;
        let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond::json(201, &body))
    }
}

/// Checks a Binding; returns the node's name.
fn check(binding: &Value, name: &str) -> Result<String, Status> {
    let mut errors = FieldErrors::default();
    let text = |pointer: &str| {
        binding
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let kind = text("/target/kind");
    if !matches!(kind, "" | "Node") {
        errors.not_supported("target.kind", kind, &["Node", "<empty>"]);
    }
    let node = text("/target/name");
    if node.is_empty() {
        errors.required("target.name", "");
    }
    if !errors.is_empty() {
        return Err(Status::invalid("Binding", "", name, &errors));
    }
    let given = object::name(binding);
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    Ok(node.to_owned())
}

/// The pod on its node.
fn assign(
    target: &Target,
    pod: &Value,
    binding: &Value,
    node: &str,
    now: &str,
) -> Result<Value, Status> {
    let uid = object::uid(binding);
    if !uid.is_empty() && uid != object::uid(pod) {
        return Err(target.conflict(&format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            object::uid(pod)
        )));
    }
    if object::is_deleting(pod) {
        return Err(target.conflict(&format!(
            "pod {} is being deleted, cannot be assigned to a host",
            target.name
        )));
    }
    let assigned = pod
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !assigned.is_empty() {
        return Err(target.conflict(&format!(
            "pod {} is already assigned to node \"{assigned}\"",
            target.name
        )));
    }
    if pod
        .pointer("/spec/schedulingGates")
        .and_then(Value::as_array)
        .is_some_and(|g| !g.is_empty())
    {
        return Err(target.conflict(&format!(
            "pod {} has non-empty .spec.schedulingGates",
            target.name
        )));
    }
    let mut new = pod.clone();
    new["spec"]["nodeName"] = node.into();
    for (key, value) in object::annotations(binding).into_iter().flatten() {
        object::set_annotation(&mut new, key, value.as_str().unwrap_or_default());
    }
    for (key, value) in object::labels(binding).into_iter().flatten() {
        if object::label(&new, key).is_none() {
            object::set_label(&mut new, key, value.as_str().unwrap_or_default());
        }
    }
    set_scheduled(&mut new, now);
    Ok(new)
}

fn set_scheduled(pod: &mut Value, now: &str) {
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let mut condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    if object::generation(pod) != 0 {
        condition["observedGeneration"] = object::generation(pod).into();
    }
    match pod["status"]["conditions"].as_array_mut() {
        Some(list) => match list.iter_mut().find(|c| c["type"] == "PodScheduled") {
            Some(present) => *present = condition,
            None => list.push(condition),
        },
        None => pod["status"]["conditions"] = json!([condition]),
    }
}
