//! The promise of the README: apply a Deployment and a Service, and pods answer on both machines.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use balsa_e2e::{Namespace, eventually, eventually_some};

pub const NGINX: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: nginx
        image: nginx
        imagePullPolicy: IfNotPresent
        command: ["sh", "-c", "hostname > /usr/share/nginx/html/index.html && exec nginx -g 'daemon off;'"]
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
"#;

/// Names of the ready pods with a label.
pub fn ready_pods(ns: &Namespace, label: &str) -> anyhow::Result<Vec<String>> {
    let pods = ns.kubectl().json(&["get", "pods", "-l", label])?;
    let items = pods["items"].as_array().context("no items")?;
    let ready = |pod: &serde_json::Value| {
        let conditions = pod["status"]["conditions"].as_array();
        pod["metadata"]["deletionTimestamp"].is_null()
            && conditions.is_some_and(|c| {
                c.iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
    };
    Ok(items
        .iter()
        .filter(|p| ready(p))
        .filter_map(|p| p["metadata"]["name"].as_str().map(str::to_owned))
        .collect())
}

/// A pod on a given node that only sleeps, to send requests from; waits until it runs.
pub fn client_on(ns: &Namespace, node: &str) -> anyhow::Result<String> {
    let name = format!("client-{node}");
    ns.kubectl().apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers: [{{name: c, image: nginx, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}}]
"#
    ))?;
    ns.kubectl().wait_ready(&name, 30)?;
    Ok(name)
}

#[test]
fn a_deployment_and_a_service_answer_from_every_replica_on_both_nodes() -> anyhow::Result<()> {
    let ns = Namespace::new("first")?;
    let kubectl = ns.kubectl();
    let began = Instant::now();
    ensure!(
        kubectl
            .apply(NGINX)?
            .contains("deployment.apps/web created")
    );
    eventually("3 ready pods", 30, || {
        Ok(ready_pods(&ns, "app=web")?.len() == 3)
    })?;
    let took = began.elapsed();
    println!("3 replicas Ready after {:.1} s", took.as_secs_f32());
    ensure!(took < Duration::from_secs(10), "3 replicas took {took:?}");
    let nodes: BTreeSet<String> = kubectl
        .ok(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].spec.nodeName}",
        ])?
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    ensure!(nodes.len() == 2, "the pods are on {nodes:?}");
    let vip = kubectl.field("service/web", "{.spec.clusterIP}")?;
    let names: BTreeSet<String> = ready_pods(&ns, "app=web")?.into_iter().collect();
    for node in nodes {
        let client = client_on(&ns, &node)?;
        let script = format!("for i in $(seq 40); do curl -s -m 2 http://{vip}/; done");
        let answers = kubectl.ok(&["exec", &client, "--", "sh", "-c", &script])?;
        let seen: BTreeSet<String> = answers.lines().map(str::to_owned).collect();
        ensure!(
            seen == names,
            "from {node} the Service answered as {seen:?}, its pods are {names:?}"
        );
    }
    Ok(())
}

#[test]
fn a_deleted_pod_of_a_deployment_is_replaced() -> anyhow::Result<()> {
    let ns = Namespace::new("replace")?;
    ns.kubectl().apply(NGINX)?;
    eventually("3 ready pods", 30, || {
        Ok(ready_pods(&ns, "app=web")?.len() == 3)
    })?;
    let victim = ready_pods(&ns, "app=web")?.remove(0);
    let said = ns.kubectl().ok(&["delete", "pod", &victim])?;
    ensure!(
        said.contains(&format!("pod \"{victim}\" deleted")),
        "{said}"
    );
    eventually("the replacement", 10, || {
        let ready = ready_pods(&ns, "app=web")?;
        Ok(ready.len() == 3 && !ready.contains(&victim))
    })?;
    Ok(())
}

#[test]
fn logs_exec_describe_and_port_forward_work_on_a_running_pod() -> anyhow::Result<()> {
    let ns = Namespace::new("look")?;
    let kubectl = ns.kubectl();
    kubectl.apply(NGINX)?;
    let pod = eventually_some("a ready pod", 30, || {
        Ok(ready_pods(&ns, "app=web")?.first().cloned())
    })?;

    let printed = kubectl.ok(&["exec", &pod, "--", "cat", "/etc/hostname"])?;
    ensure!(printed.trim() == pod, "exec printed {printed:?}");
    let failed = kubectl.run(&["exec", &pod, "--", "sh", "-c", "exit 7"])?;
    ensure!(failed.code == 7, "exec's exit code was {}", failed.code);

    let described = kubectl.ok(&["describe", "pod", &pod])?;
    for word in [
        "Scheduled",
        "Successfully assigned",
        "Pulled",
        "Created",
        "Started",
        "QoS Class",
        "nginx",
    ] {
        ensure!(
            described.contains(word),
            "describe has no {word}:\n{described}"
        );
    }

    let mut forward = kubectl.command(&["port-forward", &format!("pod/{pod}"), "18080:80"]);
    let mut forward = forward.stdout(std::process::Stdio::piped()).spawn()?;
    let page = eventually_some("an answer through port-forward", 10, || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect("127.0.0.1:18080")?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.contains("200 OK").then_some(text))
    });
    forward.kill()?;
    forward.wait()?;
    ensure!(page?.contains(&pod), "the page names the pod");

    eventually("the request in the log", 10, || {
        Ok(kubectl.ok(&["logs", &pod])?.contains("GET / HTTP"))
    })?;
    Ok(())
}
