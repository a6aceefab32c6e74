//! Everyday kubectl, unmodified: what it prints, and that every way of changing an object works.

use anyhow::ensure;
use balsa_e2e::{Kubectl, Namespace, eventually};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: a, tier: x}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
"#;

#[test]
fn version_discovery_and_explain_work() -> anyhow::Result<()> {
    let kubectl = Kubectl::from_env()?;
    ensure!(kubectl.ok(&["version"])?.contains("Server Version: v1.35"));
    let resources = kubectl.ok(&["api-resources"])?;
    for line in ["pods                po", "deployments         deploy"] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let found = resources
            .lines()
            .any(|l| l.split_whitespace().take(2).eq(words.iter().copied()));
        ensure!(found, "no {line} in\n{resources}");
    }
    let versions = kubectl.ok(&["api-versions"])?;
    for version in [
        "v1",
        "apps/v1",
        "batch/v1",
        "rbac.authorization.k8s.io/v1",
        "discovery.k8s.io/v1",
    ] {
        ensure!(
            versions.lines().any(|l| l == version),
            "no {version} in {versions}"
        );
    }
    let explained = kubectl.ok(&["explain", "pod.spec"])?;
    ensure!(
        explained.contains("containers") && explained.contains("KIND:       Pod"),
        "{explained}"
    );
    ensure!(
        kubectl
            .ok(&["cluster-info"])?
            .contains("is running at https://")
    );
    ensure!(kubectl.ok(&["auth", "can-i", "create", "pods"])?.trim() == "yes");
    ensure!(
        kubectl
            .ok(&["auth", "whoami"])?
            .contains("kubernetes-admin")
    );
    Ok(())
}

#[test]
fn apply_says_created_then_unchanged_then_configured() -> anyhow::Result<()> {
    let ns = Namespace::new("apply")?;
    let kubectl = ns.kubectl();
    let manifest = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{k: {value}}}\n")
    };
    ensure!(kubectl.apply(&manifest("a"))?.trim() == "configmap/c created");
    ensure!(kubectl.apply(&manifest("a"))?.trim() == "configmap/c unchanged");
    let diff = kubectl.run_with(&["diff", "-f", "-"], &manifest("b"))?;
    ensure!(
        diff.code == 1 && diff.stdout.contains("+  k: b"),
        "{diff:?}"
    );
    ensure!(kubectl.apply(&manifest("b"))?.trim() == "configmap/c configured");
    ensure!(kubectl.field("configmap/c", "{.data.k}")? == "b");
    let server_side = kubectl.run_with(
        &["apply", "--server-side", "--field-manager=other", "-f", "-"],
        &manifest("c"),
    )?;
    ensure!(
        server_side.failed()?.contains("conflict"),
        "another manager's field is not taken silently"
    );
    Ok(())
}

#[test]
fn every_kind_of_patch_and_edit_changes_the_object() -> anyhow::Result<()> {
    let ns = Namespace::new("patch")?;
    let kubectl = ns.kubectl();
    kubectl.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '1'}\n")?;
    let strategic = kubectl.ok(&["patch", "configmap", "c", "-p", r#"{"data":{"b":"2"}}"#])?;
    ensure!(strategic.trim() == "configmap/c patched", "{strategic}");
    kubectl.ok(&[
        "patch",
        "configmap",
        "c",
        "--type=merge",
        "-p",
        r#"{"data":{"a":null,"c":"3"}}"#,
    ])?;
    kubectl.ok(&[
        "patch",
        "configmap",
        "c",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/data/b","value":"4"}]"#,
    ])?;
    let data = &kubectl.json(&["get", "configmap", "c"])?["data"];
    ensure!(*data == serde_json::json!({"b": "4", "c": "3"}), "{data}");
    ensure!(kubectl.ok(&["label", "configmap", "c", "x=1"])?.trim() == "configmap/c labeled");
    let refused = kubectl.fails(&["label", "configmap", "c", "x=2"])?;
    ensure!(refused.contains("--overwrite"), "{refused}");
    kubectl.ok(&["label", "configmap", "c", "x=2", "--overwrite"])?;
    ensure!(kubectl.ok(&["annotate", "configmap", "c", "n=1"])?.trim() == "configmap/c annotated");
    let replaced = kubectl.run_with(
        &["replace", "-f", "-"],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {z: '9'}\n",
    )?;
    ensure!(replaced.ok()?.trim() == "configmap/c replaced");
    let mut edit = kubectl.command(&["edit", "configmap", "c"]);
    edit.env("EDITOR", "sed -i /z:/s/9/8/");
    let edited = balsa_e2e::run(&mut edit, "", std::time::Duration::from_secs(20))?;
    ensure!(edited.ok()?.trim() == "configmap/c edited");
    ensure!(kubectl.field("configmap/c", "{.data.z}")? == "8");
    Ok(())
}

#[test]
fn get_prints_tables_labels_and_selected_objects() -> anyhow::Result<()> {
    let ns = Namespace::new("get")?;
    let kubectl = ns.kubectl();
    kubectl.apply(POD)?;
    kubectl.apply(
        &POD.replace("name: p,", "name: q,")
            .replace("tier: x", "tier: z"),
    )?;
    kubectl.ok(&[
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "--timeout=30s",
    ])?;
    let table = kubectl.ok(&["get", "pods"])?;
    let row: Vec<&str> = table
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        table.starts_with("NAME   READY   STATUS    RESTARTS   AGE\n"),
        "{table}"
    );
    ensure!(row[..4] == ["p", "1/1", "Running", "0"], "{table}");
    let wide = kubectl.ok(&["get", "pods", "-o", "wide"])?;
    ensure!(
        wide.contains("NOMINATED NODE   READINESS GATES") && wide.contains("10.244."),
        "{wide}"
    );
    let columns = kubectl.ok(&["get", "pods", "-L", "app,tier", "--show-labels"])?;
    ensure!(
        columns.contains("APP") && columns.contains("app=a,tier=z"),
        "{columns}"
    );
    for (selector, count) in [
        ("app", 2),
        ("!app", 0),
        ("tier=x", 1),
        ("tier!=x", 1),
        ("tier in (x,z)", 2),
        ("tier notin (x)", 1),
        ("app=a,tier=z", 1),
    ] {
        let names = kubectl.ok(&["get", "pods", "-l", selector, "-o", "name"])?;
        ensure!(names.lines().count() == count, "{selector}: {names}");
    }
    let running = kubectl.ok(&[
        "get",
        "pods",
        "--field-selector",
        "status.phase=Running",
        "-o",
        "name",
    ])?;
    ensure!(running == "pod/p\npod/q\n", "{running}");
    ensure!(kubectl.ok(&["get", "pods", "-A"])?.contains(ns.name()));
    ensure!(
        kubectl
            .ok(&["get", "pod", "p", "-o", "yaml"])?
            .contains("kind: Pod")
    );
    ensure!(kubectl.ok(&["get", "events"])?.contains("Scheduled"));
    ensure!(kubectl.ok(&["get", "all"])?.contains("pod/p"));
    Ok(())
}

#[test]
fn delete_works_by_name_label_file_and_force() -> anyhow::Result<()> {
    let ns = Namespace::new("delete")?;
    let kubectl = ns.kubectl();
    for name in ["p", "q", "r", "s"] {
        kubectl.apply(&POD.replace("name: p,", &format!("name: {name},")))?;
    }
    let deleted = kubectl.ok(&["delete", "pod", "p"])?;
    ensure!(
        deleted.contains(&format!("pod \"p\" deleted from {} namespace", ns.name())),
        "{deleted}"
    );
    kubectl.ok(&["delete", "pod", "q", "--force", "--grace-period=0"])?;
    kubectl
        .run_with(&["delete", "-f", "-"], &POD.replace("name: p,", "name: r,"))?
        .ok()?;
    kubectl.ok(&["delete", "pods", "-l", "app=a"])?;
    let left = kubectl.run(&["get", "pods"])?;
    ensure!(left.stderr.contains("No resources found"), "{left:?}");
    ensure!(
        kubectl
            .fails(&["get", "pod", "p"])?
            .contains("pods \"p\" not found")
    );
    Ok(())
}

fn works_with(variable: &str, namespace: &str) -> anyhow::Result<()> {
    let ns = Namespace::new(namespace)?;
    let Some(old) = ns.kubectl().version(variable) else {
        println!("{variable} names no kubectl: nothing to test");
        return Ok(());
    };
    ensure!(old.ok(&["version"])?.contains("v1.35"));
    old.apply(POD)?;
    old.wait_ready("p", 30)?;
    ensure!(old.apply(POD)?.contains("unchanged"));
    ensure!(old.ok(&["exec", "p", "--", "echo", "hi"])?.trim() == "hi");
    ensure!(old.ok(&["get", "pods", "-o", "wide"])?.contains("Running"));
    ensure!(old.ok(&["describe", "pod", "p"])?.contains("Started"));
    ensure!(
        old.ok(&["explain", "pod.spec.containers"])?
            .contains("image")
    );
    old.ok(&["label", "pod", "p", "a=b"])?;
    old.ok(&[
        "patch",
        "pod",
        "p",
        "-p",
        "{\"metadata\": {\"labels\": {\"a\": \"c\"}}}",
    ])?;
    ensure!(old.field("pod/p", "{.metadata.labels.a}")? == "c");
    old.ok(&["create", "deployment", "d", "--image=busybox"])?;
    old.ok(&["scale", "deployment/d", "--replicas=0"])?;
    old.ok(&["delete", "deployment/d", "pod/p"])?;
    Ok(())
}

#[test]
fn an_older_kubectl_works_too() -> anyhow::Result<()> {
    works_with("E2E_KUBECTL_OLD", "older")
}

#[test]
fn a_kubectl_of_fifteen_versions_ago_works_too() -> anyhow::Result<()> {
    works_with("E2E_KUBECTL_OLDEST", "oldest")
}

#[test]
fn a_watch_prints_what_happens() -> anyhow::Result<()> {
    let ns = Namespace::new("watch")?;
    let kubectl = ns.kubectl();
    let mut watch = kubectl.command(&["get", "configmaps", "-w", "-o", "name"]);
    let mut watch = watch.stdout(std::process::Stdio::piped()).spawn()?;
    eventually("two changes", 10, || {
        let _ = kubectl.run(&["create", "configmap", "w1"])?;
        Ok(kubectl
            .run(&["label", "configmap", "w1", "a=b", "--overwrite"])?
            .code
            == 0)
    })?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    watch.kill()?;
    let printed = String::from_utf8_lossy(&watch.wait_with_output()?.stdout).into_owned();
    ensure!(printed.matches("configmap/w1").count() >= 2, "{printed}");
    Ok(())
}

#[test]
fn cp_carries_a_file_both_ways() -> anyhow::Result<()> {
    let ns = Namespace::new("cp")?;
    let kubectl = ns.kubectl();
    kubectl.apply(POD)?;
    kubectl.wait_ready("p", 30)?;
    let dir = std::env::temp_dir().join(format!("balsa-cp-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let (there, back) = (dir.join("there"), dir.join("back"));
    let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&there, &content)?;
    kubectl.ok(&["cp", &there.to_string_lossy(), "p:/tmp/file"])?;
    kubectl.ok(&["cp", "p:/tmp/file", &back.to_string_lossy()])?;
    let same = std::fs::read(&back)? == content;
    std::fs::remove_dir_all(&dir)?;
    ensure!(same, "the file came back changed");
    Ok(())
}
