//! A node runs short of disk, a machine goes down: pods end as they should, and the API is told why. These run alone
//! (see `e2e/nextest.toml`), as they restart an agent with other settings.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};
use balsa_e2e::{Kubectl, Local, Namespace, eventually};

use crate::loss_runtime::folder;

/// An agent that runs with settings of the scenario, and with its own again afterwards.
struct Changed<'a>(&'a str);

impl<'a> Changed<'a> {
    fn restart(node: &'a str, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let local = Local;
        local.ok(&["stop", node])?;
        let this = Self(node);
        local.start_with(node, variables)?;
        Ok(this)
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        let local = Local;
        let _ = local.run(&["stop", self.0]);
        let _ = local.run(&["start", self.0]);
        let _ = eventually("the node as it was", 60, || {
            let kubectl = Kubectl::from_env()?;
            let disk = kubectl.field(&format!("node/{}", self.0), &status_of("DiskPressure"))?;
            Ok(disk == "False" && is_ready(&kubectl, self.0)?)
        });
    }
}

fn status_of(condition: &str) -> String {
    format!("{{.status.conditions[?(@.type=='{condition}')].status}}")
}

fn is_ready(kubectl: &Kubectl, node: &str) -> anyhow::Result<bool> {
    let node = kubectl.field(&format!("node/{node}"), &status_of("Ready"))?;
    Ok(node == "True")
}

/// A pod on that node that runs a command.
fn pod(name: &str, node: &str, command: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  {more}
  tolerations: [{{operator: Exists}}]
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, '{command}']
    volumeMounts: [{{name: own, mountPath: /own}}]
  volumes: [{{name: own, emptyDir: {{}}}}]
---"
    )
}

#[test]
fn pods_of_a_machine_that_goes_down_end_by_priority_and_the_api_knows_why() -> anyhow::Result<()> {
    let (ns, local) = (Namespace::new("shutdown")?, Local);
    let kubectl = ns.kubectl();
    let node = local.agents()?.remove(0);
    // What systemd says when it stops services because the machine goes down.
    let programs = tempfile::tempdir()?;
    let systemctl = programs.path().join("systemctl");
    std::fs::write(&systemctl, "#!/bin/sh\necho stopping\nexit 1\n")?;
    std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH")?;
    let path = format!("{}:{path}", programs.path().display());
    let changed = Changed::restart(
        &node,
        &[
            ("PATH", path.as_str()),
            (
                "BALSA_SHUTDOWN_GRACE_PERIOD_BY_POD_PRIORITY",
                "0=8s,1000=5s",
            ),
        ],
    )?;
    let class = ns.name();
    kubectl.apply(&format!(
        "
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {{name: {class}}}
value: 1000
---"
    ))?;
    let slow = "trap \"sleep 4; exit 0\" TERM; while true; do sleep 0.1; done";
    let quick = "trap \"exit 0\" TERM; while true; do sleep 0.1; done";
    kubectl.apply(&pod("usual", &node, slow, ""))?;
    let more = format!("priorityClassName: {class}");
    kubectl.apply(&pod("important", &node, quick, &more))?;
    for name in ["usual", "important"] {
        kubectl.wait_ready(name, 60)?;
    }
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| local.ok(&["stop", &node]));
        eventually("the node says that it goes down", 10, || {
            let path = "{range .status.conditions[?(@.type=='Ready')]}{.reason} {.message}{end}";
            let said = kubectl.field(&format!("node/{node}"), path)?;
            Ok(said == "KubeletNotReady node is shutting down")
        })?;
        kubectl.apply(&pod("late", &node, quick, ""))?;
        eventually("the refusal of a pod that comes too late", 10, || {
            let said = kubectl.field("pod/late", "{.status.phase} {.status.reason}")?;
            Ok(said == "Failed NodeShutdown")
        })?;
        stop.join()
            .map_err(|_| anyhow::anyhow!("stopping panicked"))??;
        anyhow::Ok(())
    })?;
    let ended = "{.status.containerStatuses[0].state.terminated.finishedAt}";
    for name in ["usual", "important"] {
        let pod = kubectl.json(&["get", "pod", name])?;
        let status = &pod["status"];
        ensure!(
            status["phase"] == "Failed"
                && status["reason"] == "Terminated"
                && status["message"] == "Pod was terminated in response to imminent node shutdown.",
            "{name}: {status}"
        );
        let conditions = status["conditions"].as_array().context("no conditions")?;
        let target = conditions
            .iter()
            .find(|condition| condition["type"] == "DisruptionTarget");
        ensure!(
            target.is_some_and(|target| target["reason"] == "TerminationByKubelet"),
            "{name}: {conditions:?}"
        );
        let code = &status["containerStatuses"][0]["state"]["terminated"]["exitCode"];
        ensure!(*code == 0, "{name} was not left its time: {status}");
    }
    let (first, last) = (
        kubectl.field("pod/usual", ended)?,
        kubectl.field("pod/important", ended)?,
    );
    ensure!(
        first <= last,
        "the important pod ended at {last}, before the usual one at {first}"
    );
    drop(changed);
    kubectl.ok(&["delete", "priorityclass", class])?;
    ensure!(is_ready(kubectl, &node)?, "the node did not come back");
    Ok(())
}

/// Bytes that are free on a node's disk.
fn free(node: &str) -> anyhow::Result<u64> {
    let space = nix::sys::statvfs::statvfs(&folder(node))?;
    Ok(space.blocks_available() * space.fragment_size())
}

#[test]
fn a_node_short_of_disk_says_so_throws_out_who_took_it_and_recovers() -> anyhow::Result<()> {
    const GIB: u64 = 1 << 30;
    let (ns, local) = (Namespace::new("disk")?, Local);
    let kubectl = ns.kubectl();
    let node = local.agents()?.remove(0);
    let left = free(&node)?;
    ensure!(left > 6 * GIB, "only {left} bytes are free on this machine");
    let least = format!("nodefs.available<{}", left - 3 * GIB);
    let _changed = Changed::restart(
        &node,
        &[
            ("BALSA_EVICTION_HARD", least.as_str()),
            ("BALSA_EVICTION_PRESSURE_TRANSITION_PERIOD", "2s"),
        ],
    )?;
    // A node short of disk removes images that no container has: one that ran has them all.
    let images = kubectl.field(&format!("node/{node}"), "{.status.images[*].names[0]}")?;
    kubectl.apply(&keeper(&node, &images))?;
    kubectl.apply(&pod("modest", &node, "exec sleep 100000", ""))?;
    kubectl.wait_ready("modest", 60)?;
    eventually("containers of all images", 60, || {
        let phase = kubectl.field("pod/keeper", "{.status.phase}")?;
        Ok(phase == "Failed" || phase == "Succeeded")
    })?;
    let fill = "fallocate -l 5G /own/file && exec sleep 100000";
    kubectl.apply(&pod("greedy", &node, fill, ""))?;
    eventually("the node says that it is short of disk", 40, || {
        let name = format!("node/{node}");
        let pressed = kubectl.field(&name, &status_of("DiskPressure"))? == "True";
        let taints = kubectl.field(&name, "{.spec.taints[*].key}")?;
        Ok(pressed && taints.contains("node.kubernetes.io/disk-pressure"))
    })?;
    eventually("the pod that took the disk is thrown out", 30, || {
        let said = kubectl.field(
            "pod/greedy",
            "{.status.phase} {.status.reason} {.status.message}",
        )?;
        let words =
            "Failed Evicted The node was low on resource: ephemeral-storage. Threshold quantity: ";
        Ok(said.starts_with(words))
    })?;
    eventually("the node has room again", 40, || {
        let name = format!("node/{node}");
        let pressed = kubectl.field(&name, &status_of("DiskPressure"))? == "True";
        let taints = kubectl.field(&name, "{.spec.taints[*].key}")?;
        Ok(!pressed && !taints.contains("disk-pressure"))
    })?;
    let other = kubectl.field("pod/modest", "{.status.phase}")?;
    ensure!(other == "Running", "a pod that took nothing is {other}");
    Ok(())
}

/// A pod that has containers of all images; that most have no such command is no matter.
fn keeper(node: &str, images: &str) -> String {
    let containers = images.split_whitespace().enumerate().map(|(index, image)| {
        format!("\n  - {{name: c{index}, image: \"{image}\", imagePullPolicy: Never, command: [/bin/true]}}")
    });
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: keeper}}
spec:
  nodeName: {node}
  restartPolicy: Never
  containers:{}
---",
        containers.collect::<String>()
    )
}
