//! The maps' names, keys and data, byte by byte as they lie in nftables' registers.

use std::net::{IpAddr, SocketAddr};

use balsa_netlink::nft::{Family, Set, SetFlags, Value, datatype};

use crate::service::Protocol;

/// The sets and maps of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SetId {
    /// Virtual address, protocol, port -> balancer chain.
    Vip,
    /// The same, for senders inside the cluster where `externalTrafficPolicy: Local` treats them otherwise.
    VipInside,
    /// Virtual address, protocol, port, number -> endpoint.
    VipSlot,
    /// Protocol, node port -> balancer chain.
    Node,
    /// As `VipInside` for node ports.
    NodeInside,
    /// Protocol, node port, number -> endpoint.
    NodeSlot,
    /// Protocol, host port -> pod.
    HostPort,
    /// Node address, protocol, host port -> pod.
    HostPortAt,
    /// Virtual address, protocol, port without any endpoint.
    VipEmpty,
    /// Protocol, node port without any endpoint.
    NodeEmpty,
    /// Address, address: endpoints on this node, which may reach themselves through a Service.
    Hairpin,
    /// Client, virtual address, protocol, port -> endpoint; filled by rules, with a timeout.
    VipAffinity,
    /// Virtual address, protocol, port, endpoint: whom a client may stick to.
    VipLive,
    /// Client, protocol, node port -> endpoint; filled by rules, with a timeout.
    NodeAffinity,
    /// Protocol, node port, endpoint.
    NodeLive,
}

/// Clients that are remembered at once, for all Services with affinity together.
const AFFINITY_CLIENTS: u32 = 262_144;

impl SetId {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Vip,
        Self::VipInside,
        Self::VipSlot,
        Self::Node,
        Self::NodeInside,
        Self::NodeSlot,
        Self::HostPort,
        Self::HostPortAt,
        Self::VipEmpty,
        Self::NodeEmpty,
        Self::Hairpin,
        Self::VipAffinity,
        Self::VipLive,
        Self::NodeAffinity,
        Self::NodeLive,
    ];

    /// Name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::VipInside => "vip-inside",
            Self::VipSlot => "vip-slot",
            Self::Node => "node",
            Self::NodeInside => "node-inside",
            Self::NodeSlot => "node-slot",
            Self::HostPort => "host-port",
            Self::HostPortAt => "host-port-at",
            Self::VipEmpty => "vip-empty",
            Self::NodeEmpty => "node-empty",
            Self::Hairpin => "hairpin",
            Self::VipAffinity => "vip-affinity",
            Self::VipLive => "vip-live",
            Self::NodeAffinity => "node-affinity",
            Self::NodeLive => "node-live",
        }
    }

    /// Its declaration.
    pub fn declare(self, family: Family) -> Set {
        use datatype::{MARK, PROTOCOL, SERVICE, VERDICT};
        let ip = if family == Family::Ipv4 {
            datatype::IPV4
        } else {
            datatype::IPV6
        };
        let (key, data): (&[u32], &[u32]) = match self {
            Self::Vip | Self::VipInside => (&[ip, PROTOCOL, SERVICE], &[VERDICT]),
            Self::VipSlot => (&[ip, PROTOCOL, SERVICE, MARK], &[ip, SERVICE]),
            Self::Node | Self::NodeInside => (&[PROTOCOL, SERVICE], &[VERDICT]),
            Self::NodeSlot => (&[PROTOCOL, SERVICE, MARK], &[ip, SERVICE]),
            Self::HostPort => (&[PROTOCOL, SERVICE], &[ip, SERVICE]),
            Self::HostPortAt => (&[ip, PROTOCOL, SERVICE], &[ip, SERVICE]),
            Self::VipEmpty => (&[ip, PROTOCOL, SERVICE], &[]),
            Self::NodeEmpty => (&[PROTOCOL, SERVICE], &[]),
            Self::Hairpin => (&[ip, ip], &[]),
            Self::VipAffinity => (&[ip, ip, PROTOCOL, SERVICE], &[ip, SERVICE]),
            Self::VipLive => (&[ip, PROTOCOL, SERVICE, ip, SERVICE], &[]),
            Self::NodeAffinity => (&[ip, PROTOCOL, SERVICE], &[ip, SERVICE]),
            Self::NodeLive => (&[PROTOCOL, SERVICE, ip, SERVICE], &[]),
        };
        let len = |parts: &[u32]| {
            parts
                .iter()
                .map(|p| if *p == datatype::IPV6 { 16 } else { 4 })
                .sum()
        };
        let dynamic = matches!(self, Self::VipAffinity | Self::NodeAffinity);
        Set {
            name: self.name().to_owned(),
            key_type: datatype::concat(key),
            key_len: len(key),
            data: match data {
                [] => None,
                [VERDICT] => Some((VERDICT, 0)),
                parts => Some((datatype::concat(parts), len(parts))),
            },
            flags: SetFlags {
                timeout: dynamic,
                dynamic,
            },
            size: dynamic.then_some(AFFINITY_CLIENTS),
        }
    }
}

/// Builds a key or data.
#[derive(Debug, Clone, Default)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// Empty.
    pub fn new() -> Self {
        Self(Vec::with_capacity(20))
    }

    /// Appends an address.
    pub fn ip(mut self, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => self.0.extend(ip.octets()),
            IpAddr::V6(ip) => self.0.extend(ip.octets()),
        }
        self
    }

    /// Appends a protocol.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.0.extend([protocol.number(), 0, 0, 0]);
        self
    }

    /// Appends a port.
    pub fn port(mut self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.0.extend([high, low, 0, 0]);
        self
    }

    /// Appends a number in host order.
    pub fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    /// Appends an address and a port.
    pub fn socket(self, address: SocketAddr) -> Self {
        self.ip(address.ip()).port(address.port())
    }

    /// The bytes.
    pub fn value(self) -> Value {
        self.0
    }
}
