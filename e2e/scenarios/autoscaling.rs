//! What nodes and pods use, and autoscaling by it.

use anyhow::ensure;
use balsa_e2e::{Kubectl, Namespace, eventually};
use serde_json::{Value, json};

use crate::extensions::{Cleanup, Extension};

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

/// What a metrics adapter serves: each pod of a StatefulSet `web` and the Service of that name get 30 requests a second,
/// and a queue outside of the cluster holds 10 messages.
pub(crate) fn adapter(path: &[&str]) -> Option<Value> {
    let ["apis", group, version, rest @ ..] = path else {
        return None;
    };
    let api_version = format!("{group}/{version}");
    let at = "2026-01-01T00:00:00Z";
    let value = |resource: &str, name: &str| {
        json!({"describedObject": {"kind": resource, "name": name}, "metric": {"name": "requests"},
            "metricName": "requests", "timestamp": at, "value": "30"})
    };
    let list = |items: Vec<Value>| {
        Some(
            json!({"kind": "MetricValueList", "apiVersion": api_version, "metadata": {}, "items": items}),
        )
    };
    match (*group, rest) {
        ("custom.metrics.k8s.io" | "external.metrics.k8s.io", []) => {
            Some(json!({"kind": "APIResourceList",
            "apiVersion": "v1", "groupVersion": api_version, "resources": []}))
        }
        ("custom.metrics.k8s.io", ["namespaces", _, "pods", "*", "requests"]) => {
            list((0..9).map(|i| value("Pod", &format!("web-{i}"))).collect())
        }
        ("custom.metrics.k8s.io", ["namespaces", _, "services", name, "requests"]) => {
            list(vec![value("Service", name)])
        }
        ("external.metrics.k8s.io", ["namespaces", _, "messages"]) => Some(json!({
            "kind": "ExternalMetricValueList", "apiVersion": api_version, "metadata": {},
            "items": [{"metricName": "messages", "metricLabels": {}, "timestamp": at, "value": "10"}]})),
        _ => None,
    }
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  replicas: 1
  serviceName: web
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
"#;

#[test]
fn an_adapters_metrics_scale_a_stateful_set() -> anyhow::Result<()> {
    let ns = Namespace::new("custom")?;
    let kubectl = ns.kubectl();
    let extension = Extension::start(&ns)?;
    let services = [
        "v1beta2.custom.metrics.k8s.io",
        "v1beta1.external.metrics.k8s.io",
    ];
    let all = services.iter().map(|name| format!("apiservice/{name}"));
    let _cleanup = Cleanup(kubectl, all.collect());
    for name in services {
        let (version, group) = name.split_once('.').unwrap_or_default();
        let service = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": name},
            "spec": {"group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 10,
                "caBundle": extension.ca_bundle, "service": {"namespace": ns.name(), "name": "ext"}}});
        kubectl.apply(&service.to_string())?;
        let available = format!("apiservice/{name}");
        kubectl.ok(&[
            "wait",
            "--for=condition=Available",
            &available,
            "--timeout=20s",
        ])?;
    }
    kubectl.apply(WEB)?;
    let scale = |max: u32, metric: &Value| {
        let target = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web"});
        let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
            "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": max, "metrics": [metric],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}});
        kubectl.apply(&scaler.to_string())
    };
    let becomes = |replicas: &str, why: &str| {
        eventually(why, 60, || {
            Ok(kubectl.field("statefulset/web", "{.spec.replicas}")? == replicas)
        })
    };
    let service = json!({"apiVersion": "v1", "kind": "Service", "name": "web"});
    // 30 of the Service, 15 wanted: twice the one pod.
    scale(
        5,
        &json!({"type": "Object", "object": {"metric": {"name": "requests"}, "describedObject": service,
        "target": {"type": "Value", "value": "15"}}}),
    )?;
    becomes("2", "two for the Service's requests")?;
    let reads = kubectl.field(
        "hpa/web",
        "{.status.currentMetrics[0].object.current.value}",
    )?;
    ensure!(reads == "30", "{reads}");
    // 10 messages, 2 for each pod.
    scale(
        5,
        &json!({"type": "External", "external": {"metric": {"name": "messages"},
        "target": {"type": "AverageValue", "averageValue": "2"}}}),
    )?;
    becomes("5", "five for the queue")?;
    // Each pod has 30 and may have 100: less and less, down to one.
    scale(
        5,
        &json!({"type": "Pods", "pods": {"metric": {"name": "requests"},
        "target": {"type": "AverageValue", "averageValue": "100"}}}),
    )?;
    becomes("1", "one for the pods' requests")?;
    Ok(())
}
