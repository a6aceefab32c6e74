//! From a Service and a pod to an endpoint and its ports. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::support::pods;

/// Marks slices and Endpoints of headless Services.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Address families of a Service, as `addressType`.
pub(super) fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let listed = spec
        .and_then(|spec| spec.ip_families.as_deref())
        .unwrap_or_default();
    if listed.is_empty() {
        let six = spec
            .and_then(|spec| spec.cluster_ip.as_deref())
            .is_some_and(|ip| ip.contains(':'));
        return vec![if six { "IPv6" } else { "IPv4" }];
    }
    listed
        .iter()
        .map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" })
        .collect()
}

pub(super) fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref())
        == Some("None")
}

pub(super) fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        == Some(true)
}

/// The pod's address of a family.
pub(super) fn address<'a>(pod: &'a Pod, family: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut all = listed
        .chain(status.pod_ip.as_deref())
        .filter(|ip| !ip.is_empty());
    all.find(|ip| ip.contains(':') == (family == "IPv6"))
}

/// True when an endpoint would look different after the change.
pub(super) fn matters(old: &Pod, new: &Pod) -> bool {
    let face = |pod: &Pod| {
        let status = pod.status.as_ref();
        (
            pods::is_ready(pod),
            pods::is_terminating(pod),
            pods::is_terminal(pod),
            pods::node_name(pod).to_owned(),
            status.and_then(|status| status.pod_ip.clone()),
            status.and_then(|status| status.pod_ips.clone()),
            pod.spec
                .as_ref()
                .map(|spec| (spec.hostname.clone(), spec.subdomain.clone())),
        )
    };
    old.metadata.labels != new.metadata.labels || face(old) != face(new)
}

/// The pod's endpoint of a family, or `None` when it has no address or is finished.
pub(super) fn endpoint(
    service: &Service,
    pod: &Pod,
    family: &str,
    node: Option<&Node>,
) -> Option<Endpoint> {
    if pods::is_terminal(pod) {
        return None;
    }
    let address = address(pod, family)?;
    let (serving, terminating) = (pods::is_ready(pod), pods::is_terminating(pod));
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let node_name = Some(pods::node_name(pod))
        .filter(|name| !name.is_empty())
        .map(str::to_owned);
    let zone = node.and_then(|node| node.labels().get(ZONE)).cloned();
    Some(Endpoint {
        hints: hints(service, ready, node_name.as_deref(), zone.as_deref()),
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name,
        target_ref: Some(target(pod)),
        zone,
        ..Endpoint::default()
    })
}

/// Who should use an endpoint first, by `spec.trafficDistribution` (KEP-4444, KEP-3015).
fn hints(
    service: &Service,
    ready: bool,
    node: Option<&str>,
    zone: Option<&str>,
) -> Option<EndpointHints> {
    let wanted = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let same_node = wanted == "PreferSameNode";
    if !ready || !(same_node || matches!(wanted, "PreferClose" | "PreferSameZone")) {
        return None;
    }
    let node = node
        .filter(|_| same_node)
        .map(|name| ForNode { name: name.into() });
    let zone = zone.map(|name| ForZone { name: name.into() });
    let hints = EndpointHints {
        for_nodes: node.map(|node| vec![node]),
        for_zones: zone.map(|zone| vec![zone]),
    };
    (hints != EndpointHints::default()).then_some(hints)
}

pub(super) fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.namespace(),
        name: pod.metadata.name.clone(),
        uid: pod.uid(),
        ..ObjectReference::default()
    }
}

/// Pods with a hostname and this Service as subdomain get DNS names of their own.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec
        .hostname
        .clone()
        .filter(|hostname| !hostname.is_empty())?;
    (spec.subdomain.as_deref() == service.metadata.name.as_deref()).then_some(hostname)
}

/// The Service's ports as this pod has them. A named port that the pod lacks is left out.
pub(super) fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let wanted = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    wanted
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                // Unnamed ports have an empty name in slices, not none.
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(port, pod)?),
                protocol: Some(protocol(port).to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

pub(super) fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
    let mut all = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    let found = all.find(|candidate| {
        candidate.name.as_ref() == Some(name)
            && candidate.protocol.as_deref().unwrap_or("TCP") == protocol(port)
    })?;
    Some(found.container_port)
}

/// The Service's own labels, without what is ours to say, and the headless mark.
pub(super) fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::{ContainerPort, ServiceSpec};

    use super::*;
    use crate::support::pods::tests::pod;

    fn with_ip(mut pod: Pod) -> Pod {
        pod.status.as_mut().unwrap().pod_ip = Some("10.244.0.5".into());
        pod
    }

    fn service(target: IntOrString) -> Service {
        let port = ServicePort {
            port: 80,
            target_port: Some(target),
            ..ServicePort::default()
        };
        let mut service = Service {
            spec: Some(ServiceSpec {
                ports: Some(vec![port]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        service.metadata.name = Some("web".into());
        service
    }

    fn conditions(service: &Service, pod: &Pod) -> (bool, bool, bool) {
        let conditions = endpoint(service, pod, "IPv4", None)
            .unwrap()
            .conditions
            .unwrap();
        (
            conditions.ready.unwrap(),
            conditions.serving.unwrap(),
            conditions.terminating.unwrap(),
        )
    }

    #[test]
    fn a_terminating_pod_serves_but_is_not_ready() {
        let mut service = service(IntOrString::Int(80));
        let mut ready = with_ip(pod("p", "Running", "a", true));
        assert_eq!(conditions(&service, &ready), (true, true, false));
        ready.metadata.deletion_timestamp = Some(balsa_client::time::now());
        assert_eq!(conditions(&service, &ready), (false, true, true));
        service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        assert_eq!(conditions(&service, &ready), (true, true, true));
    }

    #[test]
    fn traffic_stays_close_when_the_service_asks_for_it() {
        let mut service = service(IntOrString::Int(80));
        let ready = with_ip(pod("p", "Running", "a", true));
        let mut node = Node::default();
        node.labels_mut().insert(ZONE.into(), "z1".into());
        let mut hints = |wanted: Option<&str>, pod: &Pod| {
            service.spec.as_mut().unwrap().traffic_distribution = wanted.map(str::to_owned);
            endpoint(&service, pod, "IPv4", Some(&node)).unwrap().hints
        };
        assert_eq!(hints(None, &ready), None);
        let zone = hints(Some("PreferClose"), &ready).unwrap();
        assert_eq!(
            (zone.for_zones.unwrap()[0].name.as_str(), zone.for_nodes),
            ("z1", None)
        );
        let node = hints(Some("PreferSameNode"), &ready).unwrap();
        assert_eq!(node.for_nodes.unwrap()[0].name, "a");
        assert_eq!(
            hints(
                Some("PreferClose"),
                &with_ip(pod("p", "Running", "a", false))
            ),
            None
        );
    }

    #[test]
    fn pods_without_address_or_life_have_no_endpoint() {
        let service = service(IntOrString::Int(80));
        assert!(endpoint(&service, &pod("p", "Pending", "", false), "IPv4", None).is_none());
        assert!(
            endpoint(
                &service,
                &with_ip(pod("p", "Failed", "a", false)),
                "IPv4",
                None
            )
            .is_none()
        );
        assert!(
            endpoint(
                &service,
                &with_ip(pod("p", "Running", "a", true)),
                "IPv6",
                None
            )
            .is_none()
        );
    }

    #[test]
    fn a_named_port_is_looked_up_in_the_pod() {
        let service = service(IntOrString::String("http".into()));
        let mut pod = pod("p", "Running", "a", true);
        assert!(ports(&service, &pod).is_empty());
        let port = ContainerPort {
            name: Some("http".into()),
            container_port: 8080,
            ..ContainerPort::default()
        };
        let container = Container {
            ports: Some(vec![port]),
            ..Container::default()
        };
        pod.spec.as_mut().unwrap().containers = vec![container];
        assert_eq!(ports(&service, &pod)[0].port, Some(8080));
    }

    #[test]
    fn only_changes_that_show_in_endpoints_matter() {
        let old = with_ip(pod("p", "Running", "a", true));
        let mut new = old.clone();
        new.metadata.resource_version = Some("2".into());
        assert!(!matters(&old, &new));
        new.labels_mut().insert("a".into(), "b".into());
        assert!(matters(&old, &new));
        assert!(matters(&old, &with_ip(pod("p", "Running", "a", false))));
    }
}
