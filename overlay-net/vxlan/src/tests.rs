#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_netlink::{
    Address, FakeLinks, LinkChange, Links, Mac, Namespace, NewVeth, Route, Rtnl, Scope, host_net,
    sysctl,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::overlay::reconcile;

fn peer(n: u8) -> Peer {
    Peer {
        name: format!("n{n}"),
        node_ip: format!("192.168.0.{n}").parse().unwrap(),
        pod_cidr: format!("10.244.{n}.0/24").parse().unwrap(),
    }
}

fn config(n: u8) -> Config {
    Config {
        mode: Mode::Vxlan,
        local: peer(n),
        service_cidr: Some("10.96.0.0/16".parse().unwrap()),
        local_addresses: vec!["10.96.0.10".parse().unwrap()],
        mtu: None,
    }
}

fn host() -> FakeLinks {
    FakeLinks::with_underlay("192.168.0.1/24".parse().unwrap())
}

fn routes(links: &FakeLinks) -> Vec<String> {
    let mut routes: Vec<String> = links
        .tables()
        .routes
        .iter()
        .map(|r| {
            format!(
                "{} {} {:?}",
                r.destination,
                r.via.map_or_else(|| "-".to_owned(), |v| v.to_string()),
                r.kind
            )
        })
        .collect();
    routes.sort();
    routes
}

#[test]
fn a_node_gets_its_device_and_a_way_to_each_peer() {
    let links = host();
    assert_eq!(
        reconcile(&config(1), Some(&[peer(1), peer(2)]), &links).unwrap(),
        1450
    );
    let tables = links.tables();
    let device = tables.links.iter().find(|l| l.name == DEVICE).unwrap();
    assert!(device.up);
    assert_eq!(tables.neighbours.len(), 1);
    assert_eq!(tables.neighbours[0].ip.to_string(), "10.244.2.0");
    assert_eq!(tables.fdb[0].destination, peer(2).node_ip);
    assert_eq!(tables.fdb[0].mac, tables.neighbours[0].mac);
    assert_eq!(
        routes(&links),
        [
            "10.244.1.0/24 - Unreachable",
            "10.244.2.0/24 10.244.2.0 Unicast",
            "10.96.0.0/16 - Unicast"
        ]
    );
    let local: Vec<String> = tables
        .addresses
        .iter()
        .map(|a| format!("{} {:?}", a.net, a.scope))
        .collect();
    assert_eq!(
        local,
        [
            "192.168.0.1/24 Global",
            "10.244.1.0/32 Global",
            "10.96.0.10/32 Host"
        ]
    );
}

#[test]
fn a_settled_node_needs_no_steps_and_both_ends_agree_on_addresses() {
    let links = host();
    reconcile(&config(1), Some(&[peer(2)]), &links).unwrap();
    let before = links.tables();
    reconcile(&config(1), Some(&[peer(2)]), &links).unwrap();
    assert_eq!(links.tables(), before);
    let other = FakeLinks::with_underlay("192.168.0.2/24".parse().unwrap());
    reconcile(&config(2), Some(&[peer(1)]), &other).unwrap();
    let device = other
        .tables()
        .links
        .into_iter()
        .find(|l| l.name == DEVICE)
        .unwrap();
    assert_eq!(device.mac, Some(before.neighbours[0].mac));
}

#[test]
fn a_peer_that_leaves_or_moves_leaves_nothing_behind() {
    let links = host();
    reconcile(&config(1), Some(&[peer(2), peer(3)]), &links).unwrap();
    let moved = Peer {
        node_ip: "192.168.0.33".parse().unwrap(),
        ..peer(3)
    };
    reconcile(&config(1), Some(std::slice::from_ref(&moved)), &links).unwrap();
    let tables = links.tables();
    assert_eq!(
        tables.fdb.iter().map(|e| e.destination).collect::<Vec<_>>(),
        [moved.node_ip]
    );
    assert_eq!(tables.neighbours.len(), 1);
    assert_eq!(
        routes(&links),
        [
            "10.244.1.0/24 - Unreachable",
            "10.244.3.0/24 10.244.3.0 Unicast",
            "10.96.0.0/16 - Unicast"
        ]
    );
}

#[test]
fn others_routes_and_the_pods_routes_stay() {
    let links = host();
    let mine = Route {
        managed: false,
        ..Route::via(
            "10.9.0.0/16".parse().unwrap(),
            "192.168.0.254".parse().unwrap(),
            2,
        )
    };
    let pods = Route::on_link("10.244.1.5/32".parse().unwrap(), 2);
    links.put_route(&mine).unwrap();
    links.put_route(&pods).unwrap();
    reconcile(&config(1), Some(&[peer(2)]), &links).unwrap();
    reconcile(&config(1), Some(&[]), &links).unwrap();
    let left = links.tables().routes;
    assert!(left.contains(&mine) && left.contains(&pods), "{left:?}");
}

#[test]
fn ways_from_before_a_restart_stay_until_the_peers_are_known() {
    let links = host();
    reconcile(&config(1), Some(&[peer(2)]), &links).unwrap();
    let before = links.tables();
    reconcile(&config(1), None, &links).unwrap();
    assert_eq!(links.tables(), before);
    reconcile(&config(1), Some(&[]), &links).unwrap();
    assert_ne!(links.tables(), before);
}

#[test]
fn a_device_of_other_parameters_is_made_anew() {
    let links = host();
    reconcile(&config(1), Some(&[peer(2)]), &links).unwrap();
    let device = links.link(DEVICE).unwrap().unwrap();
    let renumbered = Config {
        local: Peer {
            node_ip: "192.168.0.9".parse().unwrap(),
            ..peer(1)
        },
        ..config(1)
    };
    links
        .put_address(&Address {
            link: 2,
            net: "192.168.0.9/24".parse().unwrap(),
            scope: Scope::Global,
        })
        .unwrap();
    reconcile(&renumbered, Some(&[peer(2)]), &links).unwrap();
    let anew = links.link(DEVICE).unwrap().unwrap();
    assert_ne!((device.index, device.mac), (anew.index, anew.mac));
}

#[test]
fn on_one_link_no_encapsulation_is_needed() {
    let links = host();
    let auto = Config {
        mode: Mode::Auto,
        ..config(1)
    };
    let far = Peer {
        node_ip: "172.16.0.9".parse().unwrap(),
        ..peer(9)
    };
    reconcile(&auto, Some(&[peer(2), far]), &links).unwrap();
    assert_eq!(
        routes(&links),
        [
            "10.244.1.0/24 - Unreachable",
            "10.244.2.0/24 192.168.0.2 Unicast",
            "10.244.9.0/24 10.244.9.0 Unicast",
            "10.96.0.0/16 - Unicast"
        ]
    );
    // Back to VXLAN: the direct route is replaced, not doubled.
    reconcile(&config(1), Some(&[peer(2)]), &links).unwrap();
    assert_eq!(routes(&links)[1], "10.244.2.0/24 10.244.2.0 Unicast");
}

#[test]
fn a_wrong_node_address_is_explained() {
    let error = reconcile(&config(7), Some(&[]), &host())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("192.168.0.7") && error.contains("--node-ip"),
        "{error}"
    );
}

/// Two nodes on one link, each with a pod's address on `lo`.
struct Pair {
    nodes: [Namespace; 2],
}

fn pair() -> Option<Pair> {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    let nodes = [
        Namespace::anonymous().unwrap(),
        Namespace::anonymous().unwrap(),
    ];
    let first = Rtnl::open_in(&nodes[0]).unwrap();
    // The kernel takes its time to notice a cable whose ends have one interface number: shift them.
    first.add_bridge("pad").unwrap();
    let peer_netns = Some(nodes[1].as_fd());
    let veth = NewVeth {
        name: "eth0",
        mac: None,
        peer_name: "eth0",
        peer_mac: None,
        peer_netns,
        mtu: 1500,
    };
    first.add_veth(&veth).unwrap();
    for (n, node) in (1u8..).zip(&nodes) {
        let links = Rtnl::open_in(node).unwrap();
        node.run(|| sysctl::set("ipv4/ip_forward", "1").unwrap())
            .unwrap();
        for name in ["lo", "eth0"] {
            let link = links.link(name).unwrap().unwrap().index;
            links
                .change_link(
                    link,
                    &LinkChange {
                        up: Some(true),
                        ..LinkChange::default()
                    },
                )
                .unwrap();
            let ip = if name == "lo" {
                format!("10.244.{n}.7/32")
            } else {
                format!("192.168.0.{n}/24")
            };
            links
                .put_address(&Address {
                    link,
                    net: ip.parse().unwrap(),
                    scope: Scope::Global,
                })
                .unwrap();
        }
    }
    Some(Pair { nodes })
}

fn serve(node: &Namespace) {
    let listener = node
        .run(|| TcpListener::bind("10.244.2.7:80").unwrap())
        .unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
}

fn fetch(node: &Namespace) -> std::io::Result<String> {
    node.run(|| {
        let mut stream =
            TcpStream::connect_timeout(&"10.244.2.7:80".parse().unwrap(), Duration::from_secs(3))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })
    .unwrap()
}

#[test]
fn packets_travel_between_nodes_in_the_kernel() {
    let Some(pair) = pair() else { return };
    let links = pair.nodes.each_ref().map(|n| Rtnl::open_in(n).unwrap());
    serve(&pair.nodes[1]);
    let both = |configs: [Config; 2]| {
        for ((config, links), other) in configs.into_iter().zip(&links).zip([2, 1]) {
            assert!(reconcile(&config, Some(&[peer(other)]), links).unwrap() > 1400);
            // Settled: what the kernel shows is what was asked for.
            reconcile(&config, Some(&[peer(other)]), links).unwrap();
        }
    };
    both([config(1), config(2)]);
    assert_eq!(
        fetch(&pair.nodes[0]).unwrap(),
        "10.244.1.0",
        "by the overlay's own address"
    );
    let direct = |n| Config {
        mode: Mode::Direct,
        ..config(n)
    };
    both([direct(1), direct(2)]);
    assert_eq!(
        fetch(&pair.nodes[0]).unwrap(),
        "192.168.0.1",
        "without encapsulation"
    );
    // A pod that is not there is said to be so.
    let gone = pair.nodes[1].run(|| {
        TcpStream::connect_timeout(&"10.244.2.99:80".parse().unwrap(), Duration::from_secs(1))
            .unwrap_err()
            .kind()
    });
    assert_eq!(gone.unwrap(), std::io::ErrorKind::HostUnreachable);
}

#[test]
fn what_is_removed_by_hand_returns() {
    let Some(pair) = pair() else { return };
    let node = &pair.nodes[0];
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let links = Arc::new(Rtnl::open().unwrap());
            let stop = CancellationToken::new();
            let handle = Overlay::start(config(1), links.clone(), stop.clone());
            handle.set_peers(vec![peer(2)]);
            assert_eq!(handle.ready().await, Some(1450));
            settled(&links).await;
            let device = links.link(DEVICE).unwrap().unwrap().index;
            let to_peer = Route::via(peer(2).pod_cidr, peer(2).pod_cidr.network(), device);
            links
                .delete_route(&Route {
                    onlink: true,
                    ..to_peer
                })
                .unwrap();
            settled(&links).await;
            links
                .change_link(
                    device,
                    &LinkChange {
                        up: Some(false),
                        ..LinkChange::default()
                    },
                )
                .unwrap();
            settled(&links).await;
            links.delete_link(device).unwrap();
            settled(&links).await;
            stop.cancel();
        });
    };
    node.run(work).unwrap();
}

async fn settled(links: &Rtnl) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let device = links.link(DEVICE).unwrap().map_or(0, |l| l.index);
        let routed = links
            .routes()
            .unwrap()
            .iter()
            .any(|r| r.destination == peer(2).pod_cidr && r.link == device);
        let addressed = links
            .addresses()
            .unwrap()
            .iter()
            .any(|a| a.net == host_net(peer(1).pod_cidr.network()));
        let known = device != 0
            && !links.fdb(device).unwrap().is_empty()
            && !links.neighbours(device).unwrap().is_empty();
        if routed && addressed && known {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "not repaired: {:?} {:?}",
            links.links(),
            links.routes()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn addresses_on_the_link_layer_differ_between_nodes() {
    assert_ne!(
        Mac::for_ip(3, peer(1).node_ip),
        Mac::for_ip(3, peer(2).node_ip)
    );
}
