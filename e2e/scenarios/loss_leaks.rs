//! Pods come and go by the hundred, and nothing of them stays on their node. Runs alone, because it counts.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use balsa_e2e::{Local, Namespace, eventually, eventually_some};

use crate::loss_runtime::{ctr, folder};

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
        ("addresses", below("cni/data")),
        ("control groups", groups(node)),
        ("shims", shims(&own)),
    ]))
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).into_iter().flatten().count()
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
    // What earlier scenarios left to be removed is gone when two counts in a row agree.
    let mut last = BTreeMap::new();
    let before = eventually_some("a node at rest", 60, || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = traces(&node)?;
        let same = now == last;
        last = now;
        Ok(same.then(|| last.clone()))
    })?;
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
    let outcome = eventually(
        "the counts from before",
        90,
        || Ok(traces(&node)? == before),
    );
    let after = traces(&node)?;
    ensure!(
        outcome.is_ok(),
        "before: {before:?}\nafter {pods} pods: {after:?}"
    );
    Ok(())
}
