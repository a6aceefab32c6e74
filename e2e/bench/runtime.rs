//! What the container runtime of a node takes for a pod when it is told so directly: the floor under `startup`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use balsa_cri::{ContainerConfig, CriClient, Runtime, SandboxConfig};

use crate::drive::{Outcome, drive};

/// Which runtime, and how many pods at a time.
#[derive(Debug, Clone, clap::Args)]
pub struct Alone {
    /// The runtime's socket
    #[arg(long, default_value = "/var/lib/balsa-local/a1/containerd.sock")]
    socket: PathBuf,
    /// Pods to start
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pods: u32,
    /// Pods started at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    in_flight: u32,
    /// An image with `sleep` that the runtime has already
    #[arg(long, default_value = "docker.io/library/busybox:latest")]
    image: String,
}

/// Starts pods of one container, each with a network, and removes them; how long each start took.
///
/// # Errors
/// When the runtime cannot be reached, or a pod cannot be removed.
pub async fn measure(alone: &Alone) -> anyhow::Result<Outcome> {
    let runtime = Arc::new(CriClient::new(&alone.socket));
    let logs = tempfile::tempdir().context("cannot make a folder for logs")?;
    let before = left(&runtime)
        .await
        .with_context(|| format!("cannot ask the runtime at {}", alone.socket.display()))?;
    anyhow::ensure!(
        before.is_empty(),
        "pods of an earlier run are there: {before:?}"
    );
    let (image, folder) = (alone.image.clone(), logs.path().to_owned());
    let client = runtime.clone();
    let (pods, in_flight) = (alone.pods as usize, alone.in_flight as usize);
    let started = drive(pods, in_flight, move |index| {
        let (runtime, image, folder) = (client.clone(), image.clone(), folder.clone());
        async move { start(&runtime, index, &image, &folder).await }
    })
    .await;
    for id in left(&runtime).await? {
        runtime.stop_sandbox(&id).await?;
        runtime.remove_sandbox(&id).await?;
    }
    started
}

async fn start(runtime: &CriClient, index: usize, image: &str, logs: &Path) -> anyhow::Result<()> {
    let logs = logs.join(index.to_string());
    // Runtimes do not make the folder of a container's log.
    tokio::fs::create_dir_all(logs.join("c")).await?;
    // Without a UID: the node's agent ends what it takes for pods that are no more.
    let sandbox = SandboxConfig {
        name: format!("alone-{index:07}"),
        namespace: NAMESPACE.to_owned(),
        hostname: format!("alone-{index:07}"),
        log_directory: logs.to_string_lossy().into_owned(),
        ..SandboxConfig::default()
    };
    let container = ContainerConfig {
        name: "c".to_owned(),
        image: image.to_owned(),
        command: vec!["sleep".to_owned(), "100000".to_owned()],
        log_path: "c/0.log".to_owned(),
        ..ContainerConfig::default()
    };
    let id = runtime.run_sandbox(&sandbox).await?;
    let container = runtime.create_container(&id, &container, &sandbox).await?;
    Ok(runtime.start_container(&container).await?)
}

/// By which the sandboxes made here are found again.
const NAMESPACE: &str = "balsa-bench-runtime";

async fn left(runtime: &CriClient) -> anyhow::Result<Vec<String>> {
    let mut all = runtime.list_sandboxes().await?;
    all.retain(|sandbox| sandbox.namespace == NAMESPACE);
    Ok(all.into_iter().map(|sandbox| sandbox.id).collect())
}
