//! Taints and tolerations.

use balsa_api::scheduling::{tolerates, untolerated};

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, Rejection, Score, scale};
use crate::pod::PodInfo;

/// Rejects nodes with a `NoSchedule` or `NoExecute` taint that the pod does not tolerate; prefers nodes
/// with fewer untolerated `PreferNoSchedule` taints.
pub struct TaintToleration;

impl Filter for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> Vec<Rejection> {
        let effects = ["NoSchedule", "NoExecute"];
        untolerated(node.taints(), pod.tolerations(), &effects)
            .map(|taint| {
                let value = taint.value.as_deref().unwrap_or_default();
                let reason = format!("node(s) had untolerated taint {{{}: {value}}}", taint.key);
                vec![Rejection::unresolvable(reason)]
            })
            .unwrap_or_default()
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::NodeChanged)
    }
}

impl Score for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> i64 {
        let bad = node.taints().iter().filter(|taint| {
            taint.effect == "PreferNoSchedule"
                && !pod.tolerations().iter().any(|t| tolerates(t, taint))
        });
        i64::try_from(bad.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::plugins::testing;
    use serde_json::json;

    #[test]
    fn an_untolerated_taint_is_named_in_the_rejection() {
        let node = testing::node(
            json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}),
        );
        let rejected = TaintToleration.filter(
            &testing::pod(json!({})),
            &node,
            &testing::context(&Cache::default()),
        );
        assert_eq!(
            rejected,
            [Rejection::unresolvable(
                "node(s) had untolerated taint {k: v}"
            )]
        );
        let pod = testing::pod(json!({"tolerations": [{"key": "k", "operator": "Exists"}]}));
        assert!(
            TaintToleration
                .filter(&pod, &node, &testing::context(&Cache::default()))
                .is_empty()
        );
    }
}
