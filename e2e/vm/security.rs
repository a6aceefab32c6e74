//! What a current runtime and kernel can do that old ones can't: user namespaces, AppArmor, groups as they are told.

use super::*;

#[test]
fn pods_with_users_of_their_own_have_ranges_of_their_own_and_can_use_their_volumes()
-> anyhow::Result<()> {
    let scene = Scene::new("vm-users")?;
    if !scene.vm.modern()? {
        return Ok(());
    }
    scene
        .kubectl()
        .ok(&["create", "configmap", "conf", "--from-literal=key=value"])?;
    let script = "id -u; cat /conf/key; echo; head -c 2 /var/run/secrets/kubernetes.io/serviceaccount/token; echo; \
        echo x >/disk/file && echo x >/memory/file && stat -c %u /disk/file /memory/file /conf/key; sleep 100000";
    let pod = |script: &str| {
        json!({"hostUsers": false, "containers": [{"name": "c", "command": sh(script), "volumeMounts": [
                {"name": "conf", "mountPath": "/conf"}, {"name": "disk", "mountPath": "/disk"},
                {"name": "memory", "mountPath": "/memory"}]}],
            "volumes": [{"name": "conf", "configMap": {"name": "conf", "defaultMode": 0o400}},
                {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]})
    };
    scene.running("one", pod(script))?;
    scene.running("two", pod("sleep 100000"))?;
    eventually("what root of the pod sees", PATIENCE, || {
        let seen = scene.kubectl().ok(&["logs", "one"])?;
        ensure!(seen == "0\nvalue\ney\n0\n0\n0\n", "{seen}");
        Ok(true)
    })?;
    let map = |pod: &str| -> anyhow::Result<Vec<u64>> {
        let map = scene.exec(pod, "cat /proc/self/uid_map")?;
        map.split_whitespace()
            .map(|number| Ok(number.parse()?))
            .collect()
    };
    let (one, two) = (map("one")?, map("two")?);
    for map in [&one, &two] {
        ensure!(
            map[0] == 0 && map[1] >= 65_536 && map[2] == 65_536,
            "{map:?}"
        );
    }
    assert_ne!(one[1], two[1]);
    // On the node their processes are nobody's.
    let mapped = "ps -eo uid=,comm= | awk '$1 >= 65536 && $2 == \"sleep\"' | wc -l";
    let count: u32 = scene.vm.line(mapped)?.parse()?;
    assert!(count >= 2, "{count}");
    Ok(())
}

#[test]
fn apparmor_profiles_confine_containers() -> anyhow::Result<()> {
    let scene = Scene::new("vm-apparmor")?;
    let confined = |kind: &str, name: &str| {
        let mut profile = json!({"type": kind});
        if !name.is_empty() {
            profile["localhostProfile"] = json!(name);
        }
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "command": sh("cat /proc/self/attr/current"),
            "securityContext": {"appArmorProfile": profile}}]})
    };
    let seen = scene.printed("usual", confined("RuntimeDefault", ""))?;
    assert_eq!(seen.trim(), "cri-containerd.apparmor.d (enforce)");
    let seen = scene.printed("free", confined("Unconfined", ""))?;
    assert!(seen.contains("unconfined"), "{seen}");
    let profile = "profile balsa-vm flags=(attach_disconnected) { file, capability, signal, }";
    scene
        .vm
        .sh(&format!("echo '{profile}' | apparmor_parser --replace"))?;
    let seen = scene.printed("own", confined("Localhost", "balsa-vm"))?;
    assert_eq!(seen.trim(), "balsa-vm (enforce)");
    scene.pod("missing", confined("Localhost", "nowhere"))?;
    eventually("a refusal", PATIENCE, || {
        let waiting = scene.kubectl().field(
            "pod/missing",
            "{.status.containerStatuses[0].state.waiting}",
        )?;
        ensure!(waiting.contains("CreateContainerError"), "{waiting}");
        Ok(waiting.contains("apparmor profile not found nowhere"))
    })
    .map(|_| ())
}

#[test]
fn strict_groups_are_those_that_the_pod_names_and_the_status_tells_who_runs() -> anyhow::Result<()>
{
    let scene = Scene::new("vm-groups")?;
    if !scene.vm.modern()? {
        return Ok(());
    }
    let context = json!({"runAsUser": 33, "runAsGroup": 33, "supplementalGroups": [4000], "supplementalGroupsPolicy": "Strict"});
    let pod = scene.running(
        "strict",
        json!({"securityContext": context, "containers": [{"name": "c"}]}),
    )?;
    assert_eq!(scene.exec("strict", "id -G")?, "33 4000");
    let user = &pod["status"]["containerStatuses"][0]["user"]["linux"];
    assert_eq!((&user["uid"], &user["gid"]), (&json!(33), &json!(33)));
    let groups = user["supplementalGroups"].as_array().context("no groups")?;
    assert!(groups.contains(&json!(4000)), "{user}");
    Ok(())
}

#[test]
fn what_the_node_cannot_do_without_dies_last() -> anyhow::Result<()> {
    let scene = Scene::new("vm-scores")?;
    scene.running(
        "needed",
        json!({"priorityClassName": "system-node-critical", "containers": [{"name": "c"}]}),
    )?;
    assert_eq!(
        scene.exec("needed", "cat /proc/self/oom_score_adj")?,
        "-997"
    );
    scene.running("any", json!({"containers": [{"name": "c"}]}))?;
    assert_eq!(scene.exec("any", "cat /proc/self/oom_score_adj")?, "1000");
    Ok(())
}
