//! Network devices, addresses, routes, neighbours and forwarding entries: plain values and the [`Links`] trait.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ipnet::IpNet;

use crate::error::Result;

/// A link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered unicast address made from an IP address: the same on every node that
    /// computes it, so that nobody has to be told.
    pub fn for_ip(tag: u8, ip: IpAddr) -> Self {
        let low = match ip {
            IpAddr::V4(ip) => ip.octets(),
            IpAddr::V6(ip) => fold(ip),
        };
        Self([0x02, tag, low[0], low[1], low[2], low[3]])
    }
}

fn fold(ip: Ipv6Addr) -> [u8; 4] {
    let mut out = [0u8; 4];
    for (i, byte) in ip.octets().iter().enumerate() {
        out[i % 4] ^= byte.rotate_left((i / 4) as u32);
    }
    out
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let m = self.0;
        write!(
            f,
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            m[0], m[1], m[2], m[3], m[4], m[5]
        )
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Parameters of a vxlan device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of the outer packets.
    pub port: u16,
    /// Source address of the outer packets.
    pub local: IpAddr,
    /// Whether the device learns forwarding entries from traffic.
    pub learning: bool,
}

/// What a device is, as far as this project cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A vxlan device.
    Vxlan(Vxlan),
    /// One end of a veth pair.
    Veth,
    /// A bridge.
    Bridge,
    /// Anything else; the kernel's name of the kind, empty for physical devices and `lo`.
    Other(String),
}

/// A device as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
    /// Link-layer address, if it is an Ethernet-like one.
    pub mac: Option<Mac>,
    /// Interface index of the bridge that the device is a port of.
    pub master: Option<u32>,
    /// What it is.
    pub kind: LinkKind,
}

/// A vxlan device to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVxlan {
    /// Interface name.
    pub name: String,
    /// Link-layer address.
    pub mac: Mac,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
    /// VXLAN parameters.
    pub vxlan: Vxlan,
}

/// A veth pair to create.
#[derive(Debug)]
pub struct NewVeth<'a> {
    /// Name of the end in this namespace.
    pub name: &'a str,
    /// Its link-layer address; the kernel chooses when unset.
    pub mac: Option<Mac>,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// The other end's link-layer address.
    pub peer_mac: Option<Mac>,
    /// Network namespace of the other end; this one when unset.
    pub peer_netns: Option<BorrowedFd<'a>>,
    /// Maximum transmission unit of both ends, in bytes.
    pub mtu: u32,
}

/// Changes to a device; unset means unchanged.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkChange<'a> {
    /// Administrative state.
    pub up: Option<bool>,
    /// Maximum transmission unit in bytes.
    pub mtu: Option<u32>,
    /// Link-layer address.
    pub mac: Option<Mac>,
    /// New name (the device must be down).
    pub name: Option<&'a str>,
    /// Make it a port of this bridge (interface index), 0 to release it.
    pub master: Option<u32>,
    /// Move it to this network namespace.
    pub netns: Option<BorrowedFd<'a>>,
}

/// How far an address or a route is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// On the link only.
    Link,
    /// On this host only: never chosen as a source address for other hosts.
    Host,
}

/// An address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Interface index.
    pub link: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// How far it is valid.
    pub scope: Scope,
}

/// What a route does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sends them on.
    Unicast,
    /// Answers that the destination is unreachable. Such a route has no device.
    Unreachable,
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// What it does.
    pub kind: RouteKind,
    /// Destination; `0.0.0.0/0` is the default route.
    pub destination: IpNet,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// Interface index; 0 for none.
    pub link: u32,
    /// Take the next hop as reachable on the link although no address there covers it.
    pub onlink: bool,
    /// Source address for packets of this host.
    pub source: Option<IpAddr>,
    /// `Link` for destinations on the link itself, else `Global`.
    pub scope: Scope,
    /// Marked as this project's, by its routing protocol number: such routes may be removed without asking.
    pub managed: bool,
}

impl Route {
    /// A managed route to what is on the link itself.
    pub fn on_link(destination: IpNet, link: u32) -> Self {
        Self {
            kind: RouteKind::Unicast,
            destination,
            via: None,
            link,
            onlink: false,
            source: None,
            scope: Scope::Link,
            managed: true,
        }
    }

    /// A managed route by a next hop.
    pub fn via(destination: IpNet, via: IpAddr, link: u32) -> Self {
        Self {
            via: Some(via),
            scope: Scope::Global,
            ..Self::on_link(destination, link)
        }
    }

    /// A managed route that answers "unreachable".
    pub fn unreachable(destination: IpNet) -> Self {
        Self {
            kind: RouteKind::Unreachable,
            scope: Scope::Global,
            ..Self::on_link(destination, 0)
        }
    }
}

/// A neighbour entry: the link-layer address of a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// Interface index.
    pub link: u32,
    /// Network address.
    pub ip: IpAddr,
    /// Link-layer address.
    pub mac: Mac,
    /// Whether it stays until it is removed.
    pub permanent: bool,
}

/// A forwarding entry of a vxlan device: which host a link-layer address is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Interface index.
    pub link: u32,
    /// Link-layer address.
    pub mac: Mac,
    /// The host to send the outer packet to.
    pub destination: IpAddr,
}

/// The kernel's network devices and tables, in one network namespace.
///
/// Calls block for microseconds. `put_*` are idempotent: what exists is replaced. Removing what does not
/// exist is an error for which [`crate::Error::is_not_found`] is true.
pub trait Links: Send + Sync {
    /// All devices.
    fn links(&self) -> Result<Vec<Link>>;
    /// The device of this name.
    fn link(&self, name: &str) -> Result<Option<Link>>;
    /// Creates a vxlan device (down).
    fn add_vxlan(&self, new: &NewVxlan) -> Result<()>;
    /// Creates a veth pair (both ends down).
    fn add_veth(&self, new: &NewVeth<'_>) -> Result<()>;
    /// Creates a bridge (down).
    fn add_bridge(&self, name: &str) -> Result<()>;
    /// Changes a device.
    fn change_link(&self, index: u32, change: &LinkChange<'_>) -> Result<()>;
    /// Removes a device (a veth's peer goes with it).
    fn delete_link(&self, index: u32) -> Result<()>;

    /// All addresses.
    fn addresses(&self) -> Result<Vec<Address>>;
    /// Adds an address.
    fn put_address(&self, address: &Address) -> Result<()>;
    /// Removes an address.
    fn delete_address(&self, address: &Address) -> Result<()>;

    /// Unicast and unreachable routes of the main table.
    fn routes(&self) -> Result<Vec<Route>>;
    /// Adds a route, replacing one to the same destination.
    fn put_route(&self, route: &Route) -> Result<()>;
    /// Removes a route.
    fn delete_route(&self, route: &Route) -> Result<()>;

    /// Neighbour entries of a device that have a link-layer address.
    fn neighbours(&self, link: u32) -> Result<Vec<Neighbour>>;
    /// Adds or replaces a neighbour entry.
    fn put_neighbour(&self, neighbour: &Neighbour) -> Result<()>;
    /// Removes a neighbour entry.
    fn delete_neighbour(&self, neighbour: &Neighbour) -> Result<()>;

    /// Forwarding entries of a vxlan device.
    fn fdb(&self, link: u32) -> Result<Vec<FdbEntry>>;
    /// Adds or replaces a forwarding entry.
    fn put_fdb(&self, entry: &FdbEntry) -> Result<()>;
    /// Removes a forwarding entry.
    fn delete_fdb(&self, entry: &FdbEntry) -> Result<()>;
}

/// The unspecified address of the same family.
pub fn unspecified(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// The address as a network of one host.
pub fn host_net(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}
