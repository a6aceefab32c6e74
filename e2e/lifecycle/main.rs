//! `balsa local` makes a cluster, makes nothing twice, and leaves nothing behind.

#![allow(clippy::unwrap_used, missing_docs)]

mod members;
mod refusals;
mod settings;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::ensure;
use balsa_e2e::{Kubectl, Local, eventually};

/// Everything on this machine that a cluster could leave behind.
fn traces() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut names = |kind: &str, text: String| {
        all.extend(
            text.lines()
                .filter(|l| !l.is_empty())
                .map(|line| format!("{kind} {line}")),
        );
    };
    let listed = |dir: &str| -> String {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|e| format!("{}\n", e.file_name().to_string_lossy()))
            .collect()
    };
    names("namespace", listed("/run/netns"));
    names("link", listed("/sys/class/net"));
    for root in fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
    {
        names(
            "cgroup",
            listed(&root.path().to_string_lossy())
                .lines()
                .filter(|l| l.contains("balsa"))
                .map(|l| format!("{l}\n"))
                .collect(),
        );
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    names(
        "mount",
        mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .map(|p| format!("{p}\n"))
            .collect(),
    );
    let rules = Command::new("nft")
        .args(["list", "tables"])
        .output()
        .unwrap();
    let forwarding = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    names("forwarding", forwarding);
    names("nft", String::from_utf8_lossy(&rules.stdout).into_owned());
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        // A dead process that its parent has not collected yet is no process any more.
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        if status.is_empty() || status.contains("State:\tZ") || status.contains("State:\tX") {
            continue;
        }
        if ["balsa", "containerd", "pause"]
            .iter()
            .any(|p| name.starts_with(p))
        {
            names("process", name);
        }
    }
    all
}

#[test]
fn a_cluster_comes_up_twice_without_doubling_and_goes_without_a_trace() -> anyhow::Result<()> {
    let (local, before) = (Local, traces());
    local.ok(&["up", "--servers", "1", "--agents", "1"])?;
    let nodes = local.nodes()?;
    let printed = local.ok(&["up", "--servers", "1", "--agents", "1"])?;
    ensure!(printed.contains("export KUBECONFIG="), "{printed}");
    ensure!(local.nodes()? == nodes, "a second `up` changed the nodes");
    let kubectl = Kubectl::from_env()?;
    kubectl.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {hostNetwork: false, containers: [{name: c, image: missing.invalid/x:1}]}}",
    )?;
    eventually("a sandbox", 30, || {
        Ok(kubectl
            .ok(&["describe", "pod", "p"])?
            .contains("ErrImagePull"))
    })?;
    ensure!(
        traces() != before,
        "the cluster leaves no trace while it runs: this test sees nothing"
    );
    local.ok(&["down"])?;
    let left: Vec<String> = traces().difference(&before).cloned().collect();
    ensure!(left.is_empty(), "left behind: {left:#?}");
    let again = local.ok(&["down"])?;
    ensure!(again.is_empty(), "a second `down` said {again}");
    Ok(())
}
