//! Bad input gets a clear answer and costs nothing.

use anyhow::ensure;
use balsa_e2e::{Kubectl, Namespace, eventually};

#[test]
fn broken_manifests_are_refused_with_the_words_kubectl_users_know() -> anyhow::Result<()> {
    let ns = Namespace::new("bad")?;
    let kubectl = ns.kubectl();
    let refused = |arguments: &[&str], manifest: &str| -> anyhow::Result<String> {
        kubectl.run_with(arguments, manifest)?.failed()
    };
    let apply = ["apply", "-f", "-"];
    ensure!(refused(&apply, "a: [")?.contains("error parsing"));
    let unknown = refused(
        &apply,
        "apiVersion: extensions/v1beta1\nkind: Deployment\nmetadata: {name: d}\n",
    )?;
    ensure!(
        unknown.contains("no matches for kind \"Deployment\" in version \"extensions/v1beta1\""),
        "{unknown}"
    );
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {replicas: 3, containers: [{name: c, image: busybox}]}\n";
    let strict = refused(&["apply", "--validate=strict", "-f", "-"], pod)?;
    ensure!(
        strict.contains("unknown field \"spec.replicas\""),
        "{strict}"
    );
    let invalid = refused(
        &apply,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\nspec: {containers: [{name: c, image: busybox}]}\n",
    )?;
    ensure!(
        invalid.contains("The Pod \"Bad_Name\" is invalid: metadata.name: Invalid value"),
        "{invalid}"
    );
    let empty = refused(
        &apply,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: []}\n",
    )?;
    ensure!(empty.contains("spec.containers: Required value"), "{empty}");
    Ok(())
}

#[test]
fn conflicts_and_duplicates_are_told() -> anyhow::Result<()> {
    let ns = Namespace::new("conflict")?;
    let kubectl = ns.kubectl();
    kubectl.ok(&["create", "configmap", "c", "--from-literal=a=1"])?;
    let twice = kubectl.fails(&["create", "configmap", "c", "--from-literal=a=1"])?;
    ensure!(twice.contains("configmaps \"c\" already exists"), "{twice}");
    let mut old = kubectl.json(&["get", "configmap", "c"])?;
    kubectl.ok(&["label", "configmap", "c", "x=1"])?;
    old["data"]["a"] = "2".into();
    let stale = kubectl
        .run_with(&["replace", "-f", "-"], &old.to_string())?
        .failed()?;
    ensure!(stale.contains("the object has been modified"), "{stale}");
    Ok(())
}

#[test]
fn strangers_are_turned_away_and_accounts_have_only_their_rights() -> anyhow::Result<()> {
    let ns = Namespace::new("rights")?;
    let kubectl = ns.kubectl();
    let wrong = kubectl.run(&[
        "--token=nonsense",
        "--client-certificate=",
        "--client-key=",
        "get",
        "pods",
    ])?;
    // The certificate in the kubeconfig still speaks for the caller where kubectl sends it.
    ensure!(
        wrong.code == 0
            || wrong.stderr.contains("Unauthorized")
            || wrong.stderr.contains("logged in"),
        "{wrong:?}"
    );
    let account = format!("--as=system:serviceaccount:{}:default", ns.name());
    let denied = kubectl.fails(&["get", "pods", &account])?;
    ensure!(
        denied.contains("pods is forbidden: User")
            && denied.contains("cannot list resource \"pods\""),
        "{denied}"
    );
    kubectl.ok(&[
        "create",
        "role",
        "reader",
        "--verb=list,get",
        "--resource=pods",
    ])?;
    let subject = format!("--serviceaccount={}:default", ns.name());
    kubectl.ok(&["create", "rolebinding", "reads", "--role=reader", &subject])?;
    eventually("the granted right", 5, || {
        Ok(kubectl.run(&["get", "pods", &account])?.code == 0)
    })?;
    ensure!(
        kubectl
            .run(&["auth", "can-i", "delete", "pods", &account])?
            .stdout
            .trim()
            == "no"
    );
    Ok(())
}

#[test]
fn an_image_or_command_that_is_missing_is_told_in_the_pods_status() -> anyhow::Result<()> {
    let ns = Namespace::new("missing")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: image}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "missing.invalid/none:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: command}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [/no/such/program]}]
"#,
    )?;
    let shown = |kubectl: &Kubectl, pod: &str| kubectl.ok(&["get", "pod", pod, "--no-headers"]);
    eventually("ErrImagePull, then ImagePullBackOff", 40, || {
        Ok(shown(kubectl, "image")?.contains("ImagePullBackOff"))
    })?;
    let described = kubectl.ok(&["describe", "pod", "image"])?;
    ensure!(described.contains("ErrImagePull"), "{described}");
    eventually("the missing program", 20, || {
        let text = kubectl.ok(&["get", "pod", "command", "-o", "yaml"])?;
        Ok(text.contains("/no/such/program")
            && (text.contains("StartError") || text.contains("RunContainerError")))
    })?;
    Ok(())
}
