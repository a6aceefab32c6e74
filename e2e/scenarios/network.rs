//! Services, node ports and names, with real packets.

use std::collections::BTreeSet;

use anyhow::ensure;
use balsa_e2e::{Local, Namespace, eventually};

use crate::first_app::{NGINX, client_on, ready_pods};

#[test]
fn a_pod_reaches_itself_through_its_own_service() -> anyhow::Result<()> {
    let ns = Namespace::new("hairpin")?;
    let kubectl = ns.kubectl();
    kubectl.apply(&NGINX.replace("replicas: 3", "replicas: 1"))?;
    eventually("a ready pod", 30, || {
        Ok(ready_pods(&ns, "app=web")?.len() == 1)
    })?;
    let pod = ready_pods(&ns, "app=web")?.remove(0);
    let vip = kubectl.field("service/web", "{.spec.clusterIP}")?;
    eventually("its own answer", 10, || {
        let url = format!("http://{vip}/");
        Ok(kubectl
            .ok(&["exec", &pod, "--", "curl", "-s", "-m", "2", &url])?
            .trim()
            == pod)
    })?;
    Ok(())
}

#[test]
fn a_node_port_answers_on_every_node() -> anyhow::Result<()> {
    let ns = Namespace::new("nodeport")?;
    let kubectl = ns.kubectl();
    kubectl.apply(&NGINX.replace(
        "spec:\n  selector: {app: web}",
        "spec:\n  type: NodePort\n  selector: {app: web}",
    ))?;
    eventually("3 ready pods", 30, || {
        Ok(ready_pods(&ns, "app=web")?.len() == 3)
    })?;
    let port = kubectl.field("service/web", "{.spec.ports[0].nodePort}")?;
    let local = Local;
    for node in local.nodes()?.into_iter().filter(|n| n.role == "agent") {
        let url = format!("http://{}:{port}/", node.address);
        eventually(&format!("an answer from {url}"), 10, || {
            let mut curl = std::process::Command::new("curl");
            let curl = curl.args(["-s", "-m", "2", &url]);
            let answer = balsa_e2e::run(curl, "", std::time::Duration::from_secs(5))?.ok()?;
            Ok(answer.starts_with("web-"))
        })?;
    }
    Ok(())
}

#[test]
fn names_of_services_resolve_and_headless_ones_name_their_pods() -> anyhow::Result<()> {
    let ns = Namespace::new("dns")?;
    let kubectl = ns.kubectl();
    kubectl.apply(NGINX)?;
    kubectl.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: each}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}}",
    )?;
    eventually("3 ready pods", 30, || {
        Ok(ready_pods(&ns, "app=web")?.len() == 3)
    })?;
    let client = client_on(&ns, &Local.agents()?[0])?;
    let vip = kubectl.field("service/web", "{.spec.clusterIP}")?;
    let lookup = |name: &str| kubectl.ok(&["exec", &client, "--", "nslookup", name]);
    let full = format!("web.{}.svc.cluster.local", ns.name());
    eventually("the Service's name", 10, || {
        Ok(lookup(&full)?.contains(&vip))
    })?;
    ensure!(lookup("kubernetes.default.svc.cluster.local")?.contains("10.96.0.1"));
    let by_name = kubectl.ok(&[
        "exec",
        &client,
        "--",
        "curl",
        "-s",
        "-m",
        "3",
        "http://web/",
    ])?;
    ensure!(by_name.starts_with("web-"), "{by_name}");
    let ips: BTreeSet<String> = kubectl
        .ok(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].status.podIP}",
        ])?
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let headless = format!("each.{}.svc.cluster.local", ns.name());
    eventually("all pods under the headless name", 10, || {
        let answer = lookup(&headless)?;
        Ok(ips.iter().all(|ip| answer.contains(ip.as_str())))
    })?;
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_and_a_pod_that_becomes_unready_gets_no_traffic()
-> anyhow::Result<()> {
    let ns = Namespace::new("ready")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: kubia}
spec:
  replicas: 3
  selector: {matchExpressions: [{key: app, operator: In, values: [kubia]}]}
  template:
    metadata: {labels: {app: kubia}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: kubia
        image: testserver
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 8080}]
        readinessProbe: {exec: {command: [ls, /tmp/ready]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: kubia}
spec: {selector: {app: kubia}, ports: [{port: 80, targetPort: 8080}]}
"#,
    )?;
    let client = client_on(&ns, &Local.agents()?[0])?;
    let vip = kubectl.field("service/kubia", "{.spec.clusterIP}")?;
    let url = format!("http://{vip}/");
    let curl = || kubectl.run(&["exec", &client, "--", "curl", "-s", "-m", "2", &url]);
    eventually("running pods", 30, || {
        let phases = kubectl.ok(&[
            "get",
            "pods",
            "-l",
            "app=kubia",
            "-o",
            "jsonpath={.items[*].status.phase}",
        ])?;
        Ok(phases == "Running Running Running")
    })?;
    ensure!(
        ready_pods(&ns, "app=kubia")?.is_empty(),
        "pods are ready without /tmp/ready"
    );
    eventually("a refusal", 5, || Ok(curl()?.code == 7))?;
    let names = kubectl.ok(&["get", "pods", "-l", "app=kubia", "-o", "name"])?;
    let chosen = names.lines().next().unwrap_or_default().to_owned();
    kubectl.ok(&["exec", &chosen, "--", "touch", "/tmp/ready"])?;
    let name = chosen.trim_start_matches("pod/");
    eventually("one ready pod", 10, || {
        Ok(ready_pods(&ns, "app=kubia")? == [name])
    })?;
    eventually("answers from the ready pod", 5, || {
        Ok(curl()?.stdout == name)
    })?;
    for _ in 0..10 {
        let answer = curl()?.stdout;
        ensure!(answer == name, "{answer} answered, only {name} is ready");
    }
    Ok(())
}
