//! `spec.nodeSelector` and node affinity.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::cache::NodeInfo;
use crate::framework::{ClusterEvent, Filter, Rejection, Score, ScoreContext, scale};
use crate::pod::PodInfo;

/// Rejects nodes that do not match the required terms; prefers those that match the preferred ones.
pub struct NodeAffinity;

fn label<'a>(node: &'a NodeInfo, key: &str) -> Option<&'a str> {
    node.node
        .as_ref()?
        .metadata
        .labels
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

/// One requirement against the value under its key (core/v1 NodeSelectorRequirement).
fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |test: fn(i64, i64) -> bool| {
        let parsed = value
            .and_then(|v| v.parse().ok())
            .zip(values.first().and_then(|v| v.parse().ok()));
        parsed.is_some_and(|(have, want)| test(have, want))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|x| x == v)),
        "NotIn" => value.is_none_or(|v| !values.iter().any(|x| x == v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, want| have > want),
        "Lt" => compare(|have, want| have < want),
        _ => false,
    }
}

/// A term matches when all its requirements hold; an empty term matches nothing.
fn matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| holds(r, label(node, &r.key)))
        && fields
            .iter()
            .all(|r| r.key == "metadata.name" && holds(r, Some(&node.name)))
}

impl Filter for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Vec<Rejection> {
        let selected = pod
            .node_selector()
            .is_none_or(|s| s.iter().all(|(k, v)| label(node, k) == Some(v)));
        let required = pod
            .affinity()
            .and_then(|a| a.node_affinity.as_ref())
            .and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            });
        let affine =
            required.is_none_or(|r| r.node_selector_terms.iter().any(|t| matches(t, node)));
        if selected && affine {
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

    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &ScoreContext) -> i64 {
        let preferred = pod
            .affinity()
            .and_then(|a| a.node_affinity.as_ref())
            .and_then(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_deref()
            })
            .unwrap_or_default();
        preferred
            .iter()
            .filter(|p| matches(&p.preference, node))
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
    use crate::plugins::testing;
    use serde_json::json;

    fn fits(spec: serde_json::Value) -> bool {
        let node = testing::node(json!({"metadata": {"labels": {"disk": "ssd", "cores": "8"}}}));
        NodeAffinity.filter(&testing::pod(spec), &node).is_empty()
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
