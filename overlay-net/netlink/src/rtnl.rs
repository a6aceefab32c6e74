//! [`Links`] over rtnetlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use parking_lot::Mutex;

use crate::connection::Connection;
use crate::error::Result;
use crate::links::RouteKind;
use crate::links::{
    Address, FdbEntry, Link, LinkChange, LinkKind, Links, Mac, Neighbour, NewVeth, NewVxlan, Route,
    Scope, Vxlan,
};
use crate::netns::Namespace;
use crate::wire::{self, ACK, CREATE, DUMP, EXCL, REPLACE, REQUEST, Writer};

mod k {
    //! Numbers from linux/{rtnetlink,if_link,if_addr,neighbour}.h.
    pub const RTM_NEWLINK: u16 = 16;
    pub const RTM_DELLINK: u16 = 17;
    pub const RTM_GETLINK: u16 = 18;
    pub const RTM_NEWADDR: u16 = 20;
    pub const RTM_DELADDR: u16 = 21;
    pub const RTM_GETADDR: u16 = 22;
    pub const RTM_NEWROUTE: u16 = 24;
    pub const RTM_DELROUTE: u16 = 25;
    pub const RTM_GETROUTE: u16 = 26;
    pub const RTM_NEWNEIGH: u16 = 28;
    pub const RTM_DELNEIGH: u16 = 29;
    pub const RTM_GETNEIGH: u16 = 30;

    pub const IFF_UP: u32 = 1;

    pub const IFLA_ADDRESS: u16 = 1;
    pub const IFLA_IFNAME: u16 = 3;
    pub const IFLA_MTU: u16 = 4;
    pub const IFLA_MASTER: u16 = 10;
    pub const IFLA_LINKINFO: u16 = 18;
    pub const IFLA_NET_NS_FD: u16 = 28;
    pub const IFLA_INFO_KIND: u16 = 1;
    pub const IFLA_INFO_DATA: u16 = 2;
    pub const VETH_INFO_PEER: u16 = 1;
    pub const IFLA_VXLAN_ID: u16 = 1;
    pub const IFLA_VXLAN_LOCAL: u16 = 4;
    pub const IFLA_VXLAN_LEARNING: u16 = 7;
    pub const IFLA_VXLAN_PORT: u16 = 15;
    pub const IFLA_VXLAN_LOCAL6: u16 = 17;

    pub const IFA_ADDRESS: u16 = 1;
    pub const IFA_LOCAL: u16 = 2;

    pub const RTA_DST: u16 = 1;
    pub const RTA_OIF: u16 = 4;
    pub const RTA_GATEWAY: u16 = 5;
    pub const RTA_PREFSRC: u16 = 7;
    pub const RTA_TABLE: u16 = 15;
    pub const RT_TABLE_MAIN: u8 = 254;
    pub const RTPROT_STATIC: u8 = 4;
    /// Ours: a number that no routing daemon in rt_protos uses.
    pub const RTPROT_BALSA: u8 = 98;
    pub const RTN_UNICAST: u8 = 1;
    pub const RTN_UNREACHABLE: u8 = 7;
    pub const RTNH_F_ONLINK: u32 = 4;
    pub const RT_SCOPE_UNIVERSE: u8 = 0;
    pub const RT_SCOPE_LINK: u8 = 253;
    pub const RT_SCOPE_HOST: u8 = 254;

    pub const NDA_DST: u16 = 1;
    pub const NDA_LLADDR: u16 = 2;
    pub const NTF_SELF: u8 = 2;
    pub const NUD_PERMANENT: u16 = 0x80;
    pub const NUD_FAILED: u16 = 0x20;

    pub const AF_INET: u8 = 2;
    pub const AF_BRIDGE: u8 = 7;
    pub const AF_INET6: u8 = 10;
}

/// The kernel's network devices in one network namespace.
#[derive(Debug)]
pub struct Rtnl {
    connection: Mutex<Connection>,
}

impl Rtnl {
    /// Opens a connection in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self {
            connection: Mutex::new(Connection::open(libc::NETLINK_ROUTE)?),
        })
    }

    /// Opens a connection in another network namespace; it stays there.
    pub fn open_in(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::open)?
    }

    fn request(
        &self,
        what: &str,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: impl FnOnce(&mut Writer),
    ) -> Result<()> {
        self.connection.lock().request(what, |w, sequence| {
            w.begin(kind, REQUEST | ACK | flags, sequence, header);
            attributes(w);
            w.finish();
        })
    }

    fn dump<T>(
        &self,
        what: &str,
        kind: u16,
        header: &[u8],
        answer: u16,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        self.connection.lock().dump(
            what,
            |w, sequence| {
                w.begin(kind, REQUEST | DUMP, sequence, header);
                w.finish();
            },
            |found, message| {
                if message.kind == answer {
                    found.extend(parse(message.payload));
                }
            },
        )
    }

    fn neighbour_request(
        &self,
        what: &str,
        (kind, flags): (u16, u16),
        header: &[u8],
        ip: IpAddr,
        mac: Option<Mac>,
    ) -> Result<()> {
        self.request(what, kind, flags, header, |w| {
            w.bytes(k::NDA_DST, &octets(ip));
            if let Some(mac) = mac {
                w.bytes(k::NDA_LLADDR, &mac.0);
            }
        })
    }
}

impl Links for Rtnl {
    fn links(&self) -> Result<Vec<Link>> {
        self.dump(
            "listing the network devices",
            k::RTM_GETLINK,
            &ifinfo(0, 0, 0),
            k::RTM_NEWLINK,
            parse_link,
        )
    }

    fn link(&self, name: &str) -> Result<Option<Link>> {
        let what = format!("looking up device {name}");
        let mut found = None;
        let outcome = self.connection.lock().query(
            &what,
            |w, sequence| {
                w.begin(k::RTM_GETLINK, REQUEST | ACK, sequence, &ifinfo(0, 0, 0));
                w.text(k::IFLA_IFNAME, name);
                w.finish();
            },
            |message| {
                if message.kind == k::RTM_NEWLINK {
                    found = parse_link(message.payload);
                }
            },
        );
        match outcome {
            Ok(()) => Ok(found),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn add_vxlan(&self, new: &NewVxlan) -> Result<()> {
        let what = format!("creating vxlan device {}", new.name);
        self.request(
            &what,
            k::RTM_NEWLINK,
            CREATE | EXCL,
            &ifinfo(0, 0, 0),
            |w| {
                w.text(k::IFLA_IFNAME, &new.name);
                w.bytes(k::IFLA_ADDRESS, &new.mac.0);
                w.u32(k::IFLA_MTU, new.mtu);
                let info = w.nest(k::IFLA_LINKINFO);
                w.text(k::IFLA_INFO_KIND, "vxlan");
                let data = w.nest(k::IFLA_INFO_DATA);
                w.u32(k::IFLA_VXLAN_ID, new.vxlan.vni);
                match new.vxlan.local {
                    IpAddr::V4(ip) => w.bytes(k::IFLA_VXLAN_LOCAL, &ip.octets()),
                    IpAddr::V6(ip) => w.bytes(k::IFLA_VXLAN_LOCAL6, &ip.octets()),
                }
                w.u8(k::IFLA_VXLAN_LEARNING, u8::from(new.vxlan.learning));
                w.be16(k::IFLA_VXLAN_PORT, new.vxlan.port);
                w.end(data);
                w.end(info);
            },
        )
    }

    fn add_veth(&self, new: &NewVeth<'_>) -> Result<()> {
        let what = format!("creating veth pair {} - {}", new.name, new.peer_name);
        self.request(
            &what,
            k::RTM_NEWLINK,
            CREATE | EXCL,
            &ifinfo(0, 0, 0),
            |w| {
                veth_end(w, new.name, new.mac, new.mtu);
                let info = w.nest(k::IFLA_LINKINFO);
                w.text(k::IFLA_INFO_KIND, "veth");
                let data = w.nest(k::IFLA_INFO_DATA);
                let peer = w.nest(k::VETH_INFO_PEER);
                w.raw(&ifinfo(0, 0, 0));
                veth_end(w, new.peer_name, new.peer_mac, new.mtu);
                if let Some(netns) = new.peer_netns {
                    w.u32(k::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
                }
                w.end(peer);
                w.end(data);
                w.end(info);
            },
        )
    }

    fn add_bridge(&self, name: &str) -> Result<()> {
        self.request(
            &format!("creating bridge {name}"),
            k::RTM_NEWLINK,
            CREATE | EXCL,
            &ifinfo(0, 0, 0),
            |w| {
                w.text(k::IFLA_IFNAME, name);
                let info = w.nest(k::IFLA_LINKINFO);
                w.text(k::IFLA_INFO_KIND, "bridge");
                w.end(info);
            },
        )
    }

    fn change_link(&self, index: u32, change: &LinkChange<'_>) -> Result<()> {
        let what = format!("changing device {index} ({change:?})");
        let (flags, mask) = match change.up {
            Some(true) => (k::IFF_UP, k::IFF_UP),
            Some(false) => (0, k::IFF_UP),
            None => (0, 0),
        };
        self.request(&what, k::RTM_NEWLINK, 0, &ifinfo(index, flags, mask), |w| {
            if let Some(mtu) = change.mtu {
                w.u32(k::IFLA_MTU, mtu);
            }
            if let Some(mac) = change.mac {
                w.bytes(k::IFLA_ADDRESS, &mac.0);
            }
            if let Some(name) = change.name {
                w.text(k::IFLA_IFNAME, name);
            }
            if let Some(master) = change.master {
                w.u32(k::IFLA_MASTER, master);
            }
            if let Some(netns) = change.netns {
                w.u32(k::IFLA_NET_NS_FD, netns.as_fd().as_raw_fd() as u32);
            }
        })
    }

    fn delete_link(&self, index: u32) -> Result<()> {
        self.request(
            &format!("removing device {index}"),
            k::RTM_DELLINK,
            0,
            &ifinfo(index, 0, 0),
            |_| {},
        )
    }

    fn addresses(&self) -> Result<Vec<Address>> {
        self.dump(
            "listing addresses",
            k::RTM_GETADDR,
            &[0; 8],
            k::RTM_NEWADDR,
            parse_address,
        )
    }

    fn put_address(&self, address: &Address) -> Result<()> {
        let what = format!("adding address {} to device {}", address.net, address.link);
        self.request(
            &what,
            k::RTM_NEWADDR,
            CREATE | REPLACE,
            &ifaddr(address),
            |w| address_attributes(w, address),
        )
    }

    fn delete_address(&self, address: &Address) -> Result<()> {
        let what = format!(
            "removing address {} from device {}",
            address.net, address.link
        );
        self.request(&what, k::RTM_DELADDR, 0, &ifaddr(address), |w| {
            address_attributes(w, address)
        })
    }

    fn routes(&self) -> Result<Vec<Route>> {
        self.dump(
            "listing routes",
            k::RTM_GETROUTE,
            &[0; 12],
            k::RTM_NEWROUTE,
            parse_route,
        )
    }

    fn put_route(&self, route: &Route) -> Result<()> {
        let what = format!(
            "adding route to {} on device {}",
            route.destination, route.link
        );
        self.request(
            &what,
            k::RTM_NEWROUTE,
            CREATE | REPLACE,
            &rtmsg(route),
            |w| route_attributes(w, route),
        )
    }

    fn delete_route(&self, route: &Route) -> Result<()> {
        let what = format!(
            "removing route to {} on device {}",
            route.destination, route.link
        );
        self.request(&what, k::RTM_DELROUTE, 0, &rtmsg(route), |w| {
            route_attributes(w, route)
        })
    }

    fn neighbours(&self, link: u32) -> Result<Vec<Neighbour>> {
        let header = ndmsg(0, link, 0, 0);
        let all = self.dump(
            "listing neighbours",
            k::RTM_GETNEIGH,
            &header,
            k::RTM_NEWNEIGH,
            parse_neighbour,
        )?;
        Ok(all.into_iter().filter(|n| n.link == link).collect())
    }

    fn put_neighbour(&self, n: &Neighbour) -> Result<()> {
        let what = format!("adding neighbour {} {} to device {}", n.ip, n.mac, n.link);
        let state = if n.permanent { k::NUD_PERMANENT } else { 0x02 };
        let header = ndmsg(family(n.ip), n.link, state, 0);
        self.neighbour_request(
            &what,
            (k::RTM_NEWNEIGH, CREATE | REPLACE),
            &header,
            n.ip,
            Some(n.mac),
        )
    }

    fn delete_neighbour(&self, n: &Neighbour) -> Result<()> {
        let what = format!("removing neighbour {} from device {}", n.ip, n.link);
        self.neighbour_request(
            &what,
            (k::RTM_DELNEIGH, 0),
            &ndmsg(family(n.ip), n.link, 0, 0),
            n.ip,
            None,
        )
    }

    fn fdb(&self, link: u32) -> Result<Vec<FdbEntry>> {
        let mut header = ifinfo(link, 0, 0);
        header[0] = k::AF_BRIDGE;
        let all = self.dump(
            "listing forwarding entries",
            k::RTM_GETNEIGH,
            &header,
            k::RTM_NEWNEIGH,
            parse_fdb,
        )?;
        Ok(all.into_iter().filter(|e| e.link == link).collect())
    }

    fn put_fdb(&self, e: &FdbEntry) -> Result<()> {
        let what = format!(
            "adding forwarding entry {} -> {} to device {}",
            e.mac, e.destination, e.link
        );
        let header = ndmsg(k::AF_BRIDGE, e.link, k::NUD_PERMANENT, k::NTF_SELF);
        self.neighbour_request(
            &what,
            (k::RTM_NEWNEIGH, CREATE | REPLACE),
            &header,
            e.destination,
            Some(e.mac),
        )
    }

    fn delete_fdb(&self, e: &FdbEntry) -> Result<()> {
        let what = format!(
            "removing forwarding entry {} -> {} from device {}",
            e.mac, e.destination, e.link
        );
        let header = ndmsg(k::AF_BRIDGE, e.link, k::NUD_PERMANENT, k::NTF_SELF);
        self.neighbour_request(
            &what,
            (k::RTM_DELNEIGH, 0),
            &header,
            e.destination,
            Some(e.mac),
        )
    }
}

// === headers and attributes ===

/// `struct ifinfomsg`.
fn ifinfo(index: u32, flags: u32, mask: u32) -> [u8; 16] {
    let mut h = [0; 16];
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h[12..16].copy_from_slice(&mask.to_ne_bytes());
    h
}

/// `struct ifaddrmsg`.
fn ifaddr(address: &Address) -> [u8; 8] {
    let mut h = [0; 8];
    h[0] = family(address.net.addr());
    h[1] = address.net.prefix_len();
    h[3] = scope_number(address.scope);
    h[4..8].copy_from_slice(&address.link.to_ne_bytes());
    h
}

/// `struct rtmsg`.
fn rtmsg(route: &Route) -> [u8; 12] {
    let mut h = [0; 12];
    h[0] = family(route.destination.addr());
    h[1] = route.destination.prefix_len();
    h[4] = k::RT_TABLE_MAIN;
    h[5] = if route.managed {
        k::RTPROT_BALSA
    } else {
        k::RTPROT_STATIC
    };
    h[6] = scope_number(route.scope);
    h[7] = match route.kind {
        RouteKind::Unicast => k::RTN_UNICAST,
        RouteKind::Unreachable => k::RTN_UNREACHABLE,
    };
    let flags = if route.onlink { k::RTNH_F_ONLINK } else { 0 };
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h
}

/// `struct ndmsg`.
fn ndmsg(family: u8, link: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut h = [0; 12];
    h[0] = family;
    h[4..8].copy_from_slice(&link.to_ne_bytes());
    h[8..10].copy_from_slice(&state.to_ne_bytes());
    h[10] = flags;
    h
}

fn veth_end(w: &mut Writer, name: &str, mac: Option<Mac>, mtu: u32) {
    w.text(k::IFLA_IFNAME, name);
    if let Some(mac) = mac {
        w.bytes(k::IFLA_ADDRESS, &mac.0);
    }
    w.u32(k::IFLA_MTU, mtu);
}

fn address_attributes(w: &mut Writer, address: &Address) {
    let ip = octets(address.net.addr());
    w.bytes(k::IFA_LOCAL, &ip);
    w.bytes(k::IFA_ADDRESS, &ip);
}

fn route_attributes(w: &mut Writer, route: &Route) {
    if route.destination.prefix_len() > 0 {
        w.bytes(k::RTA_DST, &octets(route.destination.addr()));
    }
    if route.link != 0 {
        w.u32(k::RTA_OIF, route.link);
    }
    if let Some(via) = route.via {
        w.bytes(k::RTA_GATEWAY, &octets(via));
    }
    if let Some(source) = route.source {
        w.bytes(k::RTA_PREFSRC, &octets(source));
    }
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() {
        k::AF_INET
    } else {
        k::AF_INET6
    }
}

fn scope_number(scope: Scope) -> u8 {
    match scope {
        Scope::Global => k::RT_SCOPE_UNIVERSE,
        Scope::Link => k::RT_SCOPE_LINK,
        Scope::Host => k::RT_SCOPE_HOST,
    }
}

fn scope_of(number: u8) -> Scope {
    match number {
        k::RT_SCOPE_LINK => Scope::Link,
        k::RT_SCOPE_HOST => Scope::Host,
        _ => Scope::Global,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(Ipv4Addr::from(v4)));
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|v6| IpAddr::V6(Ipv6Addr::from(v6)))
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(bytes).ok().map(Mac)
}

// === answers ===

fn parse_link(payload: &[u8]) -> Option<Link> {
    let header = payload.get(..16)?;
    let mut link = Link {
        index: wire::ne32(&header[4..8]),
        name: String::new(),
        up: wire::ne32(&header[8..12]) & k::IFF_UP != 0,
        mtu: 0,
        mac: None,
        master: None,
        kind: LinkKind::Other(String::new()),
    };
    for (kind, value) in wire::attributes(&payload[16..]) {
        match kind {
            k::IFLA_IFNAME => link.name = wire::text(value),
            k::IFLA_MTU => link.mtu = wire::ne32(value),
            k::IFLA_ADDRESS => link.mac = mac(value),
            k::IFLA_MASTER => link.master = Some(wire::ne32(value)),
            k::IFLA_LINKINFO => link.kind = parse_kind(value),
            _ => {}
        }
    }
    Some(link)
}

fn parse_kind(info: &[u8]) -> LinkKind {
    let name = wire::attribute(info, k::IFLA_INFO_KIND)
        .map(wire::text)
        .unwrap_or_default();
    match name.as_str() {
        "veth" => LinkKind::Veth,
        "bridge" => LinkKind::Bridge,
        "vxlan" => {
            let data = wire::attribute(info, k::IFLA_INFO_DATA).unwrap_or_default();
            let local = wire::attribute(data, k::IFLA_VXLAN_LOCAL)
                .or_else(|| wire::attribute(data, k::IFLA_VXLAN_LOCAL6))
                .and_then(ip);
            LinkKind::Vxlan(Vxlan {
                vni: wire::attribute(data, k::IFLA_VXLAN_ID).map_or(0, wire::ne32),
                port: wire::attribute(data, k::IFLA_VXLAN_PORT).map_or(0, wire::be16),
                local: local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                learning: wire::attribute(data, k::IFLA_VXLAN_LEARNING)
                    .is_some_and(|v| v.first() == Some(&1)),
            })
        }
        _ => LinkKind::Other(name),
    }
}

fn parse_address(payload: &[u8]) -> Option<Address> {
    let header = payload.get(..8)?;
    let attributes = &payload[8..];
    // On point-to-point links IFA_ADDRESS is the peer; IFA_LOCAL, where present, is ours.
    let value = wire::attribute(attributes, k::IFA_LOCAL)
        .or_else(|| wire::attribute(attributes, k::IFA_ADDRESS))?;
    let net = IpNet::new(ip(value)?, header[1]).ok()?;
    Some(Address {
        link: wire::ne32(&header[4..8]),
        net,
        scope: scope_of(header[3]),
    })
}

fn parse_route(payload: &[u8]) -> Option<Route> {
    let header = payload.get(..12)?;
    let attributes = &payload[12..];
    let table =
        wire::attribute(attributes, k::RTA_TABLE).map_or_else(|| u32::from(header[4]), wire::ne32);
    let kind = match header[7] {
        _ if table != u32::from(k::RT_TABLE_MAIN) => return None,
        k::RTN_UNICAST => RouteKind::Unicast,
        k::RTN_UNREACHABLE => RouteKind::Unreachable,
        _ => return None,
    };
    let unspecified = match header[0] {
        k::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        k::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let address = |kind| wire::attribute(attributes, kind).and_then(ip);
    Some(Route {
        kind,
        managed: header[5] == k::RTPROT_BALSA,
        destination: IpNet::new(address(k::RTA_DST).unwrap_or(unspecified), header[1]).ok()?,
        via: address(k::RTA_GATEWAY),
        link: wire::attribute(attributes, k::RTA_OIF).map_or(0, wire::ne32),
        onlink: wire::ne32(&header[8..12]) & k::RTNH_F_ONLINK != 0,
        source: address(k::RTA_PREFSRC),
        scope: scope_of(header[6]),
    })
}

fn parse_neighbour(payload: &[u8]) -> Option<Neighbour> {
    let header = payload.get(..12)?;
    let attributes = &payload[12..];
    let state = u16::from_ne_bytes([header[8], header[9]]);
    if state & k::NUD_FAILED != 0 {
        return None;
    }
    Some(Neighbour {
        link: wire::ne32(&header[4..8]),
        ip: wire::attribute(attributes, k::NDA_DST).and_then(ip)?,
        mac: wire::attribute(attributes, k::NDA_LLADDR).and_then(mac)?,
        permanent: state & k::NUD_PERMANENT != 0,
    })
}

fn parse_fdb(payload: &[u8]) -> Option<FdbEntry> {
    let header = payload.get(..12)?;
    let attributes = &payload[12..];
    Some(FdbEntry {
        link: wire::ne32(&header[4..8]),
        mac: wire::attribute(attributes, k::NDA_LLADDR).and_then(mac)?,
        destination: wire::attribute(attributes, k::NDA_DST).and_then(ip)?,
    })
}
