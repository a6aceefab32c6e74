//! The default objects, kept by the leader: made when they are missing and brought up to date unless somebody
//! took that over (`apf.kubernetes.io/autoupdate-spec: "false"`); and whether FlowSchemas' levels are there.

use balsa_api::object;
use http::{Method, Request};
use serde_json::{Value, json};

use super::{GROUP, LEVELS, SCHEMAS, defaults};
use crate::http::respond;
use crate::seam::{Fence, User};
use crate::server::ApiServer;

const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Makes and mends the objects, once; failures are tried again at the next call.
pub(crate) async fn keep(api: &ApiServer, term: u64) {
    let reader = api.reader();
    for (plural, wanted) in [(LEVELS, defaults::levels()), (SCHEMAS, defaults::schemas())] {
        let path = format!("/apis/{GROUP}/v1/{plural}");
        for wanted in wanted {
            let name = object::name(&wanted).to_owned();
            match reader.get(GROUP, plural, "", &name) {
                None => send(api, term, Method::POST, &path, wanted).await,
                Some(present) => {
                    if let Some(update) = update(&present, &wanted) {
                        send(api, term, Method::PUT, &format!("{path}/{name}"), update).await;
                    }
                }
            }
        }
    }
    for schema in reader.list(GROUP, SCHEMAS, None) {
        let level = schema
            .pointer("/spec/priorityLevelConfiguration/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let there = reader.get(GROUP, LEVELS, "", level).is_some();
        if let Some(update) = dangling(&schema, level, there) {
            let path = format!(
                "/apis/{GROUP}/v1/{SCHEMAS}/{}/status",
                object::name(&schema)
            );
            send(api, term, Method::PUT, &path, update).await;
        }
    }
}

/// The object with the default's spec, when it is to be kept and differs.
pub(super) fn update(present: &Value, wanted: &Value) -> Option<Value> {
    let must = matches!(object::name(present), "exempt" | "catch-all");
    let kept = must || object::annotation(present, AUTOUPDATE) == Some("true");
    if !kept || covers(&present["spec"], &wanted["spec"]) {
        return None;
    }
    let mut new = present.clone();
    new["spec"] = wanted["spec"].clone();
    Some(new)
}

/// Does `present` say all that `wanted` says?
fn covers(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted
            .iter()
            .all(|(k, w)| present.get(k).is_some_and(|p| covers(p, w))),
        (Value::Array(present), Value::Array(wanted)) => {
            present.len() == wanted.len() && present.iter().zip(wanted).all(|(p, w)| covers(p, w))
        }
        (present, wanted) => present == wanted,
    }
}

/// The schema with its `Dangling` condition, when that has to change.
pub(super) fn dangling(schema: &Value, level: &str, there: bool) -> Option<Value> {
    let (status, reason, message) = if there {
        (
            "False",
            "Found",
            format!(
                "This FlowSchema references the PriorityLevelConfiguration object named {level:?} and it exists"
            ),
        )
    } else {
        (
            "True",
            "NotFound",
            format!(
                "This FlowSchema references the PriorityLevelConfiguration object named {level:?} but there is no such object"
            ),
        )
    };
    let conditions = schema
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    let same = conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Dangling" && c["status"] == status);
    if same {
        return None;
    }
    let mut new = schema.clone();
    let mut list = conditions.cloned().unwrap_or_default();
    list.retain(|c| c["type"] != "Dangling");
    list.push(
        json!({"type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": object::format_time(jiff::Timestamp::now())}),
    );
    new["status"] = json!({"conditions": list});
    Some(new)
}

async fn send(api: &ApiServer, term: u64, method: Method, path: &str, body: Value) {
    let mut request = Request::new(respond::full(body.to_string().into()));
    *request.method_mut() = method;
    let Ok(uri) = path.parse() else { return };
    *request.uri_mut() = uri;
    request.headers_mut().insert(
        http::header::USER_AGENT,
        http::HeaderValue::from_static("api-priority-and-fairness-config-consumer-v1"),
    );
    request.extensions_mut().insert(Fence(term));
    let user = User {
        name: "system:apiserver".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..User::default()
    };
    let code = api.call(request, user).await.status();
    if !code.is_success() && code.as_u16() != 409 {
        tracing::debug!(path, %code, "a flow control object could not be written; it is tried again");
    }
}
