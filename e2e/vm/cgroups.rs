//! Control groups of version 2: settings, resizing, running out of memory, figures.

use super::*;

/// Settings of the pod's own group and of a container's, by file.
fn settings(
    scene: &Scene,
    pod: &Value,
    class: &str,
    files: &[&str],
) -> anyhow::Result<Vec<String>> {
    let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
    let id = id
        .and_then(|id| id.strip_prefix("containerd://"))
        .context("no id")?;
    let pod = format!("/sys/fs/cgroup/balsa{class}/pod{uid}");
    let paths: Vec<String> = files
        .iter()
        .map(|file| match file.strip_prefix("pod ") {
            Some(file) => format!("{pod}/{file}"),
            None => format!("{pod}/{id}/{file}"),
        })
        .collect();
    let all = scene.vm.sh(&format!("cat {}", paths.join(" ")))?;
    Ok(all.lines().map(str::to_owned).collect())
}

/// A pod that runs with these resources.
fn with(scene: &Scene, name: &str, resources: Value) -> anyhow::Result<Value> {
    scene.running(
        name,
        json!({"containers": [{"name": "c", "resources": resources}]}),
    )
}

#[test]
fn pods_and_containers_are_held_to_what_they_ask_for() -> anyhow::Result<()> {
    let scene = Scene::new("vm-cgroups")?;
    let resources = json!({"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}});
    let pod = with(&scene, "burstable", resources)?;
    let found = settings(
        &scene,
        &pod,
        "/burstable",
        &[
            "pod cpu.max",
            "pod memory.max",
            "pod cpu.weight",
            "pod pids.max",
            "cpu.max",
            "memory.max",
            "memory.oom.group",
            "memory.swap.max",
        ],
    )?;
    let limit = (64 << 20).to_string();
    assert_eq!(found[..3], ["50000 100000", &limit, "10"]);
    assert_eq!(found[4..], ["50000 100000", &limit, "1", "0"]);
    let score = scene.exec("burstable", "cat /proc/self/oom_score_adj")?;
    assert!((900..1000).contains(&score.parse::<i32>()?), "{score}");

    let exact = json!({"limits": {"cpu": "100m", "memory": "64Mi"}});
    let pod = with(&scene, "guaranteed", exact)?;
    let found = settings(&scene, &pod, "", &["pod cpu.max", "cpu.max"])?;
    assert_eq!(found, ["10000 100000", "10000 100000"]);
    assert_eq!(
        scene.exec("guaranteed", "cat /proc/self/oom_score_adj")?,
        "-997"
    );

    let pod = scene.running("besteffort", json!({"containers": [{"name": "c"}]}))?;
    let found = settings(
        &scene,
        &pod,
        "/besteffort",
        &["pod cpu.weight", "cpu.max", "memory.max"],
    )?;
    assert_eq!(found, ["1", "max 100000", "max"]);
    // Its own group is the root of what a container sees.
    assert_eq!(scene.exec("besteffort", "cat /proc/self/cgroup")?, "0::/");
    Ok(())
}

#[test]
fn a_resize_reaches_the_running_container() -> anyhow::Result<()> {
    let scene = Scene::new("vm-resize")?;
    let resources = json!({"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}});
    let before = with(&scene, "p", resources)?;
    let more = json!({"spec": {"containers": [{"name": "c", "resources":
        {"requests": {"cpu": "200m"}, "limits": {"cpu": "400m", "memory": "96Mi"}}}]}});
    scene.kubectl().ok(&[
        "patch",
        "pod",
        "p",
        "--subresource",
        "resize",
        "-p",
        &more.to_string(),
    ])?;
    let files = ["pod cpu.max", "pod memory.max", "cpu.max", "memory.max"];
    let limit = (96 << 20).to_string();
    eventually("the new limits", PATIENCE, || {
        let found = settings(&scene, &before, "/burstable", &files)?;
        ensure!(
            found == ["40000 100000", &limit, "40000 100000", &limit],
            "{found:?}"
        );
        Ok(true)
    })?;
    eventually("the status to tell of them", PATIENCE, || {
        let path = "{.status.containerStatuses[0].resources.limits.memory}";
        Ok(scene.kubectl().field("pod/p", path)? == "96Mi")
    })?;
    assert_eq!(
        scene
            .kubectl()
            .field("pod/p", "{.status.containerStatuses[0].restartCount}")?,
        "0"
    );
    Ok(())
}

#[test]
fn a_container_that_runs_out_of_memory_ends_with_all_its_processes() -> anyhow::Result<()> {
    let scene = Scene::new("vm-oom")?;
    // The child takes the memory; alone it would be outlived by its parent.
    let hog = "sh -c 'dd if=/dev/zero of=/dev/null bs=200M count=1'; echo outlived; sleep 1000";
    scene.pod("hog", json!({"restartPolicy": "Never",
        "containers": [{"name": "c", "command": sh(hog), "resources": {"limits": {"memory": "32Mi"}}}]}))?;
    let pod = scene.phase("hog", "Failed")?;
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&ended["reason"], &ended["exitCode"]),
        (&json!("OOMKilled"), &json!(137))
    );
    Ok(())
}

#[test]
fn figures_come_from_the_groups() -> anyhow::Result<()> {
    let scene = Scene::new("vm-stats")?;
    let busy = "head -c 8000000 /dev/zero >/dev/shm/full; while :; do :; done";
    scene.running("busy", json!({"containers": [{"name": "c", "command": sh(busy), "resources": {"limits": {"cpu": "200m"}}}]}))?;
    eventually("figures of the pod", PATIENCE, || {
        let all = scene
            .kubectl()
            .ok(&["get", "--raw", "/api/v1/nodes/vm/proxy/stats/summary"])?;
        let all: Value = serde_json::from_str(&all)?;
        let pods = all["pods"].as_array().context("no pods")?;
        let pod = pods.iter().find(|pod| {
            pod["podRef"]["name"] == "busy" && pod["podRef"]["namespace"] == scene.space.name()
        });
        let container = &pod.context("no pod")?["containers"][0];
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let cpu = number(&container["cpu"]["usageNanoCores"]);
        let memory = number(&container["memory"]["workingSetBytes"]);
        ensure!(
            (20_000_000..400_000_000).contains(&cpu) && memory > 8_000_000,
            "{container}"
        );
        let node = &all["node"];
        ensure!(number(&node["memory"]["availableBytes"]) > 0, "{node}");
        for swap in [&node["swap"], &container["swap"]] {
            let told = (&swap["swapUsageBytes"], &swap["swapAvailableBytes"]);
            ensure!(told == (&json!(0), &json!(0)), "{swap}");
        }
        Ok(true)
    })?;
    eventually("kubectl top", PATIENCE, || {
        let top = scene
            .kubectl()
            .ok(&["top", "pod", "busy", "--no-headers"])?;
        Ok(top.contains("busy"))
    })
    .map(|_| ())
}
