//! From what the API says to what the overlay, the proxy and DNS are told.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use balsa_client::{Delta, Informer};
use balsa_dns::{Dns, Zone, ZoneConfig};
use balsa_proxy::{HostPort, Protocol, Snapshot};
use balsa_vxlan::Peer;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span, warn};

use super::{Watched, on_each_change};
use crate::config::AgentConfig;

/// Wakes `changed` whenever the informer's objects change in a way that matters.
pub(super) fn wake<K>(
    informer: &Informer<K>,
    changed: &Arc<Notify>,
    matters: impl Fn(&Delta<K>) -> bool + Send + Sync + 'static,
) where
    K: kube::Resource + Clone + Send + Sync + 'static,
{
    let changed = Arc::clone(changed);
    informer.on_change(move |delta| {
        if matters(delta) {
            changed.notify_one();
        }
    });
}

/// Whether what `part` makes of an object changed.
fn differs<K, T: PartialEq>(delta: &Delta<K>, part: impl Fn(&K) -> T) -> bool {
    delta.is_delete() || delta.old().map(|old| part(old)) != Some(part(delta.object()))
}

/// Keeps the overlay told of the other nodes.
pub(super) fn peers(
    overlay: balsa_vxlan::Handle,
    me: String,
    nodes: &Informer<Node>,
    stop: &CancellationToken,
) {
    let changed = Arc::new(Notify::new());
    // Heartbeats change nothing here.
    wake(nodes, &changed, |delta| differs(delta, peer));
    let (nodes, stop) = (nodes.clone(), stop.clone());
    let task = async move {
        // As in `services`.
        tokio::select! {
            () = stop.cancelled() => return,
            () = nodes.synced() => {}
        }
        on_each_change("peers", changed, &stop, move || {
            overlay.set_peers(
                nodes
                    .list()
                    .iter()
                    .filter_map(|node| peer(node))
                    .filter(|p| p.name != me)
                    .collect(),
            );
        });
    };
    tokio::spawn(task.instrument(info_span!("network", part = "peers")));
}

/// A node that pods can be reached on.
fn peer(node: &Node) -> Option<Peer> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let node_ip = addresses
        .iter()
        .find(|a| a.type_ == "InternalIP")?
        .address
        .parse()
        .ok()?;
    let pod_cidr = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
    Some(Peer {
        name: node.metadata.name.clone()?,
        node_ip,
        pod_cidr,
    })
}

/// Keeps the proxy told of Services, endpoints and host ports.
pub(super) fn services(
    proxy: balsa_proxy::Handle,
    me: &str,
    watched: &Watched,
    slices: &Informer<EndpointSlice>,
    stop: &CancellationToken,
) {
    let changed = Arc::new(Notify::new());
    wake(&watched.services, &changed, |_| true);
    wake(slices, &changed, |_| true);
    wake(&watched.pods, &changed, |delta| differs(delta, host_ports));
    wake(&watched.nodes, &changed, |delta| differs(delta, zone));
    let me = me.to_owned();
    let (watched, slices, stop) = (watched.clone(), slices.clone(), stop.clone());
    let task = async move {
        // An incomplete picture would take away what is in the kernel from before a restart.
        tokio::select! {
            () = stop.cancelled() => return,
            () = async {
                watched.services.synced().await;
                slices.synced().await;
                watched.pods.synced().await;
            } => {}
        }
        on_each_change("services", changed, &stop, move || {
            proxy.update(Snapshot {
                services: watched.services.list(),
                slices: slices.list(),
                zone: watched.nodes.get("", &me).and_then(|node| zone(&node)),
                host_ports: watched
                    .pods
                    .list()
                    .iter()
                    .flat_map(|pod| host_ports(pod))
                    .collect(),
            });
        });
    };
    tokio::spawn(task.instrument(info_span!("network", part = "services")));
}

/// The zone that a node is in.
fn zone(node: &Node) -> Option<String> {
    let labels = node.metadata.labels.as_ref()?;
    labels.get("topology.kubernetes.io/zone").cloned()
}

/// Ports of the node that lead to the pod. Pods in the node's own network need none.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else {
        return Vec::new();
    };
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let address = status.pod_ip.as_deref().and_then(|ip| ip.parse().ok());
    let (Some(pod_ip), false, false) = (address, finished, spec.host_network.unwrap_or(false))
    else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let number = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                protocol: Protocol::parse(port.protocol.as_deref())?,
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: number(port.host_port?)?,
                pod_ip,
                pod_port: number(port.container_port)?,
            })
        })
        .collect()
}

/// Answers names on the node, and keeps what is answered up to date. DNS that cannot listen is tried again
/// until it can: pods without names are better than a node without pods.
pub(super) fn names(
    config: &AgentConfig,
    address: IpAddr,
    services: &Informer<Service>,
    slices: &Informer<EndpointSlice>,
    stop: &CancellationToken,
) {
    const AGAIN: Duration = Duration::from_secs(1);
    let zone_config = ZoneConfig {
        domain: config.cluster_domain.clone(),
        server: address,
        networks: vec![config.pod_cidr, config.service_cidr],
    };
    let changed = Arc::new(Notify::new());
    wake(services, &changed, |_| true);
    wake(slices, &changed, |_| true);
    let (services, slices) = (services.clone(), slices.clone());
    let known = (services.clone(), slices.clone());
    let build = move |serial| {
        Zone::build(
            zone_config.clone(),
            serial,
            &services.list(),
            &slices.list(),
        )
    };
    let upstreams: Vec<SocketAddr> = config
        .upstream_dns
        .iter()
        .map(|ip| SocketAddr::new(*ip, 53))
        .collect();
    let stop = stop.clone();
    let task = async move {
        // An incomplete picture would deny names that there are, which programs remember.
        tokio::select! {
            () = stop.cancelled() => return,
            () = async {
                known.0.synced().await;
                known.1.synced().await;
            } => {}
        }
        let zone = Arc::new(ArcSwap::from_pointee(build(0)));
        let shared = Arc::clone(&zone);
        let mut serial = 0u32;
        on_each_change("names", changed, &stop, move || {
            serial = serial.wrapping_add(1);
            shared.store(Arc::new(build(serial)));
        });
        loop {
            let mut settings = balsa_dns::Config::new(vec![SocketAddr::new(address, 53)]);
            settings.upstreams.clone_from(&upstreams);
            match Dns::start(settings, Arc::clone(&zone), stop.clone()) {
                // It runs until `stop`, by itself.
                Ok(_) => return,
                Err(error) => warn!(%error, "trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    };
    tokio::spawn(task.instrument(info_span!("network", part = "dns")));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_a_peer_once_it_has_an_address_and_a_pod_cidr() {
        let mut node = json!({"metadata": {"name": "a"}, "status": {"addresses": [
            {"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "10.0.0.1"}]}});
        assert_eq!(peer(&serde_json::from_value(node.clone()).unwrap()), None);
        node["spec"]["podCIDR"] = json!("10.244.3.0/24");
        let peer = peer(&serde_json::from_value(node).unwrap()).unwrap();
        assert_eq!(
            (peer.node_ip.to_string(), peer.pod_cidr.to_string()),
            ("10.0.0.1".into(), "10.244.3.0/24".into())
        );
    }

    #[test]
    fn host_ports_end_with_the_pod() {
        let pod = |phase: &str| {
            serde_json::from_value(json!({
                "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]},
                "status": {"phase": phase, "podIP": "10.244.0.5"},
            }))
            .unwrap()
        };
        assert_eq!(host_ports(&pod("Running")).len(), 1);
        assert_eq!(host_ports(&pod("Succeeded")).len(), 0);
    }
}
