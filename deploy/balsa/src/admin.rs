//! What commands for administrators share: the kubeconfig, and one conversation with the server that it names.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Who asks, and whom.
#[derive(Debug, clap::Args)]
pub struct Admin {
    /// Kubeconfig of an administrator.
    #[arg(
        long,
        env = "KUBECONFIG",
        default_value = "/var/lib/balsa/admin.kubeconfig",
        global = true
    )]
    kubeconfig: PathBuf,
}

impl Admin {
    /// Runs `work` with a client of the server that the kubeconfig names.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used, and those of `work`.
    pub fn run<T>(
        &self,
        work: impl AsyncFnOnce(kube::Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { work(self.client().await?).await })
    }

    async fn client(&self) -> anyhow::Result<kube::Client> {
        let path = &self.kubeconfig;
        let kubeconfig = Kubeconfig::read_from(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("{} cannot be used", path.display()))?;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(Duration::from_secs(30));
        Ok(kube::Client::try_from(config)?)
    }
}
