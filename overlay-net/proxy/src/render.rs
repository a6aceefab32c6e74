//! One Service (or all host ports) to what it needs in the maps.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use balsa_netlink::nft::{Data, Element, Family, Verdict};
use ipnet::IpNet;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::config::{Config, HostPort};
use crate::key::{Key, SetId};
use crate::rules::{Balancer, Front, Group, LOCAL_OFFSET, Masquerade};
use crate::service::{Endpoint, Port, Protocol, VirtualService, endpoints, nearest, usable};

/// A UDP destination that clients use: a virtual address, or any address of the node.
pub(crate) type UdpFront = (Option<IpAddr>, u16);

/// What a Service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// Map elements. No key twice.
    pub elements: Vec<(SetId, Element)>,
    /// Balancer chains that the elements refer to.
    pub balancers: BTreeSet<Balancer>,
    /// Where UDP flows may be, to find those that are stale later.
    pub udp: BTreeSet<(UdpFront, SocketAddr)>,
}

/// Renders a Service with its slices.
pub(crate) fn service(
    config: &Config,
    family: Family,
    zone: Option<&str>,
    service: &VirtualService,
    slices: &[&EndpointSlice],
) -> Rendered {
    let mut out = Rendered::default();
    let ours =
        |ip: &&IpAddr| ip.is_ipv4() == (family == Family::Ipv4) && !config.local_vips.contains(ip);
    let sources = sources(family, &service.sources);
    for port in &service.ports {
        let all: Vec<Endpoint> = endpoints(slices, port, &config.node_name, zone)
            .into_iter()
            .filter(|e| e.address.is_ipv4() == (family == Family::Ipv4))
            .collect();
        let mut pool = Pool {
            affinity: service.affinity,
            sources: None,
            local: usable(all.iter().copied().filter(|e| e.local)),
            all: nearest(usable(all.into_iter())),
        };
        for ip in service.cluster_ips.iter().filter(ours) {
            let group = if service.internal_local {
                Group::Local
            } else {
                Group::All
            };
            out.front(
                &Address::Vip(*ip, port),
                &pool,
                (Masquerade::Outside, group),
                None,
            );
        }
        let external = Masquerade::for_policy(service.external_local);
        for ip in service
            .external_ips
            .iter()
            .filter(ours)
            .filter(|ip| !service.cluster_ips.contains(ip))
        {
            let sources = sources
                .as_ref()
                .filter(|_| service.guarded_ips.contains(ip));
            pool.sources = sources.cloned();
            out.front(&Address::Vip(*ip, port), &pool, external.0, external.1);
        }
        pool.sources = None;
        if let Some(number) = port.node_port {
            out.front(&Address::Node(number, port), &pool, external.0, external.1);
        }
    }
    out.elements
        .sort_by(|a, b| (a.0, &a.1.key).cmp(&(b.0, &b.1.key)));
    out.elements
        .dedup_by(|a, b| (a.0, &a.1.key) == (b.0, &b.1.key));
    out
}

/// The ranges of a family that may use a load balancer's addresses; `None` for everybody.
fn sources(family: Family, ranges: &[IpNet]) -> Option<Arc<[IpNet]>> {
    let ours = |range: &&IpNet| range.addr().is_ipv4() == (family == Family::Ipv4);
    let mut ranges: Vec<IpNet> = ranges.iter().filter(ours).map(IpNet::trunc).collect();
    ranges.sort();
    ranges.dedup();
    let everybody = ranges.is_empty() || ranges.iter().any(|r| r.prefix_len() == 0);
    (!everybody).then(|| ranges.into())
}

/// Renders the host ports of a node. The first of equal claims wins.
pub(crate) fn host_ports(family: Family, ports: &[HostPort]) -> Rendered {
    let mut out = Rendered::default();
    let mut ports: Vec<&HostPort> = ports
        .iter()
        .filter(|p| p.pod_ip.is_ipv4() == (family == Family::Ipv4))
        .collect();
    ports.sort();
    for p in ports {
        let target = SocketAddr::new(p.pod_ip, p.pod_port);
        let at = p.host_ip.filter(|ip| !ip.is_unspecified());
        let (set, key) = match at {
            Some(ip) if ip.is_ipv4() != (family == Family::Ipv4) => continue,
            Some(ip) => (
                SetId::HostPortAt,
                Key::new().ip(ip).protocol(p.protocol).port(p.host_port),
            ),
            None => (
                SetId::HostPort,
                Key::new().protocol(p.protocol).port(p.host_port),
            ),
        };
        out.add(
            set,
            key,
            Some(Data::Value(Key::new().socket(target).value())),
        );
        out.add(SetId::Hairpin, Key::new().ip(p.pod_ip).ip(p.pod_ip), None);
        if p.protocol == Protocol::Udp {
            out.udp.insert(((at, p.host_port), target));
        }
    }
    out.elements
        .sort_by(|a, b| (a.0, &a.1.key).cmp(&(b.0, &b.1.key)));
    out.elements
        .dedup_by(|a, b| (a.0, &a.1.key) == (b.0, &b.1.key));
    out
}

type Policy = (Masquerade, Group);

impl Masquerade {
    /// For `externalTrafficPolicy`: how outside clients are served, and those inside if otherwise.
    fn for_policy(local: bool) -> (Policy, Option<Policy>) {
        if local {
            (
                (Self::Never, Group::Local),
                Some((Self::Outside, Group::All)),
            )
        } else {
            ((Self::Always, Group::All), None)
        }
    }
}

/// The usable endpoints of a Service's port.
struct Pool {
    affinity: Option<std::time::Duration>,
    /// Who may come; everybody when unset.
    sources: Option<Arc<[IpNet]>>,
    all: Vec<Endpoint>,
    local: Vec<Endpoint>,
}

impl Pool {
    fn group(&self, group: Group) -> &[Endpoint] {
        match group {
            Group::All => &self.all,
            Group::Local => &self.local,
        }
    }
}

/// How clients address a port.
enum Address<'a> {
    Vip(IpAddr, &'a Port),
    Node(u16, &'a Port),
}

impl Address<'_> {
    fn key(&self) -> Key {
        match self {
            Self::Vip(ip, port) => Key::new().ip(*ip).protocol(port.protocol).port(port.port),
            Self::Node(number, port) => Key::new().protocol(port.protocol).port(*number),
        }
    }

    fn front(&self) -> Front {
        match self {
            Self::Vip(..) => Front::Vip,
            Self::Node(..) => Front::Node,
        }
    }

    fn udp(&self) -> Option<UdpFront> {
        match self {
            Self::Vip(ip, port) if port.protocol == Protocol::Udp => Some((Some(*ip), port.port)),
            Self::Node(number, port) if port.protocol == Protocol::Udp => Some((None, *number)),
            _ => None,
        }
    }
}

impl Rendered {
    fn add(&mut self, set: SetId, key: Key, data: Option<Data>) {
        self.elements.push((
            set,
            Element {
                key: key.value(),
                data,
            },
        ));
    }

    fn front(
        &mut self,
        address: &Address<'_>,
        pool: &Pool,
        policy: Policy,
        inside: Option<Policy>,
    ) {
        let (outer, inner, empty) = match address.front() {
            Front::Vip => (SetId::Vip, SetId::VipInside, SetId::VipEmpty),
            Front::Node => (SetId::Node, SetId::NodeInside, SetId::NodeEmpty),
        };
        if pool.all.is_empty() && pool.local.is_empty() {
            self.add(empty, address.key(), None);
            return;
        }
        self.balance(address, pool, policy, outer);
        if let Some(inside) = inside {
            self.balance(address, pool, inside, inner);
        }
        let mut groups = BTreeSet::from([policy.1]);
        groups.extend(inside.map(|p| p.1));
        for group in groups {
            self.slots(address, pool.group(group), group);
            if pool.affinity.is_some() {
                self.live(address, pool.group(group));
            }
        }
    }

    /// Sends an address to the balancer chain for its policy and number of endpoints.
    fn balance(
        &mut self,
        address: &Address<'_>,
        pool: &Pool,
        (masquerade, group): Policy,
        map: SetId,
    ) {
        let count = pool.group(group).len() as u32;
        let verdict = if count == 0 {
            // A Local policy without a local endpoint: elsewhere there is one, so this is no refusal.
            Verdict::Drop
        } else {
            let balancer = Balancer {
                front: address.front(),
                masquerade,
                group,
                affinity: pool.affinity,
                count,
                sources: pool.sources.clone(),
            };
            let verdict = Verdict::Goto(balancer.name());
            if balancer.sources.is_some() {
                self.balancers.insert(balancer.open());
            }
            self.balancers.insert(balancer);
            verdict
        };
        self.add(map, address.key(), Some(Data::Verdict(verdict)));
    }

    fn slots(&mut self, address: &Address<'_>, endpoints: &[Endpoint], group: Group) {
        let (set, offset) = (
            if address.front() == Front::Vip {
                SetId::VipSlot
            } else {
                SetId::NodeSlot
            },
            if group == Group::Local {
                LOCAL_OFFSET
            } else {
                0
            },
        );
        for (number, endpoint) in (offset..).zip(endpoints) {
            let target = Key::new().socket(endpoint.address).value();
            self.add(set, address.key().number(number), Some(Data::Value(target)));
            if endpoint.local {
                let ip = endpoint.address.ip();
                self.add(SetId::Hairpin, Key::new().ip(ip).ip(ip), None);
            }
            self.udp
                .extend(address.udp().map(|front| (front, endpoint.address)));
        }
    }

    fn live(&mut self, address: &Address<'_>, endpoints: &[Endpoint]) {
        let set = if address.front() == Front::Vip {
            SetId::VipLive
        } else {
            SetId::NodeLive
        };
        for endpoint in endpoints {
            self.add(set, address.key().socket(endpoint.address), None);
        }
    }
}
