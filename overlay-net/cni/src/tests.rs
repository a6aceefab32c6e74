#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use balsa_netlink::{LinkChange, Links, Namespace, Rtnl, sysctl};
use serde_json::{Value, json};

use super::*;

fn call(env: &[(&str, &str)], conf: &Value) -> (Value, bool) {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    let (output, code) = answer(
        &|name| env.get(name).map(|v| (*v).to_owned()),
        conf.to_string().as_bytes(),
    );
    let value = if output.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&output).unwrap()
    };
    (value, code == ExitCode::SUCCESS)
}

fn conf(data_dir: &Path, version: &str) -> Value {
    json!({"cniVersion": version, "name": "balsa", "type": "balsa-cni", "podCIDR": "10.244.1.0/29",
        "mtu": 1400, "dataDir": data_dir})
}

fn path_of(space: &Namespace) -> String {
    format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        space.as_fd().as_raw_fd()
    )
}

/// A node's namespace, or why there is none.
fn node() -> Option<Namespace> {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    let node = Namespace::anonymous().unwrap();
    node.run(|| sysctl::set("ipv4/ip_forward", "1").unwrap())
        .unwrap();
    // A real node has devices of its own, so that interface numbers differ inside and outside.
    Rtnl::open_in(&node).unwrap().add_bridge("pad").unwrap();
    Some(node)
}

fn up(links: &Rtnl, name: &str) {
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
}

fn add(node: &Namespace, pod: &Namespace, id: &str, conf: &Value) -> (Value, bool) {
    let netns = path_of(pod);
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", "eth0"),
    ];
    node.run(|| call(&env, conf)).unwrap()
}

fn other(node: &Namespace, command: &str, netns: &str, id: &str, conf: &Value) -> (Value, bool) {
    let env = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
    ];
    node.run(|| call(&env, conf)).unwrap()
}

#[test]
fn pods_on_a_node_reach_each_other_and_the_node_reaches_them() {
    let Some(node) = node() else { return };
    let folder = tempfile::tempdir().unwrap();
    let conf = conf(folder.path(), "1.0.0");
    let (a, b) = (
        Namespace::anonymous().unwrap(),
        Namespace::anonymous().unwrap(),
    );
    let (first, ok) = add(&node, &a, "aaaa", &conf);
    assert!(ok, "{first}");
    let (second, ok) = add(&node, &b, "bbbb", &conf);
    assert!(ok, "{second}");
    assert_eq!(first["ips"][0]["address"], "10.244.1.1/32");
    assert_eq!(
        second["ips"],
        json!([{"address": "10.244.1.2/32", "gateway": "169.254.1.1", "interface": 1}])
    );
    assert_eq!(
        second["interfaces"][0]["name"],
        host_interface("bbbb", "eth0")
    );

    let listener = b.run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
    let fetch = || {
        let to = "10.244.1.2:80".parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    };
    assert_eq!(a.run(fetch).unwrap(), "10.244.1.1");
    // The node needs some address to talk from; a pod sees whichever it has.
    let links = Rtnl::open_in(&node).unwrap();
    let lo = links.link("lo").unwrap().unwrap();
    let net = "192.168.7.1/32".parse().unwrap();
    links
        .put_address(&balsa_netlink::Address {
            link: lo.index,
            net,
            scope: balsa_netlink::Scope::Global,
        })
        .unwrap();
    assert_eq!(node.run(fetch).unwrap(), "192.168.7.1");
    // An address of the node that is nobody else's (cluster DNS) is reachable, too, and answers from there.
    let net = "10.96.0.10/32".parse().unwrap();
    links
        .put_address(&balsa_netlink::Address {
            link: lo.index,
            net,
            scope: balsa_netlink::Scope::Host,
        })
        .unwrap();
    up(&links, "lo");
    let dns = node
        .run(|| UdpSocket::bind("10.96.0.10:53").unwrap())
        .unwrap();
    let client = a.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    client.connect("10.96.0.10:53").unwrap();
    client.send(b"?").unwrap();
    let mut buffer = [0; 8];
    dns.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let (_, peer) = dns.recv_from(&mut buffer).unwrap();
    assert_eq!(peer.ip().to_string(), "10.244.1.1");
    dns.send_to(b"!", peer).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 1);
    let eth0 = Rtnl::open_in(&a).unwrap().link("eth0").unwrap().unwrap();
    assert_eq!((eth0.mtu, eth0.up), (1400, true));
}

#[test]
fn del_frees_everything_and_may_be_repeated() {
    let Some(node) = node() else { return };
    let folder = tempfile::tempdir().unwrap();
    let conf = conf(folder.path(), "0.4.0");
    let pod = Namespace::anonymous().unwrap();
    let (result, ok) = add(&node, &pod, "aaaa", &conf);
    assert!(ok, "{result}");
    assert_eq!(result["ips"][0]["version"], "4");
    let netns = path_of(&pod);
    assert_eq!(
        other(&node, "CHECK", &netns, "aaaa", &conf),
        (Value::Null, true)
    );
    assert_eq!(
        other(&node, "DEL", &netns, "aaaa", &conf),
        (Value::Null, true)
    );
    let links = Rtnl::open_in(&node).unwrap();
    assert_eq!(links.links().unwrap().len(), 2, "only lo and pad are left");
    let (damaged, ok) = other(&node, "CHECK", &netns, "aaaa", &conf);
    assert!(!ok && damaged["code"] == 102, "{damaged}");
    // A namespace that is gone, or never was, is fine.
    assert_eq!(
        other(&node, "DEL", "/nowhere", "aaaa", &conf),
        (Value::Null, true)
    );
    assert_eq!(other(&node, "DEL", "", "never", &conf), (Value::Null, true));
}

#[test]
fn a_full_cidr_is_explained_and_failures_leave_nothing_behind() {
    let Some(node) = node() else { return };
    let folder = tempfile::tempdir().unwrap();
    let conf = conf(folder.path(), "1.0.0");
    let ipam = balsa_ipam::Ipam::open(folder.path(), "10.244.1.0/29".parse().unwrap()).unwrap();
    let (failed, ok) = other(&node, "ADD", "/nowhere", "aaaa", &conf);
    assert!(!ok && failed["code"] == 101, "{failed}");
    assert!(ipam.allocations().unwrap().is_empty());
    for i in 0..6 {
        ipam.allocate(&i.to_string(), "eth0").unwrap();
    }
    let pod = Namespace::anonymous().unwrap();
    let (full, ok) = add(&node, &pod, "bbbb", &conf);
    assert!(!ok);
    assert_eq!(full["code"], 100);
    assert!(
        full["msg"]
            .as_str()
            .unwrap()
            .starts_with("no free addresses in 10.244.1.0/29"),
        "{full}"
    );
}

#[test]
fn the_same_binary_brings_loopback_up() {
    let Some(node) = node() else { return };
    let pod = Namespace::anonymous().unwrap();
    let netns = path_of(&pod);
    let conf = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    let run = |command| {
        let env = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "a"),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "lo"),
        ];
        node.run(|| call(&env, &conf)).unwrap()
    };
    assert!(!run("CHECK").1);
    let (result, ok) = run("ADD");
    assert!(ok, "{result}");
    assert_eq!(
        result["ips"],
        json!([{"address": "127.0.0.1/8", "interface": 0, "version": "4"}])
    );
    assert!(run("CHECK").1);
    assert!(Rtnl::open_in(&pod).unwrap().link("lo").unwrap().unwrap().up);
    assert!(run("DEL").1);
}

#[test]
fn versions_are_told_and_others_refused() {
    let (versions, ok) = call(
        &[("CNI_COMMAND", "VERSION")],
        &json!({"cniVersion": "1.0.0"}),
    );
    assert!(ok);
    assert!(
        versions["supportedVersions"]
            .as_array()
            .unwrap()
            .contains(&json!("0.4.0"))
    );
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a"),
        ("CNI_NETNS", "/x"),
        ("CNI_IFNAME", "eth0"),
    ];
    let (refused, ok) = call(&env, &json!({"cniVersion": "9.0.0", "type": "balsa-cni"}));
    assert!(!ok);
    assert_eq!(
        (&refused["code"], &refused["cniVersion"]),
        (&json!(1), &json!("9.0.0"))
    );
}

#[test]
fn senseless_requests_get_the_specifications_codes() {
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a"),
        ("CNI_NETNS", "/x"),
        ("CNI_IFNAME", "eth0"),
    ];
    let code = |env: &[(&str, &str)], conf: Value| call(env, &conf).0["code"].clone();
    assert_eq!(code(&env[..2], json!({"type": "balsa-cni"})), 4);
    assert_eq!(
        code(&[("CNI_COMMAND", "DANCE")], json!({"type": "balsa-cni"})),
        4
    );
    assert_eq!(code(&env, json!([1])), 6);
    assert_eq!(
        code(&env, json!({"cniVersion": "1.0.0", "type": "balsa-cni"})),
        7
    );
    let long = [env[0], env[1], env[2], ("CNI_IFNAME", "an/interface")];
    assert_eq!(
        code(&long, json!({"cniVersion": "1.0.0", "type": "balsa-cni"})),
        4
    );
}

#[test]
fn the_conflist_is_what_the_plugin_reads() {
    let params = ConflistParams {
        pod_cidr: "10.244.1.0/24".parse().unwrap(),
        mtu: 1450,
        data_dir: "/var/lib/balsa/agent/cni".into(),
    };
    let list: Value = serde_json::from_str(&conflist(&params)).unwrap();
    let mut plugin = list["plugins"][0].clone();
    plugin["cniVersion"] = list["cniVersion"].clone();
    let env = |name: &str| Some(if name == "CNI_COMMAND" { "ADD" } else { "x" }.to_owned());
    let request = Request::parse(&env, plugin.to_string().as_bytes()).unwrap();
    assert_eq!(
        (request.pod_cidr, request.mtu),
        (Some(params.pod_cidr), 1450)
    );
    assert_eq!(request.data_dir, params.data_dir);
    assert!(PLUGIN_NAMES.contains(&plugin["type"].as_str().unwrap()));
}

#[test]
fn interface_names_fit_the_kernel_and_differ() {
    let a = host_interface(&"a".repeat(64), "eth0");
    assert_eq!(a, host_interface(&"a".repeat(64), "eth0"));
    assert!(a.len() <= 15 && a.starts_with("bp"));
    assert_ne!(a, host_interface(&"a".repeat(64), "eth1"));
    let ip: IpAddr = "10.244.1.9".parse().unwrap();
    assert_eq!(
        balsa_netlink::Mac::for_ip(1, ip).to_string(),
        "02:01:0a:f4:01:09"
    );
}
