//! The local cluster's underlay: one bridge on the host, one network namespace and cable per node.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use balsa_netlink::{
    Address, LinkChange, Links, Mac, Namespace, Neighbour, NewVeth, Route, RouteKind, Rtnl, Scope,
};
use ipnet::{IpNet, Ipv4Net};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::local::topology::{self, BRIDGE, HOST, Node, PREFIX};

/// Name of a node's end of its cable.
const PORT: &str = "eth0";
const MTU: u32 = 1500;
/// Nobody has this address: frames to it reach no one.
const NOBODY: Mac = Mac([0x02, 0xba, 0x15, 0xa0, 0, 0]);

fn path(node: &str) -> PathBuf {
    Path::new("/run/netns").join(topology::namespace(node))
}

/// Opens a node's namespace.
///
/// # Errors
/// When it is not there.
pub fn open(node: &str) -> anyhow::Result<OwnedFd> {
    let path = path(node);
    let file = File::open(&path)
        .with_context(|| format!("cannot open the network namespace {}", path.display()))?;
    Ok(file.into())
}

/// Makes what is missing of the bridge.
///
/// # Errors
/// When the kernel refuses.
pub fn ensure_bridge() -> anyhow::Result<()> {
    let links = Rtnl::open().context("cannot open a netlink socket")?;
    if links.link(BRIDGE)?.is_none() {
        links.add_bridge(BRIDGE).context("cannot make the bridge")?;
    }
    let bridge = links.link(BRIDGE)?.context("the bridge is gone")?;
    links.put_address(&Address {
        link: bridge.index,
        net: net(HOST),
        scope: Scope::Global,
    })?;
    links.change_link(
        bridge.index,
        &LinkChange {
            up: Some(true),
            ..LinkChange::default()
        },
    )?;
    Ok(())
}

/// Makes what is missing of a node's namespace, cable, address and default route.
///
/// # Errors
/// When the kernel refuses.
pub fn ensure_node(node: &Node) -> anyhow::Result<()> {
    ensure_namespace(&node.name)?;
    let inside = Namespace::open(&path(&node.name))?;
    let links = Rtnl::open().context("cannot open a netlink socket")?;
    let cable = topology::cable(&node.name);
    if links.link(&cable)?.is_none() {
        let new = NewVeth {
            name: &cable,
            mac: None,
            peer_name: PORT,
            peer_mac: None,
            peer_netns: Some(inside.as_fd()),
            mtu: MTU,
        };
        links
            .add_veth(&new)
            .with_context(|| format!("cannot make the cable {cable}"))?;
    }
    let bridge = links.link(BRIDGE)?.context("the bridge is gone")?;
    let host_end = links.link(&cable)?.context("the cable is gone")?;
    let plug = LinkChange {
        up: Some(true),
        master: Some(bridge.index),
        ..LinkChange::default()
    };
    links.change_link(host_end.index, &plug)?;
    configure_inside(&Rtnl::open_in(&inside)?, node.address)
}

fn configure_inside(links: &Rtnl, address: std::net::Ipv4Addr) -> anyhow::Result<()> {
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    for name in ["lo", PORT] {
        let link = links
            .link(name)?
            .with_context(|| format!("{name} is not in the namespace"))?;
        links.change_link(link.index, &up)?;
    }
    let port = links.link(PORT)?.context("the node's port is gone")?;
    links.put_address(&Address {
        link: port.index,
        net: net(address),
        scope: Scope::Global,
    })?;
    links.put_route(&Route {
        kind: RouteKind::Unicast,
        managed: false,
        destination: IpNet::V4(Ipv4Net::default()),
        via: Some(IpAddr::from(HOST)),
        link: port.index,
        onlink: false,
        source: None,
        scope: Scope::Global,
    })?;
    Ok(())
}

fn net(address: std::net::Ipv4Addr) -> IpNet {
    // The prefix length is a valid constant.
    Ipv4Net::new(address, PREFIX).map_or_else(|_| IpNet::from(IpAddr::from(address)), IpNet::V4)
}

/// A named namespace is a file with the namespace mounted on it, as `ip netns` makes it.
fn ensure_namespace(node: &str) -> anyhow::Result<()> {
    let path = path(node);
    if is_mounted(&path) {
        return Ok(());
    }
    ensure_folder()?;
    File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let namespace = Namespace::anonymous()?;
    let source = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&namespace.as_fd())
    );
    mount(
        Some(source.as_str()),
        &path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("cannot mount the network namespace on {}", path.display()))
}

const FOLDER: &str = "/run/netns";

/// The folder is a shared mount of itself, as `ip netns` makes it. Were it not, the first `ip netns add` of
/// somebody else would do that over our mounts and hide them.
fn ensure_folder() -> anyhow::Result<()> {
    fs::create_dir_all(FOLDER).context("cannot make /run/netns")?;
    let folder = Path::new(FOLDER);
    if is_mounted(folder) {
        return Ok(());
    }
    let none = None::<&str>;
    mount(
        Some(folder),
        folder,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .and_then(|()| {
        mount(
            none,
            folder,
            none,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            none,
        )
    })
    .context("cannot mount /run/netns on itself")
}

/// Undoes [`ensure_folder`] when no namespace is left for which it would matter.
fn remove_folder() -> anyhow::Result<()> {
    let empty = fs::read_dir(FOLDER).is_ok_and(|mut entries| entries.next().is_none());
    if empty && is_mounted(Path::new(FOLDER)) {
        umount2(FOLDER, MntFlags::MNT_DETACH).context("cannot unmount /run/netns")?;
    }
    Ok(())
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split_whitespace().nth(4).map(Path::new) == Some(path))
}

/// Removes a node's namespace, and the cable with it.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_node(node: &str) -> anyhow::Result<()> {
    let links = Rtnl::open().context("cannot open a netlink socket")?;
    if let Some(link) = links.link(&topology::cable(node))? {
        links.delete_link(link.index)?;
    }
    let path = path(node);
    // Once for each mount that is stacked there.
    while is_mounted(&path) {
        umount2(&path, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", path.display()))?;
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the bridge, after the last node.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_bridge() -> anyhow::Result<()> {
    remove_folder()?;
    let links = Rtnl::open().context("cannot open a netlink socket")?;
    if let Some(link) = links.link(BRIDGE)? {
        links.delete_link(link.index)?;
    }
    Ok(())
}

/// Cuts or restores the path between two nodes, in both directions. A cut is a permanent neighbour entry
/// with a link-layer address that nobody has: packets leave and reach no one, as with a broken switch, and
/// no side is told.
///
/// # Errors
/// When the kernel refuses.
pub fn set_cut(a: &Node, b: &Node, cut: bool) -> anyhow::Result<()> {
    for (here, there) in [(a, b), (b, a)] {
        let inside = Namespace::open(&path(&here.name))?;
        one_way(&Rtnl::open_in(&inside)?, IpAddr::from(there.address), cut)?;
    }
    Ok(())
}

fn one_way(links: &Rtnl, ip: IpAddr, cut: bool) -> anyhow::Result<()> {
    let port = links.link(PORT)?.context("the node's port is gone")?;
    let entry = Neighbour {
        link: port.index,
        ip,
        mac: NOBODY,
        permanent: true,
    };
    if cut {
        links.put_neighbour(&entry)?;
    } else if links
        .neighbours(port.index)?
        .iter()
        .any(|n| n.ip == ip && n.mac == NOBODY)
    {
        links.delete_neighbour(&entry)?;
    }
    Ok(())
}
