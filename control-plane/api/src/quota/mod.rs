//! ResourceQuota: what an object costs, and which quotas it is charged to.
//!
//! One piece of arithmetic for admission, which refuses what would cost too much, and for the controller that counts
//! what there is. Names are those of `spec.hard` (core/v1 ResourceQuota and the quota design: `pods`,
//! `requests.cpu`, `count/deployments.apps`, `gold.storageclass.storage.k8s.io/requests.storage`, ...).

mod devices;
mod pods;
mod scopes;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use crate::quantity::Quantity;

pub use pods::unspecified;

/// Amounts by quota resource name.
pub type Usage = BTreeMap<String, Quantity>;

/// Claims to devices: what they cost is not only their number.
pub const CLAIMS: (&str, &str) = ("resource.k8s.io", "resourceclaims");
const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
/// Core kinds that may be counted by their plain name.
const PLAIN_COUNTS: [&str; 6] = [
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// What an object costs. Finished pods, and those whose time to stop is over at `now`, cost nothing but their
/// place in `count/pods`.
#[must_use]
pub fn usage(group: &str, plural: &str, object: &Value, now: Timestamp) -> Usage {
    let mut usage = Usage::from([(count_name(group, plural), Quantity::from_units(1))]);
    if (group, plural) == CLAIMS {
        usage.extend(devices::usage(object));
    }
    if !group.is_empty() {
        return usage;
    }
    if PLAIN_COUNTS.contains(&plural) {
        usage.insert(plural.to_owned(), Quantity::from_units(1));
    }
    match plural {
        "pods" if pods::is_counted(object, now) => usage.extend(pods::usage(object)),
        "services" => usage.extend(service(object)),
        "persistentvolumeclaims" => usage.extend(claim(object)),
        _ => {}
    }
    usage
}

/// `count/pods`, `count/deployments.apps`.
fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() {
        format!("count/{plural}")
    } else {
        format!("count/{plural}.{group}")
    }
}

fn service(object: &Value) -> Usage {
    let ports = object.pointer("/spec/ports").and_then(Value::as_array);
    let all = ports.map_or(0, Vec::len);
    let chosen = ports.into_iter().flatten().filter(|port| {
        port.get("nodePort")
            .and_then(Value::as_i64)
            .unwrap_or_default()
            != 0
    });
    let allocates =
        object.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    let (node_ports, balancers) = match object.pointer("/spec/type").and_then(Value::as_str) {
        Some("NodePort") => (all, 0),
        Some("LoadBalancer") if allocates => (all, 1),
        Some("LoadBalancer") => (chosen.count(), 1),
        _ => (0, 0),
    };
    let units = |count: usize| Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX));
    Usage::from([
        ("services.nodeports".to_owned(), units(node_ports)),
        ("services.loadbalancers".to_owned(), units(balancers)),
    ])
}

fn claim(object: &Value) -> Usage {
    let class = object
        .pointer("/spec/storageClassName")
        .and_then(Value::as_str)
        .or_else(|| {
            object
                .pointer("/metadata/annotations/volume.beta.kubernetes.io~1storage-class")?
                .as_str()
        });
    let amount = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(|value| Quantity::from_value(value).ok())
    };
    // While a claim is shrunk back after a failed expansion, what is allocated counts.
    let storage = amount("/spec/resources/requests/storage")
        .max(amount("/status/allocatedResources/storage"));
    let mut usage = Usage::new();
    let class = class.filter(|class| !class.is_empty());
    if let Some(class) = class {
        let name = format!("{class}{CLASS_SUFFIX}persistentvolumeclaims");
        usage.insert(name, Quantity::from_units(1));
    }
    if let Some(storage) = storage {
        usage.insert("requests.storage".into(), storage);
        usage
            .extend(class.map(|class| (format!("{class}{CLASS_SUFFIX}requests.storage"), storage)));
    }
    usage
}

/// The kind that a name of `spec.hard` is about, as group and plural; `None` for names nobody knows.
#[must_use]
pub fn counts(name: &str) -> Option<(String, String)> {
    if let Some(counted) = name.strip_prefix("count/") {
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Some((group.to_owned(), plural.to_owned()));
    }
    if devices::is_name(name) {
        return Some((CLAIMS.0.to_owned(), CLAIMS.1.to_owned()));
    }
    let plural = if name == "requests.storage" || name.contains(CLASS_SUFFIX) {
        "persistentvolumeclaims"
    } else if name.starts_with("services.") {
        "services"
    } else if PLAIN_COUNTS.contains(&name) {
        name
    } else if pods::is_pod_resource(name) {
        "pods"
    } else {
        return None;
    };
    Some((String::new(), plural.to_owned()))
}

/// The names of `spec.hard`.
fn hard(spec: &Value) -> impl Iterator<Item = &String> {
    spec.get("hard")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|hard| hard.keys())
}

/// The kinds that a quota with this spec counts, as group and plural.
#[must_use]
pub fn counted_kinds(spec: &Value) -> BTreeSet<(String, String)> {
    hard(spec).filter_map(|name| counts(name)).collect()
}

/// True when an object is charged to a quota with this spec: the quota limits something of its kind, and all of
/// the quota's scopes are the object's.
#[must_use]
pub fn matches(spec: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let limits = hard(spec)
        .any(|name| counts(name).is_some_and(|(of_group, of)| of_group == group && of == plural));
    limits && scopes::matches(spec, group, plural, object)
}

/// What an object costs a quota with this spec: its usage, of names that the quota limits. Empty when the object
/// is not charged to it.
#[must_use]
pub fn charge(spec: &Value, group: &str, plural: &str, object: &Value, now: Timestamp) -> Usage {
    if !matches(spec, group, plural, object) {
        return Usage::new();
    }
    let mut usage = usage(group, plural, object, now);
    usage.retain(|name, _| hard(spec).any(|limited| limited == name));
    usage
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn text(usage: &Usage) -> BTreeMap<String, String> {
        usage
            .iter()
            .map(|(name, amount)| (name.clone(), amount.to_string()))
            .collect()
    }

    fn expect(usage: &Usage, wanted: Value) {
        assert_eq!(json!(text(usage)), wanted);
    }

    #[test]
    fn objects_count_by_name_and_by_group() {
        let now = Timestamp::UNIX_EPOCH;
        expect(
            &usage("", "secrets", &json!({}), now),
            json!({"count/secrets": "1", "secrets": "1"}),
        );
        expect(
            &usage("apps", "deployments", &json!({}), now),
            json!({"count/deployments.apps": "1"}),
        );
        assert_eq!(
            counts("count/widgets.example.com"),
            Some(("example.com".into(), "widgets".into()))
        );
        assert_eq!(
            counts("limits.memory"),
            Some((String::new(), "pods".into()))
        );
        let claims = Some(("resource.k8s.io".into(), "resourceclaims".into()));
        assert_eq!(counts("gpu.deviceclass.resource.k8s.io/devices"), claims);
        assert_eq!(counts(".deviceclass.resource.k8s.io/devices"), None);
        assert_eq!(counts("nonsense"), None);
    }

    #[test]
    fn services_cost_node_ports() {
        let service = |extra: Value| {
            let mut spec = json!({"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2, "nodePort": 30000}]});
            spec.as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            usage(
                "",
                "services",
                &json!({"spec": spec}),
                Timestamp::UNIX_EPOCH,
            )
        };
        let of = |usage: Usage| {
            (
                usage["services.nodeports"].value(),
                usage["services.loadbalancers"].value(),
            )
        };
        assert_eq!(of(service(json!({}))), (2, 1));
        assert_eq!(
            of(service(json!({"allocateLoadBalancerNodePorts": false}))),
            (1, 1)
        );
        assert_eq!(of(service(json!({"type": "NodePort"}))), (2, 0));
        assert_eq!(of(service(json!({"type": "ClusterIP"}))), (0, 0));
    }

    #[test]
    fn claims_cost_storage_also_of_their_class() {
        let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "3Gi"}}}});
        let usage = usage("", "persistentvolumeclaims", &claim, Timestamp::UNIX_EPOCH);
        expect(
            &usage,
            json!({
                "count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "3Gi",
                "gold.storageclass.storage.k8s.io/requests.storage": "3Gi",
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
            }),
        );
    }

    #[test]
    fn only_what_is_limited_is_charged() {
        let quota = json!({"hard": {"pods": "5", "requests.cpu": "1"}});
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}},
        ]}});
        let charged = charge(&quota, "", "pods", &pod, Timestamp::UNIX_EPOCH);
        expect(&charged, json!({"pods": "1", "requests.cpu": "100m"}));
        assert!(charge(&quota, "", "services", &json!({}), Timestamp::UNIX_EPOCH).is_empty());
        let scoped = json!({"hard": {"pods": "5", "services": "1"}, "scopes": ["BestEffort"]});
        assert!(charge(&scoped, "", "pods", &pod, Timestamp::UNIX_EPOCH).is_empty());
        // Scopes are about pods: a quota that has some counts nothing else.
        assert!(!matches(&scoped, "", "services", &json!({})));
    }
}
