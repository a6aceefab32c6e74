//! Pods that want to be near others, or far from them (core/v1 PodAffinity and PodAntiAffinity).

use crate::cache::NodeInfo;
use crate::context::{Context, label};
use crate::framework::{ClusterEvent, Filter, Rejection, Score, stretch};
use crate::pod::PodInfo;

/// Rejects nodes where required terms of the pod, or of pods there, do not hold; prefers those that more
/// preferences speak for.
pub struct InterPodAffinity;

/// All required affinity terms hold on the node. The first pod of a group that wants to be together has nobody to
/// be near yet: it may go anywhere if it is one of those it means.
fn is_near(pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> bool {
    let terms = &pod.terms.affinity;
    let mut all = true;
    for term in terms {
        let Some(value) = label(node, &term.topology_key) else {
            return false;
        };
        let at = (term.topology_key.clone(), value.to_owned());
        all &= context.near.get(&at).is_some_and(|count| *count > 0);
    }
    let nobody = || context.near.values().all(|count| *count <= 0);
    let namespace = context.cache.namespace(&pod.pod);
    all || (nobody() && terms.iter().all(|t| t.means(&pod.pod, namespace)))
}

fn is_far(pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> bool {
    pod.terms
        .anti_affinity
        .iter()
        .zip(&context.far)
        .all(|(term, places)| {
            let count = label(node, &term.topology_key).and_then(|value| places.get(value));
            count.is_none_or(|count| *count <= 0)
        })
}

fn is_tolerated(node: &NodeInfo, context: &Context<'_>) -> bool {
    context
        .against
        .iter()
        .all(|((key, value), count)| *count <= 0 || label(node, key) != Some(value))
}

impl Filter for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> Vec<Rejection> {
        let rejection = if !is_near(pod, node, context) {
            Rejection::unresolvable("node(s) didn't match pod affinity rules")
        } else if !is_far(pod, node, context) {
            Rejection::resolvable("node(s) didn't match pod anti-affinity rules")
        } else if !is_tolerated(node, context) {
            Rejection::resolvable("node(s) didn't satisfy existing pods anti-affinity rules")
        } else {
            return Vec::new();
        };
        vec![rejection]
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        !matches!(event, ClusterEvent::StorageChanged)
    }
}

impl Score for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, _: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> i64 {
        let here = context
            .liked
            .iter()
            .filter(|((key, value), _)| label(node, key) == Some(value));
        here.map(|(_, weight)| *weight).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        stretch(scores);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::plugins::testing::zones;
    use serde_json::{Value, json};

    fn wants(kind: &str, app: &str) -> Value {
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}});
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
    }

    fn reasons(app: &str, spec: Value, running: &[(&str, Value, &str)]) -> Vec<String> {
        let (cache, pod) = zones(app, spec, running);
        let context = Context::new(&pod, &cache);
        let reason = |node| {
            let rejections = InterPodAffinity.filter(&pod, node, &context);
            rejections
                .first()
                .map_or(String::new(), |r| r.reason.clone())
        };
        ["a", "b"]
            .map(|name| reason(cache.node(name).unwrap()))
            .into()
    }

    #[test]
    fn a_pod_goes_where_those_are_that_it_wants_to_be_near() {
        let running = [("db", json!({}), "b")];
        let found = reasons("web", wants("podAffinity", "db"), &running);
        assert_eq!(found, ["node(s) didn't match pod affinity rules", ""]);
    }

    #[test]
    fn the_first_of_a_group_may_go_anywhere_but_others_wait_for_whom_they_want() {
        assert_eq!(reasons("web", wants("podAffinity", "web"), &[]), ["", ""]);
        let waits = reasons("web", wants("podAffinity", "db"), &[]);
        assert!(waits.iter().all(|r| r.contains("affinity rules")));
    }

    #[test]
    fn dislike_counts_in_both_directions() {
        let own = reasons(
            "web",
            wants("podAntiAffinity", "db"),
            &[("db", json!({}), "a")],
        );
        assert_eq!(own, ["node(s) didn't match pod anti-affinity rules", ""]);
        let theirs = [("db", wants("podAntiAffinity", "web"), "a")];
        let theirs = reasons("web", json!({}), &theirs);
        assert_eq!(
            theirs[0],
            "node(s) didn't satisfy existing pods anti-affinity rules"
        );
        assert_eq!(theirs[1], "");
    }

    #[test]
    fn preferences_speak_for_places() {
        let liked = json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 5, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}}}}]}}});
        let (cache, pod) = zones("web", liked, &[("db", json!({}), "b")]);
        let context = Context::new(&pod, &cache);
        let score = |name| InterPodAffinity.score(&pod, cache.node(name).unwrap(), &context);
        assert_eq!((score("a"), score("b")), (0, 5));
    }
}
