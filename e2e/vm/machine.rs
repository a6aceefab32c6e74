//! The units, and what becomes of pods when services are restarted and the machine goes down.

use super::*;

/// Waits for the machine's node.
pub(super) fn ready(kubectl: &Kubectl) -> anyhow::Result<()> {
    eventually("a Ready node", PATIENCE, || {
        let path = r#"{.status.conditions[?(@.type=="Ready")].status}"#;
        Ok(kubectl.field("node/vm", path)? == "True")
    })
    .map(|_| ())
}

#[test]
fn the_units_start_a_server_and_an_agent_and_the_node_tells_what_it_is() -> anyhow::Result<()> {
    let scene = Scene::new("vm-units")?;
    let vm = &scene.vm;
    for unit in ["balsa-server", "balsa-agent"] {
        assert_eq!(vm.line(&format!("systemctl is-active {unit}"))?, "active");
        assert_eq!(vm.line(&format!("systemctl is-enabled {unit}"))?, "enabled");
    }
    ready(scene.kubectl())?;
    let node = scene.kubectl().json(&["get", "node", "vm"])?;
    let status = &node["status"];
    assert_eq!(
        status["nodeInfo"]["bootID"],
        vm.line("cat /proc/sys/kernel/random/boot_id")?
    );
    if vm.modern()? {
        assert_eq!(status["features"]["supplementalGroupsPolicy"], true);
        let handlers = status["runtimeHandlers"]
            .as_array()
            .context("no handlers")?;
        let usual = handlers.iter().find(|known| known["name"] == "").unwrap();
        let wanted = json!({"recursiveReadOnlyMounts": true, "userNamespaces": true});
        assert_eq!(usual["features"], wanted);
    }
    Ok(())
}

#[test]
fn containers_outlive_restarts_of_the_services() -> anyhow::Result<()> {
    let scene = Scene::new("vm-restart")?;
    let of = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    let before = scene.running("stays", json!({"containers": [{"name": "c"}]}))?;
    for unit in ["balsa-agent", "balsa-server"] {
        scene.vm.sh(&format!("systemctl restart {unit}"))?;
        ready(scene.kubectl())?;
        eventually("a command in the container", PATIENCE, || {
            Ok(scene.exec("stays", "echo here")? == "here")
        })?;
    }
    let after = scene.phase("stays", "Running")?;
    assert_eq!(of(&before), of(&after));
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    // What is made now is made by an agent that found its containerd running.
    scene
        .running("new", json!({"containers": [{"name": "c"}]}))
        .map(|_| ())
}

/// Named so that it comes last: it takes the machine from all others.
#[test]
fn zz_a_machine_that_restarts_lets_its_pods_end_in_order_and_brings_them_back() -> anyhow::Result<()>
{
    let scene = Scene::new("vm-reboot")?;
    let vm = &scene.vm;
    let keep = |name: &str| {
        let told =
            format!("trap 'echo {name} >>/kept/ended; exit 0' TERM; while :; do sleep 0.2; done");
        json!({"containers": [{"name": "c", "command": sh(&told),
                "volumeMounts": [{"name": "kept", "mountPath": "/kept"}]}],
            "volumes": [{"name": "kept", "hostPath": {"path": "/var/kept", "type": "DirectoryOrCreate"}}]})
    };
    let mut critical = keep("critical");
    critical["priorityClassName"] = json!("system-cluster-critical");
    scene.running("plain", keep("plain"))?;
    scene.running("critical", critical)?;
    let boot = vm.line("cat /proc/sys/kernel/random/boot_id")?;
    // The connection ends with the machine.
    let _ = vm.sh("systemd-run --quiet --on-active=1 systemctl reboot");
    eventually("a machine that has restarted", PATIENCE, || {
        Ok(vm.line("cat /proc/sys/kernel/random/boot_id")? != boot)
    })?;
    assert_eq!(vm.line("cat /var/kept/ended")?, "plain\ncritical");
    ready(scene.kubectl())?;
    for name in ["plain", "critical"] {
        let pod = scene.phase(name, "Failed")?;
        assert_eq!(pod["status"]["reason"], "Terminated", "{}", pod["status"]);
    }
    scene
        .running("after", json!({"containers": [{"name": "c"}]}))
        .map(|_| ())
}
