//! The cluster's names, after Kubernetes' DNS specification 1.1.0.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Version of the DNS specification, answered as `dns-version.<domain>`.
const SPECIFICATION: &str = "1.1.0";
const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What a zone is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneConfig {
    /// The cluster's domain, without dots at its ends: `cluster.local`.
    pub domain: String,
    /// Address of the DNS server itself.
    pub server: IpAddr,
    /// Addresses whose reverse names nobody else knows: the pods' and the Services'.
    pub networks: Vec<IpNet>,
}

/// A target of an SRV record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub port: u16,
    pub name: Arc<str>,
}

/// What a name has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub addresses: Vec<IpAddr>,
    pub targets: Vec<Target>,
    pub alias: Option<String>,
    pub text: Option<String>,
}

/// What is known of a name in the cluster's domain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// It exists (perhaps without records of the wanted type).
    Node(&'a Node),
    /// It is made from an address: `10-244-1-5.namespace.pod`.
    Pod(IpAddr),
    /// It does not exist.
    Nothing,
}

/// The cluster's names at one moment. Immutable: a change makes a new one.
#[derive(Debug)]
pub struct Zone {
    config: ZoneConfig,
    /// Changes with every build, for the SOA record.
    serial: u32,
    /// By full name in lower case without a final dot. Every ancestor below the domain is there, too.
    names: HashMap<Arc<str>, Node>,
    reverse: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    complete: bool,
}

impl Zone {
    /// A zone that knows nothing yet: its names are answered "try again", not "does not exist".
    pub fn unknown(config: ZoneConfig) -> Self {
        let (names, reverse) = Default::default();
        Self {
            config,
            serial: 0,
            names,
            reverse,
            complete: false,
        }
    }

    /// Builds the zone from all Services and EndpointSlices. `serial` should grow from build to build.
    pub fn build(
        config: ZoneConfig,
        serial: u32,
        services: &[Arc<Service>],
        slices: &[Arc<EndpointSlice>],
    ) -> Self {
        let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in slices {
            if let Some(owner) = slice_owner(slice) {
                by_service.entry(owner).or_default().push(slice);
            }
        }
        let mut zone = Self {
            serial,
            complete: true,
            ..Self::unknown(config)
        };
        let domain = zone.config.domain.to_ascii_lowercase();
        zone.node(&format!("dns-version.{domain}")).text = Some(SPECIFICATION.to_owned());
        zone.node(&format!("ns.dns.{domain}")).addresses = vec![zone.config.server];
        zone.node(&format!("svc.{domain}"));
        zone.node(&format!("pod.{domain}"));
        for service in services {
            let meta = &service.metadata;
            let (Some(namespace), Some(name)) = (meta.namespace.as_deref(), meta.name.as_deref())
            else {
                continue;
            };
            let slices = by_service.remove(&(namespace, name)).unwrap_or_default();
            zone.service(
                &format!("{name}.{namespace}.svc.{domain}"),
                service,
                &slices,
            );
        }
        for node in zone.names.values_mut() {
            node.addresses.sort();
            node.addresses.dedup();
            node.targets.sort();
            node.targets.dedup();
        }
        zone
    }

    /// The cluster's domain.
    pub fn domain(&self) -> &str {
        &self.config.domain
    }

    /// Whether the zone was built, and not only promised.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }

    /// Whether a name (lower case, no final dot) is the domain or below it.
    pub(crate) fn contains(&self, name: &str) -> bool {
        name.strip_suffix(self.config.domain.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Looks up a name in the domain (lower case, no final dot).
    pub(crate) fn find(&self, name: &str) -> Found<'_> {
        if let Some(node) = self.names.get(name) {
            return Found::Node(node);
        }
        match self.pod(name) {
            Some(ip) => Found::Pod(ip),
            None => Found::Nothing,
        }
    }

    /// Names of an address; `None` if somebody outside may know more.
    pub(crate) fn names_of(&self, ip: IpAddr) -> Option<Vec<Arc<str>>> {
        match self.reverse.get(&ip) {
            Some(names) => Some(names.iter().cloned().collect()),
            None => self
                .config
                .networks
                .iter()
                .any(|n| n.contains(&ip))
                .then(Vec::new),
        }
    }

    /// `10-244-1-5.NAMESPACE.pod.DOMAIN`; nobody needs to be asked, the name says it.
    fn pod(&self, name: &str) -> Option<IpAddr> {
        let rest = name
            .strip_suffix(self.config.domain.as_str())?
            .strip_suffix(".pod.")?;
        let (dashed, namespace) = rest.split_once('.')?;
        if namespace.is_empty() || namespace.contains('.') {
            return None;
        }
        let v4 = dashed.replace('-', ".").parse().ok().map(IpAddr::V4);
        v4.or_else(|| dashed.replace('-', ":").parse().ok().map(IpAddr::V6))
    }

    /// The node of a name, made with its ancestors if need be.
    fn node(&mut self, name: &str) -> &mut Node {
        let mut ancestor = name;
        while let Some((_, parent)) = ancestor.split_once('.') {
            if self.names.contains_key(parent) || parent.len() < self.config.domain.len() {
                break;
            }
            self.names.insert(parent.into(), Node::default());
            ancestor = parent;
        }
        self.names.entry(name.into()).or_default()
    }

    fn service(&mut self, name: &str, service: &Service, slices: &[&EndpointSlice]) {
        let Some(spec) = &service.spec else { return };
        if spec.type_.as_deref() == Some("ExternalName") {
            let alias = spec
                .external_name
                .as_deref()
                .map(|n| n.trim_end_matches('.').to_ascii_lowercase());
            self.node(name).alias = alias.filter(|a| !a.is_empty());
            return;
        }
        let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let ips: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
        if ips.is_empty() {
            if spec.cluster_ip.as_deref() == Some("None")
                || spec.cluster_ips.iter().flatten().any(|ip| ip == "None")
            {
                self.headless(name, slices);
            }
            return;
        }
        let shared: Arc<str> = name.into();
        for ip in &ips {
            self.reverse.entry(*ip).or_default().insert(shared.clone());
        }
        self.node(name).addresses.extend(ips);
        for port in spec.ports.iter().flatten() {
            let Ok(number) = u16::try_from(port.port) else {
                continue;
            };
            self.target(
                name,
                port.name.as_deref(),
                port.protocol.as_deref(),
                number,
                shared.clone(),
            );
        }
    }

    /// A Service without an address is its endpoints.
    fn headless(&mut self, name: &str, slices: &[&EndpointSlice]) {
        // A headless Service exists even while nothing is behind it.
        self.node(name);
        for slice in slices {
            for endpoint in slice.endpoints.iter().filter(|e| is_ready(e)) {
                self.endpoint(name, slice, endpoint);
            }
        }
    }

    fn endpoint(&mut self, service: &str, slice: &EndpointSlice, endpoint: &Endpoint) {
        let Some(ip) = endpoint
            .addresses
            .first()
            .and_then(|a| a.parse::<IpAddr>().ok())
        else {
            return;
        };
        let hostname = endpoint.hostname.as_deref().filter(|h| !h.is_empty());
        let label = hostname.map_or_else(
            || ip.to_string().replace(['.', ':'], "-"),
            str::to_ascii_lowercase,
        );
        let own: Arc<str> = format!("{label}.{service}").into();
        self.node(service).addresses.push(ip);
        self.node(&own).addresses.push(ip);
        self.reverse.entry(ip).or_default().insert(own.clone());
        for port in slice.ports.iter().flatten() {
            let Some(number) = port.port.and_then(|p| u16::try_from(p).ok()) else {
                continue;
            };
            self.target(
                service,
                port.name.as_deref(),
                port.protocol.as_deref(),
                number,
                own.clone(),
            );
        }
    }

    /// An SRV record; only named ports have one.
    fn target(
        &mut self,
        service: &str,
        port_name: Option<&str>,
        protocol: Option<&str>,
        port: u16,
        name: Arc<str>,
    ) {
        let Some(port_name) = port_name.filter(|n| !n.is_empty()) else {
            return;
        };
        let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
        let owner = format!("_{}._{protocol}.{service}", port_name.to_ascii_lowercase());
        self.node(&owner).targets.push(Target { port, name });
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|c| c.ready)
        .unwrap_or(true)
}

fn slice_owner(slice: &EndpointSlice) -> Option<(&str, &str)> {
    let name = slice.metadata.labels.as_ref()?.get(LABEL_SERVICE_NAME)?;
    Some((slice.metadata.namespace.as_deref()?, name))
}
