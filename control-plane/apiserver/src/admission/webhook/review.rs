//! `AdmissionReview`: the question that a webhook is asked, and its answer.
//!
//! Source: `admission.k8s.io/v1`; words of errors from apiserver's webhook plugins.

use balsa_api::object;
use balsa_api::status::{Cause, Details, Status};
use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::rules::{Resource, operation_name};
use crate::seam::{AdmissionRequest, Operation, User};

/// A request as one webhook or policy sees it: perhaps in another version than the client's.
pub struct Seen<'a> {
    /// The resource.
    pub resource: &'a Resource,
    /// Group, version and kind of the object.
    pub kind: (&'a str, &'a str, &'a str),
    /// The new object.
    pub object: Option<&'a Value>,
    /// The object as it was.
    pub old: Option<&'a Value>,
}

fn resource_json(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "resource": resource.plural})
}

fn kind_json((group, version, kind): (&str, &str, &str)) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn user_json(user: &User) -> Value {
    let mut info = Map::new();
    if !user.name.is_empty() {
        info.insert("username".into(), user.name.as_str().into());
    }
    if !user.uid.is_empty() {
        info.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        info.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        info.insert("extra".into(), json!(user.extra));
    }
    Value::Object(info)
}

/// The request's description without its objects, as expressions see it too.
#[must_use]
pub fn attributes(request: &AdmissionRequest<'_>, seen: &Seen<'_>) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("kind".into(), kind_json(seen.kind));
    map.insert("resource".into(), resource_json(seen.resource));
    map.insert("requestKind".into(), kind_json(request.object_kind));
    map.insert(
        "requestResource".into(),
        resource_json(&Resource::of(request)),
    );
    let mut text = |field: &str, value: &str| {
        if !value.is_empty() {
            map.insert(field.into(), value.into());
        }
    };
    text("subResource", request.subresource);
    text("requestSubResource", request.subresource);
    text("name", request.name);
    text("namespace", namespace(request));
    map.insert("operation".into(), operation_name(request.operation).into());
    map.insert("userInfo".into(), user_json(request.user));
    map.insert("dryRun".into(), request.dry_run.into());
    map.insert("options".into(), request.options.clone());
    map
}

/// A Namespace is in the namespace that it is.
#[must_use]
pub fn namespace<'a>(request: &AdmissionRequest<'a>) -> &'a str {
    let is_namespace = request.kind.group.is_empty() && request.kind.plural == "namespaces";
    if is_namespace && request.namespace.is_empty() {
        return request.name;
    }
    request.namespace
}

/// The question; returns it with its UID.
#[must_use]
pub fn question(
    request: &AdmissionRequest<'_>,
    seen: &Seen<'_>,
    review_version: &str,
) -> (Value, String) {
    let uid = object::new_uid();
    let mut map = attributes(request, seen);
    map.insert("uid".into(), uid.as_str().into());
    let shown = |object: Option<&Value>| object.cloned().unwrap_or(Value::Null);
    let new = match request.operation {
        Operation::Delete => Value::Null,
        _ => shown(seen.object),
    };
    map.insert("object".into(), new);
    map.insert("oldObject".into(), shown(seen.old));
    let review = json!({
        "kind": "AdmissionReview",
        "apiVersion": format!("admission.k8s.io/{review_version}"),
        "request": map,
    });
    (review, uid)
}

/// What a webhook said.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// The refusal, when it refused.
    pub denied: Option<Status>,
    /// JSON patch, empty when there is nothing to change.
    pub patch: Vec<u8>,
    /// For the client.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: Vec<(String, String)>,
}

/// Reads an answer.
///
/// # Errors
/// What is wrong with it.
pub fn answer(
    review: &Value,
    uid: &str,
    name: &str,
    (mutating, review_version): (bool, &str),
) -> Result<Answer, String> {
    let wanted = format!("admission.k8s.io/{review_version}");
    let (api_version, kind) = (object::api_version(review), object::kind(review));
    // The older version never asked for it.
    let strict = review_version == "v1";
    if strict && (api_version != wanted || kind != "AdmissionReview") {
        return Err(format!(
            "expected webhook response of {wanted}, Kind=AdmissionReview, got {api_version}, Kind={kind}"
        ));
    }
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let got = response["uid"].as_str().unwrap_or_default();
    if strict && got != uid {
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    let list = |field: &str| response[field].as_array().into_iter().flatten();
    let warnings = list("warnings").filter_map(Value::as_str);
    let annotations = response["auditAnnotations"]
        .as_object()
        .into_iter()
        .flatten();
    let allowed = response["allowed"] == true;
    Ok(Answer {
        denied: (!allowed).then(|| denial(name, &response["status"])),
        patch: patch(response, mutating, strict)?,
        warnings: warnings.map(str::to_owned).collect(),
        annotations: annotations
            .filter_map(|(k, v)| Some((format!("{name}/{k}"), v.as_str()?.to_owned())))
            .collect(),
    })
}

fn patch(response: &Value, mutating: bool, strict: bool) -> Result<Vec<u8>, String> {
    let Some(encoded) = response["patch"].as_str().filter(|p| !p.is_empty()) else {
        return Ok(Vec::new());
    };
    if !mutating {
        return Err("validating webhook may not return response.patch".to_owned());
    }
    match response["patchType"].as_str() {
        Some("JSONPatch") => {}
        None if !strict => {}
        None => {
            return Err("webhook returned response.patch but not response.patchType".to_owned());
        }
        Some(other) => {
            return Err(format!(
                "webhook returned invalid response.patchType of {other:?}"
            ));
        }
    }
    base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(|e| format!("webhook returned response.patch that is not base64: {e}"))
}

/// The client's error when a webhook refuses.
fn denial(name: &str, result: &Value) -> Status {
    let by = format!("admission webhook {name:?} denied the request");
    let text = |field: &str| result[field].as_str().filter(|t| !t.is_empty());
    let message = match (text("message"), text("reason")) {
        (Some(why), _) | (None, Some(why)) => format!("{by}: {why}"),
        (None, None) => format!("{by} without explanation"),
    };
    let code = result["code"].as_u64().and_then(|c| u16::try_from(c).ok());
    let code = code.filter(|c| (400..600).contains(c)).unwrap_or(400);
    let mut status = Status::new(code, reason(text("reason").unwrap_or_default()), message);
    status.details = details(&result["details"]);
    status
}

fn details(details: &Value) -> Option<Details> {
    details.as_object()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let causes = details["causes"].as_array().into_iter().flatten();
    Some(Details {
        name: text(&details["name"]),
        group: text(&details["group"]),
        kind: text(&details["kind"]),
        uid: text(&details["uid"]),
        causes: causes
            .map(|cause| Cause {
                reason: text(&cause["reason"]),
                message: text(&cause["message"]),
                field: text(&cause["field"]),
            })
            .collect(),
        retry_after_seconds: details["retryAfterSeconds"]
            .as_u64()
            .and_then(|s| u32::try_from(s).ok()),
    })
}

/// Reasons that clients tell apart (`metav1.StatusReason`).
#[must_use]
pub fn reason(text: &str) -> &'static str {
    const KNOWN: [&str; 19] = [
        "Unauthorized",
        "Forbidden",
        "NotFound",
        "AlreadyExists",
        "Conflict",
        "Gone",
        "Invalid",
        "ServerTimeout",
        "StoreReadError",
        "Timeout",
        "TooManyRequests",
        "BadRequest",
        "MethodNotAllowed",
        "NotAcceptable",
        "RequestEntityTooLarge",
        "UnsupportedMediaType",
        "InternalError",
        "Expired",
        "ServiceUnavailable",
    ];
    KNOWN.into_iter().find(|known| *known == text).unwrap_or("")
}
