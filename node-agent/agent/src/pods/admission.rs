//! The node's own check of pods bound to it: the scheduler's view may have been stale, and some bind past it.

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// What the node offers, and its labels.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offer {
    pub(crate) cpu_milli: i64,
    pub(crate) memory: i64,
    pub(crate) pods: i64,
    pub(crate) labels: BTreeMap<String, String>,
}

/// Why the pod is refused, as reason and message; `None` if it is welcome.
pub(crate) fn refuse(pod: &Pod, others: &[Arc<Pod>], offer: &Offer) -> Option<(String, String)> {
    let spec = pod.spec.as_ref()?;
    let refusal = |reason: &str, message: String| {
        Some((reason.to_owned(), format!("Pod was rejected: {message}")))
    };
    let lacks = |(key, value): (&String, &String)| offer.labels.get(key) != Some(value);
    if spec.node_selector.iter().flatten().any(lacks) {
        return refusal(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                .to_owned(),
        );
    }
    let others: Vec<&PodSpec> = others
        .iter()
        .filter(|other| !ended(other))
        .filter_map(|other| other.spec.as_ref())
        .collect();
    if let Some(port) = conflict(spec, &others) {
        return refusal(
            "NodePorts",
            format!("Predicate NodePorts failed: node port {port} is taken"),
        );
    }
    let count = others.len() as i64 + 1;
    if count > offer.pods {
        let used = others.len();
        let message = format!(
            "Node didn't have enough resource: pods, requested: 1, used: {used}, capacity: {}",
            offer.pods
        );
        return refusal("OutOfpods", message);
    }
    for (name, capacity) in [("cpu", offer.cpu_milli), ("memory", offer.memory)] {
        let requested = request(spec, name);
        let used: i64 = others.iter().map(|other| request(other, name)).sum();
        if requested > 0 && requested.saturating_add(used) > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            );
            return refusal(&format!("OutOf{name}"), message);
        }
    }
    None
}

/// Does it use nothing any more?
pub(crate) fn ended(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a pod asks for: the sum of its containers, or the largest init container if that is more.
fn request(spec: &PodSpec, name: &str) -> i64 {
    let of = |resources: &Option<k8s_openapi::api::core::v1::ResourceRequirements>| {
        let text = resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()?.get(name));
        let amount = text
            .and_then(|text| text.0.parse::<Quantity>().ok())
            .unwrap_or_default();
        if name == "cpu" {
            amount.milli_value()
        } else {
            amount.value()
        }
    };
    let sum: i64 = spec
        .containers
        .iter()
        .map(|container| of(&container.resources))
        .sum();
    let inits = spec.init_containers.iter().flatten();
    let (mut sidecars, mut peak) = (0_i64, 0_i64);
    for init in inits {
        let own = of(&init.resources);
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars += own;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + own);
        }
    }
    peak.max(sum + sidecars)
}

fn host_ports(spec: &PodSpec) -> Vec<(i32, String, String)> {
    let host_network = balsa_pod::spec::host_network(spec);
    let ports = spec
        .containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let own = port
            .host_port
            .or_else(|| host_network.then_some(port.container_port))?;
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some((own, protocol, port.host_ip.clone().unwrap_or_default()))
    });
    taken.collect()
}

fn conflict(spec: &PodSpec, others: &[&PodSpec]) -> Option<i32> {
    let taken: Vec<_> = others.iter().flat_map(|other| host_ports(other)).collect();
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
    let clashes = |a: &(i32, String, String), b: &(i32, String, String)| {
        a.0 == b.0 && a.1 == b.1 && (any(&a.2) || any(&b.2) || a.2 == b.2)
    };
    host_ports(spec)
        .into_iter()
        .find(|port| taken.iter().any(|other| clashes(port, other)))
        .map(|port| port.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod(container: serde_json::Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({"spec": {"containers": [container]}})).unwrap())
    }

    fn offer() -> Offer {
        Offer {
            cpu_milli: 1000,
            memory: 1 << 30,
            pods: 2,
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn too_much_cpu_or_too_many_pods_are_refused() {
        let half = pod(json!({"name": "c", "resources": {"requests": {"cpu": "600m"}}}));
        assert_eq!(refuse(&half, &[], &offer()), None);
        let (reason, message) = refuse(&half, &[Arc::clone(&half)], &offer()).unwrap();
        assert_eq!(reason, "OutOfcpu");
        assert!(message.ends_with("cpu, requested: 600, used: 600, capacity: 1000"));
        let none = pod(json!({"name": "c"}));
        let full = [Arc::clone(&none), Arc::clone(&none)];
        assert_eq!(refuse(&none, &full, &offer()).unwrap().0, "OutOfpods");
    }

    #[test]
    fn a_taken_port_and_a_missing_label_are_refused() {
        let port = pod(json!({"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}));
        assert_eq!(
            refuse(&port, &[Arc::clone(&port)], &offer()).unwrap().0,
            "NodePorts"
        );
        let mut picky = Pod::clone(&port);
        picky.spec.as_mut().unwrap().node_selector =
            Some([("a".to_owned(), "b".to_owned())].into());
        assert_eq!(refuse(&picky, &[], &offer()).unwrap().0, "NodeAffinity");
    }
}
