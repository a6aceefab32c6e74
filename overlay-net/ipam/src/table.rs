//! Which address belongs to whom: pure decisions over a small table.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Error;

/// An address and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Container (sandbox) id as the runtime names it.
    pub container: String,
    /// Interface in the container.
    pub interface: String,
    /// When it was given, in seconds since 1970.
    pub since: u64,
}

/// The table as it lies on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// The address given last. Searching goes on behind it, so that a released address rests as long as
    /// possible: others may still have it in caches and connection tracking.
    pub last: Option<IpAddr>,
    /// All allocations.
    pub allocations: BTreeMap<IpAddr, Allocation>,
}

impl Table {
    /// The address of a container's interface.
    pub fn find(&self, container: &str, interface: &str) -> Option<IpAddr> {
        let same = |a: &Allocation| a.container == container && a.interface == interface;
        self.allocations
            .iter()
            .find(|(_, a)| same(a))
            .map(|(ip, _)| *ip)
    }

    /// Gives a container's interface an address of `cidr`; the one that it has, if it has one.
    pub fn allocate(&mut self, cidr: IpNet, new: Allocation) -> Result<IpAddr, Error> {
        if let Some(ip) = self.find(&new.container, &new.interface) {
            return Ok(ip);
        }
        let (first, count) = usable(cidr);
        let start = self
            .last
            .and_then(|last| offset(first, last))
            .filter(|at| *at < count)
            .map_or(0, |at| at + 1);
        // At most one more candidate than there are allocations can be taken.
        let tries = count.min(self.allocations.len() as u128 + 1);
        let free = (0..tries)
            .map(|i| at(first, (start + i) % count))
            .find(|ip| !self.allocations.contains_key(ip));
        let ip = free.ok_or(Error::Full {
            cidr,
            used: self.allocations.len(),
        })?;
        self.last = Some(ip);
        self.allocations.insert(ip, new);
        Ok(ip)
    }

    /// Takes back what a container has: of one interface, or all.
    pub fn release(&mut self, container: &str, interface: Option<&str>) -> Vec<IpAddr> {
        self.take(|a| a.container == container && interface.is_none_or(|i| a.interface == i))
    }

    /// Takes back what containers have that are not `live`, if it was given before `before`.
    pub fn collect(&mut self, live: &HashSet<String>, before: u64) -> Vec<IpAddr> {
        self.take(|a| a.since < before && !live.contains(&a.container))
    }

    fn take(&mut self, gone: impl Fn(&Allocation) -> bool) -> Vec<IpAddr> {
        let ips: Vec<IpAddr> = self
            .allocations
            .iter()
            .filter(|(_, a)| gone(a))
            .map(|(ip, _)| *ip)
            .collect();
        for ip in &ips {
            self.allocations.remove(ip);
        }
        ips
    }
}

/// The first address that a pod may have, and how many there are. The network's own address belongs to the
/// node's vxlan device, and IPv4's last one is the broadcast address.
fn usable(cidr: IpNet) -> (IpAddr, u128) {
    let bits = cidr.max_prefix_len() - cidr.prefix_len();
    let all = if bits >= 127 {
        u128::MAX
    } else {
        1u128 << bits
    };
    let reserved = if cidr.network().is_ipv4() { 2 } else { 1 };
    if all <= reserved {
        return (cidr.network(), all);
    }
    (at(cidr.network(), 1), all - reserved)
}

fn at(first: IpAddr, offset: u128) -> IpAddr {
    match first {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(
            ip.to_bits().wrapping_add(offset as u32),
        )),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits().wrapping_add(offset))),
    }
}

fn offset(first: IpAddr, ip: IpAddr) -> Option<u128> {
    match (first, ip) {
        (IpAddr::V4(first), IpAddr::V4(ip)) => {
            ip.to_bits().checked_sub(first.to_bits()).map(u128::from)
        }
        (IpAddr::V6(first), IpAddr::V6(ip)) => ip.to_bits().checked_sub(first.to_bits()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn who(container: &str) -> Allocation {
        Allocation {
            container: container.to_owned(),
            interface: "eth0".to_owned(),
            since: 100,
        }
    }

    fn cidr() -> IpNet {
        "10.244.1.0/29".parse().unwrap()
    }

    #[test]
    fn every_address_but_the_first_and_the_last_is_given_once() {
        let mut table = Table::default();
        let given: Vec<String> = (0..6)
            .map(|i| {
                table
                    .allocate(cidr(), who(&i.to_string()))
                    .unwrap()
                    .to_string()
            })
            .collect();
        assert_eq!(
            given,
            [
                "10.244.1.1",
                "10.244.1.2",
                "10.244.1.3",
                "10.244.1.4",
                "10.244.1.5",
                "10.244.1.6"
            ]
        );
        let full = table
            .allocate(cidr(), who("one more"))
            .unwrap_err()
            .to_string();
        assert!(
            full.contains("no free addresses in 10.244.1.0/29"),
            "{full}"
        );
    }

    #[test]
    fn a_container_that_asks_again_gets_the_same_address() {
        let mut table = Table::default();
        let first = table.allocate(cidr(), who("a")).unwrap();
        assert_eq!(table.allocate(cidr(), who("a")).unwrap(), first);
        assert_eq!(table.allocations.len(), 1);
    }

    #[test]
    fn a_released_address_rests_until_all_others_were_used() {
        let mut table = Table::default();
        let first = table.allocate(cidr(), who("a")).unwrap();
        assert_eq!(table.release("a", Some("eth0")), [first]);
        let next: Vec<IpAddr> = (0..5)
            .map(|i| table.allocate(cidr(), who(&i.to_string())).unwrap())
            .collect();
        assert!(!next.contains(&first));
        assert_eq!(table.allocate(cidr(), who("z")).unwrap(), first);
    }

    #[test]
    fn only_old_allocations_of_unknown_containers_are_collected() {
        let mut table = Table::default();
        let gone = table.allocate(cidr(), who("gone")).unwrap();
        table.allocate(cidr(), who("live")).unwrap();
        table
            .allocate(
                cidr(),
                Allocation {
                    since: 200,
                    ..who("being made")
                },
            )
            .unwrap();
        assert_eq!(
            table.collect(&HashSet::from(["live".to_owned()]), 150),
            [gone]
        );
        assert_eq!(table.allocations.len(), 2);
    }

    #[test]
    fn a_new_cidr_is_used_at_once() {
        let mut table = Table::default();
        table.allocate(cidr(), who("a")).unwrap();
        let other: IpNet = "10.244.9.0/24".parse().unwrap();
        assert_eq!(
            table.allocate(other, who("b")).unwrap().to_string(),
            "10.244.9.1"
        );
        let six: IpNet = "fd00:1::/64".parse().unwrap();
        assert_eq!(
            table.allocate(six, who("c")).unwrap().to_string(),
            "fd00:1::1"
        );
        assert_eq!(
            table.allocate(six, who("d")).unwrap().to_string(),
            "fd00:1::2"
        );
    }

    proptest! {
        #[test]
        fn no_address_is_ever_held_twice(steps in proptest::collection::vec((0u8..12, any::<bool>()), 0..80)) {
            let mut table = Table::default();
            let mut held: BTreeMap<IpAddr, u8> = BTreeMap::new();
            for (container, add) in steps {
                if add {
                    match table.allocate(cidr(), who(&container.to_string())) {
                        Ok(ip) => {
                            prop_assert!(cidr().contains(&ip));
                            prop_assert!(held.insert(ip, container).is_none_or(|old| old == container));
                        }
                        Err(_) => prop_assert_eq!(held.len(), 6),
                    }
                } else {
                    for ip in table.release(&container.to_string(), None) {
                        prop_assert_eq!(held.remove(&ip), Some(container));
                    }
                }
                prop_assert_eq!(held.len(), table.allocations.len());
            }
        }
    }
}
