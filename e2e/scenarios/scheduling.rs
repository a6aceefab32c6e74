//! Where pods may run, and how long: gates, taints with a time, claims for one pod, and who is told about an eviction.

use anyhow::ensure;
use balsa_e2e::{Kubectl, Local, Namespace, eventually};

fn sleeper(name: &str, extra: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{{extra} terminationGracePeriodSeconds: 0, \
         containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '600']}}]}}}}"
    )
}

/// Why a pod has no node; empty while it is not said.
fn obstacle(kubectl: &Kubectl, pod: &str) -> anyhow::Result<String> {
    let path = "{.status.conditions[?(@.type==\"PodScheduled\")].message}";
    kubectl.field(&format!("pod/{pod}"), path)
}

#[test]
fn a_gated_pod_waits_until_its_last_gate_is_gone() -> anyhow::Result<()> {
    let ns = Namespace::new("gates")?;
    let kubectl = ns.kubectl();
    kubectl.apply(&sleeper(
        "g",
        "schedulingGates: [{name: e2e.example/a}, {name: e2e.example/b}],",
    ))?;
    let reason = "{.status.conditions[?(@.type==\"PodScheduled\")].reason}";
    eventually("the gate in the status", 10, || {
        Ok(kubectl.field("pod/g", reason)? == "SchedulingGated")
    })?;
    let gates = |patch: &str| kubectl.ok(&["patch", "pod", "g", "--type=merge", "-p", patch]);
    gates("{\"spec\": {\"schedulingGates\": [{\"name\": \"e2e.example/b\"}]}}")?;
    ensure!(kubectl.field("pod/g", "{.spec.nodeName}")?.is_empty());
    gates("{\"spec\": {\"schedulingGates\": null}}")?;
    kubectl.wait_ready("g", 30)
}

#[test]
fn a_claim_for_one_pod_keeps_the_second_waiting() -> anyhow::Result<()> {
    let ns = Namespace::new("onepod")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, spec: {accessModes: [ReadWriteOncePod], \
         resources: {requests: {storage: 1Mi}}}}",
    )?;
    let volume = "volumes: [{name: v, persistentVolumeClaim: {claimName: c}}],";
    kubectl.apply(&sleeper("first", volume))?;
    kubectl.wait_ready("first", 30)?;
    kubectl.apply(&sleeper("second", volume))?;
    eventually("why the second waits", 10, || {
        Ok(obstacle(kubectl, "second")?.contains("ReadWriteOncePod"))
    })?;
    kubectl.ok(&["delete", "pod", "first", "--now"])?;
    kubectl.wait_ready("second", 30)
}

/// Takes a taint from a node even if the test fails.
struct Tainted {
    kubectl: Kubectl,
    node: String,
    taint: String,
}

impl Tainted {
    fn new(ns: &Namespace, node: &str) -> anyhow::Result<Self> {
        let taint = format!("{}=yes:NoExecute", ns.name());
        ns.kubectl().ok(&["taint", "node", node, &taint])?;
        Ok(Self {
            kubectl: ns.kubectl().clone(),
            node: node.to_owned(),
            taint,
        })
    }
}

impl Drop for Tainted {
    fn drop(&mut self) {
        let off = format!("{}-", self.taint);
        let _ = self.kubectl.run(&["taint", "node", &self.node, &off]);
    }
}

#[test]
fn a_taint_evicts_at_once_after_a_time_or_never_as_pods_tolerate() -> anyhow::Result<()> {
    let ns = Namespace::new("taint")?;
    let kubectl = ns.kubectl();
    let node = Local.agents()?.remove(0);
    let toleration = |more: &str| {
        format!(
            "tolerations: [{{key: {}, operator: Exists, effect: NoExecute{more}}}], nodeName: {node},",
            ns.name()
        )
    };
    kubectl.apply(&sleeper("never", &format!("nodeName: {node},")))?;
    kubectl.apply(&sleeper("awhile", &toleration(", tolerationSeconds: 3")))?;
    kubectl.apply(&sleeper("always", &toleration("")))?;
    for pod in ["never", "awhile", "always"] {
        kubectl.wait_ready(pod, 30)?;
    }
    let gone = |pod: &str| -> anyhow::Result<bool> {
        let names = kubectl.ok(&["get", "pods", "-o", "name"])?;
        Ok(!names.lines().any(|name| name == format!("pod/{pod}")))
    };
    // Taken back in time, the taint costs only who does not tolerate it at all.
    drop(Tainted::new(&ns, &node)?);
    eventually("the intolerant pod gone", 15, || gone("never"))?;
    ensure!(!gone("awhile")?);
    let tainted = Tainted::new(&ns, &node)?;
    eventually("the patient pod gone", 20, || gone("awhile"))?;
    ensure!(!gone("always")?);
    drop(tainted);
    Ok(())
}
