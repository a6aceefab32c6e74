//! Probes, and the traffic that follows them.

use anyhow::ensure;
use balsa_e2e::{Local, Namespace, eventually};

use crate::first_app::ready_pods;

#[test]
fn a_pod_without_its_file_gets_no_traffic_and_with_it_all_of_it() -> anyhow::Result<()> {
    let ns = Namespace::new("testready")?;
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
metadata: {name: kubia-nodeport}
spec:
  type: NodePort
  selector: {app: kubia}
  ports: [{port: 80, targetPort: 8080, nodePort: 30125}]
"#,
    )?;
    let pods = || -> anyhow::Result<Vec<String>> {
        let names = kubectl.ok(&[
            "get",
            "pods",
            "-o",
            "jsonpath={.items[?(@.status.phase==\"Running\")].metadata.name}",
        ])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    };
    eventually("3 running pods", 30, || Ok(pods()?.len() == 3))?;
    ensure!(
        ready_pods(&ns, "app=kubia")?.is_empty(),
        "a pod is ready too soon"
    );
    ensure!(kubectl.ok(&["get", "pods"])?.matches("0/1").count() == 3);
    let chosen = pods()?.remove(0);
    kubectl.ok(&["exec", &chosen, "--", "touch", "/tmp/ready"])?;
    eventually("the chosen pod to be ready", 15, || {
        Ok(ready_pods(&ns, "app=kubia")? == [chosen.clone()])
    })?;
    for node in Local.nodes()?.into_iter().filter(|n| n.role == "agent") {
        let url = format!("http://{}:30125/", node.address);
        let ask = || -> anyhow::Result<String> {
            let mut curl = std::process::Command::new("curl");
            let curl = curl.args(["-s", "-m", "2", &url]);
            Ok(balsa_e2e::run(curl, "", std::time::Duration::from_secs(5))?.stdout)
        };
        eventually(&format!("an answer from {url}"), 10, || {
            Ok(ask()?.contains(&chosen))
        })?;
        for _ in 0..10 {
            let answer = ask()?;
            ensure!(answer.contains(&chosen), "{url} answered {answer:?}");
        }
    }
    Ok(())
}

#[test]
fn a_liveness_command_that_starts_to_fail_restarts_the_container() -> anyhow::Result<()> {
    let ns = Namespace::new("liveness-exec")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: test-liveness-exec, labels: {test: liveness}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: liveness
    image: busybox
    imagePullPolicy: IfNotPresent
    args: [sh, -c, "touch /tmp/healthy; sleep 4; rm -f /tmp/healthy; sleep 600"]
    livenessProbe: {exec: {command: [cat, /tmp/healthy]}, initialDelaySeconds: 1, periodSeconds: 1}
"#,
    )?;
    kubectl.wait_ready("test-liveness-exec", 40)?;
    let before = kubectl.field(
        "pod/test-liveness-exec",
        "{.status.containerStatuses[0].containerID}",
    )?;
    eventually("a restart", 40, || {
        let restarts = kubectl.field(
            "pod/test-liveness-exec",
            "{.status.containerStatuses[0].restartCount}",
        )?;
        Ok(restarts.parse::<u32>()? >= 1)
    })?;
    let after = kubectl.field(
        "pod/test-liveness-exec",
        "{.status.containerStatuses[0].containerID}",
    )?;
    ensure!(before != after, "a restart made no new container");
    let described = kubectl.ok(&["describe", "pod", "test-liveness-exec"])?;
    for word in ["Unhealthy", "Liveness probe failed", "Killing"] {
        ensure!(described.contains(word), "no {word} in\n{described}");
    }
    Ok(())
}

#[test]
fn probes_send_headers_and_try_ports_and_leave_healthy_pods_alone() -> anyhow::Result<()> {
    let ns = Namespace::new("probes")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: http
    image: testserver
    imagePullPolicy: IfNotPresent
    args: ["--port", "8080"]
    livenessProbe:
      httpGet: {path: /healthz, port: 8080, httpHeaders: [{name: Custom-Header, value: Awesome}]}
      initialDelaySeconds: 1
      periodSeconds: 1
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
  - name: tcp
    image: testserver
    imagePullPolicy: IfNotPresent
    args: ["--port", "8081", "--tcp-port", "9000"]
    livenessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
"#,
    )?;
    kubectl.wait_ready("probed", 40)?;
    std::thread::sleep(std::time::Duration::from_secs(4));
    let restarts = kubectl.field("pod/probed", "{.status.containerStatuses[*].restartCount}")?;
    ensure!(
        restarts == "0 0",
        "healthy containers were restarted: {restarts}"
    );
    Ok(())
}

#[test]
fn a_slow_answer_makes_a_pod_unready_but_does_not_restart_it() -> anyhow::Result<()> {
    let ns = Namespace::new("delayed")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: nodedelayed}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
    readinessProbe:
      exec: {command: [sh, -c, "sleep $(cat /tmp/delay 2>/dev/null || echo 0)"]}
      periodSeconds: 1
      timeoutSeconds: 2
      failureThreshold: 1
"#,
    )?;
    let ready = || {
        kubectl.field(
            "pod/nodedelayed",
            "{.status.conditions[?(@.type==\"Ready\")].status}",
        )
    };
    kubectl.wait_ready("nodedelayed", 40)?;
    kubectl.ok(&[
        "exec",
        "nodedelayed",
        "--",
        "sh",
        "-c",
        "echo 5 > /tmp/delay",
    ])?;
    eventually("the pod to be unready", 15, || Ok(ready()? == "False"))?;
    kubectl.ok(&["exec", "nodedelayed", "--", "rm", "/tmp/delay"])?;
    eventually("the pod to be ready again", 15, || Ok(ready()? == "True"))?;
    let restarts = kubectl.field(
        "pod/nodedelayed",
        "{.status.containerStatuses[0].restartCount}",
    )?;
    ensure!(restarts == "0", "it was restarted {restarts} times");
    Ok(())
}
