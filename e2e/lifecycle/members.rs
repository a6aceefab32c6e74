//! Servers that come, and that are removed for good.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_e2e::eventually;
use serde_json::Value;

use crate::settings::Server;

fn members(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let program = std::env::var("E2E_BALSA").context("E2E_BALSA names no program")?;
    let mut command = Command::new(program);
    command.arg("members").args(arguments);
    command
        .arg("--kubeconfig")
        .arg(folder.join("data/admin.kubeconfig"));
    balsa_e2e::run(&mut command, "", Duration::from_secs(20))?.ok()
}

#[test]
fn a_removed_server_is_forgotten() -> anyhow::Result<()> {
    let (first, second) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let one = Server::start(first.path(), &[])?;
    let token = fs::read_to_string(first.path().join("data/server-token"))?;
    let join = [
        "--address",
        "127.0.0.2",
        "--join",
        "127.0.0.1",
        "--token",
        token.trim(),
    ];
    let two = Server::start(second.path(), &join)?;
    let known = || -> anyhow::Result<Vec<Value>> {
        let servers = one.kubectl(&["get", "--raw", "/balsa/v1/servers"])?;
        let servers: Value = serde_json::from_str(&servers)?;
        let list = servers.as_array().or_else(|| servers["servers"].as_array());
        list.cloned().with_context(|| format!("no list: {servers}"))
    };
    eventually("two servers", 20, || Ok(known()?.len() == 2))?;
    let listed = members(first.path(), &["list"])?;
    let id = listed
        .lines()
        .find(|line| line.contains("127.0.0.2:"))
        .and_then(|line| line.split_whitespace().next())
        .with_context(|| format!("the second server is no member:\n{listed}"))?
        .to_owned();
    let left = members(first.path(), &["remove", &id])?;
    ensure!(!left.contains("127.0.0.2:"), "{left}");
    drop(two);
    eventually("one server", 20, || Ok(known()?.len() == 1))?;
    // The one that is left writes alone.
    one.kubectl(&["create", "configmap", "alone"])?;
    // Harmless to repeat.
    let left = members(first.path(), &["remove", &id])?;
    ensure!(
        left.contains("127.0.0.1:") && !left.contains("127.0.0.2:"),
        "{left}"
    );
    Ok(())
}
