//! `spec.nodeSelector` and node affinity.

use balsa_api::scheduling::{term_matches, wants_node};

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, Rejection, Score, scale};
use crate::pod::PodInfo;

/// Rejects nodes that do not match the required terms; prefers those that match the preferred ones.
pub struct NodeAffinity;

impl Filter for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> Vec<Rejection> {
        let wanted = match (&pod.pod.spec, &node.node) {
            (Some(spec), Some(node)) => wants_node(spec, node),
            _ => true,
        };
        if wanted {
            Vec::new()
        } else {
            vec![Rejection::unresolvable(
                "node(s) didn't match Pod's node affinity/selector",
            )]
        }
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::NodeChanged)
    }
}

impl Score for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> i64 {
        let preferred = pod
            .affinity()
            .and_then(|a| a.node_affinity.as_ref())
            .and_then(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_deref()
            })
            .unwrap_or_default();
        let labels = node.node.as_ref().and_then(|n| n.metadata.labels.as_ref());
        preferred
            .iter()
            .filter(|p| term_matches(&p.preference, &node.name, labels))
            .map(|p| i64::from(p.weight))
            .sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::plugins::testing;
    use serde_json::json;

    fn fits(spec: serde_json::Value) -> bool {
        let node = testing::node(json!({"metadata": {"labels": {"disk": "ssd", "cores": "8"}}}));
        NodeAffinity
            .filter(
                &testing::pod(spec),
                &node,
                &testing::context(&Cache::default()),
            )
            .is_empty()
    }

    fn required(terms: serde_json::Value) -> serde_json::Value {
        json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn a_node_selector_needs_every_label() {
        assert!(fits(json!({"nodeSelector": {"disk": "ssd"}})));
        assert!(!fits(
            json!({"nodeSelector": {"disk": "ssd", "gpu": "yes"}})
        ));
    }

    #[test]
    fn terms_are_alternatives_and_requirements_in_one_add_up() {
        let gt = |n: &str| json!({"key": "cores", "operator": "Gt", "values": [n]});
        assert!(fits(required(
            json!([{"matchExpressions": [gt("9")]}, {"matchExpressions": [gt("4")]}])
        )));
        let absent = json!({"key": "disk", "operator": "DoesNotExist"});
        assert!(!fits(required(
            json!([{"matchExpressions": [gt("4"), absent]}])
        )));
    }

    #[test]
    fn an_empty_term_matches_nothing() {
        assert!(!fits(required(json!([{}]))));
    }

    #[test]
    fn a_node_is_matched_by_its_name_field() {
        let by_name = |n: &str| json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [n]}]}]);
        assert!(fits(required(by_name("a"))));
        assert!(!fits(required(by_name("b"))));
    }
}
