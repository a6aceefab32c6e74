//! What a node that cannot start says: one sentence with what is wrong and what to do, and no harm done.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_e2e::{Kubectl, Local, eventually};

/// The program under test.
fn balsa() -> anyhow::Result<Command> {
    let program = std::env::var("E2E_BALSA").context("E2E_BALSA names no program")?;
    Ok(Command::new(program))
}

/// A server on loopback; `folder` is its data folder.
fn server(folder: &Path) -> anyhow::Result<Command> {
    let mut command = balsa()?;
    command.args([
        "server",
        "--no-agent",
        "--address",
        "127.0.0.1",
        "--data-dir",
    ]);
    command.arg(folder);
    Ok(command)
}

/// What a command that must fail printed to standard error.
fn refusal(command: &mut Command) -> anyhow::Result<String> {
    balsa_e2e::run(command, "", Duration::from_secs(20))?.failed()
}

#[test]
fn a_taken_port_is_named() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let _taken = TcpListener::bind("127.0.0.1:6443")?;
    let said = refusal(&mut server(folder.path())?)?;
    ensure!(
        said.contains("127.0.0.1:6443") && said.contains("another server"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_data_folder_of_a_newer_version_or_of_another_member_is_left_alone() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut running = server(folder.path())?
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let identity = folder.path().join("store/identity.json");
    let made = eventually("the store to be made", 20, || {
        Ok(folder.path().join("agent-token").exists() && identity.exists())
    });
    let second = refusal(&mut server(folder.path())?);
    running.kill()?;
    running.wait()?;
    made?;
    ensure!(second?.contains("locked"), "a folder in use was opened");
    let text = std::fs::read_to_string(&identity)?;
    std::fs::write(&identity, text.replace("\"format\": 1", "\"format\": 99"))?;
    let said = refusal(&mut server(folder.path())?)?;
    ensure!(said.contains("99") && said.contains("newer"), "{said}");
    std::fs::write(&identity, &text)?;
    std::fs::write(folder.path().join("member.json"), "{\"id\": 7}")?;
    let said = refusal(&mut server(folder.path())?)?;
    ensure!(said.contains("member"), "{said}");
    Ok(())
}

#[test]
fn who_is_not_root_or_has_no_containerd_is_told_so() -> anyhow::Result<()> {
    // Readable for everybody, which the cache of builds need not be.
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let copy = folder.path().join("balsa");
    std::fs::copy(std::env::var("E2E_BALSA")?, &copy)?;
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534))?;
    let said = refusal(
        Command::new(&copy)
            .args(["local", "up"])
            .uid(65534)
            .gid(65534),
    )?;
    ensure!(said.contains("must run as root"), "{said}");
    let said = refusal(balsa()?.args(["local", "up"]).env("PATH", "/nonexistent"))?;
    ensure!(
        said.contains("containerd") && said.contains("apt-get install"),
        "{said}"
    );
    Ok(())
}

#[test]
fn settings_that_cannot_work_are_all_named_before_anything_is_made() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let said = refusal(server(&data)?.args([
        "--pod-cidr",
        "127.0.0.0/8",
        "--cluster-dns",
        "192.0.2.1",
        "--join",
        "192.0.2.2",
    ]))?;
    for word in ["address:", "clusterDns:", "token:"] {
        ensure!(said.contains(word), "no {word} in {said}");
    }
    ensure!(!data.exists(), "a folder was made");
    Ok(())
}

#[test]
fn a_node_without_free_pod_addresses_says_so_and_goes_on_when_one_is_free() -> anyhow::Result<()> {
    let local = Local;
    // Inherited by the nodes: eight addresses a node, less those of the network and of broadcast.
    let mut up = balsa()?;
    up.args(["local", "up", "--servers", "1", "--agents", "1"])
        .env("BALSA_NODE_CIDR_MASK_SIZE", "29");
    balsa_e2e::run(&mut up, "", Duration::from_secs(60))?.ok()?;
    let outcome = fill_up();
    local.ok(&["down"])?;
    outcome
}

fn fill_up() -> anyhow::Result<()> {
    let kubectl = Kubectl::from_env()?;
    for number in 0..7 {
        kubectl.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}}}, spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: missing.invalid/x:1}}]}}}}"
        ))?;
    }
    let addresses = || -> anyhow::Result<usize> {
        let list = kubectl.ok(&["get", "pods", "-o", "jsonpath={.items[*].status.podIP}"])?;
        Ok(list.split_whitespace().count())
    };
    eventually("all addresses to be in use", 30, || Ok(addresses()? == 6))?;
    eventually("an event that says why", 30, || {
        let events = kubectl.ok(&["get", "events"])?;
        Ok(events.contains("FailedCreatePodSandBox") && events.contains("no free addresses"))
    })?;
    let holders = kubectl.ok(&[
        "get",
        "pods",
        "-o",
        "jsonpath={range .items[?(@.status.podIP)]}{.metadata.name} {end}",
    ])?;
    let holder = holders
        .split_whitespace()
        .next()
        .context("no pod has an address")?;
    kubectl.ok(&["delete", "pod", holder])?;
    eventually("the freed address to be in use", 60, || {
        Ok(addresses()? == 6)
    })?;
    Ok(())
}
