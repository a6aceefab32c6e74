//! [`FakeLinks`]: the kernel's device tables in memory, for tests of whoever changes them.

use std::net::IpAddr;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::links::{
    Address, FdbEntry, Link, LinkChange, LinkKind, Links, Mac, Neighbour, NewVeth, NewVxlan, Route,
};

/// Everything a [`FakeLinks`] holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Devices.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries.
    pub fdb: Vec<FdbEntry>,
}

/// Device tables in memory. Removing a device removes what hangs on it, as the kernel does.
#[derive(Debug, Default)]
pub struct FakeLinks {
    tables: Mutex<Tables>,
}

impl FakeLinks {
    /// A host with `lo` (index 1) and `eth0` (index 2, up, MTU 1500) that has `address`.
    pub fn with_underlay(address: ipnet::IpNet) -> Self {
        let fake = Self::default();
        fake.edit(|t| {
            t.links.push(plain(1, "lo", 65536));
            t.links.push(plain(2, "eth0", 1500));
            t.addresses.push(Address {
                link: 2,
                net: address,
                scope: crate::Scope::Global,
            });
        });
        fake
    }

    /// A copy of all tables.
    pub fn tables(&self) -> Tables {
        self.tables.lock().clone()
    }

    /// Changes the tables behind everybody's back.
    pub fn edit<T>(&self, edit: impl FnOnce(&mut Tables) -> T) -> T {
        edit(&mut self.tables.lock())
    }

    fn add(&self, name: &str, mtu: u32, mac: Option<Mac>, kind: LinkKind) -> Result<()> {
        self.edit(|t| {
            if t.links.iter().any(|l| l.name == name) {
                return Err(Error::kernel(
                    format!("creating device {name}"),
                    libc::EEXIST,
                ));
            }
            let index = t.links.iter().map(|l| l.index).max().unwrap_or(0) + 1;
            t.links.push(Link {
                index,
                name: name.to_owned(),
                up: false,
                mtu,
                mac,
                master: None,
                kind,
            });
            Ok(())
        })
    }

    fn put<T: Copy>(
        &self,
        link: u32,
        table: impl Fn(&mut Tables) -> &mut Vec<T>,
        same: impl Fn(&T) -> bool,
        new: T,
    ) -> Result<()> {
        self.edit(|t| {
            if !t.links.iter().any(|l| l.index == link) {
                return Err(Error::kernel(format!("using device {link}"), libc::ENODEV));
            }
            let list = table(t);
            list.retain(|old| !same(old));
            list.push(new);
            Ok(())
        })
    }

    fn remove<T>(
        &self,
        table: impl Fn(&mut Tables) -> &mut Vec<T>,
        same: impl Fn(&T) -> bool,
    ) -> Result<()> {
        self.edit(|t| {
            let list = table(t);
            let before = list.len();
            list.retain(|old| !same(old));
            if list.len() == before {
                Err(Error::kernel("removing an entry", libc::ENOENT))
            } else {
                Ok(())
            }
        })
    }
}

fn plain(index: u32, name: &str, mtu: u32) -> Link {
    let kind = LinkKind::Other(String::new());
    Link {
        index,
        name: name.to_owned(),
        up: true,
        mtu,
        mac: None,
        master: None,
        kind,
    }
}

impl Links for FakeLinks {
    fn links(&self) -> Result<Vec<Link>> {
        Ok(self.tables.lock().links.clone())
    }

    fn link(&self, name: &str) -> Result<Option<Link>> {
        Ok(self
            .tables
            .lock()
            .links
            .iter()
            .find(|l| l.name == name)
            .cloned())
    }

    fn add_vxlan(&self, new: &NewVxlan) -> Result<()> {
        self.add(
            &new.name,
            new.mtu,
            Some(new.mac),
            LinkKind::Vxlan(new.vxlan.clone()),
        )
    }

    fn add_veth(&self, new: &NewVeth<'_>) -> Result<()> {
        self.add(new.name, new.mtu, new.mac, LinkKind::Veth)?;
        if new.peer_netns.is_none() {
            self.add(new.peer_name, new.mtu, new.peer_mac, LinkKind::Veth)?;
        }
        Ok(())
    }

    fn add_bridge(&self, name: &str) -> Result<()> {
        self.add(name, 1500, None, LinkKind::Bridge)
    }

    fn change_link(&self, index: u32, change: &LinkChange<'_>) -> Result<()> {
        self.edit(|t| {
            let Some(link) = t.links.iter_mut().find(|l| l.index == index) else {
                return Err(Error::kernel(
                    format!("changing device {index}"),
                    libc::ENODEV,
                ));
            };
            link.up = change.up.unwrap_or(link.up);
            link.mtu = change.mtu.unwrap_or(link.mtu);
            link.mac = change.mac.or(link.mac);
            if let Some(name) = change.name {
                link.name = name.to_owned();
            }
            if let Some(master) = change.master {
                link.master = (master != 0).then_some(master);
            }
            if change.netns.is_some() {
                t.links.retain(|l| l.index != index);
            }
            if change.up == Some(false) {
                t.routes.retain(|r| r.link != index);
            }
            Ok(())
        })
    }

    fn delete_link(&self, index: u32) -> Result<()> {
        self.remove(|t| &mut t.links, |l| l.index == index)?;
        self.edit(|t| {
            t.addresses.retain(|a| a.link != index);
            t.routes.retain(|r| r.link != index);
            t.neighbours.retain(|n| n.link != index);
            t.fdb.retain(|e| e.link != index);
        });
        Ok(())
    }

    fn addresses(&self) -> Result<Vec<Address>> {
        Ok(self.tables.lock().addresses.clone())
    }

    fn put_address(&self, a: &Address) -> Result<()> {
        self.put(
            a.link,
            |t| &mut t.addresses,
            |o| (o.link, o.net) == (a.link, a.net),
            *a,
        )
    }

    fn delete_address(&self, a: &Address) -> Result<()> {
        self.remove(|t| &mut t.addresses, |o| (o.link, o.net) == (a.link, a.net))
    }

    fn routes(&self) -> Result<Vec<Route>> {
        Ok(self.tables.lock().routes.clone())
    }

    fn put_route(&self, r: &Route) -> Result<()> {
        self.edit(|t| {
            let up = r.link == 0 || t.links.iter().any(|l| l.index == r.link && l.up);
            if !up {
                let what = format!("adding route to {}", r.destination);
                return Err(Error::kernel(what, libc::ENETDOWN));
            }
            t.routes.retain(|o| o.destination != r.destination);
            t.routes.push(*r);
            Ok(())
        })
    }

    fn delete_route(&self, r: &Route) -> Result<()> {
        self.remove(
            |t| &mut t.routes,
            |o| (o.destination, o.link) == (r.destination, r.link),
        )
    }

    fn neighbours(&self, link: u32) -> Result<Vec<Neighbour>> {
        Ok(self
            .tables
            .lock()
            .neighbours
            .iter()
            .filter(|n| n.link == link)
            .copied()
            .collect())
    }

    fn put_neighbour(&self, n: &Neighbour) -> Result<()> {
        let key = |o: &Neighbour| -> (u32, IpAddr) { (o.link, o.ip) };
        self.put(n.link, |t| &mut t.neighbours, |o| key(o) == key(n), *n)
    }

    fn delete_neighbour(&self, n: &Neighbour) -> Result<()> {
        self.remove(|t| &mut t.neighbours, |o| (o.link, o.ip) == (n.link, n.ip))
    }

    fn fdb(&self, link: u32) -> Result<Vec<FdbEntry>> {
        Ok(self
            .tables
            .lock()
            .fdb
            .iter()
            .filter(|e| e.link == link)
            .copied()
            .collect())
    }

    fn put_fdb(&self, e: &FdbEntry) -> Result<()> {
        self.put(
            e.link,
            |t| &mut t.fdb,
            |o| (o.link, o.mac) == (e.link, e.mac),
            *e,
        )
    }

    fn delete_fdb(&self, e: &FdbEntry) -> Result<()> {
        self.remove(|t| &mut t.fdb, |o| (o.link, o.mac) == (e.link, e.mac))
    }
}
