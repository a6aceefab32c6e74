//! The kinds beyond the first application: what operators of a cluster lean on.

use anyhow::ensure;
use balsa_e2e::{Namespace, eventually};

fn sleeper(name: &str, extra: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 0, {extra} containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '100000']}}]}}}}"
    )
}

#[test]
fn a_stateful_set_keeps_names_order_and_data() -> anyhow::Result<()> {
    let ns = Namespace::new("stateful")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sleep, "100000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
"#,
    )?;
    kubectl.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"])?;
    let names = kubectl.ok(&["get", "pods", "-o", "name"])?;
    ensure!(names == "pod/db-0\npod/db-1\n", "{names}");
    kubectl.ok(&["exec", "db-0", "--", "sh", "-c", "echo kept > /data/x"])?;
    let node = kubectl.field("pod/db-0", "{.spec.nodeName}")?;
    let uid = kubectl.field("pod/db-0", "{.metadata.uid}")?;
    kubectl.ok(&["delete", "pod", "db-0"])?;
    eventually("db-0 to be made anew", 30, || {
        let pod = kubectl.run(&[
            "get",
            "pod",
            "db-0",
            "-o",
            "jsonpath={.metadata.uid} {.status.phase}",
        ])?;
        Ok(pod.stdout.ends_with("Running") && !pod.stdout.starts_with(&uid))
    })?;
    kubectl.wait_ready("db-0", 40)?;
    ensure!(
        kubectl
            .ok(&["exec", "db-0", "--", "cat", "/data/x"])?
            .trim()
            == "kept"
    );
    ensure!(
        kubectl.field("pod/db-0", "{.spec.nodeName}")? == node,
        "it left its volume's node"
    );
    kubectl.ok(&["scale", "statefulset/db", "--replicas=1"])?;
    eventually("db-1 to go", 30, || {
        Ok(kubectl.ok(&["get", "pods", "-o", "name"])? == "pod/db-0\n")
    })?;
    let claims = kubectl.ok(&["get", "pvc"])?;
    ensure!(claims.matches("Bound").count() == 2, "{claims}");
    Ok(())
}

#[test]
fn a_daemon_set_runs_once_on_each_node_and_rolls() -> anyhow::Result<()> {
    let ns = Namespace::new("daemon")?;
    let kubectl = ns.kubectl();
    let manifest = |word: &str| {
        format!(
            r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: d}}
spec:
  selector: {{matchLabels: {{app: d}}}}
  template:
    metadata: {{labels: {{app: d}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "100000"], env: [{{name: WORD, value: {word}}}]}}]
"#
        )
    };
    kubectl.apply(&manifest("one"))?;
    kubectl.ok(&["rollout", "status", "daemonset/d", "--timeout=60s"])?;
    let nodes = kubectl.ok(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
    let mut nodes: Vec<&str> = nodes.split_whitespace().collect();
    nodes.sort_unstable();
    ensure!(nodes == ["a1", "a2"], "its pods are on {nodes:?}");
    kubectl.apply(&manifest("two"))?;
    kubectl.ok(&["rollout", "status", "daemonset/d", "--timeout=60s"])?;
    let words = kubectl.ok(&[
        "get",
        "pods",
        "-o",
        "jsonpath={.items[*].spec.containers[0].env[0].value}",
    ])?;
    ensure!(words == "two two", "{words}");
    kubectl.ok(&["rollout", "undo", "daemonset/d"])?;
    kubectl.ok(&["rollout", "status", "daemonset/d", "--timeout=60s"])?;
    Ok(())
}

#[test]
fn a_budget_holds_an_eviction_back_until_it_allows_one() -> anyhow::Result<()> {
    let ns = Namespace::new("budget")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: b}
spec: {minAvailable: 1, selector: {matchLabels: {app: p}}}
"#,
    )?;
    kubectl.apply(&sleeper("p", ""))?;
    kubectl.wait_ready("p", 40)?;
    eventually("the budget to count", 20, || {
        Ok(kubectl.field(
            "pdb/b",
            "{.status.currentHealthy} {.status.disruptionsAllowed}",
        )? == "1 0")
    })?;
    let path = format!("/api/v1/namespaces/{}/pods/p/eviction", ns.name());
    let eviction = format!(
        "{{\"apiVersion\": \"policy/v1\", \"kind\": \"Eviction\", \"metadata\": {{\"name\": \"p\", \"namespace\": \"{}\"}}}}",
        ns.name()
    );
    let refused = kubectl
        .run_with(&["create", "--raw", &path, "-f", "-"], &eviction)?
        .failed()?;
    ensure!(
        refused.contains("Cannot evict pod as it would violate the pod's disruption budget"),
        "{refused}"
    );
    kubectl.ok(&[
        "patch",
        "pdb",
        "b",
        "-p",
        "{\"spec\": {\"minAvailable\": 0}}",
    ])?;
    eventually("the eviction to be let through", 20, || {
        Ok(kubectl
            .run_with(&["create", "--raw", &path, "-f", "-"], &eviction)?
            .code
            == 0)
    })?;
    Ok(())
}

#[test]
fn quotas_and_limits_hold() -> anyhow::Result<()> {
    let ns = Namespace::new("quota")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: ResourceQuota
metadata: {name: q}
spec: {hard: {pods: "1", requests.cpu: 200m}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: l}
spec: {limits: [{type: Container, defaultRequest: {cpu: 50m}, default: {cpu: 100m}, max: {cpu: "1"}}]}
"#,
    )?;
    eventually("the quota to be counted", 20, || {
        Ok(kubectl.field("quota/q", "{.status.used.pods}")? == "0")
    })?;
    kubectl.apply(&sleeper("a", ""))?;
    ensure!(
        kubectl.field("pod/a", "{.spec.containers[0].resources.requests.cpu}")? == "50m",
        "the default request is missing"
    );
    let over = kubectl
        .run_with(&["create", "-f", "-"], &sleeper("b", ""))?
        .failed()?;
    ensure!(
        over.contains("exceeded quota: q") && over.contains("limited: pods=1"),
        "{over}"
    );
    kubectl.ok(&["delete", "pod", "a"])?;
    eventually("the quota to be free again", 20, || {
        Ok(kubectl
            .run_with(&["create", "-f", "-"], &sleeper("b", ""))?
            .code
            == 0)
    })?;
    Ok(())
}

#[test]
fn a_pod_of_higher_priority_takes_the_place_of_a_lower_one() -> anyhow::Result<()> {
    let ns = Namespace::new("preempt")?;
    let kubectl = ns.kubectl();
    let class = format!("high-{}", ns.name());
    kubectl.apply(&format!(
        "{{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {{name: {class}}}, value: 1000}}"
    ))?;
    let node = "a1";
    let patch = "{\"status\": {\"capacity\": {\"e2e.example/slot\": \"1\"}, \"allocatable\": {\"e2e.example/slot\": \"1\"}}}";
    kubectl.ok(&["patch", "node", node, "--subresource=status", "-p", patch])?;
    let pod = |name: &str, extra: &str| {
        sleeper(name, extra).replace(
            "command:",
            "resources: {limits: {e2e.example/slot: '1'}}, command:",
        )
    };
    kubectl.apply(&pod("low", ""))?;
    kubectl.wait_ready("low", 40)?;
    kubectl.apply(&pod("high", &format!("priorityClassName: {class},")))?;
    kubectl.wait_ready("high", 40)?;
    let low = kubectl.run(&["get", "pod", "low"])?;
    ensure!(low.code != 0, "both run: {}", low.stdout);
    let events = kubectl.ok(&["get", "events"])?;
    ensure!(events.contains("Preempted"), "{events}");
    kubectl.ok(&["delete", "priorityclass", &class])?;
    Ok(())
}

#[test]
fn a_custom_resource_is_served_checked_and_explained() -> anyhow::Result<()> {
    let ns = Namespace::new("custom")?;
    let kubectl = ns.kubectl();
    let group = format!("{}.example", ns.name());
    let crd = format!("rafts.{group}");
    kubectl.apply(&format!(
        r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {crd}}}
spec:
  group: {group}
  scope: Namespaced
  names: {{plural: rafts, singular: raft, kind: Raft, shortNames: [rf]}}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {{status: {{}}, scale: {{specReplicasPath: .spec.logs, statusReplicasPath: .status.logs}}}}
    additionalPrinterColumns: [{{name: Logs, type: integer, jsonPath: .spec.logs}}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: What the raft is made of.
            properties:
              logs: {{type: integer, default: 9, description: How many logs.}}
              wood: {{type: string, enum: [balsa, pine]}}
            x-kubernetes-validations: [{{rule: "self.logs > 2", message: "needs more logs"}}]
          status: {{type: object, properties: {{logs: {{type: integer}}}}}}
"#
    ))?;
    kubectl.ok(&[
        "wait",
        "--for=condition=Established",
        &format!("crd/{crd}"),
        "--timeout=10s",
    ])?;
    let raft = |spec: &str| {
        format!("{{apiVersion: {group}/v1, kind: Raft, metadata: {{name: kon}}, spec: {spec}}}")
    };
    eventually("the new kind", 10, || {
        Ok(kubectl
            .run_with(&["apply", "-f", "-"], &raft("{wood: balsa}"))?
            .code
            == 0)
    })?;
    ensure!(
        kubectl.field(&format!("{crd}/kon"), "{.spec.logs}")? == "9",
        "no default"
    );
    let shown = kubectl.ok(&["get", &crd])?;
    ensure!(shown.contains("LOGS") && shown.contains('9'), "{shown}");
    for (spec, word) in [
        ("{wood: oak}", "supported values: \"balsa\", \"pine\""),
        ("{logs: 1}", "needs more logs"),
        ("{sail: big}", "unknown field \"spec.sail\""),
    ] {
        let refused = kubectl
            .run_with(&["apply", "-f", "-"], &raft(spec))?
            .failed()?;
        ensure!(refused.contains(word), "{spec}: {refused}");
    }
    kubectl.ok(&["scale", &format!("{crd}/kon"), "--replicas=5"])?;
    ensure!(kubectl.field(&format!("{crd}/kon"), "{.spec.logs}")? == "5");
    let explained = kubectl.ok(&["explain", &format!("{crd}.spec.logs")])?;
    ensure!(explained.contains("How many logs."), "{explained}");
    kubectl.ok(&["delete", "crd", &crd])?;
    let gone = kubectl.run(&["get", &crd])?.failed()?;
    ensure!(
        gone.contains("the server doesn't have a resource type"),
        "{gone}"
    );
    Ok(())
}

#[test]
fn a_running_pod_is_debugged_and_resized() -> anyhow::Result<()> {
    let ns = Namespace::new("debug")?;
    let kubectl = ns.kubectl();
    kubectl.apply(&sleeper("p", ""))?;
    kubectl.wait_ready("p", 40)?;
    let debug = kubectl.run(&[
        "debug",
        "p",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "-c",
        "look",
        "--",
        "sleep",
        "1000",
    ])?;
    debug.ok()?;
    eventually("the ephemeral container", 20, || {
        let path = "{.status.ephemeralContainerStatuses[0].state.running.startedAt}";
        Ok(!kubectl.field("pod/p", path)?.is_empty())
    })?;
    let host = kubectl.ok(&["exec", "p", "-c", "look", "--", "hostname"])?;
    ensure!(host.trim() == "p", "{host}");
    kubectl.apply(&sleeper("r", "").replace(
        "command:",
        "resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}, command:",
    ))?;
    kubectl.wait_ready("r", 40)?;
    let patch = "{\"spec\": {\"containers\": [{\"name\": \"c\", \"resources\": {\"requests\": {\"cpu\": \"150m\"}, \"limits\": {\"cpu\": \"300m\"}}}]}}";
    kubectl.ok(&["patch", "pod", "r", "--subresource=resize", "-p", patch])?;
    eventually("the new limit", 20, || {
        let path = "{.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].restartCount}";
        Ok(kubectl.field("pod/r", path)? == "300m 0")
    })?;
    Ok(())
}

#[test]
fn tokens_certificates_and_server_side_apply_work() -> anyhow::Result<()> {
    let ns = Namespace::new("identity")?;
    let kubectl = ns.kubectl();
    let token = kubectl.ok(&["create", "token", "default"])?;
    ensure!(token.trim().split('.').count() == 3, "{token}");
    let rights = kubectl.ok(&["auth", "can-i", "--list"])?;
    ensure!(rights.contains("*.*"), "{rights}");
    let map = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: shared}}\ndata: {{k: {value}}}\n"
        )
    };
    let apply = |manager: &str, value: &str| {
        let field = format!("--field-manager={manager}");
        kubectl.run_with(&["apply", "--server-side", &field, "-f", "-"], &map(value))
    };
    apply("one", "a")?.ok()?;
    let conflict = apply("two", "b")?.failed()?;
    ensure!(conflict.contains("conflict with \"one\""), "{conflict}");
    let events = kubectl.run(&["events"])?;
    ensure!(events.code == 0, "{}", events.stderr);
    let verbs = kubectl.ok(&["api-resources", "--verbs=list", "-o", "name"])?;
    for kind in [
        "statefulsets.apps",
        "cronjobs.batch",
        "ingresses.networking.k8s.io",
    ] {
        ensure!(verbs.lines().any(|l| l == kind), "no {kind} in {verbs}");
    }
    Ok(())
}
