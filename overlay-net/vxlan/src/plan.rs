//! What is there, what should be there, and the steps between: pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use balsa_netlink::{
    Address, FdbEntry, Link, LinkKind, Mac, Neighbour, NewVxlan, Route, RouteKind, Scope, Vxlan,
    host_net,
};

use crate::{Config, Error, Mode, Peer};

/// Name of the overlay's device on every node.
pub const DEVICE: &str = "balsa.vx";
/// VXLAN network identifier of the overlay.
pub const VNI: u32 = 1;
/// UDP port of the outer packets (the kernel's own default, which firewalls of other overlays know).
pub const PORT: u16 = 8472;
/// Marks link-layer addresses of overlay devices.
const MAC_TAG: u8 = 0x03;

/// What the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// All devices.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// All routes.
    pub routes: Vec<Route>,
    /// Neighbours of the overlay's device, if there is one.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries of the overlay's device.
    pub fdb: Vec<FdbEntry>,
}

/// One step towards the desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create the overlay's device.
    AddDevice(NewVxlan),
    /// Remove a device of that name that is another kind or has other parameters.
    DeleteDevice(u32),
    /// Set the device up, its MTU and link-layer address.
    SetDevice {
        /// Interface index.
        link: u32,
        /// Maximum transmission unit in bytes.
        mtu: u32,
        /// Link-layer address.
        mac: Mac,
    },
    /// Add an address.
    PutAddress(Address),
    /// Remove an address.
    DeleteAddress(Address),
    /// Add a neighbour.
    PutNeighbour(Neighbour),
    /// Remove a neighbour.
    DeleteNeighbour(Neighbour),
    /// Add a forwarding entry.
    PutFdb(FdbEntry),
    /// Remove a forwarding entry.
    DeleteFdb(FdbEntry),
    /// Add a route.
    PutRoute(Route),
    /// Remove a route.
    DeleteRoute(Route),
}

/// The device that carries the outer packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Underlay {
    link: u32,
    mtu: u32,
}

/// The pods' MTU on this node.
pub fn mtu(config: &Config, observed: &Observed) -> Result<u32, Error> {
    Ok(wanted_mtu(config, underlay(config, observed)?))
}

/// The steps from `observed` to what `config` and `peers` ask for. Empty when nothing is to do.
///
/// Steps that need the index of a device that is not there yet are left to the next round: look again after
/// carrying these out.
pub fn plan(config: &Config, peers: &[Peer], observed: &Observed) -> Result<Vec<Step>, Error> {
    let underlay = underlay(config, observed)?;
    let mtu = wanted_mtu(config, underlay);
    let wanted = Vxlan {
        vni: VNI,
        port: PORT,
        local: config.local.node_ip,
        learning: false,
    };
    let mac = Mac::for_ip(MAC_TAG, config.local.node_ip);
    let Some(device) = observed.links.iter().find(|l| l.name == DEVICE) else {
        return Ok(vec![Step::AddDevice(NewVxlan {
            name: DEVICE.to_owned(),
            mac,
            mtu,
            vxlan: wanted,
        })]);
    };
    if device.kind != LinkKind::Vxlan(wanted) {
        return Ok(vec![Step::DeleteDevice(device.index)]);
    }
    if !device.up || device.mtu != mtu || device.mac != Some(mac) {
        return Ok(vec![Step::SetDevice {
            link: device.index,
            mtu,
            mac,
        }]);
    }
    let desired = desired(config, peers, device.index, underlay, observed);
    let mut steps = Vec::new();
    addresses(config, device.index, observed, &mut steps);
    let (put, delete) = (Step::PutNeighbour, Step::DeleteNeighbour);
    difference(
        &desired.neighbours,
        &observed.neighbours,
        put,
        delete,
        &mut steps,
    );
    difference(
        &desired.fdb,
        &observed.fdb,
        Step::PutFdb,
        Step::DeleteFdb,
        &mut steps,
    );
    routes(&desired.routes, device.index, observed, &mut steps);
    Ok(steps)
}

/// Encapsulation costs 50 bytes over IPv4 (IP 20, UDP 8, VXLAN 8, Ethernet 14) and 70 over IPv6.
fn wanted_mtu(config: &Config, underlay: Underlay) -> u32 {
    let costs = match (config.mode, config.local.node_ip) {
        (Mode::Direct, _) => 0,
        (_, IpAddr::V4(_)) => 50,
        (_, IpAddr::V6(_)) => 70,
    };
    config
        .mtu
        .unwrap_or_else(|| underlay.mtu.saturating_sub(costs))
}

fn underlay(config: &Config, observed: &Observed) -> Result<Underlay, Error> {
    let ip = config.local.node_ip;
    let holder = observed
        .addresses
        .iter()
        .find(|a| a.net.addr() == ip)
        .map(|a| a.link);
    let link = holder.and_then(|link| observed.links.iter().find(|l| l.index == link));
    link.map(|l| Underlay {
        link: l.index,
        mtu: l.mtu,
    })
    .ok_or(Error::NoNodeAddress(ip))
}

#[derive(Default)]
struct Desired {
    neighbours: BTreeSet<Neighbour>,
    fdb: BTreeSet<FdbEntry>,
    routes: BTreeSet<Route>,
}

fn desired(
    config: &Config,
    peers: &[Peer],
    link: u32,
    underlay: Underlay,
    observed: &Observed,
) -> Desired {
    let mut out = Desired::default();
    // Addresses of this node that no pod has: say so at once instead of asking the default gateway.
    out.routes
        .insert(Route::unreachable(config.local.pod_cidr.trunc()));
    if let Some(services) = config.service_cidr {
        // Rules translate these before they leave; but a packet without a route never gets to the rules.
        out.routes.insert(Route::on_link(services.trunc(), link));
    }
    for peer in peers
        .iter()
        .filter(|p| p.name != config.local.name && p.node_ip != config.local.node_ip)
    {
        let cidr = peer.pod_cidr.trunc();
        let gateway = cidr.network();
        // Two nodes with one CIDR would take each other's packets: the routes' keys are unique, the first stays.
        if out.routes.iter().any(|r| r.destination == cidr) {
            continue;
        }
        if is_direct(config, peer.node_ip, underlay, observed) {
            out.routes
                .insert(Route::via(cidr, peer.node_ip, underlay.link));
            continue;
        }
        let mac = Mac::for_ip(MAC_TAG, peer.node_ip);
        out.neighbours.insert(Neighbour {
            link,
            ip: gateway,
            mac,
            permanent: true,
        });
        out.fdb.insert(FdbEntry {
            link,
            mac,
            destination: peer.node_ip,
        });
        out.routes.insert(Route {
            onlink: true,
            ..Route::via(cidr, gateway, link)
        });
    }
    out
}

fn is_direct(config: &Config, peer: IpAddr, underlay: Underlay, observed: &Observed) -> bool {
    match config.mode {
        Mode::Vxlan => false,
        Mode::Direct => true,
        Mode::Auto => observed
            .addresses
            .iter()
            .any(|a| a.link == underlay.link && a.net.contains(&peer)),
    }
}

fn addresses(config: &Config, device: u32, observed: &Observed, steps: &mut Vec<Step>) {
    let own = Address {
        link: device,
        net: host_net(config.local.pod_cidr.network()),
        scope: Scope::Global,
    };
    let lo = observed
        .links
        .iter()
        .find(|l| l.name == "lo")
        .map(|l| l.index);
    let mut wanted = vec![own];
    // Of scope "host", so that nobody picks them as the source of a connection.
    wanted.extend(lo.into_iter().flat_map(|link| {
        config.local_addresses.iter().map(move |ip| Address {
            link,
            net: host_net(*ip),
            scope: Scope::Host,
        })
    }));
    let is_link_local =
        |a: &Address| matches!(a.net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    for stale in observed
        .addresses
        .iter()
        .filter(|a| a.link == device && !wanted.contains(a) && !is_link_local(a))
    {
        steps.push(Step::DeleteAddress(*stale));
    }
    steps.extend(
        wanted
            .into_iter()
            .filter(|a| !observed.addresses.contains(a))
            .map(Step::PutAddress),
    );
}

fn difference<T: Copy + Ord>(
    desired: &BTreeSet<T>,
    observed: &[T],
    put: impl Fn(T) -> Step,
    delete: impl Fn(T) -> Step,
    steps: &mut Vec<Step>,
) {
    let observed: BTreeSet<T> = observed.iter().copied().collect();
    steps.extend(observed.difference(desired).map(|t| delete(*t)));
    steps.extend(desired.difference(&observed).map(|t| put(*t)));
}

/// Ours are the routes by our device, and managed ones by a next hop or to nowhere; managed routes without
/// a next hop are the pods'. The kernel's own routes (IPv6 link-local) stay.
fn routes(desired: &BTreeSet<Route>, device: u32, observed: &Observed, steps: &mut Vec<Step>) {
    let ours = |r: &&Route| {
        let elsewhere = r.via.is_some() || r.kind == RouteKind::Unreachable;
        r.managed && (r.link == device || elsewhere) || r.link == device && r.via.is_some()
    };
    let have: Vec<Route> = observed.routes.iter().filter(ours).copied().collect();
    let replaced = |r: &Route| {
        desired
            .iter()
            .any(|d| d.destination == r.destination && d.kind == r.kind)
    };
    for stale in have.iter().filter(|r| !desired.contains(r) && !replaced(r)) {
        steps.push(Step::DeleteRoute(*stale));
    }
    steps.extend(
        desired
            .iter()
            .filter(|d| !have.contains(d))
            .map(|d| Step::PutRoute(*d)),
    );
}
