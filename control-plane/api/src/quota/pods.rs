//! What a pod costs.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::Usage;
use crate::object;
use crate::quantity::Quantity;

type Amounts = BTreeMap<String, Quantity>;

/// Compute resources that may be limited without a prefix (they mean requests), and must then be set on each
/// container.
const COMPUTE: [&str; 6] = [
    "cpu",
    "limits.cpu",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.memory",
];

/// False for finished pods, and for those that should have stopped by now (their node may be gone).
pub(super) fn is_counted(pod: &Value, now: Timestamp) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return false;
    }
    let deleted = object::deletion_timestamp(pod).and_then(object::parse_time);
    let grace = object::deletion_grace_period_seconds(pod);
    match deleted.zip(grace) {
        Some((deleted, grace)) => {
            let end = deleted.checked_add(SignedDuration::from_secs(grace));
            end.is_ok_and(|end| now <= end)
        }
        None => true,
    }
}

pub(super) fn is_pod_resource(name: &str) -> bool {
    name == "pods"
        || name == "ephemeral-storage"
        || COMPUTE.contains(&name)
        || name.starts_with("requests.")
        || name.starts_with("limits.")
        || name.starts_with("hugepages-")
}

fn amounts(list: Option<&Value>) -> Amounts {
    let fields = list.and_then(Value::as_object).into_iter().flatten();
    fields
        .filter_map(|(name, value)| Some((name.clone(), Quantity::from_value(value).ok()?)))
        .collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).copied().unwrap_or(Quantity::ZERO) + *amount;
        to.insert(name.clone(), sum);
    }
}

fn raise(to: &mut Amounts, at_least: &Amounts) {
    for (name, amount) in at_least {
        let most = to
            .get(name)
            .copied()
            .map_or(*amount, |own| own.max(*amount));
        to.insert(name.clone(), most);
    }
}

fn list<'a>(spec: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    spec.get(field)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// A container's requests or limits. While it is resized, the larger of what it has and what it is to have.
fn of_container(pod: &Value, container: &Value, what: &str) -> Amounts {
    let mut own = amounts(container.pointer(&format!("/resources/{what}")));
    if what == "requests" {
        let name = container.get("name");
        let status = pod.get("status").unwrap_or(&Value::Null);
        let statuses =
            list(status, "containerStatuses").chain(list(status, "initContainerStatuses"));
        if let Some(status) = statuses
            .into_iter()
            .find(|status| status.get("name") == name)
        {
            raise(&mut own, &amounts(status.get("allocatedResources")));
        }
    }
    own
}

/// The pod's requests or limits as a whole: containers run together, init containers one after the other beside
/// the sidecars started before them (KEP-753); pod-level resources replace the sum (KEP-2837).
fn total(pod: &Value, what: &str) -> Amounts {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let mut total = Amounts::new();
    for container in list(spec, "containers") {
        add(&mut total, &of_container(pod, container, what));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in list(spec, "initContainers") {
        let mut own = of_container(pod, container, what);
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut peak, &sidecars);
        } else {
            add(&mut own, &sidecars);
            raise(&mut peak, &own);
        }
    }
    raise(&mut total, &peak);
    for (name, amount) in amounts(spec.pointer(&format!("/resources/{what}"))) {
        total.insert(name, amount);
    }
    let overhead = amounts(spec.get("overhead"));
    if what == "requests" {
        add(&mut total, &overhead);
    } else {
        // Only what is limited at all is limited with the overhead.
        let limited: Amounts = overhead
            .into_iter()
            .filter(|(name, _)| total.contains_key(name))
            .collect();
        add(&mut total, &limited);
    }
    total
}

pub(super) fn usage(pod: &Value) -> Usage {
    let mut usage = compute(&total(pod, "requests"), &total(pod, "limits"));
    usage.insert("pods".into(), Quantity::from_units(1));
    usage
}

/// Requests and limits under their quota names.
fn compute(requests: &Amounts, limits: &Amounts) -> Usage {
    let mut usage = Usage::new();
    for (name, amount) in requests {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                usage.insert(name.clone(), *amount);
                usage.insert(format!("requests.{name}"), *amount);
            }
            _ if name.starts_with("hugepages-") => {
                usage.insert(name.clone(), *amount);
                usage.insert(format!("requests.{name}"), *amount);
            }
            // Extended resources have a domain.
            _ if name.contains('/') => {
                usage.insert(format!("requests.{name}"), *amount);
            }
            _ => {}
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), *amount);
        }
    }
    usage
}

/// What a pod must say because a quota limits it: `must specify limits.cpu for: web; ...`, or `None` when all is
/// said. `limited` are the names of the quota's `spec.hard`.
#[must_use]
pub fn unspecified<'a>(limited: impl IntoIterator<Item = &'a str>, pod: &Value) -> Option<String> {
    let required: BTreeSet<&str> = limited
        .into_iter()
        .filter(|name| COMPUTE.contains(name))
        .collect();
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let whole = compute(
        &amounts(spec.pointer("/resources/requests")),
        &amounts(spec.pointer("/resources/limits")),
    );
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in list(spec, "containers").chain(list(spec, "initContainers")) {
        let own = compute(
            &amounts(container.pointer("/resources/requests")),
            &amounts(container.pointer("/resources/limits")),
        );
        let name = container
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        for resource in &required {
            if !own.contains_key(*resource) && !whole.contains_key(*resource) {
                missing.entry(resource).or_default().insert(name);
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts = missing.into_iter().map(|(resource, containers)| {
        let containers: Vec<&str> = containers.into_iter().collect();
        format!("{resource} for: {}", containers.join(","))
    });
    Some(format!(
        "must specify {}",
        parts.collect::<Vec<_>>().join("; ")
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn container(name: &str, cpu: &str) -> Value {
        json!({"name": name, "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}})
    }

    fn cpu(pod: &Value) -> String {
        usage(pod)["requests.cpu"].to_string()
    }

    #[test]
    fn containers_add_up_and_init_containers_peak() {
        let mut sidecar = container("s", "100m");
        sidecar["restartPolicy"] = json!("Always");
        let pod = json!({"spec": {
            "containers": [container("a", "200m"), container("b", "300m")],
            "initContainers": [sidecar, container("i", "800m")],
            "overhead": {"cpu": "50m"},
        }});
        // max(200 + 300 + 100, 100 + 800) + 50
        assert_eq!(cpu(&pod), "950m");
        assert_eq!(usage(&pod)["limits.cpu"].to_string(), "950m");
    }

    #[test]
    fn pod_level_resources_replace_the_sum_and_devices_count_as_requests() {
        let mut pod = json!({"spec": {"containers": [container("a", "200m")]}});
        pod["spec"]["resources"] = json!({"requests": {"cpu": "1"}});
        assert_eq!(cpu(&pod), "1");
        pod["spec"]["containers"][0]["resources"]["requests"]["example.com/gpu"] = json!("2");
        assert_eq!(usage(&pod)["requests.example.com/gpu"].to_string(), "2");
    }

    #[test]
    fn pods_that_are_done_or_should_be_are_free() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(!is_counted(&json!({"status": {"phase": "Failed"}}), at(0)));
        let going = json!({"metadata": {
            "deletionTimestamp": "1970-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30,
        }});
        assert!(is_counted(&going, at(90)));
        assert!(!is_counted(&going, at(91)));
    }

    #[test]
    fn what_is_limited_must_be_specified() {
        let pod = json!({"spec": {"containers": [container("a", "1"), {"name": "b"}]}});
        assert_eq!(unspecified(["pods"], &pod), None);
        assert_eq!(
            unspecified(["requests.memory", "limits.cpu"], &pod).unwrap(),
            "must specify limits.cpu for: b; requests.memory for: a,b"
        );
    }
}
