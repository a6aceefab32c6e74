//! What nodes and pods use, and autoscaling by it.

use anyhow::ensure;
use balsa_e2e::{Kubectl, Namespace, eventually};

/// A Deployment whose pods burn CPU while `/tmp/busy` is there, requesting 50m.
const BURNER: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: burner}
spec:
  replicas: 1
  selector: {matchLabels: {app: burner}}
  template:
    metadata: {labels: {app: burner}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "while true; do timeout 1 sh -c 'while true; do :; done'; done"]
        resources: {requests: {cpu: 50m}, limits: {cpu: 100m}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: burner}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: burner}
  minReplicas: 1
  maxReplicas: 3
  metrics:
  - type: Resource
    resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}
"#;

#[test]
fn kubectl_top_shows_what_nodes_and_pods_use() -> anyhow::Result<()> {
    let ns = Namespace::new("top")?;
    let kubectl = ns.kubectl();
    let nodes = kubectl.ok(&["top", "nodes", "--no-headers"])?;
    ensure!(
        nodes.lines().count() >= 1 && nodes.contains("Mi"),
        "{nodes}"
    );
    kubectl.ok(&[
        "run",
        "p",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--labels=app=top",
        "--",
        "sleep",
        "100000",
    ])?;
    kubectl.wait_ready("p", 40)?;
    eventually("the pod to be measured", 40, || {
        let pods = kubectl.run(&[
            "top",
            "pods",
            "-l",
            "app=top",
            "--containers",
            "--no-headers",
        ])?;
        Ok(pods.stdout.split_whitespace().next() == Some("p"))
    })?;
    let kinds = kubectl.ok(&["api-resources", "--api-group=metrics.k8s.io", "-o", "name"])?;
    ensure!(kinds.contains("pods.metrics.k8s.io"), "{kinds}");
    let explained = kubectl.ok(&["explain", "podmetrics.containers.usage"])?;
    ensure!(explained.contains("cpu in cores"), "{explained}");
    Ok(())
}

fn replicas(kubectl: &Kubectl) -> anyhow::Result<String> {
    kubectl.field("deployment/burner", "{.spec.replicas}")
}

#[test]
fn a_busy_deployment_grows_to_the_autoscalers_maximum() -> anyhow::Result<()> {
    let ns = Namespace::new("hpa")?;
    let kubectl = ns.kubectl();
    kubectl.apply(BURNER)?;
    // CPU at the limit is 200% of the request; a new pod counts once it has been measured while ready.
    eventually("the Deployment to grow", 150, || {
        Ok(replicas(kubectl)? == "3")
    })?;
    let active = r#"{.status.conditions[?(@.type=="ScalingActive")].reason}"#;
    let reason = kubectl.field("hpa/burner", active)?;
    ensure!(reason == "ValidMetricFound", "{reason}");
    let events = kubectl.ok(&["events", "--for", "hpa/burner"])?;
    ensure!(events.contains("SuccessfulRescale"), "{events}");
    Ok(())
}
