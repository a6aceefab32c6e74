//! What a pod asks of a node, and its quality of service.
//!
//! Source of rules: `component-helpers/resource` and `pkg/apis/core/v1/helper/qos`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kinds::amounts::{Amounts, amounts};
use crate::kinds::walk::Walk;
use crate::quantity::Quantity;

/// Whether the pod has the condition `Ready` with status `True`.
#[must_use]
pub fn pod_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|c| c["status"] == "True")
}

/// A condition of the pod's (or any object's) status.
#[must_use]
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"]
        .items()
        .iter()
        .find(|c| c["type"] == type_)
}

/// Whether an init container is a sidecar (`restartPolicy: Always`).
#[must_use]
pub fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// Requests or limits: which of the two to sum up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Requests,
    Limits,
}

impl Side {
    fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// What the scheduler reserves for a pod: the greater of what runs in the end (containers and sidecars) and of
/// what any init container needs beside the sidecars started before it, plus overhead. Requests of the pod
/// itself (`spec.resources`) replace the sum for the resources they name.
#[must_use]
pub fn pod_requests(pod: &Value) -> Amounts {
    effective(pod, Side::Requests)
}

/// The pod's limits by the same rule; overhead counts only for resources that have a limit.
#[must_use]
pub fn pod_limits(pod: &Value) -> Amounts {
    effective(pod, Side::Limits)
}

fn effective(pod: &Value, side: Side) -> Amounts {
    let spec = &pod["spec"];
    let mut total = Amounts::new();
    for container in spec["containers"].items() {
        add(&mut total, &of_container(container, side));
    }
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in spec["initContainers"].items() {
        let own = of_container(container, side);
        if is_sidecar(container) {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut peak, &sidecars);
        } else {
            let mut during = sidecars.clone();
            add(&mut during, &own);
            raise(&mut peak, &during);
        }
    }
    raise(&mut total, &peak);
    for (name, amount) in amounts(&spec["resources"][side.field()]) {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            total.insert(name, amount);
        }
    }
    for (name, amount) in amounts(&spec["overhead"]) {
        match side {
            Side::Requests => *total.entry(name).or_default() += amount,
            Side::Limits => {
                if let Some(limit) = total.get_mut(&name) {
                    *limit += amount;
                }
            }
        }
    }
    total
}

fn of_container(container: &Value, side: Side) -> Amounts {
    amounts(&container["resources"][side.field()])
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        match total.get_mut(name) {
            Some(sum) => *sum += *amount,
            None => {
                total.insert(name.clone(), *amount);
            }
        }
    }
}

fn raise(total: &mut Amounts, floor: &Amounts) {
    for (name, amount) in floor {
        let entry = total.entry(name.clone()).or_insert(*amount);
        if *entry < *amount {
            *entry = *amount;
        }
    }
}

/// `Guaranteed` when every container has cpu and memory limits equal to its requests, `BestEffort` when none has
/// either, else `Burstable`. Resources of the pod itself, when given, decide alone.
#[must_use]
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    if !spec["resources"]["requests"].is_empty() || !spec["resources"]["limits"].is_empty() {
        return class_of(std::iter::once(spec));
    }
    class_of(
        spec["initContainers"]
            .items()
            .iter()
            .chain(spec["containers"].items()),
    )
}

fn class_of<'a>(holders: impl Iterator<Item = &'a Value>) -> &'static str {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut guaranteed = true;
    for holder in holders {
        let own_requests = compute_only(&holder["resources"]["requests"]);
        let own_limits = compute_only(&holder["resources"]["limits"]);
        guaranteed &= ["cpu", "memory"]
            .iter()
            .all(|r| own_limits.contains_key(*r));
        add(&mut requests, &own_requests);
        add(&mut limits, &own_limits);
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed
        && requests
            .iter()
            .all(|(name, amount)| limits.get(name) == Some(amount))
        && requests.len() == limits.len()
    {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// The positive amounts of cpu and memory.
fn compute_only(list: &Value) -> Amounts {
    let mut found = amounts(list);
    found.retain(|name, amount: &mut Quantity| {
        matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero() && !amount.is_negative()
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    fn printed(amounts: &Amounts) -> Vec<String> {
        amounts
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect()
    }

    #[test]
    fn the_classes_follow_requests_and_limits() {
        let of = |containers: Value| qos_class(&json!({"spec": {"containers": containers}}));
        assert_eq!(of(json!([container(json!({}), json!({}))])), "BestEffort");
        assert_eq!(
            of(json!([container(json!({"cpu": "1"}), json!({}))])),
            "Burstable"
        );
        let full = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(
            of(json!([container(
                json!({"cpu": "1000m", "memory": "1Gi"}),
                full.clone()
            )])),
            "Guaranteed"
        );
        assert_eq!(
            of(json!([container(
                json!({"cpu": "500m", "memory": "1Gi"}),
                full
            )])),
            "Burstable"
        );
    }

    #[test]
    fn an_init_container_counts_only_while_it_is_the_peak() {
        let pod = json!({"spec": {
            "containers": [container(json!({"cpu": "1", "memory": "1Gi"}), json!({})), container(json!({"cpu": "500m"}), json!({}))],
            "initContainers": [container(json!({"cpu": "4", "memory": "100Mi"}), json!({}))],
            "overhead": {"cpu": "100m"},
        }});
        assert_eq!(printed(&pod_requests(&pod)), ["cpu=4100m", "memory=1Gi"]);
    }

    #[test]
    fn sidecars_count_beside_what_comes_after_them() {
        let mut sidecar = container(json!({"cpu": "1"}), json!({}));
        sidecar["restartPolicy"] = json!("Always");
        let pod = json!({"spec": {
            "containers": [container(json!({"cpu": "1"}), json!({}))],
            "initContainers": [sidecar, container(json!({"cpu": "3"}), json!({}))],
        }});
        assert_eq!(printed(&pod_requests(&pod)), ["cpu=4"]);
    }

    #[test]
    fn requests_of_the_pod_itself_replace_the_sum() {
        let pod = json!({"spec": {
            "resources": {"requests": {"cpu": "2"}},
            "containers": [container(json!({"cpu": "1", "memory": "1Gi"}), json!({}))],
        }});
        assert_eq!(printed(&pod_requests(&pod)), ["cpu=2", "memory=1Gi"]);
    }

    #[test]
    fn readiness_is_the_ready_condition() {
        assert!(pod_ready(
            &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
        ));
        assert!(!pod_ready(
            &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
        ));
        assert!(!pod_ready(&json!({})));
    }
}
