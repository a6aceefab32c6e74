#![allow(clippy::unwrap_used)]
//! Where packets go: snapshots are rendered into a model of nftables and packets are traced through it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use balsa_netlink::nft::{
    Family, HookPoint, Inventory, Model, Nft, Op, Packet, RejectWith, Verdicts,
};
use balsa_netlink::{Conntrack, Flow};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::state::State;
use crate::{Config, HostPort, Protocol, Proxy, Snapshot};

const NODE: &str = "192.168.0.1";
const VIP: &str = "10.96.0.7:80";
const POD_A: &str = "10.244.1.2";
const POD_B: &str = "10.244.2.3";

fn config() -> Config {
    Config {
        service_cidr: Some("10.96.0.0/16".parse().unwrap()),
        local_vips: vec!["10.96.0.10".parse().unwrap()],
        ..Config::new("n1", vec!["10.244.0.0/16".parse().unwrap()])
    }
}

fn service(name: &str, spec: Value) -> Arc<Service> {
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec}))
            .unwrap(),
    )
}

fn web(more: Value) -> Arc<Service> {
    let mut spec = json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "type": "NodePort",
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP", "targetPort": 8080}]});
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    service("web", spec)
}

fn slice(service: &str, endpoints: &[(&str, &str, Value)]) -> Arc<EndpointSlice> {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(ip, node, conditions)| json!({"addresses": [ip], "nodeName": node, "conditions": conditions}))
        .collect();
    Arc::new(
        serde_json::from_value(json!({
            "addressType": "IPv4",
            "metadata": {"name": format!("{service}-x"), "namespace": "d", "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"port": 8080, "protocol": "TCP", "name": ""}],
            "endpoints": endpoints,
        }))
        .unwrap(),
    )
}

fn ready() -> Value {
    json!({"ready": true, "serving": true, "terminating": false})
}

fn dying() -> Value {
    json!({"ready": false, "serving": true, "terminating": true})
}

/// A rendered snapshot in a model whose host is node n1.
struct World {
    state: State,
    model: Model,
    config: Config,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Arrives there, with the node's source address or the client's own.
    At(String, bool),
    Refused,
    Dropped,
    /// Leaves as it came.
    Untouched(bool),
}

fn at(address: &str, masqueraded: bool) -> Outcome {
    Outcome::At(address.to_owned(), masqueraded)
}

impl World {
    fn new(snapshot: &Snapshot) -> Self {
        let model = Model::new([
            NODE.parse().unwrap(),
            "10.244.1.0".parse().unwrap(),
            "10.96.0.10".parse().unwrap(),
        ]);
        let mut world = Self {
            state: State::new(config(), Family::Ipv4),
            model,
            config: config(),
        };
        let _ = world.state.update(snapshot);
        world
            .model
            .apply(&world.config.table_name(), &world.state.rebuild())
            .unwrap();
        world
    }

    fn with(services: Vec<Arc<Service>>, slices: Vec<Arc<EndpointSlice>>) -> Self {
        Self::new(&Snapshot {
            services,
            slices,
            host_ports: Vec::new(),
            ..Snapshot::default()
        })
    }

    fn update(&mut self, snapshot: &Snapshot) -> Vec<Op> {
        let change = self.state.update(snapshot);
        self.model
            .apply(&self.config.table_name(), &change.ops)
            .unwrap();
        change.ops
    }

    fn held(&self) -> Inventory {
        let held = self
            .model
            .inventory(&self.config.table_name())
            .unwrap()
            .unwrap();
        Inventory { handle: 0, ..held }
    }

    fn connect(&self, protocol: u8, from: &str, to: &str, random: u32) -> Outcome {
        let table = self.config.table_name();
        let from: IpAddr = from.parse().unwrap();
        let to: SocketAddr = to.parse().unwrap();
        let is_host = |ip: IpAddr| {
            ip.to_string() == NODE
                || ip.is_loopback()
                || ip.to_string() == "10.244.1.0"
                || ip.to_string() == "10.96.0.10"
        };
        let hook = if is_host(from) {
            HookPoint::Output
        } else {
            HookPoint::Prerouting
        };
        let packet = Packet::new(protocol, (from, 40_000), (to.ip(), to.port()));
        let mut step = self.model.trace(&table, hook, packet, random);
        if step.verdict == Verdicts::Accepted && hook == HookPoint::Prerouting {
            let next = if is_host(step.packet.daddr) {
                HookPoint::Input
            } else {
                HookPoint::Forward
            };
            step = self.model.trace(&table, next, step.packet, random);
            if step.verdict == Verdicts::Accepted && next == HookPoint::Input {
                return Outcome::Untouched(false);
            }
        }
        match step.verdict {
            Verdicts::Rejected(with) => {
                assert_eq!(with == RejectWith::TcpReset, protocol == 6);
                return Outcome::Refused;
            }
            Verdicts::Dropped => return Outcome::Dropped,
            _ => {}
        }
        let end = self
            .model
            .trace(&table, HookPoint::Postrouting, step.packet, random);
        let masqueraded = end.verdict == Verdicts::Masqueraded;
        if end.packet.translated {
            Outcome::At(
                SocketAddr::new(end.packet.daddr, end.packet.dport).to_string(),
                masqueraded,
            )
        } else {
            Outcome::Untouched(masqueraded)
        }
    }

    fn tcp(&self, from: &str, to: &str) -> BTreeSet<Outcome> {
        (0..12)
            .map(|random| self.connect(6, from, to, random))
            .collect()
    }
}

fn both() -> Arc<EndpointSlice> {
    slice("web", &[(POD_A, "n1", ready()), (POD_B, "n2", ready())])
}

#[test]
fn a_pod_reaches_every_endpoint_with_its_own_address() {
    let world = World::with(vec![web(json!({}))], vec![both()]);
    let reached = world.tcp("10.244.1.9", VIP);
    assert_eq!(
        reached,
        BTreeSet::from([at("10.244.1.2:8080", false), at("10.244.2.3:8080", false)])
    );
}

#[test]
fn the_node_itself_reaches_a_virtual_address_under_its_own_address() {
    let world = World::with(vec![web(json!({}))], vec![both()]);
    assert_eq!(
        world.tcp(NODE, VIP),
        BTreeSet::from([at("10.244.1.2:8080", true), at("10.244.2.3:8080", true)])
    );
}

#[test]
fn a_node_port_hides_the_client_unless_the_policy_is_local() {
    let world = World::with(vec![web(json!({}))], vec![both()]);
    let node_port = format!("{NODE}:30080");
    let all = BTreeSet::from([at("10.244.1.2:8080", true), at("10.244.2.3:8080", true)]);
    assert_eq!(world.tcp("172.16.0.5", &node_port), all);

    let world = World::with(
        vec![web(json!({"externalTrafficPolicy": "Local"}))],
        vec![both()],
    );
    assert_eq!(
        world.tcp("172.16.0.5", &node_port),
        BTreeSet::from([at("10.244.1.2:8080", false)])
    );
    // Inside the cluster the policy does not bind: every endpoint is as good.
    let inside = BTreeSet::from([at("10.244.1.2:8080", false), at("10.244.2.3:8080", false)]);
    assert_eq!(world.tcp("10.244.1.9", &node_port), inside);
}

#[test]
fn a_local_policy_without_local_endpoints_drops_instead_of_refusing() {
    let away = slice("web", &[(POD_B, "n2", ready())]);
    let policies = json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"});
    let world = World::with(vec![web(policies)], vec![away]);
    assert_eq!(
        world.tcp("172.16.0.5", &format!("{NODE}:30080")),
        BTreeSet::from([Outcome::Dropped])
    );
    assert_eq!(
        world.tcp("10.244.1.9", VIP),
        BTreeSet::from([Outcome::Dropped])
    );
}

#[test]
fn a_service_without_endpoints_refuses() {
    let world = World::with(vec![web(json!({}))], vec![slice("web", &[])]);
    assert_eq!(
        world.tcp("10.244.1.9", VIP),
        BTreeSet::from([Outcome::Refused])
    );
    assert_eq!(world.tcp(NODE, VIP), BTreeSet::from([Outcome::Refused]));
    assert_eq!(
        world.tcp("172.16.0.5", &format!("{NODE}:30080")),
        BTreeSet::from([Outcome::Refused])
    );
    assert_eq!(
        world.connect(17, "10.244.1.9", "10.96.9.9:53", 0),
        Outcome::Refused,
        "nobody's Service address"
    );
}

#[test]
fn the_node_answers_its_own_virtual_addresses() {
    let dns = service(
        "kube-dns",
        json!({"clusterIP": "10.96.0.10", "ports": [{"port": 53, "protocol": "UDP"}]}),
    );
    let world = World::with(vec![dns], vec![]);
    assert_eq!(
        world.connect(17, "10.244.1.9", "10.96.0.10:53", 0),
        Outcome::Untouched(false)
    );
    assert_eq!(
        world.connect(17, NODE, "10.96.0.10:53", 0),
        Outcome::Untouched(false)
    );
}

#[test]
fn a_pod_that_reaches_itself_sees_the_node_as_the_client() {
    let world = World::with(vec![web(json!({}))], vec![both()]);
    assert_eq!(
        world.tcp(POD_A, VIP),
        BTreeSet::from([at("10.244.1.2:8080", true), at("10.244.2.3:8080", false)])
    );
}

#[test]
fn pods_leave_the_cluster_under_the_nodes_address() {
    let world = World::with(vec![], vec![]);
    assert_eq!(
        world.connect(6, "10.244.1.9", "1.1.1.1:443", 0),
        Outcome::Untouched(true)
    );
    assert_eq!(
        world.connect(6, "10.244.1.9", "10.244.2.3:8080", 0),
        Outcome::Untouched(false)
    );
}

#[test]
fn a_host_port_leads_to_the_pod() {
    let port = |ip: Option<&str>, host_port, pod_port| HostPort {
        protocol: Protocol::Tcp,
        host_ip: ip.map(|ip| ip.parse().unwrap()),
        host_port,
        pod_ip: POD_A.parse().unwrap(),
        pod_port,
    };
    let host_ports = vec![
        port(None, 8080, 80),
        port(Some("127.0.0.1"), 8081, 81),
        port(Some(NODE), 8081, 82),
    ];
    let world = World::new(&Snapshot {
        host_ports,
        ..Snapshot::default()
    });
    assert_eq!(
        world.connect(6, "172.16.0.5", &format!("{NODE}:8080"), 0),
        at("10.244.1.2:80", false)
    );
    assert_eq!(
        world.connect(6, POD_A, &format!("{NODE}:8080"), 0),
        at("10.244.1.2:80", true)
    );
    assert_eq!(
        world.connect(6, NODE, "127.0.0.1:8081", 0),
        at("10.244.1.2:81", false)
    );
    assert_eq!(
        world.connect(6, "172.16.0.5", &format!("{NODE}:8081"), 0),
        at("10.244.1.2:82", false)
    );
    // A pod cannot answer a loopback address.
    assert_eq!(
        world.connect(6, "127.0.0.1", "127.0.0.1:8080", 0),
        at("10.244.1.2:80", true)
    );
    assert_eq!(
        world.connect(6, POD_A, "127.0.0.1:8080", 0),
        Outcome::Dropped
    );
}

#[test]
fn terminating_endpoints_serve_only_when_nobody_else_does() {
    let mixed = slice("web", &[(POD_A, "n1", dying()), (POD_B, "n2", ready())]);
    let world = World::with(vec![web(json!({}))], vec![mixed]);
    assert_eq!(
        world.tcp("10.244.1.9", VIP),
        BTreeSet::from([at("10.244.2.3:8080", false)])
    );
    let world = World::with(
        vec![web(json!({}))],
        vec![slice("web", &[(POD_A, "n1", dying())])],
    );
    assert_eq!(
        world.tcp("10.244.1.9", VIP),
        BTreeSet::from([at("10.244.1.2:8080", false)])
    );
}

#[test]
fn endpoints_that_are_published_as_ready_serve_though_they_end() {
    // What the slices of a Service with `publishNotReadyAddresses` say of a pod that is not ready and going.
    let ending = json!({"ready": true, "serving": false, "terminating": true});
    let world = World::with(
        vec![web(json!({"publishNotReadyAddresses": true}))],
        vec![slice("web", &[(POD_A, "n1", ending)])],
    );
    assert_eq!(
        world.tcp("10.244.1.9", VIP),
        BTreeSet::from([at("10.244.1.2:8080", false)])
    );
}

#[test]
fn a_client_with_affinity_stays_until_its_endpoint_goes() {
    let sticky = web(json!({"sessionAffinity": "ClientIP"}));
    let mut world = World::with(vec![sticky.clone()], vec![both()]);
    assert_eq!(
        world.connect(6, "10.244.1.9", VIP, 0),
        at("10.244.1.2:8080", false)
    );
    assert_eq!(
        world.tcp("10.244.1.9", VIP),
        BTreeSet::from([at("10.244.1.2:8080", false)])
    );
    assert_eq!(
        world.connect(6, "172.16.0.5", &format!("{NODE}:30080"), 1),
        at("10.244.2.3:8080", true)
    );
    assert_eq!(
        world.tcp("172.16.0.5", &format!("{NODE}:30080")),
        BTreeSet::from([at("10.244.2.3:8080", true)])
    );

    let one = slice("web", &[(POD_B, "n2", ready())]);
    let _ = world.update(&Snapshot {
        services: vec![sticky.clone()],
        slices: vec![one],
        host_ports: vec![],
        ..Snapshot::default()
    });
    assert_eq!(
        world.tcp("10.244.1.9", VIP),
        BTreeSet::from([at("10.244.2.3:8080", false)])
    );
    let _ = world.update(&Snapshot {
        services: vec![sticky],
        slices: vec![both()],
        host_ports: vec![],
        ..Snapshot::default()
    });
    assert_eq!(
        world.tcp("10.244.1.9", VIP),
        BTreeSet::from([at("10.244.2.3:8080", false)])
    );
}

#[test]
fn external_addresses_lead_to_the_endpoints() {
    let external = web(json!({"externalIPs": ["203.0.113.9"]}));
    let world = World::with(vec![external], vec![both()]);
    let all = BTreeSet::from([at("10.244.1.2:8080", true), at("10.244.2.3:8080", true)]);
    assert_eq!(world.tcp("172.16.0.5", "203.0.113.9:80"), all);
}

#[test]
fn services_that_say_so_are_left_to_others() {
    for label in [
        "service.kubernetes.io/headless",
        "service.kubernetes.io/service-proxy-name",
    ] {
        let mut labelled = (*web(json!({}))).clone();
        labelled.metadata.labels = Some([(label.to_owned(), "x".to_owned())].into());
        let world = World::with(vec![Arc::new(labelled)], vec![both()]);
        assert_eq!(
            world.tcp("10.244.1.9", VIP),
            BTreeSet::from([Outcome::Refused])
        );
    }
}

#[test]
fn only_some_sources_reach_a_load_balancers_address() {
    let balanced = |ranges: Value| {
        let mut service =
            (*web(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}))).clone();
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
        service.status = Some(serde_json::from_value(status).unwrap());
        Arc::new(service)
    };
    let snapshot = |ranges: Value| Snapshot {
        services: vec![balanced(ranges)],
        slices: vec![both()],
        ..Snapshot::default()
    };
    let all = BTreeSet::from([at("10.244.1.2:8080", true), at("10.244.2.3:8080", true)]);
    let mut world = World::new(&snapshot(json!(["172.16.0.0/24", "10.9.0.0/16"])));
    assert_eq!(world.tcp("172.16.0.5", "203.0.113.9:80"), all);
    assert_eq!(
        world.tcp("172.16.1.5", "203.0.113.9:80"),
        BTreeSet::from([Outcome::Dropped])
    );
    // Node ports and the virtual address are not the load balancer's.
    assert_eq!(world.tcp("172.16.1.5", &format!("{NODE}:30080")), all);
    // Other ranges, and none: chains come and go in an order that the kernel takes.
    let _ = world.update(&snapshot(json!(["172.16.1.0/24"])));
    assert_eq!(world.tcp("172.16.1.5", "203.0.113.9:80"), all);
    let _ = world.update(&snapshot(json!([])));
    assert_eq!(world.tcp("172.16.9.5", "203.0.113.9:80"), all);
    let _ = world.update(&snapshot(json!(["172.16.1.0/24"])));
    let _ = world.update(&Snapshot::default());
    assert_eq!(world.held(), world.state.inventory());
}

#[test]
fn traffic_stays_on_the_node_or_in_the_zone_that_endpoints_are_meant_for() {
    let hinted = |a: Value, b: Value| {
        let mut slice = (*both()).clone();
        for (endpoint, hints) in slice.endpoints.iter_mut().zip([a, b]) {
            endpoint.hints = serde_json::from_value(hints).unwrap();
        }
        Arc::new(slice)
    };
    let reached = |zone: Option<&str>, a: Value, b: Value| {
        let world = World::new(&Snapshot {
            services: vec![web(json!({}))],
            slices: vec![hinted(a, b)],
            zone: zone.map(str::to_owned),
            ..Snapshot::default()
        });
        world.tcp("10.244.1.9", VIP).len()
    };
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let node = |name: &str| json!({"forNodes": [{"name": name}]});
    assert_eq!(reached(Some("z1"), zone("z1"), zone("z2")), 1);
    assert_eq!(reached(None, node("n1"), node("n2")), 1);
    // Nobody near, no zone, or hints that are not complete: everybody.
    assert_eq!(reached(Some("z3"), zone("z1"), zone("z2")), 2);
    assert_eq!(reached(None, zone("z1"), zone("z2")), 2);
    assert_eq!(reached(Some("z1"), zone("z1"), json!(null)), 2);
}

#[test]
fn a_new_endpoint_changes_elements_only_of_its_service() {
    let other = service(
        "db",
        json!({"clusterIP": "10.96.0.8", "ports": [{"port": 80}]}),
    );
    let other_slice = slice(
        "db",
        &[("10.244.1.7", "n1", ready()), ("10.244.1.8", "n1", ready())],
    );
    let services = vec![web(json!({})), other];
    let mut world = World::with(
        services.clone(),
        vec![slice("web", &[(POD_A, "n1", ready())]), other_slice.clone()],
    );
    let ops = world.update(&Snapshot {
        services,
        slices: vec![both(), other_slice],
        host_ports: vec![],
        ..Snapshot::default()
    });
    // The chain of two is there for the VIP already; node ports need theirs, and both chains of one go.
    let changed: usize = ops
        .iter()
        .map(|op| match op {
            Op::AddElements { elements, .. } | Op::DeleteElements { elements, .. } => {
                elements.len()
            }
            _ => 0,
        })
        .sum();
    assert_eq!(changed, 6, "{ops:#?}");
    assert_eq!(world.held().rules, world.state.inventory().rules);
    assert_eq!(world.held(), world.state.inventory());
}

#[test]
fn two_services_with_one_external_address_do_not_break_the_node() {
    let claim = |name: &str, ip: &str| {
        service(
            name,
            json!({"clusterIP": ip, "externalIPs": ["203.0.113.9"], "ports": [{"port": 80}]}),
        )
    };
    let (a, b) = (claim("a", "10.96.1.1"), claim("b", "10.96.1.2"));
    let slices = vec![
        slice("a", &[(POD_A, "n1", ready())]),
        slice("b", &[(POD_B, "n2", ready())]),
    ];
    let mut world = World::with(vec![a, b.clone()], slices.clone());
    assert_eq!(
        world.connect(6, "172.16.0.5", "203.0.113.9:80", 0),
        at("10.244.1.2:8080", true)
    );
    let _ = world.update(&Snapshot {
        services: vec![b],
        slices,
        host_ports: vec![],
        ..Snapshot::default()
    });
    assert_eq!(
        world.connect(6, "172.16.0.5", "203.0.113.9:80", 0),
        at("10.244.2.3:8080", true)
    );
    assert_eq!(world.held(), world.state.inventory());
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let endpoint = (1u8..6, any::<bool>(), any::<bool>());
    let one = (
        0u8..5,
        proptest::collection::vec(endpoint, 0..4),
        any::<bool>(),
        any::<bool>(),
        0u8..2,
    );
    proptest::collection::btree_map(0u8..4, one, 0..4).prop_map(|services| {
        let mut snapshot = Snapshot::default();
        for (name, (ip, endpoints, local, sticky, external)) in services {
            let name = format!("s{name}");
            let policy = if local { "Local" } else { "Cluster" };
            let affinity = if sticky { "ClientIP" } else { "None" };
            snapshot.services.push(service(
                &name,
                json!({"clusterIP": format!("10.96.0.{}", 20 + ip), "type": "NodePort", "sessionAffinity": affinity,
                    "externalTrafficPolicy": policy, "externalIPs": [format!("203.0.113.{external}")],
                    "ports": [{"port": 80, "nodePort": 30000 + i32::from(ip)}]}),
            ));
            let ips: Vec<(String, &str, Value)> = endpoints
                .iter()
                .map(|(i, here, ok)| {
                    let node = if *here { "n1" } else { "n2" };
                    (format!("10.244.1.{i}"), node, if *ok { ready() } else { dying() })
                })
                .collect();
            let ips: Vec<(&str, &str, Value)> = ips.iter().map(|(a, b, c)| (a.as_str(), *b, c.clone())).collect();
            snapshot.slices.push(slice(&name, &ips));
        }
        snapshot
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// However snapshots follow each other, even with conflicting claims, each transaction is accepted and
    /// the table holds exactly what is expected of it.
    #[test]
    fn any_sequence_of_snapshots_is_accepted(snapshots in proptest::collection::vec(any_snapshot(), 1..6)) {
        let mut world = World::new(&Snapshot::default());
        for snapshot in &snapshots {
            let _ = world.update(snapshot);
            prop_assert_eq!(world.held(), world.state.inventory());
        }
        // A rebuild from nothing gives the same table.
        let table = world.config.table_name();
        let elements = |world: &World| {
            crate::key::SetId::ALL.map(|s| {
                let mut e = world.model.elements(&table, s.name());
                e.sort_by(|a, b| a.key.cmp(&b.key));
                e
            })
        };
        let before = elements(&world);
        world.model.apply(&table, &world.state.rebuild()).unwrap();
        prop_assert_eq!(before, elements(&world));
    }
}

#[derive(Default)]
struct FakeConntrack {
    flows: Vec<Flow>,
    forgotten: Mutex<Vec<Flow>>,
}

impl Conntrack for FakeConntrack {
    fn udp_flows(&self) -> balsa_netlink::Result<Vec<Flow>> {
        Ok(self.flows.clone())
    }

    fn forget(&self, flow: &Flow) -> balsa_netlink::Result<()> {
        self.forgotten.lock().push(*flow);
        Ok(())
    }
}

#[tokio::test]
async fn a_removed_table_comes_back() {
    let model = Arc::new(Model::default());
    let stop = CancellationToken::new();
    let handle = Proxy::start(
        config(),
        model.clone(),
        Arc::new(FakeConntrack::default()),
        stop.clone(),
    );
    handle.update(Snapshot {
        services: vec![web(json!({}))],
        slices: vec![both()],
        host_ports: vec![],
        ..Snapshot::default()
    });
    handle.settled().await;
    let table = config().table_name();
    let before = model.inventory(&table).unwrap().unwrap();
    model.remove(&table);
    let after = loop {
        if let Some(after) = model.inventory(&table).unwrap() {
            break after;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(
        (before.rules, before.elements),
        (after.rules, after.elements)
    );
    assert_eq!(model.transactions().len(), 2, "no rebuild without a reason");
    stop.cancel();
}

#[tokio::test]
async fn a_udp_client_loses_its_flow_to_a_lost_endpoint() {
    let source = ("10.244.1.9".parse().unwrap(), 4000);
    let flow = |answers: &str| Flow {
        source,
        destination: ("10.96.0.9".parse().unwrap(), 53),
        answers: (answers.parse().unwrap(), 8080),
    };
    let conntrack = Arc::new(FakeConntrack {
        flows: vec![flow(POD_A), flow(POD_B)],
        ..FakeConntrack::default()
    });
    let handle = Proxy::start(
        config(),
        Arc::new(Model::default()),
        conntrack.clone(),
        CancellationToken::new(),
    );
    let udp = |endpoints: &[(&str, &str, Value)]| {
        let mut slice = slice("udp", endpoints).as_ref().clone();
        slice.ports.as_mut().unwrap()[0].protocol = Some("UDP".to_owned());
        let service = service(
            "udp",
            json!({"clusterIP": "10.96.0.9", "ports": [{"port": 53, "protocol": "UDP"}]}),
        );
        Snapshot {
            services: vec![service],
            slices: vec![Arc::new(slice)],
            host_ports: vec![],
            ..Snapshot::default()
        }
    };
    handle.update(udp(&[(POD_A, "n1", ready()), (POD_B, "n2", ready())]));
    handle.settled().await;
    assert!(conntrack.forgotten.lock().is_empty());
    handle.update(udp(&[(POD_B, "n2", ready())]));
    handle.settled().await;
    assert_eq!(*conntrack.forgotten.lock(), vec![flow(POD_A)]);
}
