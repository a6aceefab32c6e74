//! An agent dies while pods have volumes of a driver: the next one knows of them. Runs alone (see
//! `e2e/nextest.toml`).

use anyhow::ensure;
use balsa_e2e::{Local, eventually};

use super::csi::{CLAIMED, Driver, pod};
use crate::loss_runtime::kill_agent;

#[test]
fn volumes_that_a_killed_agent_had_mounted_are_taken_back_by_the_next() -> anyhow::Result<()> {
    let driver = Driver::install("csi-killed", "{attachRequired: true}")?;
    let (kubectl, local) = (driver.kubectl(), Local);
    let node = local.agents()?.remove(0);
    kubectl.apply(&driver.claim("data", "ReadWriteMany"))?;
    for name in ["stays", "goes"] {
        kubectl.apply(&pod(name, &node, CLAIMED, "true"))?;
    }
    for name in ["stays", "goes"] {
        kubectl.wait_ready(name, 60)?;
    }
    let staged = driver.calls().matches(" stage ").count();
    kill_agent(&local, &node)?;
    // One is deleted for good, and so is unknown to the next agent but for what it left on the node.
    kubectl.ok(&["delete", "pod", "goes", "--force", "--grace-period=0"])?;
    local.ok(&["start", &node])?;
    eventually("the deleted pod's volume is taken back", 60, || {
        ensure!(
            driver.calls().contains(&format!("{node} unpublish ")),
            "{}",
            driver.calls()
        );
        Ok(true)
    })?;
    kubectl.wait_ready("stays", 60)?;
    let written = kubectl.ok(&[
        "exec",
        "stays",
        "--",
        "sh",
        "-c",
        "echo on > /data/f; cat /data/f",
    ])?;
    ensure!(written == "on\n", "{written:?}");
    let calls = driver.calls();
    ensure!(
        calls.matches(" stage ").count() == staged,
        "staged again:\n{calls}"
    );
    ensure!(
        !calls.contains(" unstage "),
        "taken from a pod that has it:\n{calls}"
    );
    kubectl.ok(&["delete", "pod", "stays"])?;
    kubectl.ok(&["delete", "pvc", "data"])?;
    driver.nothing_is_left()
}
