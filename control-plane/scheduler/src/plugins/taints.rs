//! Taints and tolerations.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::cache::NodeInfo;
use crate::framework::{ClusterEvent, Filter, Rejection, Score, ScoreContext, scale};
use crate::pod::PodInfo;

/// Rejects nodes with a `NoSchedule` or `NoExecute` taint that the pod does not tolerate; prefers nodes
/// with fewer untolerated `PreferNoSchedule` taints.
pub struct TaintToleration;

/// True when the toleration covers the taint (core/v1 Toleration: an empty key with `Exists` matches all,
/// an empty effect matches every effect).
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

impl Filter for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Vec<Rejection> {
        let untolerated = node.taints().iter().find(|taint| {
            matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
                && !pod.tolerations().iter().any(|t| tolerates(t, taint))
        });
        untolerated
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

    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &ScoreContext) -> i64 {
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
    use crate::plugins::testing;
    use serde_json::json;

    #[test]
    fn an_untolerated_taint_is_named_in_the_rejection() {
        let node = testing::node(
            json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}),
        );
        let rejected = TaintToleration.filter(&testing::pod(json!({})), &node);
        assert_eq!(
            rejected,
            [Rejection::unresolvable(
                "node(s) had untolerated taint {k: v}"
            )]
        );
        let pod = testing::pod(json!({"tolerations": [{"key": "k", "operator": "Exists"}]}));
        assert!(TaintToleration.filter(&pod, &node).is_empty());
    }

    #[test]
    fn a_toleration_without_key_must_say_exists() {
        let taint = Taint {
            key: "k".into(),
            effect: "NoExecute".into(),
            ..Taint::default()
        };
        let exists = Toleration {
            operator: Some("Exists".into()),
            ..Toleration::default()
        };
        assert!(tolerates(&exists, &taint));
        assert!(!tolerates(&Toleration::default(), &taint));
    }
}
