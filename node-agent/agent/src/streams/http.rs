//! The node's own HTTP endpoints, of which tools ask through the API server's node proxy.

use std::collections::BTreeMap;

use balsa_cri::ContainerStats;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tracing::debug;

use super::{Refusal, Server, Writer, accept, refuse};
use crate::node::facts::memory_usage;
use crate::pods::sandbox::labels;

impl Server {
    pub(super) async fn http(&self, path: &str, mut writer: Writer) {
        let route = path.split('?').next().unwrap_or(path);
        let body = match route {
            "/healthz" | "/healthz/ping" => Ok("ok".to_owned()),
            "/pods" | "/pods/" => Ok(self.pods()),
            "/stats/summary" => self.summary().await.map(|summary| summary.to_string()),
            "/metrics" => Ok(self.metrics()),
            _ => Err(Refusal::not_found(format!("the node has no {route}"))),
        };
        match body {
            Ok(body) => {
                let sent = async {
                    accept(&mut writer, 200).await?;
                    writer.write_all(body.as_bytes()).await?;
                    writer.shutdown().await
                };
                if let Err(error) = sent.await {
                    debug!(%error, route, "could not send an answer");
                }
            }
            Err(refusal) => refuse(writer, refusal).await,
        }
    }

    fn pods(&self) -> String {
        let items: Vec<Value> = self
            .manager
            .pods()
            .iter()
            .filter_map(|pod| serde_json::to_value(&**pod).ok())
            .collect();
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}).to_string()
    }

    fn metrics(&self) -> String {
        let running = self.manager.pods().len();
        format!(
            "# HELP kubelet_running_pods Number of pods bound to this node.\n# TYPE kubelet_running_pods gauge\n\
             kubelet_running_pods {running}\n"
        )
    }

    /// `/stats/summary` in kubelet's form, as far as the runtime tells.
    async fn summary(&self) -> Result<Value, Refusal> {
        let stats = self
            .context
            .runtime
            .list_stats()
            .await
            .map_err(Refusal::internal)?;
        let mut pods: BTreeMap<String, Vec<ContainerStats>> = BTreeMap::new();
        for stat in stats {
            let uid = stat
                .labels
                .get(labels::POD_UID)
                .cloned()
                .unwrap_or_default();
            pods.entry(uid).or_default().push(stat);
        }
        let pods: Vec<Value> = pods
            .values()
            .filter_map(|stats| pod_summary(stats))
            .collect();
        let now = Timestamp::now().to_string();
        let (total, available) = memory_usage();
        let used = total.saturating_sub(available);
        Ok(json!({
            "node": {
                "nodeName": self.context.config.node_name,
                "memory": {"time": now, "availableBytes": available, "usageBytes": used, "workingSetBytes": used},
            },
            "pods": pods,
        }))
    }
}

fn pod_summary(stats: &[ContainerStats]) -> Option<Value> {
    let first = stats.first()?;
    let label = |name: &str| first.labels.get(name).cloned().unwrap_or_default();
    let containers: Vec<Value> = stats.iter().map(container_summary).collect();
    let memory: u64 = stats.iter().map(|stat| stat.memory_working_set).sum();
    let cpu: u64 = stats.iter().map(|stat| stat.cpu_nanos).sum();
    Some(json!({
        "podRef": {
            "name": label(labels::POD_NAME),
            "namespace": label(labels::POD_NAMESPACE),
            "uid": label(labels::POD_UID),
        },
        "containers": containers,
        "cpu": {"time": time(first.at), "usageCoreNanoSeconds": cpu},
        "memory": {"time": time(first.at), "workingSetBytes": memory},
    }))
}

fn container_summary(stat: &ContainerStats) -> Value {
    json!({
        "name": stat.name,
        "cpu": {"time": time(stat.at), "usageCoreNanoSeconds": stat.cpu_nanos},
        "memory": {
            "time": time(stat.at),
            "workingSetBytes": stat.memory_working_set,
            "usageBytes": stat.memory_usage,
            "rssBytes": stat.memory_rss,
        },
        "rootfs": {"time": time(stat.at), "usedBytes": stat.rootfs_bytes, "inodesUsed": stat.rootfs_inodes},
    })
}

fn time(nanos: i64) -> String {
    Timestamp::from_nanosecond(i128::from(nanos))
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}
