//! Pods of files of a node: they run without the API, which shows a mirror of each.

use anyhow::ensure;
use balsa_e2e::{Kubectl, Local, eventually};

use crate::loss_runtime::folder;

/// Takes the file away whatever becomes of the scenario.
struct Manifest(std::path::PathBuf);

impl Drop for Manifest {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn manifest(name: &str, word: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, \"echo {word}; sleep 100000\"]
"
    )
}

#[test]
fn a_file_in_the_manifest_folder_is_a_pod_that_deletion_does_not_end() -> anyhow::Result<()> {
    let node = Local.agents()?.remove(0);
    let kubectl = Kubectl::from_env()?.in_namespace("default");
    let name = format!("static-{}", std::process::id());
    let dir = folder(&node).join("manifests");
    std::fs::create_dir_all(&dir)?;
    let file = Manifest(dir.join(format!("{name}.yaml")));
    std::fs::write(&file.0, manifest(&name, "first"))?;
    let pod = format!("{name}-{node}");
    let logged =
        |word: &str| -> anyhow::Result<bool> { Ok(kubectl.ok(&["logs", &pod])?.trim() == word) };
    eventually("its mirror, Running, and its log", 40, || {
        let phase = kubectl.field(&format!("pod/{pod}"), "{.status.phase}")?;
        Ok(phase == "Running" && logged("first")?)
    })?;
    let container = |kubectl: &Kubectl| {
        kubectl.field(
            &format!("pod/{pod}"),
            "{.metadata.uid} {.status.containerStatuses[0].containerID}",
        )
    };
    let before = container(&kubectl)?;
    kubectl.ok(&["delete", "pod", &pod, "--wait=false"])?;
    eventually("another mirror of the same container", 40, || {
        let after = container(&kubectl)?;
        let (old, new) = (before.split_once(' '), after.split_once(' '));
        Ok(match (old, new) {
            (Some((mirror, id)), Some((again, same))) => mirror != again && id == same,
            _ => false,
        })
    })?;
    let exec = kubectl.ok(&["exec", &pod, "--", "hostname"])?;
    ensure!(exec.trim() == pod, "{exec}");
    std::fs::write(&file.0, manifest(&name, "second"))?;
    eventually("the pod of the changed file", 60, || logged("second"))?;
    drop(file);
    eventually("the mirror gone with its file", 60, || {
        Ok(kubectl.run(&["get", "pod", &pod])?.code != 0)
    })?;
    Ok(())
}
