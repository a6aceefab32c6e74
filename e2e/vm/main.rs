//! A node on a current Linux: systemd, control groups of version 2, containerd 1.7 or 2. In a virtual machine that
//! `e2e/vm/run` makes, with a server and an agent under the units of `deploy/systemd`.

#![allow(clippy::unwrap_used, missing_docs)]

mod cgroups;
mod life;
mod machine;
mod pressure;
mod security;
mod volumes;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_e2e::{Kubectl, Namespace, eventually, eventually_some, run};
use serde_json::{Value, json};

/// An emulated machine takes its time.
const PATIENCE: u64 = 300;

/// The machine, as its administrator has it.
struct Vm {
    ssh: Vec<String>,
}

impl Vm {
    fn from_env() -> anyhow::Result<Self> {
        let ssh = std::env::var("E2E_VM_SSH")
            .context("E2E_VM_SSH is not set: run these through e2e/vm/run")?;
        Ok(Self {
            ssh: ssh.split(' ').map(str::to_owned).collect(),
        })
    }

    /// What a command prints that is run by root's shell in the machine.
    fn sh(&self, script: &str) -> anyhow::Result<String> {
        let mut command = Command::new("ssh");
        command.args(["-q", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]);
        command.args(["-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null"]);
        command.args(&self.ssh).args(["root@127.0.0.1", script]);
        run(&mut command, "", Duration::from_secs(180))?.ok()
    }

    /// The same, without the end of the line.
    fn line(&self, script: &str) -> anyhow::Result<String> {
        Ok(self.sh(script)?.trim().to_owned())
    }

    /// Does the machine have containerd 2 or newer?
    fn modern(&self) -> anyhow::Result<bool> {
        let version = self.line("containerd --version | awk '{print $3}'")?;
        let major = version.trim_start_matches('v').split('.').next();
        Ok(major.context("no version")?.parse::<u32>()? >= 2)
    }
}

/// A namespace in the machine's cluster.
struct Scene {
    vm: Vm,
    space: Namespace,
}

impl Scene {
    fn new(name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            vm: Vm::from_env()?,
            space: eventually_some("a namespace", PATIENCE, || Namespace::new(name).map(Some))?,
        })
    }

    fn kubectl(&self) -> &Kubectl {
        self.space.kubectl()
    }

    /// Makes a pod from its spec; its first container runs busybox unless it says otherwise.
    fn pod(&self, name: &str, mut spec: Value) -> anyhow::Result<()> {
        for container in spec["containers"].as_array_mut().into_iter().flatten() {
            let container = container.as_object_mut().context("no container")?;
            for (key, value) in [
                ("image", json!("busybox")),
                ("imagePullPolicy", json!("IfNotPresent")),
                ("command", json!(["sleep", "100000"])),
            ] {
                container.entry(key).or_insert(value);
            }
        }
        spec["terminationGracePeriodSeconds"] = json!(3);
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        self.kubectl().apply(&pod.to_string()).map(|_| ())
    }

    /// Waits until a pod is in a phase; the pod.
    fn phase(&self, name: &str, phase: &str) -> anyhow::Result<Value> {
        eventually_some(&format!("phase {phase} of {name}"), PATIENCE, || {
            let pod = self.kubectl().json(&["get", "pod", name])?;
            let now = pod["status"]["phase"].as_str().unwrap_or_default();
            ensure!(now == phase, "{now}: {}", pod["status"]);
            Ok(Some(pod))
        })
    }

    /// Makes a pod and waits until it runs.
    fn running(&self, name: &str, spec: Value) -> anyhow::Result<Value> {
        self.pod(name, spec)?;
        self.phase(name, "Running")
    }

    /// Makes a pod whose command ends; what it printed.
    fn printed(&self, name: &str, spec: Value) -> anyhow::Result<String> {
        self.pod(name, spec)?;
        self.phase(name, "Succeeded")?;
        self.kubectl().ok(&["logs", name])
    }

    fn exec(&self, pod: &str, script: &str) -> anyhow::Result<String> {
        let out = self
            .kubectl()
            .ok(&["exec", pod, "--", "sh", "-c", script])?;
        Ok(out.trim().to_owned())
    }
}

/// A command for busybox's shell.
fn sh(script: &str) -> Value {
    json!(["sh", "-c", script])
}
