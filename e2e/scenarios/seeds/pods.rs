//! Containers that share, containers that come first, and what they know of themselves.

use anyhow::ensure;
use balsa_e2e::{Namespace, eventually};

#[test]
fn a_writer_and_a_web_server_share_a_volume_and_the_network() -> anyhow::Result<()> {
    let ns = Namespace::new("multi")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: multi-container-pod}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: html, emptyDir: {}}]
  containers:
  - name: container-writing-dates
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "while true; do date >> /var/log/output.txt; sleep 1; done"]
    volumeMounts: [{name: html, mountPath: /var/log}]
  - name: container-serving-dates
    image: nginx
    imagePullPolicy: IfNotPresent
    ports: [{containerPort: 80}]
    volumeMounts: [{name: html, mountPath: /usr/share/nginx/html}]
"#,
    )?;
    kubectl.wait_ready("multi-container-pod", 40)?;
    ensure!(
        kubectl
            .ok(&["get", "pods"])?
            .contains("multi-container-pod   2/2     Running")
    );
    eventually("dates from the neighbour", 10, || {
        let page = kubectl.run(&[
            "exec",
            "multi-container-pod",
            "-c",
            "container-serving-dates",
            "--",
            "curl",
            "-sf",
            "http://localhost:80/output.txt",
        ])?;
        Ok(page.code == 0 && page.stdout.contains("UTC"))
    })?;
    Ok(())
}

fn with_init(name: &str, command: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  volumes: [{{name: work, emptyDir: {{}}}}]
  initContainers:
  - name: copy
    image: nginx
    imagePullPolicy: IfNotPresent
    command: {command}
    volumeMounts: [{{name: work, mountPath: /work}}]
  containers:
  - name: web
    image: nginx
    imagePullPolicy: IfNotPresent
    volumeMounts: [{{name: work, mountPath: /usr/share/nginx/html}}]
"#
    )
}

#[test]
fn an_init_container_runs_first_and_the_exec_form_expands_no_wildcards() -> anyhow::Result<()> {
    let ns = Namespace::new("init")?;
    let kubectl = ns.kubectl();
    kubectl.apply(&with_init("literal", r#"[cp, "/etc/nginx/*", /work]"#))?;
    kubectl.apply(&with_init(
        "shell",
        r#"[sh, -c, "cp /etc/nginx/*.conf /work"]"#,
    ))?;
    eventually("Init:Error", 30, || {
        Ok(kubectl
            .ok(&["get", "pod", "literal"])?
            .contains("Init:Error"))
    })?;
    kubectl.wait_ready("shell", 40)?;
    let files = kubectl.ok(&["exec", "shell", "--", "ls", "/usr/share/nginx/html"])?;
    ensure!(files.contains("nginx.conf"), "{files}");
    Ok(())
}

#[test]
fn a_pod_reads_its_own_fields_and_resources_from_a_volume_that_follows_changes()
-> anyhow::Result<()> {
    let ns = Namespace::new("downward")?;
    let kubectl = ns.kubectl();
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata:
  name: downward
  labels: {foo: bar}
  annotations: {key1: value1, key2: "multi\nline\nvalue"}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
    resources: {requests: {cpu: 15m, memory: 100Ki}, limits: {cpu: 100m, memory: 4Mi}}
    env: [{name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['foo']"}}}]
    volumeMounts: [{name: downward, mountPath: /etc/downward}]
  volumes:
  - name: downward
    downwardAPI:
      items:
      - {path: podName, fieldRef: {fieldPath: metadata.name}}
      - {path: podNamespace, fieldRef: {fieldPath: metadata.namespace}}
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
      - {path: cpu, resourceFieldRef: {containerName: main, resource: requests.cpu, divisor: 1m}}
      - {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: "1"}}
"#;
    let nameless = kubectl
        .run_with(
            &["create", "-f", "-"],
            &manifest.replace(
                "containerName: main, resource: requests",
                "resource: requests",
            ),
        )?
        .failed()?;
    ensure!(
        nameless.contains("containerName: Required value"),
        "{nameless}"
    );
    kubectl.apply(manifest)?;
    kubectl.wait_ready("downward", 40)?;
    let read = |file: &str| {
        kubectl.ok(&[
            "exec",
            "downward",
            "--",
            "cat",
            &format!("/etc/downward/{file}"),
        ])
    };
    ensure!(read("podName")? == "downward" && read("podNamespace")? == ns.name());
    ensure!(read("cpu")? == "15" && read("memory")? == "4194304");
    ensure!(read("labels")?.contains("foo=\"bar\""));
    ensure!(read("annotations")?.contains("key2=\"multi\\nline\\nvalue\""));
    kubectl.ok(&["label", "pod", "downward", "foo=baz", "--overwrite"])?;
    eventually("the new label in the file", 30, || {
        Ok(read("labels")?.contains("foo=\"baz\""))
    })?;
    let env = kubectl.ok(&["exec", "downward", "--", "sh", "-c", "echo $LABEL"])?;
    ensure!(env.trim() == "bar", "the environment followed: {env}");
    Ok(())
}

#[test]
fn processes_are_shared_only_when_asked_and_the_host_name_is_the_pods() -> anyhow::Result<()> {
    let ns = Namespace::new("shared")?;
    let kubectl = ns.kubectl();
    for shared in [false, true] {
        let name = if shared { "shared" } else { "private" };
        kubectl.apply(&format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  shareProcessNamespace: {shared}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "12345"]}}
  - {{name: b, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "54321"]}}
"#
        ))?;
    }
    for (name, seen) in [("private", false), ("shared", true)] {
        kubectl.wait_ready(name, 40)?;
        let processes = kubectl.ok(&["exec", name, "-c", "a", "--", "ps"])?;
        ensure!(
            processes.contains("54321") == seen,
            "{name} sees\n{processes}"
        );
        let host = kubectl.ok(&["exec", name, "-c", "b", "--", "hostname"])?;
        ensure!(host.trim() == name, "the host name is {host}");
    }
    Ok(())
}

#[test]
fn a_container_runs_as_the_user_and_with_the_capabilities_it_is_given() -> anyhow::Result<()> {
    let ns = Namespace::new("security")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: data, mountPath: /data}]
---
apiVersion: v1
kind: Pod
metadata: {name: root}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true}
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
"#,
    )?;
    kubectl.wait_ready("limited", 40)?;
    let shell = |script: &str| kubectl.run(&["exec", "limited", "--", "sh", "-c", script]);
    let id = shell("id -u; id -g; id -G")?.ok()?;
    ensure!(
        id.starts_with("1000\n3000\n") && id.contains("2000"),
        "{id}"
    );
    let limits = shell("grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status")?.ok()?;
    let compact: String = limits.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(
        compact == "CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2",
        "{compact}"
    );
    ensure!(
        shell("touch /x")?.code != 0,
        "the root filesystem is writable"
    );
    shell("touch /data/x")?.ok()?;
    eventually("the refusal to run as root", 20, || {
        let said = kubectl.ok(&["describe", "pod", "root"])?;
        Ok(said.contains("CreateContainerConfigError") && said.contains("runAsNonRoot"))
    })?;
    Ok(())
}
