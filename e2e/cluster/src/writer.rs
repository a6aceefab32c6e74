//! A client that writes without pause and remembers what was acknowledged, to be checked afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a writer saw.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Names of the objects whose creation was acknowledged.
    pub acknowledged: Vec<String>,
    /// Requests that failed or were not answered in time.
    pub failed: usize,
    /// Longest time between two acknowledgements.
    pub longest_gap: Duration,
    /// Acknowledged objects that are not there afterwards.
    pub lost: Vec<String>,
}

/// A writer at work.
pub struct Writer {
    stop: watch::Sender<bool>,
    task: JoinHandle<Report>,
    clients: Vec<kube::Client>,
    namespace: String,
}

/// One request may take this long before the next server is asked.
const DEADLINE: Duration = Duration::from_secs(1);

/// A client for each server of a kubeconfig.
///
/// # Errors
/// When the kubeconfig cannot be used.
pub async fn clients(kubeconfig: &Path) -> anyhow::Result<Vec<kube::Client>> {
    let file = Kubeconfig::read_from(kubeconfig).context("reading the kubeconfig")?;
    let mut clients = Vec::new();
    for context in &file.contexts {
        let options = KubeConfigOptions {
            context: Some(context.name.clone()),
            ..Default::default()
        };
        let mut config = kube::Config::from_custom_kubeconfig(file.clone(), &options).await?;
        config.connect_timeout = Some(DEADLINE);
        config.read_timeout = Some(Duration::from_secs(5));
        clients.push(kube::Client::try_from(config)?);
    }
    Ok(clients)
}

impl Writer {
    /// Starts to create ConfigMaps one after the other, asking the servers in turn.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn start(kubeconfig: &Path, namespace: &str) -> anyhow::Result<Self> {
        let clients = clients(kubeconfig).await?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(write(clients.clone(), namespace.to_owned(), stopped));
        Ok(Self {
            stop,
            task,
            clients,
            namespace: namespace.to_owned(),
        })
    }

    /// Ends it and reads back everything that was acknowledged.
    ///
    /// # Errors
    /// When the writer panicked or no server lists the objects.
    pub async fn finish(self) -> anyhow::Result<Report> {
        self.stop.send_replace(true);
        let mut report = self.task.await?;
        let mut there = None;
        for _ in 0..50 {
            for client in &self.clients {
                let api: Api<ConfigMap> = Api::namespaced(client.clone(), &self.namespace);
                if let Ok(list) = api.list_metadata(&Default::default()).await {
                    there = Some(list);
                }
            }
            if there.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let there: std::collections::HashSet<String> = there
            .context("no server lists the objects")?
            .items
            .into_iter()
            .filter_map(|o| o.metadata.name)
            .collect();
        report.lost = report
            .acknowledged
            .iter()
            .filter(|n| !there.contains(*n))
            .cloned()
            .collect();
        Ok(report)
    }
}

async fn write(
    clients: Vec<kube::Client>,
    namespace: String,
    stopped: watch::Receiver<bool>,
) -> Report {
    let mut report = Report::default();
    let mut last = Instant::now();
    // Several writers may work in one namespace, one after the other.
    let run = std::time::UNIX_EPOCH
        .elapsed()
        .map(|d| d.as_millis())
        .unwrap_or_default();
    for index in 0usize.. {
        if *stopped.borrow() {
            break;
        }
        let client = clients[index % clients.len()].clone();
        let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
        let name = format!("w-{run}-{index:06}");
        let object = ConfigMap {
            metadata: kube::api::ObjectMeta {
                name: Some(name.clone()),
                ..Default::default()
            },
            data: Some([("k".to_owned(), "x".repeat(128))].into()),
            ..Default::default()
        };
        let params = PostParams::default();
        match tokio::time::timeout(DEADLINE, api.create(&params, &object)).await {
            Ok(Ok(_)) => {
                report.longest_gap = report.longest_gap.max(last.elapsed());
                last = Instant::now();
                report.acknowledged.push(name);
            }
            _ => {
                report.failed += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    report.longest_gap = report.longest_gap.max(last.elapsed());
    report
}
