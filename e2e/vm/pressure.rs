//! A machine that runs short of memory.

use super::*;

const MEBI: u64 = 1 << 20;

/// What there may be less of before the machine calls itself short of memory.
const ROOM: u64 = 300 * MEBI;

/// The agent with another threshold, for as long as this lives.
struct Threshold<'a>(&'a Vm);

const UNIT: &str = "/etc/systemd/system/balsa-agent.service.d/pressure.conf";

impl<'a> Threshold<'a> {
    fn set(vm: &'a Vm, mebi: u64) -> anyhow::Result<Self> {
        let set = Self(vm);
        vm.sh(&format!(
            "printf '[Service]\\nEnvironment=BALSA_EVICTION_HARD=memory.available<{mebi}Mi\\n\
             Environment=BALSA_EVICTION_PRESSURE_TRANSITION_PERIOD=90s\\n' >{UNIT}; \
             systemctl daemon-reload; systemctl restart balsa-agent"
        ))?;
        Ok(set)
    }
}

impl Drop for Threshold<'_> {
    fn drop(&mut self) {
        let back = format!("rm -f {UNIT}; systemctl daemon-reload; systemctl restart balsa-agent");
        let _ = self.0.sh(&back);
    }
}

/// Bytes that the machine can still give away.
fn available(vm: &Vm) -> anyhow::Result<u64> {
    let kibi = vm.line("sed -n 's/^MemAvailable: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo")?;
    Ok(kibi.parse::<u64>()? * 1024)
}

fn condition(kubectl: &Kubectl) -> anyhow::Result<String> {
    let path = r#"{range .status.conditions[?(@.type=="MemoryPressure")]}{.status} {.reason}{end}"#;
    kubectl.field("node/vm", path)
}

fn tainted(kubectl: &Kubectl) -> anyhow::Result<bool> {
    let taints = kubectl.field("node/vm", "{.spec.taints[*].key}")?;
    Ok(taints.contains("node.kubernetes.io/memory-pressure"))
}

/// The pods are not many and take little, so that the machine is far from having none left when it calls itself
/// short.
#[test]
fn a_machine_short_of_memory_throws_out_who_takes_more_than_it_asked_for_and_recovers()
-> anyhow::Result<()> {
    let scene = Scene::new("vm-memory")?;
    let kubectl = scene.kubectl();
    let asks = json!({"requests": {"memory": "64Mi"}});
    scene.running(
        "modest",
        json!({"containers": [{"name": "c", "resources": asks}]}),
    )?;
    let now = available(&scene.vm)?;
    ensure!(
        now > 4 * ROOM,
        "the machine has {now} bytes left, too few to begin with"
    );
    let mebi = (now - ROOM) / MEBI;
    let threshold = Threshold::set(&scene.vm, mebi)?;
    machine::ready(kubectl)?;
    // Each dd has filled its memory when it finds that nobody reads from it; all take thrice the room at most.
    let hog = "for i in $(seq 28); do dd if=/dev/zero bs=32M count=1 2>/dev/null | sleep 100000 & sleep 2; done; \
        sleep 100000";
    scene.pod(
        "hog",
        json!({"containers": [{"name": "c", "command": sh(hog)}]}),
    )?;

    let gone = scene.phase("hog", "Failed")?;
    let status = &gone["status"];
    assert_eq!(status["reason"], "Evicted");
    let message = status["message"].as_str().context("no message")?;
    let why =
        format!("The node was low on resource: memory. Threshold quantity: {mebi}Mi, available: ");
    ensure!(message.starts_with(&why), "{message}");
    ensure!(message.contains(". Container c was using "), "{message}");
    let end = ", request is 0, has larger consumption of memory. ";
    ensure!(message.ends_with(end), "{message}");
    let conditions = status["conditions"].as_array().context("no conditions")?;
    let disrupted = conditions
        .iter()
        .find(|known| known["type"] == "DisruptionTarget");
    let reason = &disrupted.context("no DisruptionTarget")?["reason"];
    assert_eq!(reason, "TerminationByKubelet");

    eventually("the condition", 60, || {
        Ok(condition(kubectl)? == "True KubeletHasInsufficientMemory")
    })?;
    eventually("the taint", 60, || tainted(kubectl))?;
    scene.pod("late", json!({"containers": [{"name": "c"}]}))?;
    eventually("a pod that must wait", 60, || {
        let path = r#"{.status.conditions[?(@.type=="PodScheduled")].message}"#;
        Ok(kubectl
            .field("pod/late", path)?
            .contains("node.kubernetes.io/memory-pressure"))
    })?;

    eventually("an end of the shortage", PATIENCE, || {
        ensure!(
            condition(kubectl)? == "False KubeletHasSufficientMemory",
            "{}",
            condition(kubectl)?
        );
        Ok(!tainted(kubectl)?)
    })?;
    scene.phase("late", "Running")?;
    let modest = scene.phase("modest", "Running")?;
    assert_eq!(modest["status"]["containerStatuses"][0]["restartCount"], 0);
    drop(threshold);
    machine::ready(kubectl)
}
