//! Pods come and go by the hundred, and nothing of them stays on their node. Runs alone, because it counts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_e2e::{Kubectl, Local, Namespace, eventually, eventually_some};
use serde_json::Value;

use crate::loss_runtime::{ctr, folder, kill_agent, kill_runtime};

/// Pods made at the same time.
const WAVE: usize = 20;

/// Everything on a node that a pod may leave behind, counted.
fn traces(node: &str) -> anyhow::Result<BTreeMap<&'static str, usize>> {
    let dir = folder(node);
    let below = |name: &str| entries(&dir.join(name));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let own = dir.display().to_string();
    let lines = |text: String| text.lines().filter(|line| !line.is_empty()).count();
    Ok(BTreeMap::from([
        (
            "containers and sandboxes",
            lines(ctr(node, &["containers", "list", "--quiet"])?),
        ),
        ("tasks", lines(ctr(node, &["tasks", "list", "--quiet"])?)),
        ("snapshots", lines(ctr(node, &["snapshots", "list"])?)),
        (
            "mounts",
            mounts.lines().filter(|line| line.contains(&own)).count(),
        ),
        ("links", links(node)?),
        ("pod folders", below("pods")),
        ("log folders", below("log/pods")),
        ("FIFO folders", below("exec")),
        ("addresses", addresses(&dir.join("cni/data/addresses.json"))),
        ("control groups", groups(node)),
        ("shims", shims(&own)),
    ]))
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).into_iter().flatten().count()
}

/// Addresses that are given away.
fn addresses(table: &Path) -> usize {
    let text = std::fs::read(table).unwrap_or_default();
    let table: Value = serde_json::from_slice(&text).unwrap_or_default();
    table["allocations"].as_object().map_or(0, |all| all.len())
}

/// Network links in the node's own network namespace.
fn links(node: &str) -> anyhow::Result<usize> {
    let pid = Local.node(node)?.pid.context("the agent does not run")?;
    let devices = std::fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    Ok(devices.lines().count())
}

/// Control groups below the node's, of all controllers together.
fn groups(node: &str) -> usize {
    fn count(dir: &Path) -> usize {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| 1 + count(&entry.path()))
            .sum()
    }
    let name = format!("balsa-local/{node}");
    let roots = std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    roots
        .map(|root| count(&root.path().join(&name)))
        .sum::<usize>()
        + count(&Path::new("/sys/fs/cgroup").join(&name))
}

/// Shim processes of the node's containerd.
fn shims(own: &str) -> usize {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok())
        .filter(|line| line.contains("containerd-shim") && line.contains(own))
        .count()
}

fn wave(node: &str, pods: usize) -> String {
    let one = |index: usize| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: w{index}, labels: {{app: wave}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, \"100000\"]
    volumeMounts: [{{name: d, mountPath: /d, subPath: part}}, {{name: m, mountPath: /m}}]
  volumes: [{{name: d, emptyDir: {{}}}}, {{name: m, emptyDir: {{medium: Memory}}}}]
---"
        )
    };
    (0..pods).map(one).collect()
}

#[test]
fn pods_that_come_and_go_leave_nothing_on_their_node() -> anyhow::Result<()> {
    let ns = Namespace::new("leaks")?;
    let kubectl = ns.kubectl();
    let node = Local.agents()?.remove(0);
    let pods: usize = match std::env::var("E2E_LEAK_PODS") {
        Ok(pods) => pods.parse()?,
        Err(_) => 60,
    };
    let before = at_rest(kubectl, &node)?;
    for round in 0..pods.div_ceil(WAVE) {
        kubectl.apply(&wave(&node, WAVE))?;
        if round % 2 == 0 {
            kubectl.ok(&[
                "wait",
                "pods",
                "-l",
                "app=wave",
                "--for=condition=Ready",
                "--timeout=50s",
            ])?;
        }
        // Every other wave is deleted while it starts.
        kubectl.ok(&["delete", "pods", "-l", "app=wave"])?;
    }
    nothing_stayed(&node, &before)
}

/// What is on a node that has nothing to do, but had a pod before: what is made for the first one and serves all, such
/// as the control groups of the classes of pods, is nothing that was left behind.
fn at_rest(kubectl: &Kubectl, node: &str) -> anyhow::Result<BTreeMap<&'static str, usize>> {
    kubectl.apply(&wave(node, 1))?;
    let ready = ["wait", "pod/w0", "--for=condition=Ready", "--timeout=50s"];
    kubectl.ok(&ready)?;
    kubectl.ok(&["delete", "pod/w0"])?;
    // What earlier scenarios left to be removed is gone when they have no pods there and two counts in a row agree.
    let theirs = format!("--field-selector=spec.nodeName={node}");
    let mut last = BTreeMap::new();
    eventually_some("a node at rest", 60, || {
        std::thread::sleep(Duration::from_secs(1));
        let pods = kubectl.ok(&["get", "pods", "-A", &theirs, "-o", "name"])?;
        ensure!(pods.is_empty(), "there are pods: {pods}");
        let now = traces(node)?;
        let same = now == last;
        last = now;
        Ok(same.then(|| last.clone()))
    })
}

fn nothing_stayed(node: &str, before: &BTreeMap<&'static str, usize>) -> anyhow::Result<()> {
    // An address that its killed runtime never gave back is taken back three to four minutes later.
    let outcome = eventually("the counts from before", 300, || {
        Ok(traces(node)? == *before)
    });
    let after = traces(node)?;
    ensure!(outcome.is_ok(), "before: {before:?}\nafter: {after:?}");
    Ok(())
}

/// Pods with all that has a life of its own: an init container, a sidecar, hooks, volumes of every making.
fn rich(node: &str, pods: usize) -> String {
    let one = |index: usize| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: r{index}, labels: {{app: rich}}}}
spec:
  nodeName: {node}
  # A node whose runtime was killed is not ready for a moment.
  tolerations: [{{operator: Exists}}]
  terminationGracePeriodSeconds: 2
  initContainers:
  - {{name: first, image: busybox, imagePullPolicy: IfNotPresent, command: [touch, /d/first], volumeMounts: [{{name: d, mountPath: /d}}]}}
  - {{name: beside, image: busybox, imagePullPolicy: IfNotPresent, restartPolicy: Always, command: [sleep, \"100000\"]}}
  containers:
  - name: hooks
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"trap 'exit 0' TERM; while :; do sleep 0.1; done\"]
    lifecycle: {{postStart: {{exec: {{command: [touch, /m/started]}}}}, preStop: {{exec: {{command: [sleep, \"0.3\"]}}}}}}
    volumeMounts: [{{name: d, mountPath: /d, subPath: part}}, {{name: m, mountPath: /m}}]
  - {{name: ends, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, \"1\"]}}
  volumes: [{{name: d, emptyDir: {{}}}}, {{name: m, emptyDir: {{medium: Memory}}}}]
---"
        )
    };
    (0..pods).map(one).collect()
}

/// Has pods come and go on the first agent, for `E2E_CHAOS_ROUNDS` rounds or a few, while `strike` hits that node at
/// every moment of their lives; then nothing of them may be left.
fn pods_under_strikes(
    name: &str,
    strike: impl Fn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let ns = Namespace::new(name)?;
    let kubectl = ns.kubectl();
    let node = Local.agents()?.remove(0);
    let rounds: u64 = match std::env::var("E2E_CHAOS_ROUNDS") {
        Ok(rounds) => rounds.parse()?,
        Err(_) => 4,
    };
    let before = at_rest(kubectl, &node)?;
    for round in 0..rounds {
        // Moments all over the two seconds in which pods are made, and those in which they end.
        let moment = Duration::from_millis(round * 631 % 2000);
        kubectl.apply(&rich(&node, 6))?;
        std::thread::sleep(moment);
        strike(&node)?;
        if round % 2 == 1 {
            let running = [
                "wait",
                "pods",
                "-l",
                "app=rich",
                "--for=jsonpath={.status.phase}=Running",
                "--timeout=60s",
            ];
            kubectl.ok(&running)?;
        }
        kubectl.ok(&["delete", "pods", "-l", "app=rich", "--wait=false"])?;
        std::thread::sleep(moment / 2);
        strike(&node)?;
        kubectl.ok(&["delete", "pods", "-l", "app=rich", "--timeout=60s"])?;
    }
    nothing_stayed(&node, &before)
}

#[test]
fn pods_that_come_and_go_while_their_agent_is_killed_leave_nothing() -> anyhow::Result<()> {
    pods_under_strikes("chaos", |node| {
        kill_agent(&Local, node)?;
        Local.ok(&["start", node]).map(|_| ())
    })
}

#[test]
fn pods_that_come_and_go_while_their_runtime_is_killed_leave_nothing() -> anyhow::Result<()> {
    pods_under_strikes("crash", kill_runtime)
}
