//! The overlay between nodes: desired and observed devices, routes, neighbours and FDB entries to operations.
//!
//! [`plan()`] decides, [`Overlay`] carries out: at start, when the peers change, when the kernel says that
//! some device or route changed, and now and then.

mod overlay;
mod plan;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;

pub use overlay::{Handle, Overlay};
pub use plan::{DEVICE, Observed, PORT, Step, VNI, mtu, plan};

/// How packets for other nodes' pods travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// In VXLAN, always.
    #[default]
    Vxlan,
    /// As they are: all nodes are on one link.
    Direct,
    /// As they are to nodes on the same link, in VXLAN to others.
    Auto,
}

/// A node as the overlay sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Node name.
    pub name: String,
    /// Address that outer packets are sent to.
    pub node_ip: IpAddr,
    /// Its pods' addresses.
    pub pod_cidr: IpNet,
}

/// What the overlay of a node needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How packets travel.
    pub mode: Mode,
    /// This node.
    pub local: Peer,
    /// Service addresses: routed to the overlay's device so that connections to them have a route at all.
    pub service_cidr: Option<IpNet>,
    /// Addresses that this node answers itself (cluster DNS); put on `lo`.
    pub local_addresses: Vec<IpAddr>,
    /// The pods' MTU in bytes; computed from the node's device when unset.
    pub mtu: Option<u32>,
}

/// Why the overlay cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No device has the node's address.
    #[error("no network device has this node's address {0}; give the right one with --node-ip")]
    NoNodeAddress(IpAddr),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] balsa_netlink::Error),
    /// Steps were carried out, and still others are needed: somebody else works against us.
    #[error("the overlay does not settle: after {0} rounds there is still something to change")]
    Unsettled(usize),
}
