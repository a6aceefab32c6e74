//! Client libraries other than kubectl's.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_e2e::Namespace;

#[test]
fn the_python_client_reads_writes_watches_and_streams() -> anyhow::Result<()> {
    let packages = std::env::var("E2E_PYTHON").context("E2E_PYTHON names no folder of packages")?;
    let ns = Namespace::new("python")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/python_client.py");
    let mut python = Command::new("python3");
    python.args([script, ns.name()]).env("PYTHONPATH", packages);
    let printed = balsa_e2e::run(&mut python, "", Duration::from_secs(180))?.ok()?;
    ensure!(printed.contains("all of it works"), "{printed}");
    Ok(())
}
