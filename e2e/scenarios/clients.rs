//! Client libraries other than kubectl's.

use std::collections::BTreeSet;
use std::pin::pin;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_e2e::Namespace;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};

/// Runs a script of `clients/` with the Python client's packages.
fn python(script: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let packages = std::env::var("E2E_PYTHON").context("E2E_PYTHON names no folder of packages")?;
    let clients = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients");
    let mut python = Command::new("python3");
    python.arg(format!("{clients}/{script}")).args(arguments);
    python.env("PYTHONPATH", packages);
    balsa_e2e::run(&mut python, "", Duration::from_secs(180))?.ok()
}

#[test]
fn the_python_client_reads_writes_watches_and_streams() -> anyhow::Result<()> {
    let ns = Namespace::new("python")?;
    let printed = python("python_client.py", &[ns.name()])?;
    ensure!(printed.contains("all of it works"), "{printed}");
    Ok(())
}

#[test]
fn a_browser_brings_its_token_as_a_websocket_protocol() -> anyhow::Result<()> {
    let ns = Namespace::new("browser")?;
    let kubectl = ns.kubectl();
    kubectl.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {terminationGracePeriodSeconds: 0, containers: \
         [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, \"1000\"]}]}}",
    )?;
    kubectl.wait_ready("p", 40)?;
    for account in ["browser", "stranger"] {
        kubectl.ok(&["create", "serviceaccount", account])?;
    }
    let rights = ["--verb=get,create", "--resource=pods/exec"];
    kubectl.ok(&[&["create", "role", "exec"], &rights[..]].concat())?;
    let subject = format!("--serviceaccount={}:browser", ns.name());
    kubectl.ok(&["create", "rolebinding", "exec", "--role=exec", &subject])?;
    let token = |account| kubectl.ok(&["create", "token", account]);
    let (ours, strangers) = (token("browser")?, token("stranger")?);
    let printed = python(
        "websocket_token.py",
        &[ns.name(), "p", ours.trim(), strangers.trim()],
    )?;
    ensure!(
        printed.trim() == "ahoy, 403 without a token, 403 without rights",
        "{printed}"
    );
    Ok(())
}

#[tokio::test]
async fn an_informer_gets_what_is_there_as_events_and_then_what_changes() -> anyhow::Result<()> {
    let ns = Namespace::new("informer")?;
    for name in ["one", "two"] {
        ns.kubectl()
            .ok(&["create", "configmap", name, "--from-literal=mine=1"])?;
    }
    let kubeconfig = std::env::var_os("KUBECONFIG").context("KUBECONFIG is not set")?;
    let client = balsa_e2e::clients(kubeconfig.as_ref()).await?.remove(0);
    let maps: Api<ConfigMap> = Api::namespaced(client, ns.name());
    let mut events = pin!(watcher(maps, watcher::Config::default().streaming_lists()));
    let (mut there, mut complete, mut later) = (BTreeSet::new(), false, None);
    while later.is_none() {
        let next = tokio::time::timeout(Duration::from_secs(20), events.try_next());
        match next.await?? {
            Some(Event::InitApply(map)) => {
                ensure!(
                    !complete,
                    "{} came after the end of the list",
                    map.name_any()
                );
                there.insert(map.name_any());
            }
            Some(Event::InitDone) => {
                complete = true;
                ns.kubectl().ok(&["create", "configmap", "three"])?;
            }
            Some(Event::Apply(map)) if map.name_any() == "three" => later = Some(map),
            Some(_) => {}
            None => anyhow::bail!("the watch ended"),
        }
    }
    ensure!(
        complete && there.contains("one") && there.contains("two"),
        "{there:?}"
    );
    Ok(())
}
