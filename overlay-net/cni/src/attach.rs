//! Connecting a container: one veth pair, no bridge.
//!
//! The container has its address alone (`/32`) and sends everything to [`GATEWAY`], whose link-layer address
//! it is told for good; the node routes the address to its end of the pair. So pods share no link: nothing is
//! broadcast, nobody can claim another's address, and the node's rules see every packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use balsa_ipam::Ipam;
use balsa_netlink::{
    Address, Link, LinkChange, Links, Mac, Namespace, Neighbour, NewVeth, Route, Rtnl, Scope,
    host_net, sysctl, unspecified,
};
use ipnet::IpNet;

use crate::conf::{Error, Request, Target};

/// The pods' next hop. It is nobody's address: the pod's neighbour table says where it is.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Marks link-layer addresses of the pods' ends of the pairs.
const POD_TAG: u8 = 0x01;
/// Marks those of the node's ends.
const HOST_TAG: u8 = 0x02;

/// What was connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    pub ip: IpAddr,
    pub gateway: IpAddr,
    pub host_interface: String,
    pub host_mac: Mac,
    pub mac: Mac,
}

/// Name of the node's end of a container's pair: the same whoever computes it, so that nothing needs storing.
pub fn host_interface(container: &str, interface: &str) -> String {
    // FNV-1a: stable across versions and machines; 48 bits are plenty for the pods of one node.
    let bytes = container.bytes().chain([0]).chain(interface.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("bp{:012x}", (hash ^ hash >> 48) & 0xffff_ffff_ffff)
}

/// `ADD`: an address, a pair, routes. Leaves nothing behind when it fails.
pub(crate) fn add(request: &Request, target: &Target) -> Result<Attached, Error> {
    let cidr = request
        .pod_cidr
        .ok_or_else(|| Error::Configuration("podCIDR is missing".to_owned()))?;
    let ipam = Ipam::open(&request.data_dir, cidr)?;
    let ip = ipam.allocate(&target.container, &target.interface)?;
    let connected = connect(target, ip, request.mtu).map_err(|source| network(target, source));
    if connected.is_err() {
        let _ = disconnect(target);
        // The failure itself matters more than that its address stays taken until the next clean-up.
        let _ = ipam.release(&target.container, &target.interface);
    }
    connected
}

/// `DEL`: whatever of it is left. Repeating it, or a namespace that is gone, is no error.
pub(crate) fn delete(request: &Request, target: &Target) -> Result<(), Error> {
    disconnect(target).map_err(|source| network(target, source))?;
    // The address goes last: as long as the pair exists nobody else may have it.
    let cidr = request
        .pod_cidr
        .unwrap_or_else(|| host_net(IpAddr::V4(GATEWAY)));
    Ipam::open(&request.data_dir, cidr)?.release(&target.container, &target.interface)?;
    Ok(())
}

/// `CHECK`: the pair is up, and the container has its address and its way out.
pub(crate) fn check(request: &Request, target: &Target) -> Result<(), Error> {
    let damaged = |what: String| Error::Damaged {
        container: target.container.clone(),
        what,
    };
    let cidr = request
        .pod_cidr
        .unwrap_or_else(|| host_net(IpAddr::V4(GATEWAY)));
    let ip = Ipam::open(&request.data_dir, cidr)?
        .lookup(&target.container, &target.interface)?
        .ok_or_else(|| damaged("it has no address".to_owned()))?;
    let look = || -> balsa_netlink::Result<Option<String>> {
        let name = host_interface(&target.container, &target.interface);
        let host = Rtnl::open()?;
        let Some(outer) = host.link(&name)?.filter(|l| l.up) else {
            return Ok(Some(format!("{name} is not there or not up")));
        };
        if !host
            .routes()?
            .iter()
            .any(|r| r.destination == host_net(ip) && r.link == outer.index)
        {
            return Ok(Some(format!("the node has no route to {ip} by {name}")));
        }
        let inner = Rtnl::open_in(&namespace(target)?)?;
        let Some(link) = inner.link(&target.interface)?.filter(|l| l.up) else {
            return Ok(Some(format!("{} is not there or not up", target.interface)));
        };
        if !inner
            .addresses()?
            .iter()
            .any(|a| a.link == link.index && a.net.addr() == ip)
        {
            return Ok(Some(format!("{} lacks {ip}", target.interface)));
        }
        let leads_out = |r: &Route| r.destination.prefix_len() == 0 && r.link == link.index;
        Ok((!inner.routes()?.iter().any(leads_out)).then(|| "it has no default route".to_owned()))
    };
    match look().map_err(|source| network(target, source))? {
        Some(what) => Err(damaged(what)),
        None => Ok(()),
    }
}

/// Type `loopback`: `lo` up.
pub(crate) fn loopback_up(target: &Target) -> Result<(), Error> {
    let up = || {
        let inner = Rtnl::open_in(&namespace(target)?)?;
        up(&inner, &found(&inner, "lo")?)
    };
    up().map_err(|source| network(target, source))
}

/// Type `loopback`, `CHECK`.
pub(crate) fn loopback_is_up(target: &Target) -> Result<(), Error> {
    let look = || Ok(found(&Rtnl::open_in(&namespace(target)?)?, "lo")?.up);
    if look().map_err(|source| network(target, source))? {
        Ok(())
    } else {
        Err(Error::Damaged {
            container: target.container.clone(),
            what: "lo is down".to_owned(),
        })
    }
}

fn network(target: &Target, source: balsa_netlink::Error) -> Error {
    Error::Network {
        container: target.container.clone(),
        source,
    }
}

fn namespace(target: &Target) -> balsa_netlink::Result<Namespace> {
    Namespace::open(
        target
            .netns
            .as_deref()
            .unwrap_or_else(|| std::path::Path::new("")),
    )
}

fn connect(target: &Target, ip: IpAddr, mtu: u32) -> balsa_netlink::Result<Attached> {
    let netns = namespace(target)?;
    let (host, inner) = (Rtnl::open()?, Rtnl::open_in(&netns)?);
    let attached = Attached {
        ip,
        gateway: if ip.is_ipv4() {
            GATEWAY.into()
        } else {
            GATEWAY6.into()
        },
        host_interface: host_interface(&target.container, &target.interface),
        host_mac: Mac::for_ip(HOST_TAG, ip),
        mac: Mac::for_ip(POD_TAG, ip),
    };
    // A pair of that name is what an earlier, interrupted attempt left.
    if let Some(stale) = host.link(&attached.host_interface)? {
        host.delete_link(stale.index)?;
    }
    host.add_veth(&NewVeth {
        name: &attached.host_interface,
        mac: Some(attached.host_mac),
        peer_name: &target.interface,
        peer_mac: Some(attached.mac),
        peer_netns: Some(netns.as_fd()),
        mtu,
    })?;
    inside(&inner, target, &attached)?;
    outside(&host, &attached)?;
    Ok(attached)
}

fn inside(inner: &Rtnl, target: &Target, a: &Attached) -> balsa_netlink::Result<()> {
    let link = found(inner, &target.interface)?;
    let index = link.index;
    inner.put_address(&Address {
        link: index,
        net: host_net(a.ip),
        scope: Scope::Global,
    })?;
    up(inner, &link)?;
    inner.put_neighbour(&Neighbour {
        link: index,
        ip: a.gateway,
        mac: a.host_mac,
        permanent: true,
    })?;
    inner.put_route(&Route::on_link(host_net(a.gateway), index))?;
    let everywhere = IpNet::new(unspecified(a.ip), 0).unwrap_or_else(|_| host_net(a.ip));
    inner.put_route(&Route::via(everywhere, a.gateway, index))
}

fn outside(host: &Rtnl, a: &Attached) -> balsa_netlink::Result<()> {
    let link = found(host, &a.host_interface)?;
    // A pod's packets come back out of the same device when it reaches itself by a Service; telling it to
    // send them directly would be wrong. Failing to say so is harmless.
    let _ = sysctl::set(
        &format!("ipv4/conf/{}/send_redirects", a.host_interface),
        "0",
    );
    // The node's own 127.0.0.1 may speak to the pod, for its host ports; the proxy's rules keep the pod from speaking
    // to what listens there. Without it only `localhost` as an address of host ports is lost.
    let _ = sysctl::set(
        &format!("ipv4/conf/{}/route_localnet", a.host_interface),
        "1",
    );
    up(host, &link)?;
    host.put_neighbour(&Neighbour {
        link: link.index,
        ip: a.ip,
        mac: a.mac,
        permanent: true,
    })?;
    host.put_route(&Route::on_link(host_net(a.ip), link.index))
}

fn disconnect(target: &Target) -> balsa_netlink::Result<()> {
    let host = Rtnl::open()?;
    // The other end goes with it, and so do the routes and neighbours of both.
    match host.link(&host_interface(&target.container, &target.interface))? {
        Some(link) => match host.delete_link(link.index) {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

fn found(links: &Rtnl, name: &str) -> balsa_netlink::Result<Link> {
    links.link(name)?.ok_or_else(|| balsa_netlink::Error::Io {
        what: format!("looking up device {name}"),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

fn up(links: &Rtnl, link: &Link) -> balsa_netlink::Result<()> {
    links.change_link(
        link.index,
        &LinkChange {
            up: Some(true),
            ..LinkChange::default()
        },
    )
}
