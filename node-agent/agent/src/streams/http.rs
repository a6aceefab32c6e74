//! The node's own HTTP endpoints, of which tools ask through the API server's node proxy.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tracing::debug;

use super::{Refusal, Server, Writer, accept, refuse};

impl Server {
    pub(super) async fn http(&self, path: &str, mut writer: Writer) {
        let route = path.split('?').next().unwrap_or(path);
        match self.answer(route).await {
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

    async fn answer(&self, route: &str) -> Result<String, Refusal> {
        match route.trim_end_matches('/') {
            "/healthz" | "/healthz/ping" | "/healthz/log" => Ok("ok".to_owned()),
            "/healthz/syncloop" => Ok("ok".to_owned()),
            "/pods" => Ok(self.pods()),
            "/runningpods" => self.running_pods().await,
            "/configz" => Ok(self.configuration().to_string()),
            "/stats/summary" => {
                let summary = self.stats.summary().await;
                Ok(summary.map_err(Refusal::internal)?.to_string())
            }
            "/metrics" => Ok(self.stats.own_metrics()),
            "/metrics/resource" => self
                .stats
                .resource_metrics()
                .await
                .map_err(Refusal::internal),
            "/metrics/cadvisor" => self
                .stats
                .cadvisor_metrics()
                .await
                .map_err(Refusal::internal),
            _ => Err(Refusal::not_found(format!("the node has no {route}"))),
        }
    }

    fn pods(&self) -> String {
        let items: Vec<Value> = self
            .manager
            .pods()
            .iter()
            .filter_map(|pod| serde_json::to_value(&**pod).ok())
            .collect();
        list(items)
    }

    /// The pods that have running containers, as far as the runtime knows them.
    async fn running_pods(&self) -> Result<String, Refusal> {
        let used = self.stats.pods().await.map_err(Refusal::internal)?;
        let running = used.iter().filter(|used| !used.containers.is_empty());
        let items = running.map(|used| {
            let metadata = &used.pod.metadata;
            let containers: Vec<Value> = used
                .containers
                .iter()
                .map(|container| json!({"name": container.name, "image": container.image, "resources": {}}))
                .collect();
            json!({
                "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": used.uid},
                "spec": {"containers": containers},
                "status": {},
            })
        });
        Ok(list(items.collect()))
    }

    /// The settings in the form of a KubeletConfiguration, which tools look into.
    fn configuration(&self) -> Value {
        let config = &self.context.config;
        let eviction = &config.eviction;
        let shutdown = config.shutdown.iter().map(|entry| {
            let seconds = entry.period.as_secs();
            json!({"priority": entry.priority, "shutdownGracePeriodSeconds": seconds})
        });
        let hard = eviction.hard.iter();
        let hard = hard.map(|(signal, least)| (signal.name(), least.to_string()));
        let soft = eviction.soft.iter();
        let graces = soft.clone();
        let soft = soft.map(|(signal, soft)| (signal.name(), soft.threshold.to_string()));
        let graces =
            graces.map(|(signal, soft)| (signal.name(), format!("{}s", soft.grace.as_secs())));
        json!({"kubeletconfig": {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": config.cgroup_root,
            "cgroupsPerQOS": true,
            "clusterDNS": config.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "clusterDomain": config.cluster_domain,
            "maxPods": config.max_pods,
            "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
            "staticPodPath": config.static_pods,
            "allowedUnsafeSysctls": config.allowed_unsafe_sysctls,
            "nodeLeaseDurationSeconds": config.lease_seconds(),
            "evictionHard": hard.collect::<BTreeMap<_, _>>(),
            "evictionSoft": soft.collect::<BTreeMap<_, _>>(),
            "evictionSoftGracePeriod": graces.collect::<BTreeMap<_, _>>(),
            "evictionMaxPodGracePeriod": eviction.max_pod_grace.as_secs(),
            "evictionPressureTransitionPeriod": format!("{}s", eviction.transition.as_secs()),
            "shutdownGracePeriodByPodPriority": shutdown.collect::<Vec<_>>(),
        }})
    }
}

fn list(items: Vec<Value>) -> String {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}).to_string()
}
