//! Which pod goes first, and in which words. Pure; the order is upstream's (`pkg/kubelet/eviction/helpers.go`).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use balsa_api::kinds::pod_requests;
use balsa_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use tokio::time::Instant;

use crate::config::{Eviction, Signal};
use crate::node::facts::Pressure;
use crate::pods::capacity::critical;
use crate::stats::node::{Filesystem, Memory};
use crate::stats::{ContainerUse, DiskUse, PodUse};

/// What the node has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Observed {
    pub(super) memory: Memory,
    pub(super) disk: Filesystem,
    /// The images' file system, if they have one of their own. Containers write to it too.
    pub(super) images: Option<Filesystem>,
    /// Process ids in use, and the most there may be.
    pub(super) pids: (u64, u64),
}

impl Observed {
    /// How much there is of something, and how much of that is free. What can't be read has no total.
    fn of(&self, signal: Signal) -> Option<(u64, u64)> {
        let (used, most) = self.pids;
        let (total, free) = match signal {
            Signal::Memory => (self.memory.total, self.memory.available),
            Signal::Disk => (self.disk.capacity, self.disk.available),
            Signal::Inodes => (self.disk.inodes, self.disk.inodes_free),
            Signal::ImageDisk => {
                let images = self.images?;
                (images.capacity, images.available)
            }
            Signal::ImageInodes => {
                let images = self.images?;
                (images.inodes, images.inodes_free)
            }
            Signal::Pids => (most, most.saturating_sub(used)),
        };
        (total > 0).then_some((total, free))
    }
}

/// A signal beyond its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) signal: Signal,
    pub(super) threshold: u64,
    pub(super) available: u64,
    /// How long it may last, for a soft threshold.
    pub(super) grace: Option<Duration>,
    /// Do images, and what containers write to their root file systems, lie on a file system of their own?
    pub(super) apart: bool,
}

/// The resource as messages name it.
fn resource(signal: Signal) -> &'static str {
    match signal {
        Signal::Memory => "memory",
        Signal::Disk | Signal::ImageDisk => "ephemeral-storage",
        Signal::Inodes | Signal::ImageInodes => "inodes",
        Signal::Pids => "pids",
    }
}

/// Everything that the node is short of: hard thresholds first, then the most urgent. What pods are thrown out for
/// already (`pressing`) is not over before there is as much more as is to be reclaimed at least.
pub(super) fn shortages(
    seen: &Observed,
    limits: &Eviction,
    pressing: &[Shortage],
) -> Vec<Shortage> {
    let lasts = |signal: Signal, soft: bool| {
        let mut pressing = pressing.iter();
        pressing.any(|known| known.signal == signal && known.grace.is_some() == soft)
    };
    let hard = limits.hard.iter();
    let hard = hard.map(|(signal, threshold)| (*signal, *threshold, None));
    let soft = limits.soft.iter();
    let soft = soft.map(|(signal, soft)| (*signal, soft.threshold, Some(soft.grace)));
    hard.chain(soft)
        .filter_map(|(signal, threshold, grace)| {
            let (total, available) = seen.of(signal)?;
            let threshold = threshold.of(total);
            let reclaim = limits.minimum_reclaim.get(&signal);
            let reclaim = reclaim.filter(|_| lasts(signal, grace.is_some()));
            let enough = threshold.saturating_add(reclaim.map_or(0, |more| more.of(total)));
            (available < enough).then_some(Shortage {
                signal,
                threshold,
                available,
                grace,
                apart: seen.images.is_some(),
            })
        })
        .collect()
}

/// Since when soft thresholds are crossed.
#[derive(Debug, Default)]
pub(super) struct Since(BTreeMap<Signal, Instant>);

impl Since {
    /// Those shortages that cannot be waited out any longer.
    pub(super) fn pressing(&mut self, shortages: &[Shortage], now: Instant) -> Vec<Shortage> {
        let soft = |shortage: &&Shortage| shortage.grace.is_some();
        self.0.retain(|signal, _| {
            let mut soft = shortages.iter().filter(soft);
            soft.any(|shortage| shortage.signal == *signal)
        });
        let pressing = shortages.iter().filter(|shortage| {
            shortage.grace.is_none_or(|grace| {
                let since = *self.0.entry(shortage.signal).or_insert(now);
                now.duration_since(since) >= grace
            })
        });
        pressing.copied().collect()
    }
}

/// The node's conditions that follow.
pub(super) fn pressure(shortages: &[Shortage]) -> Pressure {
    let any = |signals: &[Signal]| {
        shortages
            .iter()
            .any(|shortage| signals.contains(&shortage.signal))
    };
    Pressure {
        memory: any(&[Signal::Memory]),
        disk: shortages
            .iter()
            .any(|shortage| shortage.signal.is_of_disk()),
        pids: any(&[Signal::Pids]),
    }
}

/// The pod to throw out, if any may be: those that use more than they asked for first, then by priority, then
/// those most beyond what they asked for.
pub(super) fn victim<'a>(shortage: &Shortage, pods: &'a [PodUse]) -> Option<&'a PodUse> {
    let candidates = pods
        .iter()
        .filter(|used| !critical(&used.pod) && used.pod.metadata.deletion_timestamp.is_none());
    candidates.max_by_key(|used| {
        let (usage, request) = balance(shortage, used);
        let priority = used.pod.spec.as_ref().and_then(|spec| spec.priority);
        let beyond = i128::from(usage) - i128::from(request);
        (beyond > 0, Reverse(priority.unwrap_or(0)), beyond)
    })
}

/// What a pod uses and what it asked for. Nobody asks for process ids or inodes.
fn balance(shortage: &Shortage, used: &PodUse) -> (u64, u64) {
    let asked = |name: &str| {
        let value = serde_json::to_value(&*used.pod).unwrap_or_default();
        let amount = pod_requests(&value).get(name).copied().unwrap_or_default();
        u64::try_from(amount.value()).unwrap_or(0)
    };
    let layers = || -> DiskUse { used.containers.iter().map(|own| own.rootfs).sum() };
    // Whoever goes must give back something of what is wanting.
    let on_node = || {
        let (all, layers) = (used.ephemeral(), layers());
        if shortage.apart {
            DiskUse {
                bytes: all.bytes.saturating_sub(layers.bytes),
                inodes: all.inodes.saturating_sub(layers.inodes),
            }
        } else {
            all
        }
    };
    match shortage.signal {
        Signal::Memory => (used.usage.working_set, asked("memory")),
        Signal::Disk => (on_node().bytes, asked("ephemeral-storage")),
        Signal::ImageDisk => (layers().bytes, asked("ephemeral-storage")),
        Signal::Inodes => (on_node().inodes, 0),
        Signal::ImageInodes => (layers().inodes, 0),
        Signal::Pids => (used.usage.pids, 0),
    }
}

/// Why the pod goes.
pub(super) fn message(shortage: &Shortage, used: &PodUse) -> String {
    let unit = |bytes: u64| match shortage.signal {
        Signal::Memory | Signal::Disk | Signal::ImageDisk => quantity(bytes),
        Signal::Inodes | Signal::ImageInodes | Signal::Pids => bytes.to_string(),
    };
    let resource = resource(shortage.signal);
    let mut text = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        resource,
        unit(shortage.threshold),
        unit(shortage.available),
    );
    for container in &used.containers {
        let usage = match shortage.signal {
            Signal::Memory => container.usage.working_set,
            Signal::Disk | Signal::ImageDisk => (container.rootfs + container.logs).bytes,
            Signal::Inodes | Signal::ImageInodes | Signal::Pids => continue,
        };
        let request = request_of(&used.pod, &container.name, resource);
        if usage > request {
            text.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {}. ",
                container.name,
                quantity(usage),
                quantity(request),
                resource,
            ));
        }
    }
    text
}

/// Bytes as quantities are written.
fn quantity(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}Mi", bytes >> 20),
        _ if bytes.is_multiple_of(1024) => format!("{}Ki", bytes >> 10),
        _ => bytes.to_string(),
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten();
        inits.chain(&spec.containers)
    })
}

fn request_of(pod: &Pod, name: &str, resource: &str) -> u64 {
    let container = containers(pod).find(|container| container.name == name);
    let amount = container
        .and_then(|container| {
            container
                .resources
                .as_ref()?
                .requests
                .as_ref()?
                .get(resource)
        })
        .and_then(|amount| amount.0.parse::<Quantity>().ok());
    amount.map_or(0, |amount| u64::try_from(amount.value()).unwrap_or(0))
}

/// Does a pod use more of the node's disk than it may? Then in which words.
pub(super) fn over_its_disk(used: &PodUse) -> Option<String> {
    let spec = used.pod.spec.as_ref()?;
    let volumes = spec.volumes.iter().flatten();
    if let Some(message) = volumes
        .into_iter()
        .find_map(|volume| over_volume(used, volume))
    {
        return Some(message);
    }
    let limit = |container: &Container| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        let amount: Quantity = limits.get("ephemeral-storage")?.0.parse().ok()?;
        Some(amount).filter(|amount| !amount.is_zero())
    };
    let over = |container: &ContainerUse| {
        let own = containers(&used.pod).find(|own| own.name == container.name)?;
        let limit = limit(own)?;
        let bytes = (container.rootfs + container.logs).bytes;
        (i128::from(bytes) > i128::from(limit.value())).then(|| {
            format!(
                "Container {} exceeded its local ephemeral storage limit \"{limit}\". ",
                container.name
            )
        })
    };
    if let Some(message) = used.containers.iter().find_map(over) {
        return Some(message);
    }
    // The pod as a whole may use what its containers may together, if each has a limit.
    let limits: Option<Vec<Quantity>> = spec.containers.iter().map(limit).collect();
    let total: Quantity = limits?.into_iter().sum();
    (i128::from(used.ephemeral().bytes) > i128::from(total.value())).then(|| {
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {total}. ")
    })
}

fn over_volume(used: &PodUse, volume: &Volume) -> Option<String> {
    let limit: Quantity = volume
        .empty_dir
        .as_ref()?
        .size_limit
        .as_ref()?
        .0
        .parse()
        .ok()?;
    let bytes = used.volumes.get(&volume.name)?.bytes;
    (!limit.is_zero() && i128::from(bytes) > i128::from(limit.value())).then(|| {
        format!(
            "Usage of EmptyDir volume \"{}\" exceeds the limit \"{limit}\". ",
            volume.name
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::cgroups::Usage;

    fn used(name: &str, priority: i32, request: &str, working_set: u64) -> PodUse {
        with_spec(
            name,
            json!({"priority": priority, "containers": [{"name": "c",
                "resources": {"requests": {"memory": request}}}]}),
            working_set,
        )
    }

    fn with_spec(name: &str, spec: Value, working_set: u64) -> PodUse {
        let usage = Usage {
            working_set,
            ..Usage::default()
        };
        let container = ContainerUse {
            name: "c".to_owned(),
            usage,
            ..ContainerUse::default()
        };
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        PodUse {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            uid: name.to_owned(),
            usage,
            nano_cores: None,
            containers: vec![container],
            volumes: Default::default(),
            traffic: Vec::new(),
        }
    }

    #[test]
    fn who_uses_more_than_asked_goes_first_then_the_less_important() {
        let pods = [
            used("within", 0, "1Gi", 1 << 29),
            used("important", 100, "1Mi", 1 << 30),
            used("greedy", 0, "1Mi", 1 << 28),
            used("modest", 0, "1Mi", 1 << 27),
        ];
        let short = short_of(Signal::Memory, false);
        assert_eq!(victim(&short, &pods).unwrap().uid, "greedy");
        let critical = [used("system", 2_000_001_000, "0", 1 << 30)];
        assert!(victim(&short, &critical).is_none());
    }

    fn short_of(signal: Signal, apart: bool) -> Shortage {
        Shortage {
            signal,
            threshold: 2,
            available: 1,
            grace: None,
            apart,
        }
    }

    #[test]
    fn who_goes_gives_back_what_is_wanting() {
        let bytes = |bytes| DiskUse { bytes, inodes: 1 };
        let mut in_layer = used("layer", 0, "0", 0);
        in_layer.containers[0].rootfs = bytes(20 << 20);
        let mut in_volume = used("volume", 0, "0", 0);
        in_volume.volumes.insert("v".to_owned(), bytes(10 << 20));
        let pods = [in_layer, in_volume];
        let goes = |signal, apart| victim(&short_of(signal, apart), &pods).unwrap().uid.clone();
        assert_eq!(goes(Signal::Disk, false), "layer");
        assert_eq!(goes(Signal::Disk, true), "volume");
        assert_eq!(goes(Signal::ImageDisk, true), "layer");
    }

    /// A node that has so much of 100 bytes of memory left.
    fn memory_left(available: u64) -> Observed {
        Observed {
            memory: Memory {
                total: 100,
                available,
            },
            ..Observed::default()
        }
    }

    #[test]
    fn a_soft_threshold_is_waited_out_and_its_time_begins_anew_after_recovery() {
        let mut limits = Eviction::default();
        limits.set_hard("memory.available<10").unwrap();
        limits
            .set_soft("memory.available<20", "memory.available=30s")
            .unwrap();
        let with = |available| shortages(&memory_left(available), &limits, &[]);
        let (mut since, start) = (Since::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(pressure(&with(15)).memory, "told at once");
        assert!(since.pressing(&with(15), at(0)).is_empty());
        assert!(since.pressing(&with(15), at(29)).is_empty());
        assert_eq!(since.pressing(&with(15), at(30)).len(), 1);
        assert!(since.pressing(&with(50), at(31)).is_empty());
        assert!(since.pressing(&with(15), at(32)).is_empty());
        let hard = since.pressing(&with(5), at(33));
        assert_eq!((hard.len(), hard[0].grace), (1, None));
    }

    #[test]
    fn a_shortage_that_pods_go_for_is_over_when_enough_is_reclaimed() {
        let mut limits = Eviction::default();
        limits.set_hard("memory.available<10").unwrap();
        limits.set_minimum_reclaim("memory.available=5").unwrap();
        let with = |available, pressing: &[Shortage]| {
            shortages(&memory_left(available), &limits, pressing)
        };
        assert!(with(12, &[]).is_empty());
        let short = with(9, &[]);
        assert_eq!(with(14, &short)[0].threshold, 10);
        assert!(with(15, &short).is_empty());
    }

    #[test]
    fn the_images_file_system_counts_where_it_is_one_of_its_own() {
        let disk = |available| Filesystem {
            capacity: 100,
            available,
            inodes: 100,
            inodes_free: 50,
        };
        let mut seen = Observed {
            disk: disk(12),
            ..Observed::default()
        };
        assert!(shortages(&seen, &Eviction::default(), &[]).is_empty());
        seen.images = Some(disk(12));
        let short = shortages(&seen, &Eviction::default(), &[]);
        assert_eq!(short[0].signal, Signal::ImageDisk);
        assert!(pressure(&short).disk);
    }

    #[test]
    fn a_shortage_is_told_in_upstreams_words() {
        let seen = Observed {
            memory: Memory {
                total: 1 << 30,
                available: 50 << 20,
            },
            ..Observed::default()
        };
        let short = shortages(&seen, &Eviction::default(), &[]);
        assert_eq!(short.len(), 1);
        assert!(pressure(&short).memory && !pressure(&short).disk);
        assert_eq!(
            message(&short[0], &used("p", 0, "1Mi", 2 << 20)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 2Mi, request is 1Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn a_pod_must_not_write_more_than_it_may() {
        let mut pod = with_spec(
            "p",
            json!({"containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "1Mi"}}}],
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "2Mi"}}]}),
            0,
        );
        assert_eq!(over_its_disk(&pod), None);
        let bytes = |bytes| DiskUse { bytes, inodes: 1 };
        pod.containers[0].rootfs = bytes(2 << 20);
        assert_eq!(
            over_its_disk(&pod).unwrap(),
            "Container c exceeded its local ephemeral storage limit \"1Mi\". "
        );
        pod.volumes.insert("v".to_owned(), bytes(3 << 20));
        assert_eq!(
            over_its_disk(&pod).unwrap(),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\". "
        );
    }
}
