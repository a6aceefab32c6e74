//! What a node does beyond starting containers: debugging and resizing running pods, volumes of claims, what ended
//! pods keep and give back, and what it tells of its use.

use anyhow::{Context, ensure};
use balsa_e2e::{Namespace, eventually};
use serde_json::Value;

/// Waits until a check holds.
fn until(what: &str, mut check: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    eventually(what, 40, || check().map(|()| true)).map(|_| ())
}

/// A pod that sleeps, with more of a container's spec.
fn sleeper(name: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, \"100000\"]
{more}"
    )
}

#[test]
fn a_running_pod_is_debugged_with_another_image() -> anyhow::Result<()> {
    let ns = Namespace::new("debug")?;
    let kubectl = ns.kubectl();
    kubectl.apply(&sleeper("app", ""))?;
    kubectl.wait_ready("app", 40)?;
    kubectl.ok(&[
        "debug",
        "app",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--container=probe",
        "--target=c",
        "--",
        "sh",
        "-c",
        "ps; sleep 100000",
    ])?;
    until("the debugger sees the container's processes", || {
        let log = kubectl.ok(&["logs", "app", "-c", "probe"])?;
        ensure!(log.contains("sleep 100000"), "{log}");
        Ok(())
    })?;
    let state = kubectl.field(
        "pod/app",
        "{.status.ephemeralContainerStatuses[0].state.running.startedAt}",
    )?;
    ensure!(!state.is_empty(), "the debugger is not said to run");
    Ok(())
}

#[test]
fn a_running_pod_is_given_more_without_a_restart() -> anyhow::Result<()> {
    let ns = Namespace::new("resize")?;
    let kubectl = ns.kubectl();
    let limits = |cpu| {
        format!(
            "    resources: {{requests: {{cpu: 50m, memory: 32Mi}}, limits: {{cpu: {cpu}, memory: 64Mi}}}}\n"
        )
    };
    kubectl.apply(&sleeper("app", &limits("100m")))?;
    kubectl.wait_ready("app", 40)?;
    let patch = r#"{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"200m"}}}]}}"#;
    kubectl.ok(&["patch", "pod", "app", "--subresource=resize", "-p", patch])?;
    until("the container runs with the new limit", || {
        let limit = kubectl.field(
            "pod/app",
            "{.status.containerStatuses[0].resources.limits.cpu}",
        )?;
        ensure!(limit == "200m", "{limit}");
        let files = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
        let quota = kubectl.ok(&["exec", "app", "--", "sh", "-c", files])?;
        ensure!(quota.trim() == "20000", "{quota}");
        Ok(())
    })?;
    let restarts = kubectl.field("pod/app", "{.status.containerStatuses[0].restartCount}")?;
    ensure!(restarts == "0", "{restarts}");
    let patch = r#"{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"900"},"requests":{"cpu":"900"}}}]}}"#;
    kubectl.ok(&["patch", "pod", "app", "--subresource=resize", "-p", patch])?;
    until("what no node has is called infeasible", || {
        let reason = kubectl.field(
            "pod/app",
            "{.status.conditions[?(@.type=='PodResizePending')].reason}",
        )?;
        ensure!(reason == "Infeasible", "{reason}");
        Ok(())
    })
}

#[test]
fn a_part_of_a_volume_is_named_by_an_annotation_that_may_come_later() -> anyhow::Result<()> {
    let ns = Namespace::new("subpath")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"echo here > /part/file; sleep 100000\"]
    env: [{name: PART, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['part']\"}}}]
    volumeMounts:
    - {name: v, mountPath: /part, subPathExpr: $(PART)}
    - {name: v, mountPath: /whole}
  volumes: [{name: v, emptyDir: {}}]
",
    )?;
    until("the missing part is told", || {
        let reason = kubectl.field(
            "pod/app",
            "{.status.containerStatuses[0].state.waiting.reason}",
        )?;
        ensure!(reason == "CreateContainerConfigError", "{reason}");
        Ok(())
    })?;
    kubectl.ok(&["annotate", "pod", "app", "part=one"])?;
    kubectl.wait_ready("app", 40)?;
    let text = kubectl.ok(&["exec", "app", "--", "cat", "/whole/one/file"])?;
    ensure!(text.trim() == "here", "{text}");
    Ok(())
}

#[test]
fn a_pod_that_may_not_change_the_kernel_is_refused() -> anyhow::Result<()> {
    let ns = Namespace::new("sysctl")?;
    let kubectl = ns.kubectl();
    let pod = |name: &str, sysctl: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  securityContext: {{sysctls: [{{name: {sysctl}, value: \"1\"}}]}}
  containers:
  - {{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [cat, /proc/sys/kernel/shm_rmid_forced]}}
"
        )
    };
    kubectl.apply(&pod("safe", "kernel.shm_rmid_forced"))?;
    kubectl.apply(&pod("unsafe", "kernel.shmmni"))?;
    until("one runs and one does not", || {
        let phase = kubectl.field("pod/safe", "{.status.phase}")?;
        ensure!(phase == "Succeeded", "{phase}");
        let reason = kubectl.field("pod/unsafe", "{.status.phase} {.status.reason}")?;
        ensure!(reason == "Failed SysctlForbidden", "{reason}");
        Ok(())
    })?;
    let log = kubectl.ok(&["logs", "safe"])?;
    ensure!(log.trim() == "1", "{log}");
    Ok(())
}

#[test]
fn an_exit_code_with_a_rule_of_its_own_restarts_the_container() -> anyhow::Result<()> {
    let ns = Namespace::new("rules")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"if [ -e /d/again ]; then exit 0; fi; touch /d/again; exit 42\"]
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
    volumeMounts: [{name: d, mountPath: /d}]
  volumes: [{name: d, emptyDir: {}}]
",
    )?;
    until("the second attempt succeeds", || {
        let phase = kubectl.field("pod/app", "{.status.phase}")?;
        ensure!(phase == "Succeeded", "{phase}");
        Ok(())
    })?;
    let restarts = kubectl.field("pod/app", "{.status.containerStatuses[0].restartCount}")?;
    ensure!(restarts == "1", "{restarts}");
    Ok(())
}

#[test]
fn the_end_of_the_log_stands_in_for_a_message() -> anyhow::Result<()> {
    let ns = Namespace::new("message")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"echo the last word; exit 3\"]
    terminationMessagePolicy: FallbackToLogsOnError
",
    )?;
    until("the pod fails with its last words", || {
        let ended = kubectl.field(
            "pod/app",
            "{.status.containerStatuses[0].state.terminated.message}",
        )?;
        ensure!(ended.trim() == "the last word", "{ended:?}");
        Ok(())
    })
}

#[test]
fn a_pod_that_writes_more_than_its_volume_may_hold_is_thrown_out() -> anyhow::Result<()> {
    let ns = Namespace::new("overflow")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"dd if=/dev/zero of=/d/f bs=1M count=4; sleep 100000\"]
    volumeMounts: [{name: d, mountPath: /d}]
  volumes: [{name: d, emptyDir: {sizeLimit: 1Mi}}]
",
    )?;
    let mut last = String::new();
    // Disks are counted twice a minute.
    for _ in 0..90 {
        last = kubectl.field(
            "pod/app",
            "{.status.phase} {.status.reason} {.status.message}",
        )?;
        if last.starts_with("Failed Evicted Usage of EmptyDir volume \"d\" exceeds the limit") {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    anyhow::bail!("the pod was not thrown out: {last}")
}

#[test]
fn a_node_tells_what_its_pods_use() -> anyhow::Result<()> {
    let ns = Namespace::new("stats")?;
    let kubectl = ns.kubectl();
    kubectl.apply(&sleeper("app", ""))?;
    kubectl.wait_ready("app", 40)?;
    let node = kubectl.field("pod/app", "{.spec.nodeName}")?;
    let get =
        |path: &str| kubectl.ok(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy{path}")]);
    let summary: Value = serde_json::from_str(&get("/stats/summary")?)?;
    let pods = summary["pods"].as_array().context("no pods")?;
    let own = pods
        .iter()
        .find(|pod| pod["podRef"]["name"] == "app" && pod["podRef"]["namespace"] == ns.name());
    let own = own.context("the pod is missing in the summary")?;
    let memory = own["containers"][0]["memory"]["workingSetBytes"].as_u64();
    ensure!(memory.is_some_and(|bytes| bytes > 0), "{own}");
    let metrics = get("/metrics/resource")?;
    let line = format!(
        "container_memory_working_set_bytes{{container=\"c\",namespace=\"{}\",pod=\"app\"}}",
        ns.name()
    );
    ensure!(metrics.contains(&line), "{metrics}");
    ensure!(get("/metrics/cadvisor")?.contains("machine_cpu_cores"));
    ensure!(get("/configz")?.contains("kubeletconfig"));
    Ok(())
}

#[test]
fn a_claim_is_a_folder_of_the_node_that_outlives_its_pod() -> anyhow::Result<()> {
    let ns = Namespace::new("claim")?;
    let kubectl = ns.kubectl();
    let name = ns.name();
    let folder = format!("/tmp/balsa-e2e-{name}");
    kubectl.apply(&format!(
        "
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 10Mi}}
  accessModes: [ReadWriteOnce]
  storageClassName: {name}
  persistentVolumeReclaimPolicy: Retain
  hostPath: {{path: {folder}, type: DirectoryOrCreate}}
  claimRef: {{namespace: {name}, name: data}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: {name}
  resources: {{requests: {{storage: 5Mi}}}}
"
    ))?;
    let pod = |pod: &str, command: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {pod}}}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"{command}\"]
    volumeMounts: [{{name: d, mountPath: /d}}]
  volumes: [{{name: d, persistentVolumeClaim: {{claimName: data}}}}]
"
        )
    };
    let succeeded = |pod: &str| {
        until("the pod succeeds", || {
            let phase = kubectl.field(&format!("pod/{pod}"), "{.status.phase}")?;
            ensure!(phase == "Succeeded", "{phase}");
            Ok(())
        })
    };
    let outcome = (|| {
        kubectl.apply(&pod("writer", "echo kept > /d/file"))?;
        succeeded("writer")?;
        kubectl.ok(&["delete", "pod", "writer"])?;
        kubectl.apply(&pod("reader", "cat /d/file"))?;
        succeeded("reader")?;
        let log = kubectl.ok(&["logs", "reader"])?;
        ensure!(log.trim() == "kept", "{log}");
        Ok(())
    })();
    kubectl.ok(&["delete", "pv", name, "--wait=false"])?;
    let _ = std::fs::remove_dir_all(folder);
    outcome
}
