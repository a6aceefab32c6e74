//! Which pods end when: those of low priority first, each wave with a time of its own. Pure; the grouping is
//! upstream's (`pkg/kubelet/nodeshutdown`).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::config::ShutdownGrace;

/// Pods that end together.
#[derive(Debug, Clone)]
pub(super) struct Wave {
    /// Time for all of them.
    pub(super) period: Duration,
    /// With their UIDs on the node.
    pub(super) pods: Vec<(String, Arc<Pod>)>,
}

/// Sorts pods into waves, in the order of their ends. Waves without pods are left out: nobody waits for them.
pub(super) fn waves(periods: &[ShutdownGrace], pods: Vec<(String, Arc<Pod>)>) -> Vec<Wave> {
    let mut periods = periods.to_vec();
    periods.sort_by_key(|entry| entry.priority);
    let mut waves: Vec<Wave> = periods
        .iter()
        .map(|entry| Wave {
            period: entry.period,
            pods: Vec::new(),
        })
        .collect();
    for (uid, pod) in pods {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
        let priority = priority.unwrap_or(0);
        let above = periods.partition_point(|entry| entry.priority <= priority);
        if let Some(wave) = waves.get_mut(above.saturating_sub(1)) {
            wave.pods.push((uid, pod));
        }
    }
    waves.retain(|wave| !wave.pods.is_empty());
    waves
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod(priority: i32) -> (String, Arc<Pod>) {
        let pod = json!({"metadata": {}, "spec": {"priority": priority, "containers": []}});
        let pod = serde_json::from_value(pod).unwrap();
        (priority.to_string(), Arc::new(pod))
    }

    #[test]
    fn pods_belong_to_the_highest_period_that_is_not_above_them_and_the_lowest_ends_first() {
        let entry = |priority, seconds| ShutdownGrace {
            priority,
            period: Duration::from_secs(seconds),
        };
        let periods = [entry(1000, 30), entry(0, 10), entry(2000, 5)];
        let pods = [-7, 0, 999, 1000, 1500].map(pod).to_vec();
        let waves: Vec<_> = waves(&periods, pods)
            .into_iter()
            .map(|wave| {
                let names: Vec<_> = wave.pods.into_iter().map(|(uid, _)| uid).collect();
                (wave.period.as_secs(), names.join(" "))
            })
            .collect();
        assert_eq!(
            waves,
            [(10, "-7 0 999".to_owned()), (30, "1000 1500".to_owned())]
        );
    }
}
