//! `/metrics`, `/metrics/resource` and `/metrics/cadvisor`, with the names that metrics-server and dashboards ask
//! for.

use std::fmt::Write;

use jiff::Timestamp;

use super::node;
use super::{ContainerUse, PodUse, Stats, names};
use crate::csi::VolumeUse;

/// Text in Prometheus' format.
#[derive(Default)]
struct Page {
    text: String,
}

/// Labels of a sample, in order.
type Labels<'a> = [(&'a str, &'a str)];

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: f64, at: Option<i64>) {
        self.text.push_str(name);
        if !labels.is_empty() {
            let labels: Vec<String> = labels
                .iter()
                .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
                .collect();
            let _ = write!(self.text, "{{{}}}", labels.join(","));
        }
        let _ = write!(self.text, " {value}");
        if let Some(at) = at {
            let _ = write!(self.text, " {at}");
        }
        self.text.push('\n');
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

impl Stats {
    /// CPU and memory of containers, pods and the node: what metrics-server reads.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub(crate) async fn resource_metrics(&self) -> balsa_cri::Result<String> {
        let pods = self.pods().await?;
        let at = Some(Timestamp::now().as_millisecond());
        let mut page = Page::default();
        // What has no value is left out.
        let containers =
            |page: &mut Page, name: &str, read: &dyn Fn(&ContainerUse) -> Option<f64>| {
                for pod in &pods {
                    let (namespace, pod_name) = names(&pod.pod);
                    for container in &pod.containers {
                        let Some(value) = read(container) else {
                            continue;
                        };
                        let labels = [
                            ("container", container.name.as_str()),
                            ("namespace", namespace),
                            ("pod", pod_name),
                        ];
                        page.sample(name, &labels, value, at);
                    }
                }
            };
        let of_pods = |page: &mut Page, name: &str, read: &dyn Fn(&PodUse) -> Option<f64>| {
            for pod in &pods {
                let (namespace, pod_name) = names(&pod.pod);
                let labels = [("namespace", namespace), ("pod", pod_name)];
                if let Some(value) = read(pod) {
                    page.sample(name, &labels, value, at);
                }
            }
        };
        let name = "container_cpu_usage_seconds_total";
        page.family(name, "counter", "CPU time of the container in core-seconds");
        containers(&mut page, name, &|c| Some(seconds(c.usage.cpu_nanos)));
        let name = "container_memory_working_set_bytes";
        page.family(name, "gauge", "Working set of the container in bytes");
        containers(&mut page, name, &|c| Some(c.usage.working_set as f64));
        let name = "container_swap_usage_bytes";
        page.family(name, "gauge", "Swap that the container uses in bytes");
        containers(&mut page, name, &|c| Some(c.usage.swap?.used as f64));
        let name = "container_swap_limit_bytes";
        page.family(name, "gauge", "Swap that the container may use in bytes");
        containers(&mut page, name, &|c| {
            let swap = c.usage.swap?;
            Some((swap.used + swap.available?) as f64)
        });
        let name = "container_start_time_seconds";
        page.family(name, "gauge", "Start of the container since the epoch");
        containers(&mut page, name, &|c| Some(c.started_at as f64));
        let name = "pod_cpu_usage_seconds_total";
        page.family(name, "counter", "CPU time of the pod in core-seconds");
        of_pods(&mut page, name, &|p| Some(seconds(p.usage.cpu_nanos)));
        let name = "pod_memory_working_set_bytes";
        page.family(name, "gauge", "Working set of the pod in bytes");
        of_pods(&mut page, name, &|p| Some(p.usage.working_set as f64));
        let name = "pod_swap_usage_bytes";
        page.family(name, "gauge", "Swap that the pod uses in bytes");
        of_pods(&mut page, name, &|p| Some(p.usage.swap?.used as f64));
        let memory = node::memory();
        let name = "node_cpu_usage_seconds_total";
        page.family(name, "counter", "CPU time of the node in core-seconds");
        page.sample(name, &[], seconds(node::cpu_nanos()), at);
        let name = "node_memory_working_set_bytes";
        page.family(name, "gauge", "Working set of the node in bytes");
        let used = memory.total.saturating_sub(memory.available);
        page.sample(name, &[], used as f64, at);
        let name = "node_swap_usage_bytes";
        page.family(name, "gauge", "Swap that the node uses in bytes");
        page.sample(name, &[], node::swap().used as f64, at);
        let name = "resource_scrape_error";
        page.family(name, "gauge", "1 if the numbers could not be had, else 0");
        page.sample(name, &[], 0.0, None);
        Ok(page.text)
    }

    /// Containers and pods by the names of cAdvisor.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub(crate) async fn cadvisor_metrics(&self) -> balsa_cri::Result<String> {
        let pods = self.pods().await?;
        let at = Some(Timestamp::now().as_millisecond());
        let mut page = Page::default();
        machine(&mut page);
        type Value = fn(&ContainerUse) -> f64;
        let families: [(&str, &str, &str, Value); 9] = [
            (
                "container_cpu_usage_seconds_total",
                "counter",
                "CPU time in seconds",
                |c| seconds(c.usage.cpu_nanos),
            ),
            (
                "container_memory_usage_bytes",
                "gauge",
                "All memory in bytes",
                |c| c.usage.memory as f64,
            ),
            (
                "container_memory_working_set_bytes",
                "gauge",
                "Working set in bytes",
                |c| c.usage.working_set as f64,
            ),
            (
                "container_memory_rss",
                "gauge",
                "Anonymous memory in bytes",
                |c| c.usage.rss as f64,
            ),
            (
                "container_memory_cache",
                "gauge",
                "Page cache in bytes",
                |c| c.usage.cache as f64,
            ),
            (
                "container_fs_usage_bytes",
                "gauge",
                "Bytes in the writable layer",
                |c| c.rootfs.bytes as f64,
            ),
            (
                "container_fs_inodes_total",
                "gauge",
                "Inodes in the writable layer",
                |c| c.rootfs.inodes as f64,
            ),
            (
                "container_processes",
                "gauge",
                "Processes and threads",
                |c| c.usage.pids as f64,
            ),
            (
                "container_start_time_seconds",
                "gauge",
                "Start since the epoch",
                |c| c.started_at as f64,
            ),
        ];
        for (name, kind, help, value) in families {
            page.family(name, kind, help);
            for pod in &pods {
                let (namespace, pod_name) = names(&pod.pod);
                for container in &pod.containers {
                    let mut labels = vec![
                        ("container", container.name.as_str()),
                        ("id", container.id.as_str()),
                        ("image", container.image.as_str()),
                        ("name", container.id.as_str()),
                        ("namespace", namespace),
                        ("pod", pod_name),
                    ];
                    if name == "container_cpu_usage_seconds_total" {
                        labels.insert(1, ("cpu", "total"));
                    }
                    page.sample(name, &labels, value(container), at);
                }
            }
        }
        network(&mut page, &pods, at);
        Ok(page.text)
    }

    /// The agent's own numbers.
    pub(crate) fn own_metrics(&self) -> String {
        let pods = self.manager.own_pods();
        let running = pods.iter().filter(|(_, pod)| {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            phase == Some("Running")
        });
        let mut page = Page::default();
        let name = "kubelet_node_name";
        page.family(name, "gauge", "The node's name; the value is always 1");
        page.sample(name, &[("node", &self.context.config.node_name)], 1.0, None);
        let name = "kubelet_running_pods";
        page.family(name, "gauge", "Pods that run on the node");
        page.sample(name, &[], running.count() as f64, None);
        let name = "kubelet_desired_pods";
        page.family(name, "gauge", "Pods bound to the node");
        page.sample(name, &[], pods.len() as f64, None);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|text| {
            text.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        });
        if let Some(rss) = rss {
            let name = "process_resident_memory_bytes";
            page.family(name, "gauge", "Resident memory of the agent in bytes");
            page.sample(name, &[], (rss * 1024) as f64, None);
        }
        volume_stats(&mut page, &self.context.csi.usage());
        let version = env!("CARGO_PKG_VERSION");
        let name = "kubernetes_build_info";
        page.family(name, "gauge", "What was built; the value is always 1");
        page.sample(
            name,
            &[("git_version", version), ("platform", "linux")],
            1.0,
            None,
        );
        page.text
    }
}

/// How full the volumes of claims are; pods that share one tell the same, and it is told once.
fn volume_stats(page: &mut Page, volumes: &[VolumeUse]) {
    type Read = fn(&VolumeUse) -> Option<i64>;
    let families: [(&str, &str, Read); 7] = [
        ("capacity_bytes", "Capacity of a volume in bytes", |v| {
            Some(v.bytes?.total)
        }),
        ("available_bytes", "Free bytes of a volume", |v| {
            Some(v.bytes?.available)
        }),
        ("used_bytes", "Used bytes of a volume", |v| {
            Some(v.bytes?.used)
        }),
        ("inodes", "Most inodes of a volume", |v| {
            Some(v.inodes?.total)
        }),
        ("inodes_free", "Free inodes of a volume", |v| {
            Some(v.inodes?.available)
        }),
        ("inodes_used", "Used inodes of a volume", |v| {
            Some(v.inodes?.used)
        }),
        (
            "health_status_abnormal",
            "1 if a volume's driver says that something is wrong with it",
            |v| Some(i64::from(v.abnormal.is_some())),
        ),
    ];
    for (name, help, read) in families {
        let name = format!("kubelet_volume_stats_{name}");
        let mut told = std::collections::BTreeSet::new();
        for volume in volumes {
            let (Some(claim), Some(value)) = (&volume.claim, read(volume)) else {
                continue;
            };
            if told.is_empty() {
                page.family(&name, "gauge", help);
            }
            if told.insert(claim) {
                let (namespace, claim) = claim;
                let labels = [
                    ("namespace", &**namespace),
                    ("persistentvolumeclaim", claim),
                ];
                page.sample(&name, &labels, value as f64, None);
            }
        }
    }
}

fn machine(page: &mut Page) {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let name = "machine_cpu_cores";
    page.family(name, "gauge", "CPUs of the machine");
    page.sample(name, &[], cpus as f64, None);
    let name = "machine_memory_bytes";
    page.family(name, "gauge", "Memory of the machine in bytes");
    page.sample(name, &[], node::memory().total as f64, None);
}

fn network(page: &mut Page, pods: &[PodUse], at: Option<i64>) {
    type Value = fn(&node::Traffic) -> u64;
    let families: [(&str, &str, Value); 4] = [
        (
            "container_network_receive_bytes_total",
            "Bytes received",
            |t| t.received,
        ),
        (
            "container_network_receive_errors_total",
            "Errors receiving",
            |t| t.receive_errors,
        ),
        (
            "container_network_transmit_bytes_total",
            "Bytes sent",
            |t| t.sent,
        ),
        (
            "container_network_transmit_errors_total",
            "Errors sending",
            |t| t.send_errors,
        ),
    ];
    for (name, help, value) in families {
        page.family(name, "counter", help);
        for pod in pods {
            let (namespace, pod_name) = names(&pod.pod);
            for traffic in &pod.traffic {
                let labels = [
                    ("id", pod.uid.as_str()),
                    ("interface", traffic.interface.as_str()),
                    ("namespace", namespace),
                    ("pod", pod_name),
                ];
                page.sample(name, &labels, value(traffic) as f64, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claims_volume_is_told_once_however_many_pods_have_it() {
        let volume = |pod: &str| VolumeUse {
            pod: pod.into(),
            claim: Some(("shop".into(), "data".into())),
            bytes: Some(crate::csi::Amounts {
                total: 10,
                used: 4,
                available: 6,
            }),
            ..VolumeUse::default()
        };
        let mut page = Page::default();
        volume_stats(&mut page, &[volume("1"), volume("2")]);
        let line = "kubelet_volume_stats_used_bytes{namespace=\"shop\",persistentvolumeclaim=\"data\"} 4\n";
        assert_eq!(page.text.matches(line).count(), 1);
        assert!(!page.text.contains("kubelet_volume_stats_inodes"));
    }

    #[test]
    fn samples_have_labels_value_and_time() {
        let mut page = Page::default();
        page.family("x_total", "counter", "All x");
        page.sample("x_total", &[("a", "q\"\\")], 1.5, Some(7));
        page.sample("x_total", &[], 2.0, None);
        assert_eq!(
            page.text,
            "# HELP x_total All x\n# TYPE x_total counter\nx_total{a=\"q\\\"\\\\\"} 1.5 7\nx_total 2\n"
        );
    }
}
