//! What a pod does: containers, volumes, environment, probes, restarts, endings. The manifests follow those of
//! the documents that Balsa was first asked to run.

use anyhow::ensure;
use balsa_e2e::{Namespace, eventually};

#[test]
fn environment_comes_from_values_fields_resources_and_references() -> anyhow::Result<()> {
    let ns = Namespace::new("env")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {FROM_MAP: mapped}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Pod
metadata: {name: envar-demo}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
    resources: {requests: {cpu: 15m, memory: 100Ki}, limits: {cpu: 100m, memory: 64Mi}}
    envFrom: [{configMapRef: {name: conf}}]
    env:
    - {name: DEMO_GREETING, value: "Hello from the environment"}
    - {name: DEMO_FAREWELL, value: "$(DEMO_GREETING), and bye"}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: sec, key: password}}}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Ki}}}
"#,
    )?;
    kubectl.wait_ready("envar-demo", 40)?;
    let env = kubectl.ok(&["exec", "envar-demo", "--", "env"])?;
    let (ip, node) = (
        kubectl.field("pod/envar-demo", "{.status.podIP}")?,
        kubectl.field("pod/envar-demo", "{.spec.nodeName}")?,
    );
    for line in [
        "DEMO_GREETING=Hello from the environment",
        "DEMO_FAREWELL=Hello from the environment, and bye",
        "FROM_MAP=mapped",
        "PASSWORD=hunter2",
        "POD_NAME=envar-demo",
        &format!("POD_NAMESPACE={}", ns.name()),
        &format!("POD_IP={ip}"),
        &format!("NODE_NAME={node}"),
        "ACCOUNT=default",
        "CPU=15",
        "MEMORY=65536",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
    ] {
        ensure!(env.lines().any(|l| l == line), "no {line} in\n{env}");
    }
    Ok(())
}

#[test]
fn volumes_hold_configuration_secrets_fields_and_a_token_and_follow_changes() -> anyhow::Result<()>
{
    let ns = Namespace::new("volumes")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {key: one}
---
apiVersion: v1
kind: Pod
metadata: {name: v, labels: {foo: bar}, annotations: {text: "two\nlines"}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: down, mountPath: /down}
    - {name: scratch, mountPath: /scratch}
    - {name: memory, mountPath: /memory}
  - name: other
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
    volumeMounts: [{name: scratch, mountPath: /same}]
  volumes:
  - {name: conf, configMap: {name: conf, defaultMode: 0400}}
  - name: down
    downwardAPI:
      items:
      - {path: name, fieldRef: {fieldPath: metadata.name}}
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
  - {name: scratch, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
"#,
    )?;
    kubectl.wait_ready("v", 40)?;
    let sh = |container: &str, script: &str| {
        kubectl.ok(&["exec", "v", "-c", container, "--", "sh", "-c", script])
    };
    ensure!(sh("c", "cat /conf/key")? == "one");
    ensure!(sh("c", "stat -L -c %a /conf/key")?.trim() == "400");
    ensure!(sh("c", "cat /down/name")? == "v");
    ensure!(sh("c", "cat /down/labels")?.contains("foo=\"bar\""));
    ensure!(sh("c", "mount")?.contains("/memory type tmpfs"));
    sh("c", "echo shared > /scratch/f")?;
    ensure!(sh("other", "cat /same/f")?.trim() == "shared");
    let token = sh(
        "c",
        "cat /var/run/secrets/kubernetes.io/serviceaccount/token",
    )?;
    ensure!(token.split('.').count() == 3, "no token: {token}");
    ensure!(
        sh(
            "c",
            "cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
        )?
        .contains("BEGIN CERTIFICATE")
    );
    kubectl.ok(&[
        "patch",
        "configmap",
        "conf",
        "-p",
        r#"{"data":{"key":"two"}}"#,
    ])?;
    kubectl.ok(&["label", "pod", "v", "foo=baz", "--overwrite"])?;
    eventually("the changed value in the volume", 10, || {
        Ok(sh("c", "cat /conf/key")? == "two")
    })?;
    eventually("the changed label in the volume", 10, || {
        Ok(sh("c", "cat /down/labels")?.contains("foo=\"baz\""))
    })?;
    Ok(())
}

#[test]
fn two_containers_share_network_and_host_name_but_not_files() -> anyhow::Result<()> {
    let ns = Namespace::new("shared")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: multi}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: first
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo prepared > /work/page"]
    volumeMounts: [{name: work, mountPath: /work}]
  containers:
  - name: web
    image: nginx
    imagePullPolicy: IfNotPresent
    volumeMounts: [{name: work, mountPath: /usr/share/nginx/html}]
  - name: side
    image: nginx
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
  volumes: [{name: work, emptyDir: {}}]
"#,
    )?;
    kubectl.wait_ready("multi", 40)?;
    let side = |args: &[&str]| {
        let mut all = vec!["exec", "multi", "-c", "side", "--"];
        all.extend(args);
        kubectl.ok(&all)
    };
    ensure!(side(&["curl", "-s", "http://localhost/page"])?.trim() == "prepared");
    ensure!(side(&["hostname"])?.trim() == "multi");
    ensure!(
        kubectl
            .run(&[
                "exec",
                "multi",
                "-c",
                "side",
                "--",
                "ls",
                "/usr/share/nginx/html/page"
            ])?
            .code
            != 0
    );
    let wrong = kubectl.fails(&["logs", "multi", "-c", "nope"])?;
    ensure!(
        wrong.contains("container nope is not valid for pod multi"),
        "{wrong}"
    );
    ensure!(kubectl.ok(&["get", "pod", "multi"])?.contains("2/2"));
    Ok(())
}

#[test]
fn a_failing_liveness_probe_restarts_only_its_container() -> anyhow::Result<()> {
    let ns = Namespace::new("liveness")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: kubia-liveness}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: fails
    image: testserver
    imagePullPolicy: IfNotPresent
    args: ["--port", "8089", "--fail-after", "3"]
    livenessProbe: {httpGet: {path: /healthz, port: 8089}, periodSeconds: 1, failureThreshold: 2}
  - name: lives
    image: testserver
    imagePullPolicy: IfNotPresent
    args: ["--port", "8090"]
    livenessProbe: {tcpSocket: {port: 8090}, periodSeconds: 1}
"#,
    )?;
    let restarts = |name: &str| {
        let path = format!("{{.status.containerStatuses[?(@.name==\"{name}\")].restartCount}}");
        kubectl.field("pod/kubia-liveness", &path)
    };
    eventually("a restart", 40, || {
        Ok(restarts("fails")?.parse::<u32>()? >= 1)
    })?;
    ensure!(
        restarts("lives")? == "0",
        "the healthy container was restarted, too"
    );
    let described = kubectl.ok(&["describe", "pod", "kubia-liveness"])?;
    ensure!(described.contains("Liveness probe failed"), "{described}");
    let previous = kubectl.ok(&["logs", "kubia-liveness", "-c", "fails", "--previous"])?;
    ensure!(previous.contains("listening on 8089"), "{previous}");
    Ok(())
}

#[test]
fn phases_follow_exit_codes_and_the_restart_policy() -> anyhow::Result<()> {
    let ns = Namespace::new("phases")?;
    let kubectl = ns.kubectl();
    let pod = |name: &str, policy: &str, script: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: {policy}, terminationGracePeriodSeconds: 0, containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, '{script}']}}]}}}}"
        )
    };
    kubectl.apply(&pod("good", "Never", "exit 0"))?;
    kubectl.apply(&pod("bad", "Never", "exit 1"))?;
    kubectl.apply(&pod("loop", "Always", "exit 1"))?;
    let phase = |name: &str| kubectl.field(&format!("pod/{name}"), "{.status.phase}");
    eventually("Succeeded", 20, || Ok(phase("good")? == "Succeeded"))?;
    eventually("Failed", 20, || Ok(phase("bad")? == "Failed"))?;
    eventually("CrashLoopBackOff", 40, || {
        Ok(kubectl
            .ok(&["get", "pod", "loop"])?
            .contains("CrashLoopBackOff"))
    })?;
    let code = kubectl.field(
        "pod/bad",
        "{.status.containerStatuses[0].state.terminated.exitCode}",
    )?;
    ensure!(code == "1");
    ensure!(kubectl.ok(&["get", "pod", "good"])?.contains("Completed"));
    Ok(())
}

#[test]
fn a_pod_that_is_deleted_may_finish_within_its_grace() -> anyhow::Result<()> {
    let ns = Namespace::new("grace")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: g}
spec:
  terminationGracePeriodSeconds: 10
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "trap 'echo got TERM; sleep 1; exit 0' TERM; echo up; while true; do sleep 0.1; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo pre > /proc/1/fd/1"]}}}
"#,
    )?;
    kubectl.wait_ready("g", 40)?;
    let mut logs = kubectl.command(&["logs", "-f", "g"]);
    let logs = logs.stdout(std::process::Stdio::piped()).spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let began = std::time::Instant::now();
    kubectl.ok(&["delete", "pod", "g"])?;
    let took = began.elapsed();
    let text = String::from_utf8_lossy(&logs.wait_with_output()?.stdout).into_owned();
    ensure!(text.contains("up\npre\ngot TERM"), "{text}");
    ensure!(
        took.as_secs() < 8,
        "a pod that ends by itself took {took:?}"
    );
    Ok(())
}

#[test]
fn logs_can_be_cut_and_stamped() -> anyhow::Result<()> {
    let ns = Namespace::new("logs")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: l}, spec: {restartPolicy: Never, containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'for i in 1 2 3 4 5; do echo line $i; done']}]}}",
    )?;
    eventually("the end", 20, || {
        Ok(kubectl.field("pod/l", "{.status.phase}")? == "Succeeded")
    })?;
    ensure!(kubectl.ok(&["logs", "l"])?.lines().count() == 5);
    ensure!(kubectl.ok(&["logs", "l", "--tail=2"])? == "line 4\nline 5\n");
    ensure!(kubectl.ok(&["logs", "l", "--limit-bytes=6"])? == "line 1");
    let stamped = kubectl.ok(&["logs", "l", "--timestamps", "--tail=1"])?;
    ensure!(stamped.contains("Z line 5"), "{stamped}");
    Ok(())
}

#[test]
fn a_node_selector_that_nothing_matches_keeps_the_pod_pending() -> anyhow::Result<()> {
    let ns = Namespace::new("pending")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: unfit}, spec: {nodeSelector: {gpu: 'true'}, containers: [{name: c, image: busybox}]}}",
    )?;
    eventually("FailedScheduling", 10, || {
        Ok(kubectl
            .ok(&["describe", "pod", "unfit"])?
            .contains("FailedScheduling"))
    })?;
    let message = kubectl.field(
        "pod/unfit",
        "{.status.conditions[?(@.type==\"PodScheduled\")].message}",
    )?;
    ensure!(
        message.contains(
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector"
        ),
        "{message}"
    );
    Ok(())
}
