//! Pods spread evenly over zones, nodes and the like (KEP-895, core/v1 TopologySpreadConstraint).

use crate::cache::NodeInfo;
use crate::context::{Context, label};
use crate::framework::{ClusterEvent, Filter, Rejection, Score, scale};
use crate::pod::PodInfo;
use crate::terms::labels;

/// Rejects nodes where the pod would make a `DoNotSchedule` constraint's places differ too much; prefers those
/// that `ScheduleAnyway` constraints find emptier.
pub struct PodTopologySpread;

impl Filter for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> Vec<Rejection> {
        for (spread, places) in pod.terms.spread.iter().zip(&context.spread) {
            if !spread.required {
                continue;
            }
            let Some(value) = label(node, &spread.topology_key) else {
                return vec![Rejection::unresolvable(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                )];
            };
            let domains = i64::try_from(places.len()).unwrap_or(i64::MAX);
            let least = if domains < spread.min_domains {
                0
            } else {
                places.values().min().copied().unwrap_or(0)
            };
            let own = i64::from(spread.selector.matches(&labels(&pod.pod)));
            let here = places.get(value).copied().unwrap_or(0);
            if here + own - least > spread.max_skew {
                return vec![Rejection::resolvable(
                    "node(s) didn't match pod topology spread constraints",
                )];
            }
        }
        Vec::new()
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        !matches!(event, ClusterEvent::StorageChanged)
    }
}

impl Score for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> i64 {
        // In hundredths, weighted so that topologies of many places (nodes) do not drown those of few (zones).
        let count = |(spread, places): (&crate::terms::Spread, &crate::context::Places)| {
            let here = label(node, &spread.topology_key).and_then(|value| places.get(value));
            // A node outside the topology is the last choice.
            let here = here
                .copied()
                .unwrap_or_else(|| places.values().max().copied().unwrap_or(0) + spread.max_skew);
            let domains = i64::try_from(places.len()).unwrap_or(i64::MAX);
            here * 100 * i64::from((domains + 2).ilog2())
        };
        let wished = pod.terms.spread.iter().zip(&context.spread);
        wished
            .filter(|(spread, _)| !spread.required)
            .map(count)
            .sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, true);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::plugins::testing::zones;
    use serde_json::{Value, json};

    fn spread(mode: &str, extra: Value) -> Value {
        let mut constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": mode,
            "labelSelector": {"matchLabels": {"app": "web"}}});
        for (key, value) in extra.as_object().unwrap() {
            constraint[key] = value.clone();
        }
        json!({"topologySpreadConstraints": [constraint]})
    }

    fn fits(spec: Value, running: &[(&str, Value, &str)]) -> [bool; 2] {
        let (cache, pod) = zones("web", spec, running);
        let context = Context::new(&pod, &cache);
        ["a", "b"].map(|name| {
            PodTopologySpread
                .filter(&pod, cache.node(name).unwrap(), &context)
                .is_empty()
        })
    }

    #[test]
    fn a_place_that_is_ahead_by_the_skew_takes_no_more() {
        let ahead = [("web", json!({}), "a"), ("db", json!({}), "b")];
        assert_eq!(
            fits(spread("DoNotSchedule", json!({})), &ahead),
            [false, true]
        );
        assert_eq!(
            fits(spread("DoNotSchedule", json!({"maxSkew": 2})), &ahead),
            [true, true]
        );
        assert_eq!(
            fits(spread("ScheduleAnyway", json!({})), &ahead),
            [true, true]
        );
    }

    #[test]
    fn places_that_are_missing_count_as_empty_ones() {
        let even = [("web", json!({}), "a"), ("web", json!({}), "b")];
        let wide = json!({"minDomains": 3});
        assert_eq!(fits(spread("DoNotSchedule", wide), &even), [false, false]);
        assert_eq!(
            fits(spread("DoNotSchedule", json!({})), &even),
            [true, true]
        );
    }

    #[test]
    fn a_node_without_the_label_is_out() {
        let host = json!({"topologyKey": "rack"});
        assert_eq!(fits(spread("DoNotSchedule", host), &[]), [false, false]);
    }

    #[test]
    fn a_wish_prefers_the_emptier_place() {
        let (cache, pod) = zones(
            "web",
            spread("ScheduleAnyway", json!({})),
            &[("web", json!({}), "a")],
        );
        let context = Context::new(&pod, &cache);
        let score = |name| PodTopologySpread.score(&pod, cache.node(name).unwrap(), &context);
        assert!(score("a") > score("b"), "raw scores are reversed later");
    }
}
