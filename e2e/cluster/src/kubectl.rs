//! An unmodified kubectl.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::command::{Output, run};

/// kubectl with a kubeconfig and a namespace.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    context: Option<String>,
    namespace: String,
}

const DEADLINE: Duration = Duration::from_secs(60);

impl Kubectl {
    /// The kubectl and kubeconfig that `e2e/run` names in `E2E_KUBECTL` and `KUBECONFIG`.
    ///
    /// # Errors
    /// When there is no kubeconfig.
    pub fn from_env() -> anyhow::Result<Self> {
        let kubeconfig = std::env::var_os("KUBECONFIG")
            .context("KUBECONFIG is not set: run these through e2e/run")?;
        let program = std::env::var_os("E2E_KUBECTL").unwrap_or_else(|| "kubectl".into());
        Ok(Self {
            program: program.into(),
            kubeconfig: kubeconfig.into(),
            context: None,
            namespace: "default".into(),
        })
    }

    /// The same for another namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self {
            namespace: namespace.into(),
            ..self.clone()
        }
    }

    /// The same through another server (`s2`).
    #[must_use]
    pub fn through(&self, server: &str) -> Self {
        let context = if server == "s1" {
            "balsa".to_owned()
        } else {
            format!("balsa-{server}")
        };
        Self {
            context: Some(context),
            ..self.clone()
        }
    }

    /// The same with another kubectl; `None` if the variable that names it is not set.
    #[must_use]
    pub fn version(&self, variable: &str) -> Option<Self> {
        let program = std::env::var_os(variable)?;
        Some(Self {
            program: program.into(),
            ..self.clone()
        })
    }

    /// The command, to be started by the caller.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("NO_COLOR", "1");
        if let Some(context) = &self.context {
            command.args(["--context", context]);
        }
        command.args(["-n", &self.namespace]).args(arguments);
        command
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than a minute.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.run_with(arguments, "")
    }

    /// Runs kubectl with standard input.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
        run(&mut self.command(arguments), input, DEADLINE)
    }

    /// What a kubectl that must succeed prints.
    ///
    /// # Errors
    /// With all it printed if it fails.
    pub fn ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(arguments)?.ok()
    }

    /// What a kubectl that must fail prints to standard error.
    ///
    /// # Errors
    /// If it succeeds.
    pub fn fails(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(arguments)?.failed()
    }

    /// `kubectl apply -f -` of a manifest.
    ///
    /// # Errors
    /// If it fails.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.run_with(&["apply", "-f", "-"], manifest)?.ok()
    }

    /// Waits until a pod is Ready, at most that many seconds (less than a minute).
    ///
    /// # Errors
    /// If it is not Ready in time.
    pub fn wait_ready(&self, pod: &str, seconds: u32) -> anyhow::Result<()> {
        let (pod, timeout) = (format!("pod/{pod}"), format!("--timeout={seconds}s"));
        self.ok(&["wait", "--for=condition=Ready", &pod, &timeout])
            .map(|_| ())
    }

    /// An object, or a list, as JSON.
    ///
    /// # Errors
    /// If kubectl fails or prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.ok(&all)?)?)
    }

    /// A jsonpath of an object.
    ///
    /// # Errors
    /// If kubectl fails.
    pub fn field(&self, object: &str, path: &str) -> anyhow::Result<String> {
        let output = format!("jsonpath={path}");
        self.ok(&["get", object, "-o", &output])
    }
}
