//! Room on the node: does the pod fit, and where does it fit best.

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Rejection, Score};
use crate::pod::PodInfo;

/// Rejects nodes without room for the pod's requests.
pub struct Fit;

impl Filter for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        if node.pods + 1 > node.allowed_pods {
            rejections.push(Rejection::resolvable("Too many pods"));
        }
        let mut check = |name: &str, want: i64, held: i64, all: i64| {
            if want > 0 && want > all - held {
                // More than the node has at all: no eviction could help.
                let reason = format!("Insufficient {name}");
                rejections.push(Rejection {
                    unresolvable: want > all,
                    ..Rejection::resolvable(reason)
                });
            }
        };
        let (want, held, all) = (&pod.requests, &node.requested, &node.allocatable);
        check("cpu", want.cpu, held.cpu, all.cpu);
        check("memory", want.memory, held.memory, all.memory);
        check(
            "ephemeral-storage",
            want.ephemeral_storage,
            held.ephemeral_storage,
            all.ephemeral_storage,
        );
        for (name, amount) in &want.other {
            let of = |list: &std::collections::BTreeMap<String, i64>| {
                list.get(name).copied().unwrap_or(0)
            };
            check(name, *amount, of(&held.other), of(&all.other));
        }
        rejections
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(
            event,
            ClusterEvent::PodGone | ClusterEvent::NodeAdded | ClusterEvent::NodeChanged
        )
    }
}

/// What of CPU and memory would be requested with the pod there, as (requested, allocatable) pairs.
fn shares(pod: &PodInfo, node: &NodeInfo) -> [(i64, i64); 2] {
    [
        (node.nonzero.0 + pod.nonzero.0, node.allocatable.cpu),
        (node.nonzero.1 + pod.nonzero.1, node.allocatable.memory),
    ]
}

/// Prefers nodes with more room left.
pub struct LeastAllocated;

impl Score for LeastAllocated {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> i64 {
        let free = |(requested, all): (i64, i64)| {
            if all <= 0 || requested > all {
                0
            } else {
                // Through i128: bytes times 100 of large machines.
                let score = i128::from(all - requested) * i128::from(MAX_SCORE) / i128::from(all);
                i64::try_from(score).unwrap_or(0)
            }
        };
        shares(pod, node).map(free).iter().sum::<i64>() / 2
    }
}

/// Prefers nodes where CPU and memory would be used in like proportion.
pub struct BalancedAllocation;

impl Score for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn weight(&self) -> i64 {
        1
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> i64 {
        let fraction = |(requested, all): (i64, i64)| {
            if all <= 0 {
                1.0
            } else {
                (requested as f64 / all as f64).min(1.0)
            }
        };
        let [cpu, memory] = shares(pod, node).map(fraction);
        // The standard deviation of two numbers is half their distance.
        let deviation = (cpu - memory).abs() / 2.0;
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::plugins::testing;
    use serde_json::json;

    fn wants(cpu: &str) -> PodInfo {
        testing::pod(
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}),
        )
    }

    fn has(cpu: &str, pods: &str) -> NodeInfo {
        testing::node(
            json!({"status": {"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": pods}}}),
        )
    }

    #[test]
    fn what_is_missing_is_named_and_all_of_it() {
        let rejected: Vec<String> = Fit
            .filter(
                &wants("2"),
                &has("1", "0"),
                &testing::context(&Cache::default()),
            )
            .into_iter()
            .map(|r| r.reason)
            .collect();
        assert_eq!(rejected, ["Too many pods", "Insufficient cpu"]);
    }

    #[test]
    fn a_pod_larger_than_the_node_cannot_be_helped_by_evictions() {
        let rejected = Fit.filter(
            &wants("2"),
            &has("1", "10"),
            &testing::context(&Cache::default()),
        );
        assert!(rejected.iter().all(|r| r.unresolvable));
    }

    #[test]
    fn a_pod_that_fits_exactly_fits() {
        assert!(
            Fit.filter(
                &wants("1"),
                &has("1", "1"),
                &testing::context(&Cache::default())
            )
            .is_empty()
        );
    }

    #[test]
    fn the_emptier_node_scores_higher() {
        let cache = Cache::default();
        let context = testing::context(&cache);
        let (small, large) = (has("1", "9"), has("8", "9"));
        let pod = wants("500m");
        let score = |node| LeastAllocated.score(&pod, node, &context);
        assert!(score(&large) > score(&small));
    }
}
