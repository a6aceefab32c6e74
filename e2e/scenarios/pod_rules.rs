//! What may be changed of a pod once it is there, and what its containers clash over.

use anyhow::ensure;
use balsa_e2e::{Kubectl, Namespace, eventually};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: app, finalizers: [e2e.balsa.io/look]}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{key: a, operator: Exists}]
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, \"100000\"]}]
";

/// Lets the pod go whatever becomes of the scenario.
struct Release<'a>(&'a Kubectl);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let none = r#"{"metadata":{"finalizers":null}}"#;
        let _ = self
            .0
            .run(&["patch", "pod", "app", "--type=merge", "-p", none]);
    }
}

fn patch(kubectl: &Kubectl, patch: &str) -> anyhow::Result<balsa_e2e::Output> {
    kubectl.run(&["patch", "pod", "app", "--type=merge", "-p", patch])
}

#[test]
fn a_pods_identity_never_changes_and_a_dying_pod_gets_no_new_finalizers() -> anyhow::Result<()> {
    let ns = Namespace::new("identity")?;
    let kubectl = ns.kubectl();
    kubectl.apply(POD)?;
    let _release = Release(kubectl);
    let identity = "{.metadata.uid} {.metadata.creationTimestamp} {.metadata.namespace}";
    let before = kubectl.field("pod/app", identity)?;
    for refused in [
        r#"{"metadata":{"uid":"00000000-0000-0000-0000-000000000000"}}"#,
        r#"{"metadata":{"namespace":"default"}}"#,
        r#"{"metadata":{"name":"other"}}"#,
        r#"{"metadata":{"creationTimestamp":"2001-01-01T00:00:00Z"}}"#,
        r#"{"spec":{"tolerations":[]}}"#,
        r#"{"spec":{"containers":[{"name":"c","image":"busybox","command":["true"]}]}}"#,
    ] {
        patch(kubectl, refused)?.failed()?;
    }
    // Servers count it themselves, whatever is sent.
    patch(kubectl, r#"{"metadata":{"generation":99}}"#)?.ok()?;
    ensure!(kubectl.field("pod/app", identity)? == before);
    ensure!(kubectl.field("pod/app", "{.metadata.generation}")? == "1");

    kubectl.ok(&["delete", "pod", "app", "--wait=false"])?;
    let more = r#"{"metadata":{"finalizers":["e2e.balsa.io/look","e2e.balsa.io/more"]}}"#;
    let said = patch(kubectl, more)?.failed()?;
    ensure!(
        said.contains("no new finalizers can be added if the object is being deleted"),
        "{said}"
    );
    Ok(())
}

#[test]
fn another_image_replaces_the_container_in_its_pod() -> anyhow::Result<()> {
    let ns = Namespace::new("image")?;
    let kubectl = ns.kubectl();
    kubectl.apply(POD)?;
    let _release = Release(kubectl);
    kubectl.wait_ready("app", 40)?;
    let sandbox = kubectl.field("pod/app", "{.metadata.uid} {.status.podIP}")?;
    // nginx' image has sleep, too.
    kubectl.ok(&["set", "image", "pod/app", "c=nginx"])?;
    eventually("the other image", 40, || {
        let path = "{.status.containerStatuses[0].image} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
        let now = kubectl.field("pod/app", path)?;
        Ok(now.contains("nginx") && now.ends_with(" 1 true"))
    })?;
    ensure!(kubectl.field("pod/app", "{.metadata.uid} {.status.podIP}")? == sandbox);
    let described = kubectl.ok(&["describe", "pod", "app"])?;
    for words in [
        "containerd://",
        "kube-api-access-",
        "definition changed, will be restarted",
    ] {
        ensure!(described.contains(words), "no {words} in\n{described}");
    }
    Ok(())
}

#[test]
fn two_containers_of_a_pod_cannot_listen_on_one_port() -> anyhow::Result<()> {
    let ns = Namespace::new("clash")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  initContainers:
  - name: first
    restartPolicy: Always
    image: testserver
    imagePullPolicy: IfNotPresent
    args: ["--port", "8080"]
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
  containers:
  - {name: second, image: testserver, imagePullPolicy: IfNotPresent, args: ["--port", "8080"]}
"#,
    )?;
    eventually("the second's failure", 40, || {
        let code = kubectl.field(
            "pod/app",
            "{.status.containerStatuses[0].state.terminated.exitCode}",
        )?;
        Ok(!code.is_empty() && code != "0")
    })?;
    let log = kubectl.ok(&["logs", "app", "-c", "second"])?;
    ensure!(log.contains("in use"), "{log}");
    Ok(())
}

#[test]
fn a_pod_for_windows_is_taken_and_runs_nowhere() -> anyhow::Result<()> {
    let ns = Namespace::new("windows")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  os: {name: windows}
  hostNetwork: true
  nodeSelector: {kubernetes.io/os: windows}
  securityContext: {windowsOptions: {hostProcess: true, runAsUserName: 'NT AUTHORITY\\SYSTEM'}}
  containers: [{name: c, image: busybox}]
",
    )?;
    eventually("why it waits", 10, || {
        let path = r#"{.status.conditions[?(@.type=="PodScheduled")].message}"#;
        Ok(kubectl
            .field("pod/app", path)?
            .contains("node affinity/selector"))
    })
    .map(|_| ())
}
