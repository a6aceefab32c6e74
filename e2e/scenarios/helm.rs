//! Helm, unmodified: a chart with a custom resource, a hook and a workload goes through its whole life.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_e2e::{Namespace, eventually};

fn helm(ns: &Namespace, arguments: &[&str]) -> anyhow::Result<String> {
    let kubectl = std::env::var("E2E_KUBECTL").context("E2E_KUBECTL names no kubectl")?;
    let mut command = Command::new(Path::new(&kubectl).with_file_name("helm"));
    command.args(arguments).args(["--namespace", ns.name()]);
    // Nothing of this machine's own settings.
    let home = tempfile::tempdir()?;
    command.env("HOME", home.path());
    balsa_e2e::run(&mut command, "", Duration::from_secs(120))?.ok()
}

fn write(root: &Path, files: &[(&str, &str)]) -> anyhow::Result<()> {
    for (name, text) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        std::fs::write(path, text)?;
    }
    Ok(())
}

const CHART: &[(&str, &str)] = &[
    (
        "Chart.yaml",
        "apiVersion: v2\nname: raft\nversion: 0.1.0\nappVersion: '1'\n",
    ),
    ("values.yaml", "replicas: 1\nword: one\n"),
    (
        "crds/logs.yaml",
        r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: logs.e2e.balsa.example}
spec:
  group: e2e.balsa.example
  scope: Namespaced
  names: {plural: logs, singular: log, kind: Log}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {length: {type: integer, minimum: 1}}}}
    additionalPrinterColumns: [{name: Length, type: integer, jsonPath: .spec.length}]
"#,
    ),
    (
        "templates/log.yaml",
        "apiVersion: e2e.balsa.example/v1\nkind: Log\nmetadata: {name: '{{ .Release.Name }}'}\nspec: {length: 7}\n",
    ),
    (
        "templates/words.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}'}\ndata: {word: '{{ .Values.word }}'}\n",
    ),
    (
        "templates/hook.yaml",
        r#"
apiVersion: batch/v1
kind: Job
metadata:
  name: '{{ .Release.Name }}-before'
  annotations: {helm.sh/hook: pre-install, helm.sh/hook-delete-policy: hook-succeeded}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: ["true"]}]
"#,
    ),
    (
        "templates/web.yaml",
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: '{{ .Release.Name }}'}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: '{{ .Release.Name }}'}}
  template:
    metadata: {labels: {app: '{{ .Release.Name }}'}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: testserver, imagePullPolicy: IfNotPresent}]
"#,
    ),
];

#[test]
fn a_chart_is_installed_upgraded_rolled_back_and_uninstalled() -> anyhow::Result<()> {
    let ns = Namespace::new("helm")?;
    let kubectl = ns.kubectl();
    let chart = tempfile::tempdir()?;
    write(chart.path(), CHART)?;
    let path = chart.path().to_string_lossy().into_owned();
    let installed = helm(
        &ns,
        &["install", "tiny", &path, "--wait", "--timeout", "60s"],
    )?;
    ensure!(installed.contains("STATUS: deployed"), "{installed}");
    ensure!(kubectl.field("configmap/tiny", "{.data.word}")? == "one");
    ensure!(
        kubectl
            .ok(&["get", "logs.e2e.balsa.example"])?
            .contains("LENGTH")
    );
    ensure!(kubectl.field("log/tiny", "{.spec.length}")? == "7");
    let jobs = kubectl.run(&["get", "jobs"])?;
    ensure!(
        jobs.stderr.contains("No resources found"),
        "the hook's job stayed: {}",
        jobs.stdout
    );
    helm(
        &ns,
        &[
            "upgrade",
            "tiny",
            &path,
            "--set",
            "word=two,replicas=2",
            "--wait",
            "--timeout",
            "60s",
        ],
    )?;
    ensure!(kubectl.field("configmap/tiny", "{.data.word}")? == "two");
    ensure!(kubectl.field("deployment/tiny", "{.status.availableReplicas}")? == "2");
    let history = helm(&ns, &["history", "tiny"])?;
    ensure!(history.lines().count() == 3, "{history}");
    helm(
        &ns,
        &["rollback", "tiny", "1", "--wait", "--timeout", "60s"],
    )?;
    ensure!(kubectl.field("configmap/tiny", "{.data.word}")? == "one");
    let listed = helm(&ns, &["list"])?;
    ensure!(
        listed.contains("tiny") && listed.contains("deployed"),
        "{listed}"
    );
    helm(&ns, &["uninstall", "tiny"])?;
    eventually("everything to be gone", 30, || {
        let left = kubectl.ok(&[
            "get",
            "deployments,pods,logs.e2e.balsa.example",
            "-o",
            "name",
        ])?;
        Ok(left.trim().is_empty())
    })?;
    kubectl.ok(&["delete", "crd", "logs.e2e.balsa.example"])?;
    Ok(())
}
