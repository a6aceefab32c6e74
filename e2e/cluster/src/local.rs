//! `balsa local`, as the scenarios use it.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use crate::command::{Output, run};

/// A row of `balsa local status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeRow {
    /// Name.
    pub node: String,
    /// `server` or `agent`.
    pub role: String,
    /// Address.
    pub address: String,
    /// Leads.
    pub leader: Option<bool>,
    /// Process id, if it runs.
    pub pid: Option<i32>,
    /// `yes`, or what is wrong.
    pub healthy: String,
}

/// The local cluster.
#[derive(Debug, Clone, Default)]
pub struct Local;

const DEADLINE: Duration = Duration::from_secs(150);

impl Local {
    /// Runs `balsa local ...`.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        run(&mut Self::command(arguments), "", DEADLINE)
    }

    fn command(arguments: &[&str]) -> Command {
        let program = std::env::var_os("E2E_BALSA").unwrap_or_else(|| "balsa".into());
        let mut command = Command::new(program);
        command.arg("local").args(arguments);
        command
    }

    /// Starts a stopped node whose settings these variables of the environment change.
    ///
    /// # Errors
    /// If it fails.
    pub fn start_with(&self, node: &str, variables: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut command = Self::command(&["start", node]);
        command.envs(variables.iter().copied());
        run(&mut command, "", DEADLINE)?.ok()?;
        Ok(())
    }

    /// What a command that must succeed prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(arguments)?.ok()
    }

    /// The nodes.
    ///
    /// # Errors
    /// If `status` fails.
    pub fn nodes(&self) -> anyhow::Result<Vec<NodeRow>> {
        Ok(serde_json::from_str(&self.ok(&["status", "--json"])?)?)
    }

    /// Name of the server that leads.
    ///
    /// # Errors
    /// If there is none.
    pub fn leader(&self) -> anyhow::Result<String> {
        let nodes = self.nodes()?;
        let leader = nodes.iter().find(|n| n.leader == Some(true));
        leader
            .map(|n| n.node.clone())
            .with_context(|| format!("no leader: {nodes:?}"))
    }

    /// A node by name.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, name: &str) -> anyhow::Result<NodeRow> {
        self.nodes()?
            .into_iter()
            .find(|n| n.node == name)
            .with_context(|| format!("no node {name}"))
    }

    /// Names of the agents.
    ///
    /// # Errors
    /// If `status` fails.
    pub fn agents(&self) -> anyhow::Result<Vec<String>> {
        Ok(self
            .nodes()?
            .into_iter()
            .filter(|n| n.role == "agent")
            .map(|n| n.node)
            .collect())
    }
}
