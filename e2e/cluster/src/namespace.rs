//! A namespace for one scenario, removed when the scenario ends.

use anyhow::Context;

use crate::kubectl::Kubectl;
use crate::wait::eventually;

/// A namespace that goes when it is dropped, whether the scenario passed or not.
#[derive(Debug)]
pub struct Namespace {
    kubectl: Kubectl,
    name: String,
}

impl Namespace {
    /// Makes the namespace `e2e-NAME` and waits until pods can be made in it.
    ///
    /// # Errors
    /// When the cluster does not make it.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let kubectl = Kubectl::from_env()?;
        let name = format!("e2e-{name}-{}", std::process::id());
        kubectl
            .ok(&["create", "namespace", &name])
            .context("making the scenario's namespace")?;
        let this = Self {
            kubectl: kubectl.in_namespace(&name),
            name,
        };
        eventually("the default ServiceAccount and the root CA", 20, || {
            this.kubectl
                .ok(&[
                    "get",
                    "serviceaccount/default",
                    "configmap/kube-root-ca.crt",
                ])
                .map(|_| true)
        })?;
        Ok(this)
    }

    /// kubectl in the namespace.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self
            .kubectl
            .run(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}
