#![allow(clippy::unwrap_used, clippy::print_stderr)]
//! Real packets through real namespaces: a node, two pods behind it, and a client outside.
//!
//! The namespaces have no names, so nothing is left behind even when a test dies.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_netlink::nft::{Family, Kernel, Nft, Op};
use balsa_netlink::{
    Address, CtNetlink, LinkChange, Links, Namespace, NewVeth, Route, Rtnl, Scope, sysctl,
};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::state::State;
use crate::{Config, Handle, HostPort, Protocol, Proxy, Snapshot};

const POD_A: &str = "10.244.1.2";
const POD_B: &str = "10.244.2.2";
const CLIENT: &str = "172.16.0.2";
const NODE: &str = "172.16.0.1";
const WAIT: Duration = Duration::from_secs(2);

struct Lab {
    node: Namespace,
    a: Namespace,
    b: Namespace,
    client: Namespace,
    stop: CancellationToken,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Builds the lab, or says why it cannot.
fn lab() -> Option<Lab> {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    let space = || Namespace::anonymous().unwrap();
    let lab = Lab {
        node: space(),
        a: space(),
        b: space(),
        client: space(),
        stop: CancellationToken::new(),
    };
    lab.node
        .run(|| sysctl::set("ipv4/ip_forward", "1").unwrap())
        .unwrap();
    let node = Rtnl::open_in(&lab.node).unwrap();
    // The kernel takes its time to notice a cable whose ends have one interface number: shift them.
    node.add_bridge("pad").unwrap();
    up(&node, "lo");
    attach(&node, "va", &lab.a, POD_A);
    attach(&node, "vb", &lab.b, POD_B);
    attach(&node, "vc", &lab.client, CLIENT);
    let link = node.link("vc").unwrap().unwrap().index;
    put_route(&node, "10.96.0.0/16", CLIENT, link);
    Some(lab)
}

fn up(links: &Rtnl, name: &str) -> u32 {
    let index = links.link(name).unwrap().unwrap().index;
    links
        .change_link(
            index,
            &LinkChange {
                up: Some(true),
                ..LinkChange::default()
            },
        )
        .unwrap();
    index
}

fn put_route(links: &Rtnl, to: &str, via: &str, link: u32) {
    links
        .put_route(&Route::via(to.parse().unwrap(), via.parse().unwrap(), link))
        .unwrap();
}

/// Connects `inner` to the node with a /24 in which the node is .1.
fn attach(node: &Rtnl, name: &str, inner: &Namespace, ip: &str) {
    use std::os::fd::AsFd;
    let peer_netns = Some(inner.as_fd());
    node.add_veth(&NewVeth {
        name,
        mac: None,
        peer_name: "eth0",
        peer_mac: None,
        peer_netns,
        mtu: 1500,
    })
    .unwrap();
    let gateway = format!("{}.1", ip.rsplit_once('.').unwrap().0);
    let address = |link, ip: &str| Address {
        link,
        net: format!("{ip}/24").parse().unwrap(),
        scope: Scope::Global,
    };
    node.put_address(&address(up(node, name), &gateway))
        .unwrap();
    let inside = Rtnl::open_in(inner).unwrap();
    up(&inside, "lo");
    let eth0 = up(&inside, "eth0");
    inside.put_address(&address(eth0, ip)).unwrap();
    put_route(&inside, "0.0.0.0/0", &gateway, eth0);
}

impl Lab {
    fn proxy(&self) -> Handle {
        let config = Config {
            service_cidr: Some("10.96.0.0/16".parse().unwrap()),
            ..Config::new("n1", vec!["10.244.0.0/16".parse().unwrap()])
        };
        let conntrack = self.node.run(CtNetlink::open).unwrap().unwrap();
        Proxy::start(config, self.nft(), Arc::new(conntrack), self.stop.clone())
    }

    fn nft(&self) -> Arc<Kernel> {
        Arc::new(self.node.run(Kernel::open).unwrap().unwrap())
    }
}

/// Answers each connection with `name` and the address it sees.
fn tcp_server(space: &Namespace, name: &'static str, port: u16) {
    let listener = space
        .run(|| TcpListener::bind(("0.0.0.0", port)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream
                .peer_addr()
                .map(|p| p.ip().to_string())
                .unwrap_or_default();
            let _ = stream.write_all(format!("{name} {peer}").as_bytes());
        }
    });
}

fn udp_server(space: &Namespace, name: &'static str, port: u16) {
    let socket = space
        .run(|| UdpSocket::bind(("0.0.0.0", port)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// Connects from a namespace and gives what the server says.
fn tcp(from: &Namespace, to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, WAIT)?;
        stream.set_read_timeout(Some(WAIT))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })
    .unwrap()
}

fn ask(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let n = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

fn udp_client(from: &Namespace, to: &str) -> UdpSocket {
    from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.connect(to).unwrap();
        socket
    })
    .unwrap()
}

fn many(from: &Namespace, to: &str) -> BTreeSet<String> {
    (0..24).map(|_| tcp(from, to).unwrap()).collect()
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|s| (*s).to_owned()).collect()
}

fn web(more: Value) -> Arc<Service> {
    let mut spec = json!({"clusterIP": "10.96.0.7", "type": "NodePort", "ports": [
        {"name": "t", "port": 80, "nodePort": 30080, "protocol": "TCP"},
        {"name": "u", "port": 53, "nodePort": 30053, "protocol": "UDP"}]});
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    Arc::new(
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "d"}, "spec": spec}),
        )
        .unwrap(),
    )
}

fn slice(endpoints: &[(&str, &str)]) -> Arc<EndpointSlice> {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(ip, node)| json!({"addresses": [ip], "nodeName": node}))
        .collect();
    Arc::new(
        serde_json::from_value(json!({
            "addressType": "IPv4",
            "metadata": {"name": "web-x", "namespace": "d", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}, {"name": "u", "port": 5353, "protocol": "UDP"}],
            "endpoints": endpoints,
        }))
        .unwrap(),
    )
}

async fn serve(proxy: &Handle, more: Value, endpoints: &[(&str, &str)]) {
    proxy.update(Snapshot {
        services: vec![web(more)],
        slices: vec![slice(endpoints)],
        host_ports: vec![],
        ..Snapshot::default()
    });
    proxy.settled().await;
}

const BOTH: &[(&str, &str)] = &[(POD_A, "n1"), (POD_B, "n1")];

#[tokio::test]
async fn tcp_reaches_endpoints_by_every_address() {
    let Some(lab) = lab() else { return };
    let proxy = lab.proxy();
    tcp_server(&lab.a, "a", 8080);
    tcp_server(&lab.b, "b", 8080);
    serve(&proxy, json!({}), BOTH).await;

    // A pod by the virtual address: the other pod sees it, itself it sees as the node.
    assert_eq!(
        many(&lab.a, "10.96.0.7:80"),
        set(&["a 10.244.1.1", "b 10.244.1.2"])
    );
    // From the node, and from outside by the node's port: the node's addresses.
    assert_eq!(
        many(&lab.node, "10.96.0.7:80"),
        set(&["a 10.244.1.1", "b 10.244.2.1"])
    );
    assert_eq!(
        many(&lab.client, "172.16.0.1:30080"),
        set(&["a 10.244.1.1", "b 10.244.2.1"])
    );
    assert_eq!(
        many(&lab.node, "172.16.0.1:30080"),
        set(&["a 10.244.1.1", "b 10.244.2.1"])
    );
    // With the Local policy, endpoints see the client.
    serve(&proxy, json!({"externalTrafficPolicy": "Local"}), BOTH).await;
    assert_eq!(
        many(&lab.client, "172.16.0.1:30080"),
        set(&["a 172.16.0.2", "b 172.16.0.2"])
    );
}

#[tokio::test]
async fn without_endpoints_connections_are_refused_at_once_and_changes_take_effect() {
    let Some(lab) = lab() else { return };
    let proxy = lab.proxy();
    tcp_server(&lab.a, "a", 8080);
    serve(&proxy, json!({}), &[]).await;
    for (from, to) in [
        (&lab.b, "10.96.0.7:80"),
        (&lab.node, "10.96.0.7:80"),
        (&lab.client, "172.16.0.1:30080"),
        (&lab.b, "10.96.0.99:80"),
    ] {
        let started = Instant::now();
        assert_eq!(
            tcp(from, to).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{to}"
        );
        assert!(started.elapsed() < WAIT / 2);
    }
    serve(&proxy, json!({}), &[(POD_A, "n1")]).await;
    assert_eq!(many(&lab.b, "10.96.0.7:80"), set(&["a 10.244.2.2"]));
    serve(&proxy, json!({}), &[]).await;
    assert_eq!(
        tcp(&lab.b, "10.96.0.7:80").unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[tokio::test]
async fn a_udp_client_moves_on_when_its_endpoint_goes() {
    let Some(lab) = lab() else { return };
    let proxy = lab.proxy();
    udp_server(&lab.a, "a", 5353);
    udp_server(&lab.b, "b", 5353);
    serve(&proxy, json!({}), &[(POD_A, "n1")]).await;
    let client = udp_client(&lab.client, "172.16.0.1:30053");
    let inside = udp_client(&lab.b, "10.96.0.7:53");
    assert_eq!(ask(&client).unwrap(), "a 10.244.1.1");
    assert_eq!(ask(&inside).unwrap(), "a 10.244.2.2");
    serve(&proxy, json!({}), &[(POD_B, "n1")]).await;
    assert_eq!(ask(&client).unwrap(), "b 10.244.2.1");
    assert_eq!(
        ask(&inside).unwrap(),
        "b 10.244.2.1",
        "to itself: through the node"
    );
}

#[tokio::test]
async fn a_client_with_affinity_stays_with_its_endpoint() {
    let Some(lab) = lab() else { return };
    let proxy = lab.proxy();
    tcp_server(&lab.a, "a", 8080);
    tcp_server(&lab.b, "b", 8080);
    let sticky = json!({"sessionAffinity": "ClientIP"});
    serve(&proxy, sticky.clone(), BOTH).await;
    let first = many(&lab.client, "172.16.0.1:30080");
    assert_eq!(first.len(), 1, "{first:?}");
    let (other, sees) = if first.contains("a 10.244.1.1") {
        ((POD_B, "n1"), "b 10.244.2.1")
    } else {
        ((POD_A, "n1"), "a 10.244.1.1")
    };
    serve(&proxy, sticky.clone(), &[other]).await;
    assert_eq!(many(&lab.client, "172.16.0.1:30080"), set(&[sees]));
    serve(&proxy, sticky, BOTH).await;
    assert_eq!(
        many(&lab.client, "172.16.0.1:30080"),
        set(&[sees]),
        "it moved, and stays where it is now"
    );
}

#[tokio::test]
async fn host_ports_lead_to_pods_and_pods_leave_under_the_nodes_address() {
    let Some(lab) = lab() else { return };
    let proxy = lab.proxy();
    tcp_server(&lab.a, "a", 8080);
    tcp_server(&lab.client, "outside", 9000);
    let host_port = |host_ip: Option<&str>, host_port| HostPort {
        protocol: Protocol::Tcp,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        pod_ip: POD_A.parse::<IpAddr>().unwrap(),
        pod_port: 8080,
    };
    let host_ports = vec![host_port(None, 8000), host_port(Some(NODE), 8001)];
    proxy.update(Snapshot {
        host_ports,
        ..Snapshot::default()
    });
    proxy.settled().await;
    assert_eq!(tcp(&lab.client, "172.16.0.1:8000").unwrap(), "a 172.16.0.2");
    assert_eq!(tcp(&lab.client, "172.16.0.1:8001").unwrap(), "a 172.16.0.2");
    assert_eq!(
        tcp(&lab.a, "172.16.0.1:8000").unwrap(),
        "a 10.244.1.1",
        "a pod by its own host port"
    );
    assert_eq!(
        tcp(&lab.a, "172.16.0.2:9000").unwrap(),
        "outside 172.16.0.1"
    );
    assert_eq!(
        tcp(&lab.b, "10.244.1.2:8080").unwrap(),
        "a 10.244.2.2",
        "between pods nothing is translated"
    );
}

#[tokio::test]
async fn what_is_removed_by_hand_returns() {
    let Some(lab) = lab() else { return };
    let proxy = lab.proxy();
    tcp_server(&lab.a, "a", 8080);
    serve(&proxy, json!({}), &[(POD_A, "n1")]).await;
    let nft = lab.nft();
    let table = Config::new("n1", vec![]).table_name();
    for damage in [
        vec![Op::DeleteTable],
        vec![Op::FlushChain("services".to_owned())],
        vec![Op::DeleteElements {
            set: "hairpin".to_owned(),
            elements: vec![hairpin(POD_A)],
        }],
    ] {
        let before = nft.inventory(&table).unwrap().unwrap();
        nft.apply(&table, &damage).unwrap();
        let deadline = Instant::now() + WAIT * 2;
        loop {
            let after = nft.inventory(&table).unwrap().unwrap_or_default();
            if (&after.rules, &after.elements) == (&before.rules, &before.elements) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{damage:?} was not repaired: {after:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(tcp(&lab.b, "10.96.0.7:80").unwrap(), "a 10.244.2.2");
}

fn hairpin(ip: &str) -> balsa_netlink::nft::Element {
    let ip: IpAddr = ip.parse().unwrap();
    balsa_netlink::nft::Element {
        key: crate::key::Key::new().ip(ip).ip(ip).value(),
        data: None,
    }
}

/// People look at rules with `nft list`; it must understand ours. (Not with session affinity: nft 1.0.6 ends
/// with an assertion on any rule that remembers what a map gave.)
#[tokio::test]
async fn nft_can_list_the_table() {
    let Some(lab) = lab() else { return };
    let proxy = lab.proxy();
    serve(&proxy, json!({"externalTrafficPolicy": "Local"}), BOTH).await;
    let listed = lab
        .node
        .run(|| {
            std::process::Command::new("nft")
                .args(["list", "ruleset"])
                .output()
        })
        .unwrap();
    let Ok(listed) = listed else {
        eprintln!("skipped: nft is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&listed.stdout);
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    assert!(text.contains("numgen random mod 2"), "{text}");
}

/// `count` Services with `endpoints` each, from 10.96.1.1 on.
fn crowd(count: u32, endpoints: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for i in 0..count {
        let name = format!("s{i}");
        let ip = format!("10.96.{}.{}", 1 + i / 250, 1 + i % 250);
        let spec = json!({"clusterIP": ip, "ports": [{"port": 80}]});
        let service = json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec});
        snapshot
            .services
            .push(Arc::new(serde_json::from_value(service).unwrap()));
        let mut slice = slice(endpoints).as_ref().clone();
        slice.metadata.name = Some(format!("{name}-x"));
        slice.metadata.labels = Some(BTreeMap::from([(
            "kubernetes.io/service-name".to_owned(),
            name,
        )]));
        slice.ports.as_mut().unwrap()[0].name = None;
        snapshot.slices.push(Arc::new(slice));
    }
    snapshot
}

#[tokio::test]
async fn thousands_of_services_load_in_one_transaction() {
    let Some(lab) = lab() else { return };
    let proxy = lab.proxy();
    proxy.update(crowd(2_000, BOTH));
    proxy.settled().await;
    let held = lab
        .nft()
        .inventory(&Config::new("n1", vec![]).table_name())
        .unwrap()
        .unwrap();
    assert_eq!(
        (held.elements["vip"], held.elements["vip-slot"]),
        (2_000, 4_000)
    );
    tcp_server(&lab.a, "a", 8080);
    tcp_server(&lab.b, "b", 8080);
    let last = many(&lab.client, "10.96.8.250:80");
    assert_eq!(last.len(), 2, "the last Service of the last message");
}

/// Figures, not a check: `cargo nextest run -p balsa-proxy --run-ignored only --no-capture`.
#[tokio::test]
#[ignore = "prints figures"]
async fn figures_for_thirty_thousand_services() {
    let Some(lab) = lab() else { return };
    let (nft, config) = (
        lab.nft(),
        Config::new("n1", vec!["10.244.0.0/16".parse().unwrap()]),
    );
    let table = config.table_name();
    let mut state = State::new(config, Family::Ipv4);
    let four = [
        (POD_A, "n1"),
        (POD_B, "n1"),
        ("10.244.3.3", "n2"),
        ("10.244.4.4", "n2"),
    ];
    let mut snapshot = crowd(30_000, &four);
    let started = Instant::now();
    let _ = state.update(&snapshot);
    let ops = state.rebuild();
    let decided = started.elapsed();
    nft.apply(&table, &ops).unwrap();
    eprintln!(
        "full load: decided in {decided:?}, kernel {:?}",
        started.elapsed() - decided
    );
    for round in 0..5usize {
        let mut slice = snapshot.slices[round].as_ref().clone();
        slice.endpoints.pop();
        snapshot.slices[round] = Arc::new(slice);
        let started = Instant::now();
        let change = state.update(&snapshot);
        let decided = started.elapsed();
        nft.apply(&table, &change.ops).unwrap();
        eprintln!(
            "one endpoint less: decided in {decided:?}, kernel {:?}",
            started.elapsed() - decided
        );
    }
}
