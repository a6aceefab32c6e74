//! Requests and limits to cgroup settings.

use balsa_api::quantity::Quantity;
use balsa_cri::Resources;
use balsa_pod::qos::{self, Qos};
use k8s_openapi::api::core::v1::{Container, PodSpec};

/// CFS period, in microseconds.
pub(crate) const PERIOD: i64 = 100_000;
/// Least CFS quota that kernels take, in microseconds.
const MIN_QUOTA: i64 = 1000;
/// Least CPU shares.
const MIN_SHARES: i64 = 2;
/// Most CPU shares.
const MAX_SHARES: i64 = 262_144;

fn amount(container: &Container, limits: bool, name: &str) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    let list = if limits {
        &resources.limits
    } else {
        &resources.requests
    };
    list.as_ref()?.get(name)?.0.parse().ok()
}

/// The cgroup settings of a container.
pub(crate) fn container(spec: &PodSpec, container: &Container, node_memory: i64) -> Resources {
    let cpu_limit = amount(container, true, "cpu").map_or(0, |cpu| cpu.milli_value());
    let cpu_request = amount(container, false, "cpu").map(|cpu| cpu.milli_value());
    // A limit without a request is a request too.
    let shares = cpu_request.unwrap_or(cpu_limit);
    let memory_limit = amount(container, true, "memory").map_or(0, |memory| memory.value());
    let memory_request =
        amount(container, false, "memory").map_or(memory_limit, |memory| memory.value());
    Resources {
        cpu_period: if cpu_limit > 0 { PERIOD } else { 0 },
        cpu_quota: if cpu_limit > 0 {
            quota_of(cpu_limit)
        } else {
            0
        },
        cpu_shares: shares_of(shares),
        memory_limit,
        oom_score_adj: oom_score(qos::class(spec), memory_request, node_memory),
    }
}

/// The limits of a container's huge pages, by page size as control groups name it.
pub(crate) fn huge_pages(container: &Container) -> Vec<(String, u64)> {
    let limits = container
        .resources
        .as_ref()
        .and_then(|resources| resources.limits.as_ref());
    let limits = limits.into_iter().flatten().filter_map(|(name, amount)| {
        let size: Quantity = name.strip_prefix("hugepages-")?.parse().ok()?;
        let limit: Quantity = amount.0.parse().ok()?;
        Some((page_name(size.value()), u64::try_from(limit.value()).ok()?))
    });
    limits.collect()
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
        oom_score_adj: 0,
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

/// Who dies first: best-effort containers, then those that use most beyond their request.
fn oom_score(qos: Qos, memory_request: i64, node_memory: i64) -> i64 {
    match qos {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let share = memory_request
                .saturating_mul(1000)
                .checked_div(node_memory.max(1))
                .unwrap_or(0);
            (1000 - share).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings(resources: serde_json::Value) -> Resources {
        let spec = serde_json::json!({"containers": [{"name": "c", "resources": resources}]});
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        container(&spec, &spec.containers[0], 1 << 30)
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

    #[test]
    fn huge_pages_are_limited_by_the_names_of_control_groups() {
        let container: Container = serde_json::from_value(serde_json::json!({"name": "c",
            "resources": {"limits": {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi", "cpu": "1"}}}))
        .unwrap();
        let wanted = [("1GB".to_owned(), 1 << 30), ("2MB".to_owned(), 4 << 20)];
        assert_eq!(huge_pages(&container), wanted);
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
