//! The manifests of the documents that Balsa was first asked to run, with their mistakes mended (and, where the
//! mistake is the point, with the refusal that it deserves).

mod basics;
mod pods;
mod probes;

use balsa_e2e::Kubectl;

fn wait_ready(kubectl: &Kubectl, pod: &str) -> anyhow::Result<()> {
    let pod = format!("pod/{pod}");
    kubectl
        .ok(&["wait", "--for=condition=Ready", &pod, "--timeout=40s"])
        .map(|_| ())
}
