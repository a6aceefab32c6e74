//! What is done to single nodes, and the end of all of them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::local::args;
use crate::local::process::{self, Process, Start};
use crate::local::topology::{self, Node, Paths, Role, Topology};
use crate::local::up;
use crate::local::{network, outside};

/// Shares of the processors (an ordinary program or session has 1024): the cluster stands for several machines.
const CLUSTER_SHARES: u32 = 4096;
/// Of the cluster's: pods must not starve the servers, nor may the agents.
const SERVER_SHARES: u32 = 4096;

/// Starts a node's process if it does not run.
pub fn start(paths: &Paths, topology: &Topology, node: &Node) -> anyhow::Result<()> {
    if let Some(process) = args::process(paths, &node.name) {
        if !process.dying() {
            return Ok(());
        }
        if !wait_gone(process, Duration::from_secs(30)) {
            bail!(
                "process {} of {} was killed and does not end",
                process.pid,
                node.name
            );
        }
    }
    network::ensure_node(node)?;
    fs::create_dir_all(paths.data(&node.name))
        .with_context(|| format!("cannot make {}", paths.data(&node.name).display()))?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    process::start(Start {
        program: &program,
        args: up::arguments(paths, topology, node)?,
        namespace: network::open(&node.name)?,
        cgroup: &format!("{}/system", topology::cgroup(&node.name)),
        log: &paths.log(&node.name),
        record: &paths.process(&node.name),
    })?;
    process::weigh(topology::CGROUP, CLUSTER_SHARES);
    if node.role == Role::Server {
        process::weigh(&topology::cgroup(&node.name), SERVER_SHARES);
    }
    Ok(())
}

/// Kills a node with SIGKILL: its process and, for an agent, its containerd. Containers go on running, as
/// after a crash of the agent; the cluster must treat the node as dead all the same.
pub fn kill(paths: &Paths, node: &Node) -> anyhow::Result<()> {
    let process = running(paths, node)?;
    process.signal(Signal::SIGKILL)?;
    for containerd in containerds(node) {
        containerd.signal(Signal::SIGKILL)?;
    }
    wait_gone(process, Duration::from_secs(5));
    Ok(())
}

/// Stops a node in good order. An agent's containers and containerd go on.
pub fn stop(paths: &Paths, node: &Node) -> anyhow::Result<()> {
    let process = running(paths, node)?;
    process.signal(Signal::SIGTERM)?;
    if !wait_gone(process, Duration::from_secs(20)) {
        bail!(
            "{} does not stop within 20 s; see `balsa local logs {}`",
            node.name,
            node.name
        );
    }
    Ok(())
}

/// Sends a signal to a node's process and, for an agent, its containerd.
pub fn signal(paths: &Paths, node: &Node, signal: Signal) -> anyhow::Result<()> {
    let process = running(paths, node)?;
    process.signal(signal)?;
    for containerd in containerds(node) {
        containerd.signal(signal)?;
    }
    Ok(())
}

/// A node's process, which must run.
fn running(paths: &Paths, node: &Node) -> anyhow::Result<Process> {
    args::process(paths, &node.name).with_context(|| format!("{} does not run", node.name))
}

fn wait_gone(process: Process, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while process.is_alive() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// The containerd processes (not shims) in a node's cgroup.
fn containerds(node: &Node) -> Vec<Process> {
    if node.role == Role::Server {
        return Vec::new();
    }
    process::cgroup_members(&topology::cgroup(&node.name))
        .into_iter()
        .filter(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "containerd"
        })
        .filter_map(Process::of)
        .collect()
}

/// Ends the cluster and removes everything it left: processes, mounts, namespaces, links, cgroups, data.
/// Works on what it finds, so it also cleans up after a cluster that was only half made.
pub fn down(paths: &Paths) -> anyhow::Result<()> {
    up::require_own(paths)?;
    let (names, forwarding) = match up::load(paths) {
        Ok(Some(topology)) => (
            topology.nodes.into_iter().map(|n| n.name).collect(),
            topology.forwarding,
        ),
        // Without a readable plan, what is there tells.
        _ => (leftover_nodes(), false),
    };
    for name in &names {
        process::kill_cgroup(&topology::cgroup(name))?;
    }
    unmount_below(&paths.root)?;
    for name in &names {
        network::remove_node(name)?;
        process::remove_cgroup(&topology::cgroup(name))?;
    }
    process::remove_cgroup(topology::CGROUP)?;
    network::remove_bridge()?;
    outside::remove(forwarding)?;
    up::claim(None)?;
    match fs::remove_dir_all(&paths.root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", paths.root.display()))
        }
        _ => Ok(()),
    }
}

fn leftover_nodes() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .filter_map(|e| {
            e.file_name()
                .to_str()
                .and_then(|n| n.strip_prefix("balsa-"))
                .map(str::to_owned)
        })
        .collect()
}

/// Unmounts everything below a folder, innermost first.
fn unmount_below(root: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let mut below: Vec<String> = mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4))
        .map(unescape)
        .filter(|path| Path::new(path).starts_with(root) && Path::new(path) != root)
        .collect();
    below.sort_by_key(|path| std::cmp::Reverse(path.len()));
    for path in below {
        umount2(path.as_str(), MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {path}"))?;
    }
    Ok(())
}

/// Spaces and the like stand as octal escapes in mountinfo.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}
