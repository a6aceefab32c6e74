//! A pod as the scheduler sees it: digested once, so that filtering thousands of nodes reads integers.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Affinity, Container, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::image::Image;
use crate::terms::Terms;

/// Amounts of resources. CPU in millicores, memory and ephemeral storage in bytes, the rest in units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Millicores.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages, by name.
    pub other: BTreeMap<String, i64>,
}

impl Resources {
    /// From a resource list of the API; amounts that do not parse count as nothing (the API server has
    /// refused them).
    #[must_use]
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list {
            let Ok(parsed) = quantity.0.parse::<balsa_api::quantity::Quantity>() else {
                continue;
            };
            match name.as_str() {
                "cpu" => resources.cpu = parsed.milli_value(),
                "memory" => resources.memory = parsed.value(),
                "ephemeral-storage" => resources.ephemeral_storage = parsed.value(),
                // Counted apart, as the number of pods.
                "pods" => {}
                _ => {
                    resources.other.insert(name.clone(), parsed.value());
                }
            }
        }
        resources
    }

    /// Adds another amount.
    pub fn add(&mut self, other: &Self) {
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral_storage = self
            .ephemeral_storage
            .saturating_add(other.ephemeral_storage);
        for (name, amount) in &other.other {
            let entry = self.other.entry(name.clone()).or_default();
            *entry = entry.saturating_add(*amount);
        }
    }

    /// Takes an amount away again.
    pub fn remove(&mut self, other: &Self) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, amount) in &other.other {
            if let Some(entry) = self.other.get_mut(name) {
                *entry -= amount;
            }
        }
    }

    /// The larger of each amount.
    fn raise_to(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.other {
            let entry = self.other.entry(name.clone()).or_default();
            *entry = (*entry).max(*amount);
        }
    }
}

/// A port on the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Address, `0.0.0.0` for all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port.
    pub port: i32,
}

impl HostPort {
    /// True when both cannot be open on one node.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |p: &Self| p.ip == "0.0.0.0" || p.ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(self) || any(other))
    }
}

/// The digest of a pod.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// The object itself.
    pub pod: Arc<Pod>,
    /// `namespace/name`.
    pub key: String,
    /// UID.
    pub uid: String,
    /// What it asks for.
    pub requests: Resources,
    /// What scoring counts for containers that ask for nothing: 100m CPU and 200 MiB memory each, as
    /// upstream, so that such pods spread too.
    pub nonzero: (i64, i64),
    /// Ports it opens on the node.
    pub ports: Vec<HostPort>,
    /// `spec.priority`.
    pub priority: i32,
    /// UID of the controller that owns it, empty for none: pods of one owner are spread.
    pub owner: String,
    /// Images it runs.
    pub images: Vec<Image>,
    /// What it says of other pods.
    pub terms: Terms,
    /// Names of the claims it mounts, those of its ephemeral volumes too.
    pub claims: Vec<String>,
}

impl PodInfo {
    /// Digests a pod.
    #[must_use]
    pub fn new(pod: Arc<Pod>) -> Self {
        let meta = &pod.metadata;
        let key = format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        );
        let owner = meta
            .owner_references
            .iter()
            .flatten()
            .find(|o| o.controller == Some(true))
            .map(|o| o.uid.clone())
            .unwrap_or_default();
        let spec = pod.spec.as_ref();
        let containers: &[Container] = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
        let requests = requests(&pod);
        Self {
            key,
            uid: meta.uid.clone().unwrap_or_default(),
            nonzero: nonzero(containers, &requests),
            requests,
            ports: host_ports(containers),
            priority: spec.and_then(|s| s.priority).unwrap_or(0),
            owner,
            images: containers
                .iter()
                .filter_map(|c| c.image.as_deref().map(Image::new))
                .collect(),
            terms: Terms::new(&pod),
            claims: claims(&pod),
            pod,
        }
    }

    /// Node that the pod is bound to.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.pod
            .spec
            .as_ref()?
            .node_name
            .as_deref()
            .filter(|n| !n.is_empty())
    }

    /// `Succeeded` or `Failed`: holds no resources any more.
    #[must_use]
    pub fn finished(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// `spec.nodeSelector`.
    #[must_use]
    pub fn node_selector(&self) -> Option<&BTreeMap<String, String>> {
        self.pod.spec.as_ref()?.node_selector.as_ref()
    }

    /// `spec.affinity`.
    #[must_use]
    pub fn affinity(&self) -> Option<&Affinity> {
        self.pod.spec.as_ref()?.affinity.as_ref()
    }

    /// `spec.tolerations`.
    #[must_use]
    pub fn tolerations(&self) -> &[Toleration] {
        self.pod
            .spec
            .as_ref()
            .and_then(|s| s.tolerations.as_deref())
            .unwrap_or_default()
    }
}

/// An ephemeral volume's claim is named after the pod and the volume (core/v1 EphemeralVolumeSource).
fn claims(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let own = volume.ephemeral.as_ref().and(pod.metadata.name.as_ref());
            let named = volume.persistent_volume_claim.as_ref();
            named
                .map(|claim| claim.claim_name.clone())
                .or_else(|| own.map(|pod| format!("{pod}-{}", volume.name)))
        })
        .collect()
}

fn container_requests(container: &Container) -> Resources {
    container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref())
        .map(Resources::from_list)
        .unwrap_or_default()
}

/// Effective requests: the sum of containers and native sidecars, or the largest step of initialisation
/// if that is more, plus overhead (KEP-753). Pod-level requests win where set (KEP-2837).
fn requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&container_requests(container));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = container_requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own);
            peak.raise_to(&sidecars);
        } else {
            let mut step = sidecars.clone();
            step.add(&own);
            peak.raise_to(&step);
        }
    }
    running.add(&sidecars);
    running.raise_to(&peak);
    if let Some(list) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let pod_level = Resources::from_list(list);
        for name in list.keys() {
            match name.as_str() {
                "cpu" => running.cpu = pod_level.cpu,
                "memory" => running.memory = pod_level.memory,
                _ => {}
            }
        }
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::from_list(overhead));
    }
    running
}

fn nonzero(containers: &[Container], total: &Resources) -> (i64, i64) {
    const CPU: i64 = 100;
    const MEMORY: i64 = 200 * 1024 * 1024;
    let without = |zero: fn(&Resources) -> bool| {
        i64::try_from(
            containers
                .iter()
                .filter(|c| zero(&container_requests(c)))
                .count(),
        )
        .unwrap_or(0)
    };
    (
        total.cpu + CPU * without(|r| r.cpu == 0),
        total.memory + MEMORY * without(|r| r.memory == 0),
    )
}

fn host_ports(containers: &[Container]) -> Vec<HostPort> {
    containers
        .iter()
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|port| *port > 0)?;
            Some(HostPort {
                ip: p
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".into()),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn info(spec: serde_json::Value) -> PodInfo {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()))
    }

    fn container(cpu: &str, memory: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn an_init_container_larger_than_the_rest_decides_the_request() {
        let pod = info(json!({
            "containers": [container("100m", "64Mi"), container("200m", "64Mi")],
            "initContainers": [container("1", "32Mi")],
        }));
        assert_eq!(pod.requests.cpu, 1000);
        assert_eq!(pod.requests.memory, 128 << 20);
    }

    #[test]
    fn a_sidecar_counts_with_the_containers_and_with_later_init_containers() {
        let mut sidecar = container("300m", "1Mi");
        sidecar["restartPolicy"] = json!("Always");
        let pod = info(json!({
            "containers": [container("100m", "1Mi")],
            "initContainers": [sidecar, container("500m", "1Mi")],
        }));
        assert_eq!(pod.requests.cpu, 800);
    }

    #[test]
    fn a_container_that_asks_for_nothing_weighs_something_in_scores() {
        let pod = info(json!({"containers": [{"name": "c"}]}));
        assert_eq!(pod.requests, Resources::default());
        assert_eq!(pod.nonzero, (100, 200 << 20));
    }

    #[test]
    fn a_port_on_all_addresses_conflicts_with_the_same_port_on_one() {
        let port = |ip: &str, protocol: &str| HostPort {
            ip: ip.into(),
            protocol: protocol.into(),
            port: 80,
        };
        assert!(port("0.0.0.0", "TCP").conflicts(&port("10.0.0.1", "TCP")));
        assert!(!port("10.0.0.2", "TCP").conflicts(&port("10.0.0.1", "TCP")));
        assert!(!port("0.0.0.0", "UDP").conflicts(&port("10.0.0.1", "TCP")));
    }
}
