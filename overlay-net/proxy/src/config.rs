//! What the proxy is told: once ([`Config`]) and whenever something changes ([`Snapshot`]).

use std::net::IpAddr;
use std::sync::Arc;

use balsa_netlink::nft::{Family, TableName};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::service::Protocol;

/// Settings of a node's proxy.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name: endpoints on it are local.
    pub node_name: String,
    /// All pods' addresses. Traffic from elsewhere to a Service gets the node's source address, and so does
    /// traffic from pods to elsewhere.
    pub cluster_cidrs: Vec<IpNet>,
    /// Service addresses: what no Service claims in them is refused instead of leaving the cluster.
    pub service_cidr: Option<IpNet>,
    /// Service addresses that this node itself answers (cluster DNS): never translated nor refused.
    pub local_vips: Vec<IpAddr>,
    /// Name of the nftables table, which belongs to the proxy alone.
    pub table: String,
}

impl Config {
    /// Settings with the default table name and neither a service range nor local addresses.
    pub fn new(node_name: impl Into<String>, cluster_cidrs: Vec<IpNet>) -> Self {
        Self {
            node_name: node_name.into(),
            cluster_cidrs,
            service_cidr: None,
            local_vips: Vec::new(),
            table: "balsa".to_owned(),
        }
    }

    pub(crate) fn table_name(&self) -> TableName {
        TableName {
            family: Family::Ipv4,
            name: self.table.clone(),
        }
    }
}

/// A pod's container port that is reachable on the node's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// Protocol.
    pub protocol: Protocol,
    /// The node's address it is bound to; every address when unset (`0.0.0.0` counts as unset).
    pub host_ip: Option<IpAddr>,
    /// Port on the node.
    pub host_port: u16,
    /// The pod's address.
    pub pod_ip: IpAddr,
    /// Port in the pod.
    pub pod_port: u16,
}

/// Everything the proxy serves, as it is now.
///
/// Objects come from the informers' stores as they are; an object behind the same `Arc` as last time costs
/// nothing. Give the first snapshot only when the informers have listed everything: whatever is missing is
/// removed from the node.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All Services.
    pub services: Vec<Arc<Service>>,
    /// All EndpointSlices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// This node's zone (label `topology.kubernetes.io/zone`): Services may prefer endpoints in it.
    pub zone: Option<String>,
    /// Host ports of this node's running pods that do not use the host's network.
    pub host_ports: Vec<HostPort>,
}
