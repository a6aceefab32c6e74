//! `/stats/summary`, in kubelet's form.

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::node::{self, Filesystem, Traffic};
use super::{ContainerUse, DiskUse, PodUse, Stats, names};
use crate::cgroups::{Swap, Usage};
use crate::csi::VolumeUse;

impl Stats {
    /// The summary.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub(crate) async fn summary(&self) -> balsa_cri::Result<Value> {
        let pods = self.pods().await?;
        let now = Timestamp::now().to_string();
        let folder = &self.context.config.data_dir;
        let disk = node::filesystem(folder).unwrap_or_default();
        let image_bytes = self.context.runtime.image_fs_info().await;
        let image_bytes: u64 = image_bytes
            .unwrap_or_default()
            .iter()
            .map(|usage| usage.used_bytes)
            .sum();
        let outside = self.context.csi.usage();
        let pods: Vec<Value> = pods
            .iter()
            .map(|pod| pod_summary(pod, &outside, &disk, &now))
            .collect();
        let used = disk.capacity.saturating_sub(disk.available);
        Ok(json!({
            "node": self.node_summary(&disk, &now, used, image_bytes),
            "pods": pods,
        }))
    }

    fn node_summary(&self, disk: &Filesystem, now: &str, used: u64, image_bytes: u64) -> Value {
        let memory = node::memory();
        let used_memory = memory.total.saturating_sub(memory.available);
        let cpu = node::cpu_nanos();
        let (pids, most) = node::pids();
        json!({
            "nodeName": self.context.config.node_name,
            "startTime": time(node::booted_at()),
            "cpu": {
                "time": now,
                "usageNanoCores": self.rate("node", cpu, Instant::now()).unwrap_or(0),
                "usageCoreNanoSeconds": cpu,
            },
            "memory": {
                "time": now,
                "availableBytes": memory.available,
                "usageBytes": used_memory,
                "workingSetBytes": used_memory,
            },
            "swap": swap(&node::swap(), now),
            "network": network(&node::traffic(), now),
            "fs": filesystem(disk, used, now),
            "runtime": {
                "imageFs": filesystem(disk, image_bytes, now),
                "containerFs": filesystem(disk, image_bytes, now),
            },
            "rlimit": {"time": now, "maxpid": most, "curproc": pids},
        })
    }
}

fn pod_summary(pod: &PodUse, outside: &[VolumeUse], disk: &Filesystem, now: &str) -> Value {
    let (namespace, name) = names(&pod.pod);
    let containers: Vec<Value> = pod
        .containers
        .iter()
        .map(|container| container_summary(container, disk, now))
        .collect();
    let mut volumes: Vec<Value> = pod
        .volumes
        .iter()
        .map(|(name, used)| {
            let mut volume = files(disk, *used, now);
            volume["name"] = json!(name);
            volume
        })
        .collect();
    let outside = outside.iter().filter(|usage| usage.pod == pod.uid);
    volumes.extend(outside.map(|usage| outside_summary(usage, now)));
    let started = pod
        .pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref());
    let mut summary = json!({
        "podRef": {"name": name, "namespace": namespace, "uid": pod.uid},
        "startTime": started.map(|time| time.0.to_string()),
        "containers": containers,
        "cpu": cpu(&pod.usage, pod.nano_cores, now),
        "memory": memory(&pod.usage, now),
        "network": network(&pod.traffic, now),
        "volume": volumes,
        "ephemeral-storage": files(disk, pod.ephemeral(), now),
        "process_stats": {"process_count": pod.usage.pids},
    });
    add_swap(&mut summary, &pod.usage, now);
    summary
}

/// A volume that does not lie on the node's disk.
fn outside_summary(usage: &VolumeUse, now: &str) -> Value {
    let mut value = json!({"time": now, "name": usage.volume});
    if let Some(bytes) = usage.bytes {
        value["availableBytes"] = json!(bytes.available);
        value["capacityBytes"] = json!(bytes.total);
        value["usedBytes"] = json!(bytes.used);
    }
    if let Some(inodes) = usage.inodes {
        value["inodesFree"] = json!(inodes.available);
        value["inodes"] = json!(inodes.total);
        value["inodesUsed"] = json!(inodes.used);
    }
    if let Some((namespace, name)) = &usage.claim {
        value["pvcRef"] = json!({"name": name, "namespace": namespace});
    }
    value
}

fn container_summary(container: &ContainerUse, disk: &Filesystem, now: &str) -> Value {
    let mut summary = json!({
        "name": container.name,
        "startTime": time(container.started_at),
        "cpu": cpu(&container.usage, container.nano_cores, now),
        "memory": memory(&container.usage, now),
        "rootfs": files(disk, container.rootfs, now),
        "logs": files(disk, container.logs, now),
    });
    add_swap(&mut summary, &container.usage, now);
    summary
}

fn add_swap(summary: &mut Value, usage: &Usage, now: &str) {
    if let Some(used) = &usage.swap {
        summary["swap"] = swap(used, now);
    }
}

fn swap(swap: &Swap, now: &str) -> Value {
    let mut value = json!({"time": now, "swapUsageBytes": swap.used});
    if let Some(available) = swap.available {
        value["swapAvailableBytes"] = json!(available);
    }
    value
}

fn cpu(usage: &Usage, nano_cores: Option<u64>, now: &str) -> Value {
    let mut cpu = json!({"time": now, "usageCoreNanoSeconds": usage.cpu_nanos});
    if let Some(nano_cores) = nano_cores {
        cpu["usageNanoCores"] = json!(nano_cores);
    }
    cpu
}

fn memory(usage: &Usage, now: &str) -> Value {
    json!({
        "time": now,
        "usageBytes": usage.memory,
        "workingSetBytes": usage.working_set,
        "rssBytes": usage.rss,
        "pageFaults": usage.page_faults,
        "majorPageFaults": usage.major_faults,
    })
}

fn filesystem(disk: &Filesystem, used: u64, now: &str) -> Value {
    json!({
        "time": now,
        "availableBytes": disk.available,
        "capacityBytes": disk.capacity,
        "usedBytes": used,
        "inodesFree": disk.inodes_free,
        "inodes": disk.inodes,
        "inodesUsed": disk.inodes.saturating_sub(disk.inodes_free),
    })
}

fn files(disk: &Filesystem, used: DiskUse, now: &str) -> Value {
    let mut value = filesystem(disk, used.bytes, now);
    value["inodesUsed"] = json!(used.inodes);
    value
}

fn network(all: &[Traffic], now: &str) -> Value {
    let one = |traffic: &Traffic| {
        json!({
            "name": traffic.interface,
            "rxBytes": traffic.received,
            "rxErrors": traffic.receive_errors,
            "txBytes": traffic.sent,
            "txErrors": traffic.send_errors,
        })
    };
    let Some(first) = all.first() else {
        return Value::Null;
    };
    let mut value = one(first);
    value["time"] = json!(now);
    value["interfaces"] = all.iter().map(one).collect();
    value
}

fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}
