//! Requests and limits to cgroup settings.

use balsa_api::quantity::Quantity;
use balsa_cri::Resources;
use balsa_pod::qos::{self, Qos};
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

/// What settings depend on beside the pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// Memory of the node, in bytes.
    pub(crate) memory: i64,
    /// Its control groups are of version 2, which can end all processes of a group together.
    pub(crate) unified: bool,
    /// Its control groups limit swap.
    pub(crate) swap_controller: bool,
    /// Sizes of huge pages that the kernel offers, in bytes.
    pub(crate) page_sizes: Vec<i64>,
}

/// CFS period, in microseconds.
pub(crate) const PERIOD: i64 = 100_000;
/// Least CFS quota that kernels take, in microseconds.
const MIN_QUOTA: i64 = 1000;
/// Least CPU shares.
const MIN_SHARES: i64 = 2;
/// Most CPU shares.
const MAX_SHARES: i64 = 262_144;

/// The priority from which on a pod is critical, and the class of those that a node cannot do without.
const CRITICAL: i32 = 2_000_000_000;
const NODE_CRITICAL: &str = "system-node-critical";

fn listed(resources: Option<&ResourceRequirements>, limits: bool, name: &str) -> Option<Quantity> {
    let resources = resources?;
    let list = if limits {
        &resources.limits
    } else {
        &resources.requests
    };
    list.as_ref()?.get(name)?.0.parse().ok()
}

fn amount(container: &Container, limits: bool, name: &str) -> Option<Quantity> {
    listed(container.resources.as_ref(), limits, name)
}

/// A container's limit. Without one of its own, that of the whole pod is told to it (KEP-2837).
fn limit(spec: &PodSpec, container: &Container, name: &str) -> Option<Quantity> {
    let own = amount(container, true, name).filter(|amount| !amount.is_zero());
    own.or_else(|| listed(spec.resources.as_ref(), true, name))
}

/// The cgroup settings of a container.
pub(crate) fn container(spec: &PodSpec, container: &Container, host: &Host) -> Resources {
    let cpu_limit = limit(spec, container, "cpu").map_or(0, |cpu| cpu.milli_value());
    let cpu_request = amount(container, false, "cpu").map(|cpu| cpu.milli_value());
    // A limit without a request is a request too.
    let shares = cpu_request.unwrap_or(cpu_limit);
    Resources {
        cpu_period: if cpu_limit > 0 { PERIOD } else { 0 },
        cpu_quota: if cpu_limit > 0 {
            quota_of(cpu_limit)
        } else {
            0
        },
        cpu_shares: shares_of(shares),
        memory_limit: limit(spec, container, "memory").map_or(0, |memory| memory.value()),
        oom_score_adj: oom_score(spec, container, host.memory),
        oom_group: host.unified,
        no_swap: host.unified && host.swap_controller,
    }
}

/// The limits of a container's huge pages, by page size as control groups name it. It has none of those that it
/// does not ask for.
pub(crate) fn huge_pages(container: &Container, host: &Host) -> Vec<(String, u64)> {
    let wanted = |size: i64| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        let mut sizes = limits.iter().filter_map(|(name, amount)| {
            let known: Quantity = name.strip_prefix("hugepages-")?.parse().ok()?;
            (known.value() == size).then_some(amount)
        });
        let limit: Quantity = sizes.next()?.0.parse().ok()?;
        u64::try_from(limit.value()).ok()
    };
    let sizes = host.page_sizes.iter();
    sizes
        .map(|size| (page_name(*size), wanted(*size).unwrap_or(0)))
        .collect()
}

/// `2MB` for two mebibytes.
fn page_name(bytes: i64) -> String {
    let mut size = bytes;
    for unit in ["B", "KB", "MB"] {
        if size < 1024 {
            return format!("{size}{unit}");
        }
        size /= 1024;
    }
    format!("{size}GB")
}

/// CPU shares of that much CPU.
pub(crate) fn shares_of(milli_cpu: i64) -> i64 {
    (milli_cpu.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota of that much CPU, in microseconds per period.
pub(crate) fn quota_of(milli_cpu: i64) -> i64 {
    (milli_cpu.saturating_mul(PERIOD) / 1000).max(MIN_QUOTA)
}

/// The settings of a whole pod, as runtimes that make pods in machines of their own want to know them.
pub(crate) fn pod(settings: &crate::cgroups::Settings) -> Resources {
    Resources {
        cpu_period: if settings.cpu_quota.is_some() {
            PERIOD
        } else {
            0
        },
        cpu_quota: settings.cpu_quota.unwrap_or(0),
        cpu_shares: settings.cpu_shares,
        memory_limit: settings.memory_limit.unwrap_or(0),
        ..Resources::default()
    }
}

/// What a pod's overhead comes to.
pub(crate) fn overhead(spec: &PodSpec) -> Resources {
    let amount =
        |name: &str| -> Option<Quantity> { spec.overhead.as_ref()?.get(name)?.0.parse().ok() };
    let cpu = amount("cpu").map_or(0, |cpu| cpu.milli_value());
    Resources {
        cpu_shares: if cpu > 0 { shares_of(cpu) } else { 0 },
        memory_limit: amount("memory").map_or(0, |memory| memory.value()),
        ..Resources::default()
    }
}

/// Who dies first: best-effort containers, then those that use most beyond their request. Sidecars last as long as
/// the containers that they serve. As upstream computes it.
fn oom_score(spec: &PodSpec, container: &Container, node_memory: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    let class = spec.priority_class_name.as_deref();
    let critical = spec.priority.is_some_and(|priority| priority >= CRITICAL);
    if critical && class == Some(NODE_CRITICAL) {
        return GUARANTEED;
    }
    match qos::class(spec) {
        Qos::Guaranteed => return GUARANTEED,
        Qos::BestEffort => return 1000,
        Qos::Burstable => {}
    }
    let unshared = unshared_memory(spec);
    let score = |request: i64| {
        let request = request.saturating_add(unshared).saturating_mul(1000);
        1000 - request.checked_div(node_memory.max(1)).unwrap_or(0)
    };
    let mut own = score(memory_request(container));
    let sidecar = container.restart_policy.as_deref() == Some("Always")
        && spec
            .init_containers
            .iter()
            .flatten()
            .any(|init| init.name == container.name);
    if sidecar {
        let least = spec.containers.iter().map(memory_request).min();
        own = own.min(score(least.unwrap_or(0)));
    }
    own.clamp(1000 + GUARANTEED, 999)
}

fn memory_request(container: &Container) -> i64 {
    let request = amount(container, false, "memory");
    let request = request.or_else(|| amount(container, true, "memory"));
    request.map_or(0, |memory| memory.value())
}

/// What the pod asks for beyond its containers, in equal parts.
fn unshared_memory(spec: &PodSpec) -> i64 {
    let Some(whole) = listed(spec.resources.as_ref(), false, "memory") else {
        return 0;
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let (mut asked, mut count) = (0_i64, 0);
    for container in spec.containers.iter().chain(sidecars) {
        asked = asked.saturating_add(memory_request(container));
        count += 1;
    }
    (whole.value() - asked).max(0) / count.max(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings(resources: serde_json::Value) -> Resources {
        let spec = serde_json::json!({"containers": [{"name": "c", "resources": resources}]});
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        container(&spec, &spec.containers[0], &host())
    }

    fn host() -> Host {
        Host {
            memory: 1 << 30,
            page_sizes: vec![2 << 20, 1 << 30],
            ..Host::default()
        }
    }

    #[test]
    fn processes_of_a_container_end_together_and_never_swap_in_groups_of_version_2() {
        let spec: PodSpec =
            serde_json::from_value(serde_json::json!({"containers": [{"name": "c"}]})).unwrap();
        let host = Host {
            unified: true,
            swap_controller: true,
            ..host()
        };
        let got = container(&spec, &spec.containers[0], &host);
        assert!(got.oom_group && got.no_swap);
    }

    #[test]
    fn limits_of_the_pod_hold_for_containers_without() {
        let spec = serde_json::json!({"resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
            "containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"memory": "8Mi"}}}]});
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let of = |index: usize| container(&spec, &spec.containers[index], &host());
        assert_eq!((of(0).cpu_quota, of(0).memory_limit), (100_000, 64 << 20));
        assert_eq!(of(1).memory_limit, 8 << 20);
    }

    #[test]
    fn the_last_to_die_are_those_that_the_node_needs_and_sidecars_as_late_as_their_containers() {
        let score = |spec: serde_json::Value, name: &str| {
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            let member = balsa_pod::spec::container(&spec, name).unwrap();
            oom_score(&spec, &member, 1 << 30)
        };
        let needed = serde_json::json!({"priority": 2_000_001_000, "priorityClassName": NODE_CRITICAL,
            "containers": [{"name": "c"}]});
        assert_eq!(score(needed, "c"), -997);
        let sidecar = serde_json::json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}],
            "containers": [{"name": "c", "resources": {"requests": {"memory": "256Mi"}}}]});
        assert_eq!(score(sidecar.clone(), "s"), 750);
        assert_eq!(score(sidecar, "i"), 999);
        let whole = serde_json::json!({"resources": {"requests": {"memory": "512Mi"}},
            "containers": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(score(whole, "a"), 750);
    }

    #[test]
    fn requests_become_shares_and_limits_become_quotas() {
        let got = settings(
            serde_json::json!({"requests": {"cpu": "250m", "memory": "512Mi"},
            "limits": {"cpu": "500m", "memory": "1Gi"}}),
        );
        assert_eq!(
            (got.cpu_shares, got.cpu_quota, got.cpu_period),
            (256, 50_000, 100_000)
        );
        assert_eq!((got.memory_limit, got.oom_score_adj), (1 << 30, 500));
    }

    fn sorted(mut list: Vec<(String, u64)>) -> Vec<(String, u64)> {
        list.sort();
        list
    }

    #[test]
    fn huge_pages_are_limited_by_the_names_of_control_groups() {
        let container: Container = serde_json::from_value(serde_json::json!({"name": "c",
            "resources": {"limits": {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi", "cpu": "1"}}}))
        .unwrap();
        let wanted = [("1GB".to_owned(), 1 << 30), ("2MB".to_owned(), 4 << 20)];
        assert_eq!(sorted(huge_pages(&container, &host())), wanted);
        let none = [("1GB".to_owned(), 0), ("2MB".to_owned(), 0)];
        assert_eq!(sorted(huge_pages(&Container::default(), &host())), none);
    }

    #[test]
    fn without_any_there_are_least_shares_and_no_limits() {
        let got = settings(serde_json::json!({}));
        assert_eq!(
            got,
            Resources {
                cpu_shares: 2,
                oom_score_adj: 1000,
                ..Resources::default()
            }
        );
    }
}
