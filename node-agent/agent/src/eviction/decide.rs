//! Which pod goes first, and in which words. Pure; the order is upstream's (`pkg/kubelet/eviction/helpers.go`).

use std::cmp::Reverse;

use balsa_api::kinds::pod_requests;
use balsa_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::config::Eviction;
use crate::node::facts::Pressure;
use crate::pods::capacity::critical;
use crate::stats::node::{Filesystem, Memory};
use crate::stats::{ContainerUse, PodUse};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// `memory.available`
    Memory,
    /// `nodefs.available`
    Disk,
    /// `nodefs.inodesFree`
    Inodes,
    /// `pid.available`
    Pids,
}

/// What the node has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Observed {
    pub(super) memory: Memory,
    pub(super) disk: Filesystem,
    /// Process ids in use, and the most there may be.
    pub(super) pids: (u64, u64),
}

/// A signal beyond its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) signal: Signal,
    pub(super) threshold: u64,
    pub(super) available: u64,
}

impl Signal {
    /// The resource as messages name it.
    fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }
}

/// Everything that the node is short of, the most urgent first.
pub(super) fn shortages(seen: &Observed, limits: &Eviction) -> Vec<Shortage> {
    let (used, most) = seen.pids;
    let all = [
        (
            Signal::Memory,
            seen.memory.total,
            limits.memory_available,
            seen.memory.available,
        ),
        (
            Signal::Disk,
            seen.disk.capacity,
            limits.disk_available,
            seen.disk.available,
        ),
        (
            Signal::Inodes,
            seen.disk.inodes,
            limits.inodes_free,
            seen.disk.inodes_free,
        ),
        (
            Signal::Pids,
            most,
            limits.pids_available,
            most.saturating_sub(used),
        ),
    ];
    all.into_iter()
        .map(|(signal, total, threshold, available)| {
            (signal, total, threshold.of(total), available)
        })
        // What can't be read has no total, and says nothing.
        .filter(|(_, total, threshold, available)| *total > 0 && available < threshold)
        .map(|(signal, _, threshold, available)| Shortage {
            signal,
            threshold,
            available,
        })
        .collect()
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
        disk: any(&[Signal::Disk, Signal::Inodes]),
        pids: any(&[Signal::Pids]),
    }
}

/// The pod to throw out, if any may be: those that use more than they asked for first, then by priority, then
/// those most beyond what they asked for.
pub(super) fn victim(signal: Signal, pods: &[PodUse]) -> Option<&PodUse> {
    let candidates = pods
        .iter()
        .filter(|used| !critical(&used.pod) && used.pod.metadata.deletion_timestamp.is_none());
    candidates.max_by_key(|used| {
        let (usage, request) = balance(signal, used);
        let priority = used.pod.spec.as_ref().and_then(|spec| spec.priority);
        let beyond = i128::from(usage) - i128::from(request);
        (beyond > 0, Reverse(priority.unwrap_or(0)), beyond)
    })
}

/// What a pod uses and what it asked for. Nobody asks for process ids or inodes.
fn balance(signal: Signal, used: &PodUse) -> (u64, u64) {
    let asked = |name: &str| {
        let value = serde_json::to_value(&*used.pod).unwrap_or_default();
        let amount = pod_requests(&value).get(name).copied().unwrap_or_default();
        u64::try_from(amount.value()).unwrap_or(0)
    };
    match signal {
        Signal::Memory => (used.usage.working_set, asked("memory")),
        Signal::Disk => (used.ephemeral().bytes, asked("ephemeral-storage")),
        Signal::Inodes => (used.ephemeral().inodes, 0),
        Signal::Pids => (used.usage.pids, 0),
    }
}

/// Why the pod goes.
pub(super) fn message(shortage: &Shortage, used: &PodUse) -> String {
    let unit = |bytes: u64| match shortage.signal {
        Signal::Memory | Signal::Disk => quantity(bytes),
        Signal::Inodes | Signal::Pids => bytes.to_string(),
    };
    let mut text = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        shortage.signal.resource(),
        unit(shortage.threshold),
        unit(shortage.available),
    );
    for container in &used.containers {
        let usage = match shortage.signal {
            Signal::Memory => container.usage.working_set,
            Signal::Disk => (container.rootfs + container.logs).bytes,
            Signal::Inodes | Signal::Pids => continue,
        };
        let request = request_of(&used.pod, &container.name, shortage.signal.resource());
        if usage > request {
            text.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {}. ",
                container.name,
                quantity(usage),
                quantity(request),
                shortage.signal.resource(),
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
    use crate::stats::DiskUse;

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
        assert_eq!(victim(Signal::Memory, &pods).unwrap().uid, "greedy");
        let critical = [used("system", 2_000_001_000, "0", 1 << 30)];
        assert!(victim(Signal::Memory, &critical).is_none());
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
        let short = shortages(&seen, &Eviction::default());
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
