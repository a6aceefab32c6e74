//! Machines die, and users should hardly notice. These run one at a time (see `e2e/nextest.toml`), after
//! everything else, because they disturb whatever runs beside them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use balsa_e2e::{Kubectl, Local, Namespace, Writer, eventually};

use crate::first_app::{NGINX, client_on, ready_pods};

fn kubeconfig() -> anyhow::Result<PathBuf> {
    Ok(std::env::var_os("KUBECONFIG")
        .context("KUBECONFIG is not set")?
        .into())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}

fn all_healthy(local: &Local) -> anyhow::Result<bool> {
    Ok(local.nodes()?.iter().all(|n| n.healthy == "yes"))
}

/// Whatever a scenario broke is mended when it ends, so that the next one starts whole.
struct Mend;

impl Drop for Mend {
    fn drop(&mut self) {
        let local = Local;
        let _ = local.run(&["heal"]);
        for node in local.nodes().unwrap_or_default() {
            if node.pid.is_none() {
                let _ = local.run(&["start", &node.node]);
            } else if node.healthy.contains("paused") {
                let _ = local.run(&["resume", &node.node]);
            }
        }
        let _ = eventually("all nodes healthy again", 60, || all_healthy(&local));
    }
}

#[test]
fn a_killed_leader_costs_less_than_a_second_and_no_acknowledged_write() -> anyhow::Result<()> {
    let (ns, local, _mend) = (Namespace::new("leader")?, Local, Mend);
    let runtime = runtime()?;
    for round in 1..=3 {
        let writer = runtime.block_on(Writer::start(&kubeconfig()?, ns.name()))?;
        std::thread::sleep(Duration::from_millis(700));
        let leader = local.leader()?;
        local.ok(&["kill", &leader])?;
        std::thread::sleep(Duration::from_secs(3));
        let report = runtime.block_on(writer.finish())?;
        local.ok(&["start", &leader])?;
        println!(
            "round {round}: killed {leader}: {} acknowledged, {} failed, longest gap {} ms, {} lost",
            report.acknowledged.len(),
            report.failed,
            report.longest_gap.as_millis(),
            report.lost.len()
        );
        ensure!(report.lost.is_empty(), "lost: {:?}", report.lost);
        ensure!(
            report.longest_gap < Duration::from_secs(1),
            "a gap of {:?}",
            report.longest_gap
        );
        ensure!(
            report.acknowledged.len() > 100,
            "hardly anything was written: {report:?}"
        );
        eventually("the killed server's return", 30, || all_healthy(&local))?;
    }
    Ok(())
}

#[test]
fn pods_of_a_killed_agent_run_elsewhere_and_the_service_answers_throughout() -> anyhow::Result<()> {
    let (ns, local, _mend) = (Namespace::new("agent")?, Local, Mend);
    let kubectl = ns.kubectl();
    kubectl.apply(NGINX)?;
    eventually("3 ready pods", 30, || {
        Ok(ready_pods(&ns, "app=web")?.len() == 3)
    })?;
    let agents = local.agents()?;
    let (victim, survivor) = (&agents[1], &agents[0]);
    let client = client_on(&ns, survivor)?;
    let vip = kubectl.field("service/web", "{.spec.clusterIP}")?;
    // One request each 100 ms, with what went wrong in between.
    let script = format!(
        "for i in $(seq 120); do curl -s -o /dev/null -m 1 http://{vip}/ && echo ok || echo failed; sleep 0.1; done"
    );
    let mut traffic = kubectl.command(&["exec", &client, "--", "sh", "-c", &script]);
    let traffic = traffic.stdout(std::process::Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    local.ok(&["kill", victim])?;
    let elsewhere =
        |pod: &serde_json::Value| pod["spec"]["nodeName"].as_str() == Some(survivor.as_str());
    eventually("3 ready pods on the surviving node", 20, || {
        let ready = ready_pods(&ns, "app=web")?;
        let pods = kubectl.json(&["get", "pods", "-l", "app=web"])?;
        let items = pods["items"].as_array().context("no items")?;
        let there = items.iter().filter(|p| {
            elsewhere(p)
                && ready
                    .iter()
                    .any(|r| p["metadata"]["name"].as_str() == Some(r.as_str()))
        });
        Ok(there.count() == 3)
    })?;
    let took = began.elapsed();
    println!(
        "replacements Ready {:.1} s after the kill",
        took.as_secs_f32()
    );
    let answers = String::from_utf8_lossy(&traffic.wait_with_output()?.stdout).into_owned();
    let (ok, failed) = (
        answers.matches("ok").count(),
        answers.matches("failed").count(),
    );
    println!("requests meanwhile: {ok} answered, {failed} failed");
    ensure!(took < Duration::from_secs(8), "replacements took {took:?}");
    let node = kubectl.field(
        &format!("node/{victim}"),
        "{.status.conditions[?(@.type==\"Ready\")].status}",
    )?;
    ensure!(
        node == "Unknown",
        "the dead node's Ready condition is {node:?}"
    );
    // The dead agent's containers still run, so only requests to endpoints that were just taken out may fail.
    ensure!(failed <= 3, "{failed} of {} requests failed", ok + failed);
    Ok(())
}

#[test]
fn a_restarted_agent_leaves_its_containers_running() -> anyhow::Result<()> {
    let (ns, local, _mend) = (Namespace::new("restart")?, Local, Mend);
    let kubectl = ns.kubectl();
    let agent = local.agents()?.remove(0);
    let client = client_on(&ns, &agent)?;
    let identity = |kubectl: &Kubectl| {
        kubectl.field(
            &format!("pod/{client}"),
            "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}",
        )
    };
    let before = identity(kubectl)?;
    local.ok(&["stop", &agent])?;
    local.ok(&["start", &agent])?;
    eventually("the agent's return", 30, || all_healthy(&local))?;
    eventually("exec through the new agent", 20, || {
        Ok(kubectl.run(&["exec", &client, "--", "true"])?.code == 0)
    })?;
    ensure!(
        identity(kubectl)? == before,
        "the container changed from {before} to {}",
        identity(kubectl)?
    );
    Ok(())
}

#[test]
fn a_power_cut_loses_nothing() -> anyhow::Result<()> {
    let (ns, local, _mend) = (Namespace::new("power")?, Local, Mend);
    let kubectl = ns.kubectl();
    kubectl.apply(NGINX)?;
    kubectl.ok(&["create", "configmap", "kept", "--from-literal=a=b"])?;
    eventually("3 ready pods", 30, || {
        Ok(ready_pods(&ns, "app=web")?.len() == 3)
    })?;
    let names: Vec<String> = local.nodes()?.into_iter().map(|n| n.node).collect();
    for name in &names {
        local.ok(&["kill", name])?;
    }
    for name in &names {
        local.ok(&["start", name])?;
    }
    eventually("all nodes healthy", 60, || all_healthy(&local))?;
    eventually("the object from before", 30, || {
        Ok(kubectl.field("configmap/kept", "{.data.a}")? == "b")
    })?;
    eventually("exactly 3 ready pods and no others", 60, || {
        let all = kubectl.json(&["get", "pods", "-l", "app=web"])?;
        Ok(ready_pods(&ns, "app=web")?.len() == 3
            && all["items"].as_array().is_some_and(|i| i.len() == 3))
    })?;
    Ok(())
}

#[test]
fn a_server_cut_off_from_the_others_does_not_stop_them() -> anyhow::Result<()> {
    let (ns, local, _mend) = (Namespace::new("cut")?, Local, Mend);
    let leader = local.leader()?;
    local.ok(&["partition", &leader])?;
    let other = if leader == "s1" { "s2" } else { "s1" };
    let through = ns.kubectl().through(other);
    eventually("a write through the majority", 10, || {
        Ok(through
            .run(&["create", "configmap", "during", "--from-literal=a=b"])?
            .code
            == 0
            || through.run(&["get", "configmap", "during"])?.code == 0)
    })?;
    local.ok(&["heal"])?;
    let back = ns.kubectl().through(&leader);
    eventually(
        "the write, seen through the server that was cut off",
        15,
        || Ok(back.field("configmap/during", "{.data.a}")? == "b"),
    )?;
    Ok(())
}

/// Addresses of Service `kubernetes`, as a server that is there has them.
fn published(kubectl: &Kubectl) -> anyhow::Result<String> {
    kubectl.field("endpoints/kubernetes", "{.subsets[*].addresses[*].ip}")
}

#[test]
fn pods_are_led_to_servers_that_are_there() -> anyhow::Result<()> {
    let (local, _mend) = (Local, Mend);
    let leader = local.node(&local.leader()?)?;
    let nodes = local.nodes()?;
    let others: Vec<_> = nodes
        .into_iter()
        .filter(|n| n.role == "server" && n.node != leader.node)
        .collect();
    let [stopped, asked] = others.as_slice() else {
        anyhow::bail!("not three servers: {others:?}");
    };
    let kubectl = Kubectl::from_env()?.through(&asked.node);
    let is_published = |address: &str| {
        let all = published(&kubectl)?;
        Ok::<_, anyhow::Error>(all.split(' ').any(|a| a == address))
    };
    // In good order it is gone before it stops listening.
    local.ok(&["stop", &stopped.node])?;
    ensure!(
        !is_published(&stopped.address)?,
        "{} is stopped and still published",
        stopped.address
    );
    local.ok(&["start", &stopped.node])?;
    eventually("its address", 20, || is_published(&stopped.address))?;
    local.ok(&["kill", &leader.node])?;
    eventually("the killed leader's address to go", 15, || {
        Ok(!is_published(&leader.address)?)
    })?;
    local.ok(&["start", &leader.node])?;
    eventually("the address of the one that was killed", 20, || {
        is_published(&leader.address)
    })?;
    Ok(())
}
