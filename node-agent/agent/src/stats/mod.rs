//! What pods and the node use, for people (`kubectl top`), dashboards and eviction.
//!
//! CPU and memory are read from control groups at every look, which costs microseconds; writable layers come
//! from the runtime, and volumes and logs are counted file by file, so those are looked at less often.

mod disk;
pub(crate) mod node;
mod prometheus;
mod summary;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use balsa_cri::{ContainerInfo, ContainerState, ContainerStats};
use balsa_pod::qos;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cgroups::Usage;
use crate::pods::sandbox::labels;
use crate::pods::{Context, Manager};
pub(crate) use disk::DiskUse;
use node::Traffic;

/// How old counts of files may be.
const DISK_AGE: Duration = Duration::from_secs(30);

/// Least time between two looks whose difference is a rate.
const RATE_PERIOD: Duration = Duration::from_secs(5);

/// What one container uses.
#[derive(Debug, Clone, Default)]
pub(crate) struct ContainerUse {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) image: String,
    /// When it was made, in seconds since 1970.
    pub(crate) started_at: i64,
    pub(crate) usage: Usage,
    /// CPU in billionths of a core.
    pub(crate) nano_cores: Option<u64>,
    /// Its writable layer.
    pub(crate) rootfs: DiskUse,
    pub(crate) logs: DiskUse,
}

/// What one pod uses.
#[derive(Debug, Clone)]
pub(crate) struct PodUse {
    pub(crate) pod: Arc<Pod>,
    /// Its UID on the node.
    pub(crate) uid: String,
    pub(crate) usage: Usage,
    /// CPU in billionths of a core.
    pub(crate) nano_cores: Option<u64>,
    pub(crate) containers: Vec<ContainerUse>,
    /// Its volumes that lie on the node's disk and are its own, by name.
    pub(crate) volumes: HashMap<String, DiskUse>,
    /// Bytes through its network interfaces.
    pub(crate) traffic: Vec<Traffic>,
}

impl PodUse {
    /// Disk that the pod takes from the node for as long as it lives.
    pub(crate) fn ephemeral(&self) -> DiskUse {
        let containers = self.containers.iter();
        let layers = containers.map(|container| container.rootfs + container.logs);
        layers.chain(self.volumes.values().copied()).sum()
    }
}

/// Looks at what is used.
pub(crate) struct Stats {
    context: Arc<Context>,
    manager: Arc<Manager>,
    /// CPU time at two looks, by container or pod.
    rates: Mutex<HashMap<String, Rate>>,
    disk: tokio::sync::Mutex<Option<(Instant, Arc<DiskCounts>)>>,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    at: Instant,
    cpu_nanos: u64,
    nano_cores: Option<u64>,
}

/// Counts of files, by pod.
#[derive(Debug, Default)]
struct DiskCounts {
    layers: HashMap<String, DiskUse>,
    logs: HashMap<(String, String), DiskUse>,
    volumes: HashMap<String, HashMap<String, DiskUse>>,
}

impl Stats {
    pub(crate) fn new(context: Arc<Context>, manager: Arc<Manager>) -> Self {
        Self {
            context,
            manager,
            rates: Mutex::default(),
            disk: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// What every pod of the node uses now.
    ///
    /// # Errors
    /// When the runtime does not tell which containers there are.
    pub(crate) async fn pods(&self) -> balsa_cri::Result<Vec<PodUse>> {
        let containers = self.context.runtime.list_containers().await?;
        let mut by_pod: HashMap<String, Vec<ContainerInfo>> = HashMap::new();
        for container in containers {
            if container.state != ContainerState::Running {
                continue;
            }
            if let Some(uid) = container.labels.get(labels::POD_UID) {
                by_pod.entry(uid.clone()).or_default().push(container);
            }
        }
        let pods = self.manager.own_pods();
        let disk = self.disk(&pods).await;
        let now = Instant::now();
        let used = pods.iter().filter_map(|(uid, pod)| {
            let containers = by_pod.get(uid).map(Vec::as_slice).unwrap_or_default();
            self.pod(pod, uid, containers, &disk, now)
        });
        let used: Vec<PodUse> = used.collect();
        self.rates
            .lock()
            .retain(|_, rate| now.duration_since(rate.at) < RATE_PERIOD * 60);
        Ok(used)
    }

    fn pod(
        &self,
        pod: &Arc<Pod>,
        uid: &str,
        containers: &[ContainerInfo],
        disk: &DiskCounts,
        now: Instant,
    ) -> Option<PodUse> {
        let spec = pod.spec.as_ref()?;
        let cgroups = &self.context.cgroups;
        let cgroup = cgroups.pod(qos::class(spec), uid);
        let usage = cgroups.usage(&cgroup)?;
        let mut first = None;
        let containers: Vec<ContainerUse> = containers
            .iter()
            .filter_map(|container| {
                let own = format!("{cgroup}/{}", container.id);
                let usage = cgroups.usage(&own)?;
                first = first.or_else(|| cgroups.first_process(&own));
                let logs = disk.logs.get(&(uid.to_owned(), container.name.clone()));
                Some(ContainerUse {
                    name: container.name.clone(),
                    id: container.id.clone(),
                    image: container.image_ref.clone(),
                    started_at: container.created_at / 1_000_000_000,
                    usage,
                    nano_cores: self.rate(&container.id, usage.cpu_nanos, now),
                    rootfs: disk.layers.get(&container.id).copied().unwrap_or_default(),
                    logs: logs.copied().unwrap_or_default(),
                })
            })
            .collect();
        let host_network = balsa_pod::spec::host_network(spec);
        let traffic = first.filter(|_| !host_network).map(node::traffic_of);
        Some(PodUse {
            pod: Arc::clone(pod),
            uid: uid.to_owned(),
            usage,
            nano_cores: self.rate(uid, usage.cpu_nanos, now),
            containers,
            volumes: disk.volumes.get(uid).cloned().unwrap_or_default(),
            traffic: traffic.unwrap_or_default(),
        })
    }

    /// CPU in billionths of a core since an earlier look.
    pub(super) fn rate(&self, key: &str, cpu_nanos: u64, now: Instant) -> Option<u64> {
        let mut rates = self.rates.lock();
        let Some(rate) = rates.get_mut(key) else {
            let first = Rate {
                at: now,
                cpu_nanos,
                nano_cores: None,
            };
            rates.insert(key.to_owned(), first);
            return None;
        };
        let passed = now.duration_since(rate.at);
        if passed >= RATE_PERIOD {
            let used = cpu_nanos.saturating_sub(rate.cpu_nanos);
            let per_second = used as f64 / passed.as_secs_f64();
            *rate = Rate {
                at: now,
                cpu_nanos,
                nano_cores: Some(per_second as u64),
            };
        }
        rate.nano_cores
    }

    /// Has files counted anew at the next look: the disk is full, and who filled it must be known.
    pub(crate) async fn recount(&self) {
        *self.disk.lock().await = None;
    }

    /// Counts of files, at most [`DISK_AGE`] old.
    async fn disk(&self, pods: &[(String, Arc<Pod>)]) -> Arc<DiskCounts> {
        let mut kept = self.disk.lock().await;
        if let Some((at, counts)) = &*kept
            && at.elapsed() < DISK_AGE
        {
            return Arc::clone(counts);
        }
        let layers = self.context.runtime.list_stats().await.unwrap_or_default();
        let paths = self.context.paths.clone();
        let wanted: Vec<_> = pods
            .iter()
            .map(|(uid, pod)| (uid.clone(), Arc::clone(pod)))
            .collect();
        let count = tokio::task::spawn_blocking(move || {
            let mut counts = DiskCounts {
                layers: layers.iter().map(layer).collect(),
                ..DiskCounts::default()
            };
            for (uid, pod) in &wanted {
                let (namespace, name) = names(pod);
                count_logs(&mut counts, uid, &paths.pod_logs(namespace, name, uid));
                let volumes = paths.pod(uid).join("volumes");
                counts
                    .volumes
                    .insert(uid.clone(), volumes_of(pod, &volumes));
            }
            counts
        });
        let counts = Arc::new(count.await.unwrap_or_default());
        *kept = Some((Instant::now(), Arc::clone(&counts)));
        counts
    }
}

fn layer(stat: &ContainerStats) -> (String, DiskUse) {
    let used = DiskUse {
        bytes: stat.rootfs_bytes,
        inodes: stat.rootfs_inodes,
    };
    (stat.id.clone(), used)
}

fn count_logs(counts: &mut DiskCounts, uid: &str, folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let used = disk::count(&entry.path());
        counts.logs.insert((uid.to_owned(), name), used);
    }
}

/// The volumes of a pod that are made of files on the node's disk.
fn volumes_of(pod: &Pod, folder: &Path) -> HashMap<String, DiskUse> {
    let all = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let own = all.filter(|volume| {
        let on_disk = |source: &k8s_openapi::api::core::v1::EmptyDirVolumeSource| {
            source.medium.as_deref().unwrap_or_default().is_empty()
        };
        volume.empty_dir.as_ref().is_some_and(on_disk)
            || volume.config_map.is_some()
            || volume.downward_api.is_some()
    });
    own.map(|volume| (volume.name.clone(), disk::count(&folder.join(&volume.name))))
        .collect()
}

/// Namespace and name of a pod.
pub(crate) fn names(pod: &Pod) -> (&str, &str) {
    let metadata = &pod.metadata;
    (
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}
