//! The life of a pod beyond its start: sidecars, deadlines, signals, what its containers share and hand over.

use anyhow::ensure;
use balsa_e2e::{Kubectl, Namespace, eventually};

use crate::loss_runtime::ctr;

fn field_is(kubectl: &Kubectl, pod: &str, path: &str, wanted: &str) -> anyhow::Result<()> {
    eventually(&format!("{path} of {pod} is {wanted}"), 60, || {
        Ok(kubectl.field(&format!("pod/{pod}"), path)? == wanted)
    })
    .map(|_| ())
}

#[test]
fn a_native_sidecar_is_there_before_the_others_and_after_them_and_holds_no_job()
-> anyhow::Result<()> {
    let ns = Namespace::new("sidecar")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - name: collector
        image: busybox
        imagePullPolicy: IfNotPresent
        restartPolicy: Always
        command: [sh, -c, \"trap 'cat /d/log; echo collected; exit 0' TERM; touch /d/up; while true; do sleep 0.1; done\"]
        startupProbe: {exec: {command: [test, -e, /d/up]}, periodSeconds: 1}
        volumeMounts: [{name: d, mountPath: /d}]
      containers:
      - name: app
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, \"test -e /d/up && echo the last line > /d/log\"]
        volumeMounts: [{name: d, mountPath: /d}]
      volumes: [{name: d, emptyDir: {}}]
",
    )?;
    kubectl.ok(&[
        "wait",
        "job/work",
        "--for=condition=Complete",
        "--timeout=50s",
    ])?;
    let log = kubectl.ok(&["logs", "job/work", "-c", "collector"])?;
    ensure!(log == "the last line\ncollected\n", "{log:?}");
    Ok(())
}

#[test]
fn a_pod_fails_when_all_have_ended_and_one_badly_and_what_failed_restarts_in_a_new_container()
-> anyhow::Result<()> {
    let ns = Namespace::new("ends")?;
    let kubectl = ns.kubectl();
    // Of the first pod one container ends at once, the other when it is told to; the second pod's fails once.
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  restartPolicy: Never
  containers:
  - {name: bad, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, "exit 3"]}
  - {name: good, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, "until [ -e /end ]; do sleep 0.1; done"]}
---
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  restartPolicy: OnFailure
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "[ -e /d/tried ] && exit 0; touch /d/tried; exit 1"]
    volumeMounts: [{name: d, mountPath: /d}]
  volumes: [{name: d, emptyDir: {}}]
"#,
    )?;
    let ended = r#"{.status.containerStatuses[?(@.name=="bad")].state.terminated.exitCode}"#;
    field_is(kubectl, "mixed", ended, "3")?;
    field_is(kubectl, "mixed", "{.status.phase}", "Running")?;
    kubectl.ok(&["exec", "mixed", "-c", "good", "--", "touch", "/end"])?;
    field_is(kubectl, "mixed", "{.status.phase}", "Failed")?;

    field_is(kubectl, "again", "{.status.phase}", "Succeeded")?;
    let pod = kubectl.json(&["get", "pod", "again"])?;
    let status = &pod["status"]["containerStatuses"][0];
    let (state, last) = (
        &status["state"]["terminated"],
        &status["lastState"]["terminated"],
    );
    ensure!(
        status["restartCount"] == 1 && state["exitCode"] == 0,
        "{status}"
    );
    ensure!(last["exitCode"] == 1, "{status}");
    ensure!(last["containerID"] != state["containerID"], "{status}");
    Ok(())
}

#[test]
fn a_pod_past_its_deadline_fails_and_a_bare_pod_that_is_deleted_stays_gone() -> anyhow::Result<()> {
    let ns = Namespace::new("deadline")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  activeDeadlineSeconds: 2
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, \"100000\"]}]
",
    )?;
    field_is(
        kubectl,
        "late",
        "{.status.phase} {.status.reason}",
        "Failed DeadlineExceeded",
    )?;
    kubectl.ok(&["delete", "pod", "late"])?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    let left = kubectl.ok(&["get", "pods", "-o", "name"])?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn containers_are_stopped_by_the_signal_they_ask_for() -> anyhow::Result<()> {
    let ns = Namespace::new("signal")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: app, finalizers: [e2e.balsa.io/look]}
spec:
  os: {name: linux}
  restartPolicy: Never
  terminationGracePeriodSeconds: 20
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"trap 'exit 7' USR1; trap 'exit 8' TERM; while true; do sleep 0.1; done\"]
    lifecycle: {stopSignal: SIGUSR1}
",
    )?;
    kubectl.wait_ready("app", 40)?;
    kubectl.ok(&["delete", "pod", "app", "--wait=false"])?;
    let ended = field_is(
        kubectl,
        "app",
        "{.status.containerStatuses[0].state.terminated.exitCode}",
        "7",
    );
    kubectl.ok(&[
        "patch",
        "pod",
        "app",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ])?;
    ended
}

#[test]
fn variables_come_from_a_file_that_an_init_container_wrote() -> anyhow::Result<()> {
    let ns = Namespace::new("envfile")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r##"
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  restartPolicy: Never
  initContainers:
  - name: setup
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "printf \"# made\\nADDRESS='one two'\\n\" > /data/config.env"]
    volumeMounts: [{name: config, mountPath: /data}]
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo $ADDRESS; echo none:$OTHER"]
    env:
    - {name: ADDRESS, valueFrom: {fileKeyRef: {volumeName: config, path: config.env, key: ADDRESS}}}
    - {name: OTHER, valueFrom: {fileKeyRef: {volumeName: config, path: config.env, key: OTHER, optional: true}}}
  volumes: [{name: config, emptyDir: {}}]
"##,
    )?;
    field_is(kubectl, "app", "{.status.phase}", "Succeeded")?;
    let log = kubectl.ok(&["logs", "app", "-c", "c"])?;
    ensure!(log == "one two\nnone:\n", "{log:?}");
    Ok(())
}

#[test]
fn containers_of_a_pod_share_one_sandbox_and_its_memory_segments() -> anyhow::Result<()> {
    let ns = Namespace::new("sandbox")?;
    let kubectl = ns.kubectl();
    let container = |name: &str| {
        format!(
            "  - {{name: {name}, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, \"100000\"]}}\n"
        )
    };
    kubectl.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: app}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
{}{}",
        container("one"),
        container("two")
    ))?;
    kubectl.wait_ready("app", 40)?;
    kubectl.ok(&[
        "exec",
        "app",
        "-c",
        "one",
        "--",
        "sh",
        "-c",
        "echo shared > /dev/shm/part",
    ])?;
    let read = kubectl.ok(&["exec", "app", "-c", "two", "--", "cat", "/dev/shm/part"])?;
    ensure!(read.trim() == "shared", "{read}");
    let node = kubectl.field("pod/app", "{.spec.nodeName}")?;
    let filter = format!("labels.\"io.kubernetes.pod.namespace\"=={}", ns.name());
    let all = ctr(&node, &["containers", "list", &filter])?;
    let sandboxes = all.lines().filter(|line| line.contains("/pause:")).count();
    ensure!(sandboxes == 1 && all.lines().count() == 4, "{all}");
    Ok(())
}

#[test]
fn conditions_and_status_tell_which_generation_they_are_of() -> anyhow::Result<()> {
    let ns = Namespace::new("generation")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, \"100000\"]}]
",
    )?;
    let ready = "{.metadata.generation} {.status.observedGeneration} {.status.conditions[?(@.type=='Ready')].observedGeneration} {.status.conditions[?(@.type=='Ready')].status}";
    field_is(kubectl, "app", ready, "1 1 1 True")?;
    let patch = r#"{"spec":{"activeDeadlineSeconds":3600}}"#;
    kubectl.ok(&["patch", "pod", "app", "-p", patch])?;
    field_is(kubectl, "app", ready, "2 2 2 True")
}
