//! Deployments, Jobs, garbage collection and namespaces, as their users see them.

use anyhow::ensure;
use balsa_e2e::{Namespace, eventually};

use crate::first_app::{NGINX, ready_pods};

#[test]
fn a_rollout_replaces_the_pods_and_undo_brings_the_old_template_back() -> anyhow::Result<()> {
    let ns = Namespace::new("rollout")?;
    let kubectl = ns.kubectl();
    kubectl.apply(NGINX)?;
    let status = kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=40s"])?;
    ensure!(status.contains("successfully rolled out"), "{status}");
    kubectl.ok(&["set", "env", "deployment/web", "COLOUR=blue"])?;
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let history = kubectl.ok(&["rollout", "history", "deployment/web"])?;
    ensure!(history.lines().any(|l| l.starts_with("2 ")), "{history}");
    kubectl.ok(&["rollout", "undo", "deployment/web"])?;
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let env = kubectl.field("deployment/web", "{.spec.template.spec.containers[0].env}")?;
    ensure!(env.is_empty(), "after undo the env is {env}");
    kubectl.ok(&["scale", "deployment/web", "--replicas=1"])?;
    eventually("one pod", 20, || Ok(ready_pods(&ns, "app=web")?.len() == 1))?;
    let described = kubectl.ok(&["describe", "deployment", "web"])?;
    ensure!(described.contains("ScalingReplicaSet"), "{described}");
    let row = kubectl.ok(&["get", "deployment", "web"])?;
    ensure!(row.contains("1/1     1            1"), "{row}");
    Ok(())
}

#[test]
fn a_job_runs_to_completion_and_its_log_is_kept() -> anyhow::Result<()> {
    let ns = Namespace::new("job")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: hello}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: OnFailure
      containers: [{name: hello, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo "Hello, Kubernetes!"']}]
"#,
    )?;
    kubectl.ok(&[
        "wait",
        "--for=condition=Complete",
        "job/hello",
        "--timeout=60s",
    ])?;
    ensure!(kubectl.field("job/hello", "{.status.succeeded}")? == "3");
    ensure!(kubectl.ok(&["logs", "job/hello"])?.trim() == "Hello, Kubernetes!");
    Ok(())
}

#[test]
fn a_job_that_fails_stops_at_its_backoff_limit() -> anyhow::Result<()> {
    let ns = Namespace::new("jobfail")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: bad}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, "exit 3"]}]
"#,
    )?;
    kubectl.ok(&["wait", "--for=condition=Failed", "job/bad", "--timeout=60s"])?;
    let reason = kubectl.field(
        "job/bad",
        "{.status.conditions[?(@.type==\"Failed\")].reason}",
    )?;
    ensure!(reason == "BackoffLimitExceeded", "{reason}");
    Ok(())
}

#[test]
fn deleting_an_owner_deletes_what_it_owns_unless_told_to_orphan_it() -> anyhow::Result<()> {
    let ns = Namespace::new("owners")?;
    let kubectl = ns.kubectl();
    kubectl.apply(NGINX)?;
    eventually("3 ready pods", 30, || {
        Ok(ready_pods(&ns, "app=web")?.len() == 3)
    })?;
    kubectl.ok(&["delete", "deployment", "web", "--cascade=orphan"])?;
    let sets = kubectl.ok(&["get", "replicasets", "-o", "name"])?;
    ensure!(sets.lines().count() == 1, "after orphaning: {sets}");
    kubectl.ok(&[
        "delete",
        sets.trim(),
        "--cascade=foreground",
        "--timeout=60s",
    ])?;
    let left = kubectl.ok(&["get", "pods", "-l", "app=web", "-o", "name"])?;
    ensure!(
        left.is_empty(),
        "a foreground delete returned with pods left: {left}"
    );
    Ok(())
}

#[test]
fn deleting_a_namespace_removes_everything_in_it() -> anyhow::Result<()> {
    let ns = Namespace::new("gone")?;
    let kubectl = ns.kubectl();
    kubectl.apply(NGINX)?;
    kubectl.ok(&["create", "secret", "generic", "s", "--from-literal=a=b"])?;
    eventually("3 ready pods", 30, || {
        Ok(ready_pods(&ns, "app=web")?.len() == 3)
    })?;
    kubectl.ok(&["delete", "namespace", ns.name(), "--timeout=60s"])?;
    let error = kubectl.fails(&["get", "namespace", ns.name()])?;
    ensure!(error.contains("NotFound"), "{error}");
    Ok(())
}
