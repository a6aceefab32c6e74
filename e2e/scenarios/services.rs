//! What Services promise beyond a virtual address: staying with one pod, staying near, changing their type, node
//! and host ports by protocol, endpoints made by hand, and who may come.

use std::collections::BTreeSet;

use anyhow::ensure;
use balsa_e2e::{Kubectl, Local, Namespace, eventually};

use crate::first_app::client_on;

/// `count` pods that say their name on TCP and UDP port 5000 and by HTTP on 8080, in turn on the nodes.
fn servers(ns: &Namespace, count: usize) -> anyhow::Result<()> {
    let agents = Local.agents()?;
    for (index, node) in (0..count).zip(agents.iter().cycle()) {
        ns.kubectl().apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: s{index}, labels: {{app: s}}}}, spec: {{nodeName: {node}, \
             terminationGracePeriodSeconds: 0, containers: [{{name: c, image: 'docker.io/library/testserver:latest', \
             imagePullPolicy: IfNotPresent, args: ['--tcp-port', '5000', '--udp-port', '5000']}}]}}}}"
        ))?;
    }
    let all = [
        "wait",
        "--for=condition=Ready",
        "pod",
        "-l",
        "app=s",
        "--timeout=30s",
    ];
    ns.kubectl().ok(&all)?;
    Ok(())
}

fn service(ns: &Namespace, spec: &str) -> anyhow::Result<String> {
    let kubectl = ns.kubectl();
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: s}}, spec: {{selector: {{app: s}}, {spec}}}}}"
    ))?;
    kubectl.field("service/s", "{.spec.clusterIP}")
}

/// Who answers `count` requests; an empty name for each that nobody answered.
fn answers(
    kubectl: &Kubectl,
    client: &str,
    url: &str,
    count: u32,
) -> anyhow::Result<BTreeSet<String>> {
    let script = format!("for i in $(seq {count}); do curl -s -m 2 {url} || true; echo; done");
    let out = kubectl.run(&["exec", client, "--", "sh", "-c", &script])?;
    Ok(out
        .stdout
        .lines()
        .map(|line| line.trim().to_owned())
        .collect())
}

const HTTP: &str = "ports: [{port: 80, targetPort: 8080}]";

#[test]
fn a_client_stays_with_one_pod_while_the_service_says_so() -> anyhow::Result<()> {
    let ns = Namespace::new("affinity")?;
    let kubectl = ns.kubectl();
    servers(&ns, 3)?;
    let vip = service(
        &ns,
        &format!("type: NodePort, sessionAffinity: ClientIP, {HTTP}"),
    )?;
    let client = client_on(&ns, &Local.agents()?[0])?;
    let port = kubectl.field("service/s", "{.spec.ports[0].nodePort}")?;
    let node = Local.node(&Local.agents()?[0])?.address;
    for url in [format!("http://{vip}"), format!("http://{node}:{port}")] {
        let met = |count| answers(kubectl, &client, &url, count);
        eventually("one pod for all requests", 10, || {
            let met = met(12)?;
            Ok(met.len() == 1 && !met.contains(""))
        })?;
        let patch = |affinity: &str| kubectl.ok(&["patch", "service", "s", "-p", affinity]);
        patch("{\"spec\": {\"sessionAffinity\": \"None\", \"sessionAffinityConfig\": null}}")?;
        eventually("all pods", 10, || Ok(met(30)?.len() == 3))?;
        patch("{\"spec\": {\"sessionAffinity\": \"ClientIP\"}}")?;
        eventually("one pod again", 10, || Ok(met(12)?.len() == 1))?;
    }
    Ok(())
}

#[test]
fn one_port_number_serves_tcp_and_udp() -> anyhow::Result<()> {
    let ns = Namespace::new("tcpudp")?;
    let kubectl = ns.kubectl();
    servers(&ns, 1)?;
    let vip = service(
        &ns,
        "type: NodePort, ports: [{name: t, port: 80, targetPort: 5000}, {name: u, port: 80, targetPort: 5000, protocol: UDP}]",
    )?;
    let agents = Local.agents()?;
    let client = client_on(&ns, &agents[1])?;
    let ask = |protocol: &str, host: &str, port: &str| -> anyhow::Result<bool> {
        let script =
            format!("exec 3<>/dev/{protocol}/{host}/{port}; echo hi >&3; timeout 1 head -n 1 <&3");
        let out = kubectl.run(&["exec", &client, "--", "bash", "-c", &script])?;
        Ok(out.stdout.starts_with("s0"))
    };
    let node = Local.node(&agents[0])?.address;
    for (index, protocol) in ["tcp", "udp"].into_iter().enumerate() {
        eventually(&format!("{protocol} by the virtual address"), 10, || {
            ask(protocol, &vip, "80")
        })?;
        let path = format!("{{.spec.ports[{index}].nodePort}}");
        let port = kubectl.field("service/s", &path)?;
        eventually(&format!("{protocol} by the node port"), 10, || {
            ask(protocol, &node, &port)
        })?;
    }
    Ok(())
}

#[test]
fn a_service_changes_its_type_and_its_name_follows() -> anyhow::Result<()> {
    let ns = Namespace::new("types")?;
    let kubectl = ns.kubectl();
    servers(&ns, 1)?;
    let client = client_on(&ns, &Local.agents()?[0])?;
    kubectl.apply("{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {type: ExternalName, externalName: foo.example.com}}")?;
    ensure!(kubectl.field("service/s", "{.spec.clusterIP}")?.is_empty());
    let patch = r#"{"spec": {"type": "NodePort", "externalName": null, "selector": {"app": "s"}, "ports": [{"port": 80, "targetPort": 8080}]}}"#;
    kubectl.ok(&["patch", "service", "s", "-p", patch])?;
    eventually("an answer by name", 15, || {
        Ok(answers(kubectl, &client, "http://s", 1)?.contains("s0"))
    })?;
    let port = kubectl.field("service/s", "{.spec.ports[0].nodePort}")?;
    let away = format!(
        r#"{{"spec": {{"type": "ExternalName", "externalName": "t.{}.svc.cluster.local"}}}}"#,
        ns.name()
    );
    kubectl.ok(&["patch", "service", "s", "-p", &away])?;
    ensure!(kubectl.field("service/s", "{.spec.clusterIP}")?.is_empty());
    // Its node port is free for others at once, and its name leads on.
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: t}}, spec: {{type: NodePort, selector: {{app: s}}, \
         ports: [{{port: 80, targetPort: 8080, nodePort: {port}}}]}}}}"
    ))?;
    let other = kubectl.field("service/t", "{.spec.clusterIP}")?;
    let name = format!("s.{}.svc.cluster.local", ns.name());
    eventually("the alias", 15, || {
        let found = kubectl.run(&["exec", &client, "--", "nslookup", &name])?;
        Ok(found.stdout.contains(&other))
    })?;
    Ok(())
}

#[test]
fn only_the_sources_that_a_service_names_reach_its_load_balancers_address() -> anyhow::Result<()> {
    let ns = Namespace::new("sources")?;
    let kubectl = ns.kubectl();
    servers(&ns, 1)?;
    service(
        &ns,
        &format!("type: LoadBalancer, loadBalancerSourceRanges: [192.0.2.0/24], {HTTP}"),
    )?;
    let status = "{\"status\": {\"loadBalancer\": {\"ingress\": [{\"ip\": \"203.0.113.79\"}]}}}";
    kubectl.ok(&[
        "patch",
        "service",
        "s",
        "--subresource=status",
        "-p",
        status,
    ])?;
    let client = client_on(&ns, &Local.agents()?[0])?;
    let reached = || answers(kubectl, &client, "http://203.0.113.79", 1);
    let admit = "{\"spec\": {\"loadBalancerSourceRanges\": [\"10.244.0.0/16\"]}}";
    let refuse = "{\"spec\": {\"loadBalancerSourceRanges\": [\"192.0.2.0/24\"]}}";
    for (patch, reaches) in [(admit, true), (refuse, false), (admit, true)] {
        kubectl.ok(&["patch", "service", "s", "-p", patch])?;
        eventually("what the ranges say", 15, || {
            Ok(reached()?.contains("s0") == reaches)
        })?;
    }
    Ok(())
}

#[test]
fn traffic_stays_on_the_node_if_the_service_prefers_it() -> anyhow::Result<()> {
    let ns = Namespace::new("near")?;
    let kubectl = ns.kubectl();
    servers(&ns, 2)?;
    let vip = service(&ns, &format!("trafficDistribution: PreferSameNode, {HTTP}"))?;
    for (index, node) in Local.agents()?.iter().take(2).enumerate() {
        let client = client_on(&ns, node)?;
        let own = BTreeSet::from([format!("s{index}")]);
        eventually("the node's own pod only", 10, || {
            Ok(answers(kubectl, &client, &format!("http://{vip}"), 10)? == own)
        })?;
        kubectl.ok(&["delete", "pod", &client, "--now"])?;
    }
    Ok(())
}

#[test]
fn endpoints_made_by_hand_are_mirrored_and_serve() -> anyhow::Result<()> {
    let ns = Namespace::new("mirror")?;
    let kubectl = ns.kubectl();
    servers(&ns, 1)?;
    kubectl.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: m}, spec: {ports: [{port: 80}]}}",
    )?;
    let ip = kubectl.field("pod/s0", "{.status.podIP}")?;
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Endpoints, metadata: {{name: m}}, subsets: [{{addresses: [{{ip: {ip}}}], ports: [{{port: 8080}}]}}]}}"
    ))?;
    let client = client_on(&ns, &Local.agents()?[0])?;
    eventually("an answer", 10, || {
        Ok(answers(kubectl, &client, "http://m", 1)?.contains("s0"))
    })?;
    kubectl.ok(&["delete", "endpoints", "m"])?;
    eventually("no slice left", 10, || {
        let left = [
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=m",
            "-o",
            "name",
        ];
        Ok(kubectl.ok(&left)?.is_empty())
    })?;
    Ok(())
}

#[test]
fn one_host_port_is_shared_by_addresses_and_protocols() -> anyhow::Result<()> {
    let ns = Namespace::new("hostport")?;
    let kubectl = ns.kubectl();
    let node = Local.node(&Local.agents()?[0])?;
    let address = node.address;
    for (name, ip, protocol, target) in [
        ("p1", "127.0.0.1".to_owned(), "TCP", 8080),
        ("p2", address.to_string(), "TCP", 8080),
        ("p3", address.to_string(), "UDP", 5000),
    ] {
        kubectl.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeSelector: {{kubernetes.io/hostname: {node}}}, \
             terminationGracePeriodSeconds: 0, containers: [{{name: c, image: 'docker.io/library/testserver:latest', \
             imagePullPolicy: IfNotPresent, args: ['--udp-port', '5000'], ports: [{{containerPort: {target}, hostPort: 24321, \
             protocol: {protocol}, hostIP: {ip}}}]}}]}}}}",
            node = node.node
        ))?;
    }
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: host}}, spec: {{nodeName: {}, hostNetwork: true, \
         terminationGracePeriodSeconds: 0, containers: [{{name: c, image: 'docker.io/library/nginx:latest', \
         imagePullPolicy: IfNotPresent, command: [sleep, '600']}}]}}}}",
        node.node
    ))?;
    kubectl.ok(&[
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "--timeout=30s",
    ])?;
    let says = |script: &str, name: &str| -> anyhow::Result<bool> {
        let out = kubectl.run(&["exec", "host", "--", "bash", "-c", script])?;
        Ok(out.stdout.starts_with(name))
    };
    let loopback = format!("curl -s -m 2 --interface {address} http://127.0.0.1:24321/hostname");
    eventually("the pod behind the loopback address", 10, || {
        says(&loopback, "p1")
    })?;
    let local = "curl -s -m 2 http://127.0.0.1:24321/hostname";
    eventually("the pod, from the loopback address", 10, || {
        says(local, "p1")
    })?;
    let own = format!("curl -s -m 2 http://{address}:24321/hostname");
    eventually("the pod behind the node's address", 10, || says(&own, "p2"))?;
    let udp = format!("exec 3<>/dev/udp/{address}/24321; echo hi >&3; timeout 1 head -n 1 <&3");
    eventually("the pod behind UDP", 10, || says(&udp, "p3"))?;
    Ok(())
}

#[test]
fn a_load_balancer_learns_which_nodes_have_endpoints() -> anyhow::Result<()> {
    let ns = Namespace::new("health")?;
    let kubectl = ns.kubectl();
    servers(&ns, 1)?;
    service(
        &ns,
        &format!("type: LoadBalancer, externalTrafficPolicy: Local, {HTTP}"),
    )?;
    let port = kubectl.field("service/s", "{.spec.healthCheckNodePort}")?;
    ensure!(
        port.parse::<u16>().is_ok(),
        "the Service has no port for it: {port:?}"
    );
    let agents = Local.agents()?;
    let client = client_on(&ns, &agents[0])?;
    for (agent, endpoints, code) in [(&agents[0], 1, 200), (&agents[1], 0, 503)] {
        let url = format!("http://{}:{port}/healthz", Local.node(agent)?.address);
        let script = format!("curl -s -m 2 -w ' %{{http_code}}' {url}");
        eventually(&format!("{code} of {agent}"), 10, || {
            let said = kubectl.ok(&["exec", &client, "--", "sh", "-c", &script])?;
            Ok(said.contains(&format!("\"localEndpoints\": {endpoints}"))
                && said.ends_with(&format!(" {code}")))
        })?;
    }
    // With the policy goes the port.
    kubectl.ok(&[
        "patch",
        "service",
        "s",
        "-p",
        "{\"spec\": {\"externalTrafficPolicy\": \"Cluster\"}}",
    ])?;
    ensure!(
        kubectl
            .field("service/s", "{.spec.healthCheckNodePort}")?
            .is_empty()
    );
    Ok(())
}
