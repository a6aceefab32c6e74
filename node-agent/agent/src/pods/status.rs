//! Patches of a pod's status: only what differs from what the API has.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Conditions that a node decides; the others belong to others.
const OURS: [&str; 6] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    RESIZES[0],
    RESIZES[1],
];

/// Those of them that are taken away when they no longer hold.
const RESIZES: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// A condition that a node sets when it throws a pod out, and that is otherwise others'.
const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Fields that a node decides alone: what the API has of them and it does not is taken away.
const OWN_FIELDS: [&str; 4] = [
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "phase",
];

/// Lists that strategic merge would merge by key, and that are replaced as a whole.
const REPLACED: [&str; 2] = ["podIPs", "hostIPs"];

/// The strategic merge patch that brings the API's status to the wanted one; `None` if it is there.
pub(crate) fn patch(api: &PodStatus, wanted: &PodStatus, uid: &str) -> Option<Value> {
    let (Ok(Value::Object(api)), Ok(Value::Object(wanted))) =
        (serde_json::to_value(api), serde_json::to_value(wanted))
    else {
        return None;
    };
    let mut status = Map::new();
    for (key, value) in &wanted {
        let before = api.get(key);
        if before == Some(value) {
            continue;
        }
        match key.as_str() {
            "conditions" => {
                let changed = changed_conditions(before, value);
                if !changed.is_empty() {
                    status.insert(key.clone(), Value::Array(changed));
                }
            }
            key if REPLACED.contains(&key) => {
                let mut list = vec![json!({"$patch": "replace"})];
                list.extend(value.as_array().into_iter().flatten().cloned());
                status.insert(key.to_owned(), Value::Array(list));
            }
            _ => {
                status.insert(key.clone(), value.clone());
            }
        }
    }
    for key in OWN_FIELDS {
        if api.contains_key(key) && !wanted.contains_key(key) {
            status.insert(key.to_owned(), Value::Null);
        }
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

/// Does a patch tell of nothing but a sandbox that is ready, and of its addresses?
pub(crate) fn is_of_sandbox(patch: &Value) -> bool {
    let Some(status) = patch["status"].as_object() else {
        return false;
    };
    status.iter().all(|(key, value)| match key.as_str() {
        "podIP" | "podIPs" => true,
        "conditions" => value.as_array().is_some_and(|conditions| {
            conditions
                .iter()
                .all(|condition| condition["type"] == OURS[0] && condition["status"] == "True")
        }),
        _ => false,
    })
}

fn changed_conditions(before: Option<&Value>, wanted: &Value) -> Vec<Value> {
    let before: Vec<&Value> = before
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    let all = || wanted.as_array().into_iter().flatten();
    let is = |condition: &Value, kind: &str| condition["type"] == kind;
    let ours = all().filter(|condition| {
        OURS.iter().any(|kind| is(condition, kind)) || is(condition, DISRUPTION_TARGET)
    });
    let over = RESIZES.iter().filter(|kind| {
        before.iter().any(|condition| is(condition, kind))
            && !all().any(|condition| is(condition, kind))
    });
    let over: Vec<Value> = over
        .map(|kind| json!({"$patch": "delete", "type": kind}))
        .collect();
    let changed = ours
        .filter(|condition| !before.contains(condition))
        .map(|condition| {
            let mut condition = condition.clone();
            // What a condition no longer says must be taken out of the API's.
            if let Value::Object(fields) = &mut condition {
                for name in ["reason", "message"] {
                    fields.entry(name).or_insert(Value::Null);
                }
            }
            condition
        });
    changed.chain(over).collect()
}

/// The wanted status laid over the API's, where conditions of others are the API's. So is an end that another has
/// declared: a phase goes no further than to `Succeeded` or `Failed`, and what still runs of the pod is stopped.
pub(crate) fn overlay(api: &PodStatus, own: &PodStatus) -> PodStatus {
    let disrupted = own
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == DISRUPTION_TARGET);
    let ours = |kind: &str| OURS.contains(&kind) || (kind == DISRUPTION_TARGET && disrupted);
    let mut conditions: Vec<_> = own
        .conditions
        .iter()
        .flatten()
        .filter(|condition| ours(&condition.type_))
        .cloned()
        .collect();
    conditions.extend(
        api.conditions
            .iter()
            .flatten()
            .filter(|condition| !ours(&condition.type_))
            .cloned(),
    );
    let whole = PodStatus {
        conditions: Some(conditions),
        ..own.clone()
    };
    let ended =
        |status: &PodStatus| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if !ended(api) || ended(own) {
        return whole;
    }
    PodStatus {
        phase: api.phase.clone(),
        reason: api.reason.clone(),
        message: api.message.clone(),
        ..whole
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_end_that_another_declared_stands() {
        let running = status(json!({"phase": "Running"}));
        let failed = status(json!({"phase": "Failed", "reason": "Theirs"}));
        let ended = status(json!({"phase": "Succeeded"}));
        let both = overlay(&failed, &running);
        assert_eq!(both.phase.as_deref(), Some("Failed"));
        assert_eq!(both.reason.as_deref(), Some("Theirs"));
        assert_eq!(overlay(&running, &ended).phase, ended.phase);
        assert_eq!(overlay(&failed, &ended).phase, ended.phase);
    }

    #[test]
    fn nothing_is_patched_when_nothing_differs() {
        let same = status(
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
        );
        assert_eq!(patch(&same, &same, "u"), None);
    }

    #[test]
    fn only_differences_and_only_own_conditions_are_sent() {
        let api = status(
            json!({"phase": "Pending", "qosClass": "BestEffort", "conditions": [
            {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False", "reason": "X"}]}),
        );
        let wanted = status(
            json!({"phase": "Running", "qosClass": "BestEffort", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}]}),
        );
        let patch = patch(&api, &wanted, "u").unwrap();
        let ready = json!({"type": "Ready", "status": "True", "reason": null, "message": null});
        assert_eq!(patch["status"]["conditions"][0]["type"], ready["type"]);
        assert_eq!(patch["status"]["conditions"][0]["reason"], Value::Null);
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(
            patch["status"]["podIPs"],
            json!([{"$patch": "replace"}, {"ip": "10.0.0.1"}])
        );
        assert_eq!(patch["status"].get("qosClass"), None);
        assert_eq!(patch["metadata"]["uid"], "u");
    }

    #[test]
    fn only_news_of_a_ready_sandbox_can_wait_for_more() {
        let ready = |status: &str| json!({"type": "PodReadyToStartContainers", "status": status});
        let of = |status: Value| is_of_sandbox(&json!({"metadata": {}, "status": status}));
        assert!(of(
            json!({"podIP": "10.0.0.1", "conditions": [ready("True")]})
        ));
        assert!(!of(json!({"conditions": [ready("False")]})));
        assert!(!of(
            json!({"conditions": [ready("True"), {"type": "Ready", "status": "True"}]})
        ));
        assert!(!of(json!({"podIP": "10.0.0.1", "phase": "Running"})));
    }

    #[test]
    fn a_resize_that_is_over_takes_its_condition_away() {
        let api =
            status(json!({"conditions": [{"type": "PodResizeInProgress", "status": "True"}]}));
        let patch = patch(&api, &status(json!({"conditions": []})), "u").unwrap();
        assert_eq!(
            patch["status"]["conditions"],
            json!([{"$patch": "delete", "type": "PodResizeInProgress"}])
        );
    }

    #[test]
    fn conditions_of_others_are_taken_from_the_api() {
        let api = status(
            json!({"conditions": [{"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "False"}]}),
        );
        let own = status(
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
        );
        let both = overlay(&api, &own);
        let kinds: Vec<_> = both
            .conditions
            .unwrap()
            .into_iter()
            .map(|c| (c.type_, c.status))
            .collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(kinds, [pair("Ready", "True"), pair("PodScheduled", "True")]);
    }
}
