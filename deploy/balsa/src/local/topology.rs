//! Which nodes a local cluster has, and where their things are. Pure: names, addresses and paths.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// What a node of the local cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `balsa server --no-agent`.
    Server,
    /// `balsa agent`.
    Agent,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Server => "server",
            Self::Agent => "agent",
        })
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `s1`, `s2`, ... for servers, `a1`, `a2`, ... for agents.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its address on the cluster's bridge.
    pub address: Ipv4Addr,
}

/// The whole local cluster as `up` made it; kept in `cluster.json` in the cluster's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// All nodes, servers first.
    pub nodes: Vec<Node>,
    /// Nodes cut off from the others by `partition`, with those on their side.
    #[serde(default)]
    pub partition: Vec<String>,
    /// `fast` or `default`.
    pub failover: String,
    /// Whether `up` switched this host's forwarding on, so that `down` switches it off again.
    #[serde(default)]
    pub forwarding: bool,
}

/// The bridge on the host that joins the nodes.
pub const BRIDGE: &str = "balsa0";
/// The host's address on the bridge.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
/// Prefix length of the bridge's subnet.
pub const PREFIX: u8 = 24;
/// Most nodes of one role that fit the subnet's plan.
pub const MOST: usize = 80;

impl Topology {
    /// `servers` and `agents` nodes with their usual names and addresses.
    ///
    /// # Errors
    /// When a number does not fit.
    pub fn plan(servers: usize, agents: usize, failover: &str) -> anyhow::Result<Self> {
        if servers == 0 || servers > MOST || agents > MOST {
            bail!(
                "a local cluster has 1 to {MOST} servers and 0 to {MOST} agents, not {servers} and {agents}"
            );
        }
        let node = |role, index: usize| {
            let (letter, base) = match role {
                Role::Server => ("s", 10),
                Role::Agent => ("a", 100),
            };
            // Fits: base + MOST is below 255.
            let last = u8::try_from(base + index).unwrap_or(u8::MAX);
            Node {
                name: format!("{letter}{index}"),
                role,
                address: Ipv4Addr::new(10, 89, 0, last),
            }
        };
        let nodes = (1..=servers)
            .map(|i| node(Role::Server, i))
            .chain((1..=agents).map(|i| node(Role::Agent, i)))
            .collect();
        Ok(Self {
            nodes,
            partition: Vec::new(),
            failover: failover.to_owned(),
            forwarding: false,
        })
    }

    /// The node of that name.
    ///
    /// # Errors
    /// When there is none; the message lists those there are.
    pub fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes.iter().find(|n| n.name == name).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
            format!(
                "there is no node {name:?} in this local cluster; its nodes are {}",
                names.join(", ")
            )
        })
    }

    /// All servers.
    pub fn servers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.role == Role::Server)
    }

    /// All agents.
    pub fn agents(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.role == Role::Agent)
    }

    /// Pairs of nodes that may not talk when `side` is cut off from the rest.
    pub fn cuts<'a>(&'a self, side: &'a [String]) -> Vec<(&'a Node, &'a Node)> {
        let inside = |n: &Node| side.contains(&n.name);
        let mut pairs = Vec::new();
        for a in self.nodes.iter().filter(|n| inside(n)) {
            for b in self.nodes.iter().filter(|n| !inside(n)) {
                pairs.push((a, b));
            }
        }
        pairs
    }
}

/// Where things of a local cluster are.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The cluster's folder.
    pub root: PathBuf,
}

impl Paths {
    /// Paths below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The topology.
    #[must_use]
    pub fn cluster(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// The kubeconfig for people.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// A node's data folder.
    #[must_use]
    pub fn data(&self, node: &str) -> PathBuf {
        self.root.join(node)
    }

    /// A node's log.
    #[must_use]
    pub fn log(&self, node: &str) -> PathBuf {
        self.root.join(format!("{node}.log"))
    }

    /// A node's process id and start time.
    #[must_use]
    pub fn process(&self, node: &str) -> PathBuf {
        self.root.join(format!("{node}.pid"))
    }
}

/// Name of a node's network namespace, as `ip netns` shows it.
#[must_use]
pub fn namespace(node: &str) -> String {
    format!("balsa-{node}")
}

/// Name of the host's end of a node's cable.
#[must_use]
pub fn cable(node: &str) -> String {
    format!("balsa-{node}")
}

/// The cgroup of all nodes below each controller's root.
pub const CGROUP: &str = "balsa-local";

/// A node's cgroup below each controller's root.
#[must_use]
pub fn cgroup(node: &str) -> String {
    format!("{CGROUP}/{node}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_addresses_follow_the_role_and_the_number() {
        let t = Topology::plan(3, 2, "fast").unwrap();
        let all: Vec<String> = t
            .nodes
            .iter()
            .map(|n| format!("{} {}", n.name, n.address))
            .collect();
        assert_eq!(
            all,
            [
                "s1 10.89.0.11",
                "s2 10.89.0.12",
                "s3 10.89.0.13",
                "a1 10.89.0.101",
                "a2 10.89.0.102"
            ]
        );
    }

    #[test]
    fn a_cluster_without_servers_is_refused() {
        assert!(Topology::plan(0, 2, "fast").is_err());
    }

    #[test]
    fn a_partition_cuts_each_node_inside_from_each_outside_and_no_others() {
        let t = Topology::plan(3, 1, "fast").unwrap();
        let side = vec!["s1".to_owned(), "a1".to_owned()];
        let cut: Vec<String> = t
            .cuts(&side)
            .iter()
            .map(|(a, b)| format!("{}-{}", a.name, b.name))
            .collect();
        assert_eq!(cut, ["s1-s2", "s1-s3", "a1-s2", "a1-s3"]);
    }

    #[test]
    fn an_unknown_node_is_answered_with_the_known_ones() {
        let t = Topology::plan(1, 1, "fast").unwrap();
        let error = t.node("x").unwrap_err().to_string();
        assert!(error.contains("s1, a1"), "{error}");
    }
}
