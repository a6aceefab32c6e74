//! Services and endpoints as the proxy needs them: plain values, read tolerantly from the API's objects.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{EndpointHints, EndpointSlice};

/// Label that hands a Service to another proxy.
const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Services with this label are treated as if they had no virtual address.
const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Label that ties an EndpointSlice to its Service.
const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Reads Kubernetes' name of a protocol; unset is TCP.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// Namespace and name of a Service.
pub(crate) type ServiceKey<'a> = (&'a str, &'a str);

/// A Service that has virtual addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VirtualService {
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs` and the load balancer's addresses.
    pub external_ips: Vec<IpAddr>,
    /// Those of them that only [`Self::sources`] may use: the load balancer's.
    pub guarded_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`; everybody when empty.
    pub sources: Vec<IpNet>,
    pub ports: Vec<Port>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `sessionAffinity: ClientIP` and its timeout.
    pub affinity: Option<Duration>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// One address and port behind a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub address: SocketAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// On this node.
    pub local: bool,
    /// Whether it is meant for this node; unset without such hints (KEP-3015).
    pub for_node: Option<bool>,
    /// Whether it is meant for this node's zone; unset without such hints (KEP-4444).
    pub for_zone: Option<bool>,
}

/// The key of a Service.
pub(crate) fn service_key(service: &Service) -> ServiceKey<'_> {
    let meta = &service.metadata;
    (
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// The key of the Service that an EndpointSlice belongs to.
pub(crate) fn slice_owner(slice: &EndpointSlice) -> Option<ServiceKey<'_>> {
    let name = slice.metadata.labels.as_ref()?.get(LABEL_SERVICE_NAME)?;
    Some((
        slice.metadata.namespace.as_deref().unwrap_or_default(),
        name,
    ))
}

/// Reads a Service; `None` if it has no virtual address (headless, ExternalName) or another proxy serves it.
pub(crate) fn virtual_service(service: &Service) -> Option<VirtualService> {
    if service
        .metadata
        .labels
        .as_ref()
        .is_some_and(|l| l.contains_key(LABEL_PROXY_NAME) || l.contains_key(LABEL_HEADLESS))
    {
        return None;
    }
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let listed = spec.cluster_ips.iter().flatten();
    let mut cluster_ips: Vec<IpAddr> = listed
        .chain(&spec.cluster_ip)
        .filter_map(|ip| ip.parse().ok())
        .collect();
    cluster_ips.sort();
    cluster_ips.dedup();
    if cluster_ips.is_empty() {
        return None;
    }
    let ingress = service
        .status
        .iter()
        .filter_map(|s| s.load_balancer.as_ref())
        .flat_map(|l| l.ingress.iter().flatten());
    let balanced = ingress
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.as_ref());
    let guarded_ips: Vec<IpAddr> = balanced.filter_map(|ip| ip.parse().ok()).collect();
    let named = spec.external_ips.iter().flatten();
    let mut external_ips: Vec<IpAddr> = named
        .filter_map(|ip| ip.parse().ok())
        .chain(guarded_ips.iter().copied())
        .collect();
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    external_ips.sort();
    external_ips.dedup();
    let exposed = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let ports = spec.ports.iter().flatten().filter_map(|p| {
        Some(Port {
            name: p.name.clone().unwrap_or_default(),
            protocol: Protocol::parse(p.protocol.as_deref())?,
            port: u16::try_from(p.port).ok()?,
            node_port: p
                .node_port
                .filter(|_| exposed)
                .and_then(|n| u16::try_from(n).ok())
                .filter(|n| *n != 0),
        })
    });
    let timeout = spec
        .session_affinity_config
        .as_ref()
        .and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    let timeout = u64::try_from(timeout.unwrap_or(DEFAULT_AFFINITY_SECONDS))
        .ok()
        .filter(|t| *t > 0);
    Some(VirtualService {
        cluster_ips,
        external_ips,
        guarded_ips,
        sources: ranges.filter_map(|r| r.trim().parse().ok()).collect(),
        ports: ports.collect(),
        external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        affinity: timeout
            .filter(|_| spec.session_affinity.as_deref() == Some("ClientIP"))
            .map(Duration::from_secs),
    })
}

/// The endpoints that a Service's slices name for one of its ports, in a stable order.
pub(crate) fn endpoints(
    slices: &[&EndpointSlice],
    port: &Port,
    node_name: &str,
    zone: Option<&str>,
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let number = slice.ports.iter().flatten().find_map(|p| {
            let same_name = p.name.as_deref().unwrap_or_default() == port.name;
            let same = same_name && Protocol::parse(p.protocol.as_deref()) == Some(port.protocol);
            p.port.filter(|_| same).and_then(|n| u16::try_from(n).ok())
        });
        let Some(number) = number else { continue };
        for e in &slice.endpoints {
            // All addresses of an endpoint are the same pod; consumers use the first.
            let Some(ip) = e.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else {
                continue;
            };
            let conditions = e.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            found.push(Endpoint {
                address: SocketAddr::new(ip, number),
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                local: e.node_name.as_deref() == Some(node_name),
                for_node: hinted(e, |h| h.for_nodes.as_deref(), |n| n.name == node_name),
                for_zone: hinted(
                    e,
                    |h| h.for_zones.as_deref(),
                    |z| Some(z.name.as_str()) == zone,
                ),
            });
        }
    }
    // The same address may be in two slices for a moment while they are rebalanced: ready wins.
    found.sort_by_key(|e| (e.address, std::cmp::Reverse(e.ready), e.terminating));
    found.dedup_by_key(|e| e.address);
    found
}

/// Whether an endpoint's hints of one kind mean us; `None` without any.
fn hinted<'e, T: 'e>(
    endpoint: &'e k8s_openapi::api::discovery::v1::Endpoint,
    kind: impl FnOnce(&'e EndpointHints) -> Option<&'e [T]>,
    ours: impl Fn(&T) -> bool,
) -> Option<bool> {
    let hints = endpoint.hints.as_ref().and_then(kind)?;
    (!hints.is_empty()).then(|| hints.iter().any(ours))
}

/// The endpoints that are meant for this node, or else for its zone. Hints count only if all endpoints have them: a
/// controller that is not done yet must not send everybody to the few that it has come to.
pub(crate) fn nearest(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    let kinds: [fn(&Endpoint) -> Option<bool>; 2] = [|e| e.for_node, |e| e.for_zone];
    for kind in kinds {
        let complete = endpoints.iter().all(|e| kind(e).is_some());
        if complete && endpoints.iter().any(|e| kind(e) == Some(true)) {
            endpoints.retain(|e| kind(e) == Some(true));
            return endpoints;
        }
    }
    endpoints
}

/// The endpoints that get traffic: the ready ones, or else those that are going away but still serve. Of a Service with
/// `publishNotReadyAddresses` those that are going away are ready too (KEP-1669).
pub(crate) fn usable(endpoints: impl Iterator<Item = Endpoint> + Clone) -> Vec<Endpoint> {
    let ready: Vec<Endpoint> = endpoints.clone().filter(|e| e.ready).collect();
    if !ready.is_empty() {
        return ready;
    }
    endpoints.filter(|e| e.serving && e.terminating).collect()
}
