//! `balsa local status`: what each node is doing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::local::args;
use crate::local::topology::{Node, Paths, Role, Topology};
use crate::local::up;

/// One row.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Node name.
    pub node: String,
    /// `server` or `agent`.
    pub role: Role,
    /// Address.
    pub address: String,
    /// Leads the Raft cluster; `None` for agents and where it cannot be asked.
    pub leader: Option<bool>,
    /// Process id, if it runs.
    pub pid: Option<i32>,
    /// What is wrong, or `yes`.
    pub healthy: String,
}

/// What a server's `/balsa/v1/status` says.
#[derive(Debug, Clone, Deserialize)]
pub struct ServerStatus {
    /// It leads.
    pub leader: bool,
    /// Names of nodes whose link to it is up.
    pub nodes: Vec<String>,
    /// It is ready for requests.
    pub ready: bool,
}

/// Prints the table.
pub fn print(paths: &Paths, topology: &Topology, json: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let rows = runtime.block_on(rows(paths, topology));
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!(
        "{:<8}{:<8}{:<16}{:<8}{:<9}HEALTHY",
        "NODE", "ROLE", "ADDRESS", "LEADER", "PID"
    );
    for row in rows {
        let leader = match row.leader {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        let pid = row
            .pid
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        println!(
            "{:<8}{:<8}{:<16}{:<8}{:<9}{}",
            row.node, row.role, row.address, leader, pid, row.healthy
        );
    }
    Ok(())
}

/// Asks every server and makes the rows.
pub async fn rows(paths: &Paths, topology: &Topology) -> Vec<Row> {
    let asked = topology
        .servers()
        .map(|node| async move { (node.name.clone(), ask(paths, node).await) });
    let statuses: Vec<(String, Option<ServerStatus>)> = futures::future::join_all(asked).await;
    let status_of = |name: &str| {
        statuses
            .iter()
            .find(|(n, _)| n == name)
            .and_then(|(_, s)| s.as_ref())
    };
    let linked = |name: &str| {
        statuses.iter().any(|(_, s)| {
            s.as_ref()
                .is_some_and(|s| s.nodes.iter().any(|n| n == name))
        })
    };
    topology
        .nodes
        .iter()
        .map(|node| {
            let process = args::process(paths, &node.name);
            let healthy = match (process, node.role) {
                (None, _) => "no: does not run",
                (Some(p), _) if p.stopped() => "no: paused",
                (Some(_), Role::Server) => match status_of(&node.name) {
                    Some(s) if s.ready => "yes",
                    Some(_) => "no: not ready",
                    None => "no: does not answer",
                },
                (Some(_), Role::Agent) if linked(&node.name) => "yes",
                (Some(_), Role::Agent) => "no: not connected to any server",
            };
            let cut = topology.partition.contains(&node.name);
            Row {
                node: node.name.clone(),
                role: node.role,
                address: node.address.to_string(),
                leader: status_of(&node.name).map(|s| s.leader),
                pid: process.map(|p| p.pid),
                healthy: format!("{healthy}{}", if cut { " (cut off)" } else { "" }),
            }
        })
        .collect()
}

/// One server's own view; `None` when it does not answer within a second.
pub async fn ask(paths: &Paths, node: &Node) -> Option<ServerStatus> {
    args::process(paths, &node.name)?;
    let client = up::client(paths, node).ok()?;
    let request = http::Request::get("/balsa/v1/status")
        .body(Vec::new())
        .ok()?;
    let answer = tokio::time::timeout(
        Duration::from_secs(1),
        client.request::<ServerStatus>(request),
    );
    answer.await.ok()?.ok()
}
