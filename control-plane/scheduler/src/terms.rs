//! What a pod says of other pods: affinity terms and spread constraints, digested once.

use std::collections::BTreeMap;

use balsa_api::selector::Selector;
use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// One pod affinity term (core/v1 PodAffinityTerm).
#[derive(Debug, Clone)]
pub struct Term {
    selector: Selector,
    namespaces: Vec<String>,
    /// Namespaces by label, beside the named ones.
    namespace_selector: Option<Selector>,
    /// The node label whose values are the topology's places.
    pub topology_key: String,
}

/// A term that counts for or against a node.
#[derive(Debug, Clone)]
pub struct Weighted {
    /// Negative for anti-affinity.
    pub weight: i64,
    /// The term.
    pub term: Term,
}

/// One topology spread constraint (core/v1 TopologySpreadConstraint).
#[derive(Debug, Clone)]
pub struct Spread {
    /// By how much places may differ.
    pub max_skew: i64,
    /// The node label whose values are the topology's places.
    pub topology_key: String,
    /// False for `ScheduleAnyway`.
    pub required: bool,
    /// Fewer places than this count as an empty one beside them.
    pub min_domains: i64,
    /// Only nodes that the pod's selector and affinity allow are counted.
    pub honor_affinity: bool,
    /// Only nodes whose taints the pod tolerates are counted.
    pub honor_taints: bool,
    /// Which pods of the namespace are counted.
    pub selector: Selector,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Required affinity.
    pub affinity: Vec<Term>,
    /// Required anti-affinity.
    pub anti_affinity: Vec<Term>,
    /// Preferences of both kinds.
    pub preferred: Vec<Weighted>,
    /// Spread constraints.
    pub spread: Vec<Spread>,
}

type Labels = BTreeMap<String, String>;

/// A pod's labels.
#[must_use]
pub fn labels(pod: &Pod) -> Option<&Labels> {
    pod.metadata.labels.as_ref()
}

/// A selector that does not parse selects nothing: the API server has refused it.
fn selector(selector: Option<&LabelSelector>) -> Selector {
    let value = selector.and_then(|s| serde_json::to_value(s).ok());
    Selector::from_label_selector(value.as_ref()).unwrap_or_else(|_| Selector::nothing())
}

/// The selector, narrowed to pods that have (or have not) the pod's own values of some labels.
fn keyed(
    given: Option<&LabelSelector>,
    pod: &Pod,
    same: Option<&Vec<String>>,
    other: Option<&Vec<String>>,
) -> Selector {
    let Some(given) = given else {
        return selector(None);
    };
    let mut given = given.clone();
    let own = |key: &String| labels(pod).and_then(|l| l.get(key)).cloned();
    for (keys, operator) in [(same, "In"), (other, "NotIn")] {
        for key in keys.into_iter().flatten() {
            let Some(value) = own(key) else { continue };
            given.match_expressions.get_or_insert_default().push(
                k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.to_owned(),
                    values: Some(vec![value]),
                },
            );
        }
    }
    selector(Some(&given))
}

impl Term {
    fn new(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(pod.metadata.namespace.clone());
        }
        Self {
            selector: keyed(
                term.label_selector.as_ref(),
                pod,
                term.match_label_keys.as_ref(),
                term.mismatch_label_keys.as_ref(),
            ),
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|s| selector(Some(s))),
            topology_key: term.topology_key.clone(),
        }
    }

    /// True when the term means that pod; `namespace` are the labels of the pod's namespace.
    #[must_use]
    pub fn means(&self, pod: &Pod, namespace: Option<&Labels>) -> bool {
        let name = pod.metadata.namespace.as_deref().unwrap_or_default();
        let in_scope = self.namespaces.iter().any(|n| n == name)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|s| s.matches(&namespace));
        in_scope && self.selector.matches(&labels(pod))
    }
}

impl Spread {
    fn new(constraint: &TopologySpreadConstraint, pod: &Pod) -> Self {
        let honors =
            |policy: &Option<String>, usual: &str| policy.as_deref().unwrap_or(usual) == "Honor";
        Self {
            max_skew: i64::from(constraint.max_skew),
            topology_key: constraint.topology_key.clone(),
            required: constraint.when_unsatisfiable == "DoNotSchedule",
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            honor_affinity: honors(&constraint.node_affinity_policy, "Honor"),
            honor_taints: honors(&constraint.node_taints_policy, "Ignore"),
            selector: keyed(
                constraint.label_selector.as_ref(),
                pod,
                constraint.match_label_keys.as_ref(),
                None,
            ),
        }
    }
}

fn weighted<'a>(
    list: Option<&'a Vec<WeightedPodAffinityTerm>>,
    pod: &'a Pod,
    sign: i64,
) -> impl Iterator<Item = Weighted> + 'a {
    list.into_iter().flatten().map(move |w| Weighted {
        weight: sign * i64::from(w.weight),
        term: Term::new(&w.pod_affinity_term, pod),
    })
}

impl Terms {
    /// Digests a pod.
    #[must_use]
    pub fn new(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self::default();
        };
        let near = spec.affinity.as_ref().and_then(|a| a.pod_affinity.as_ref());
        let far = spec
            .affinity
            .as_ref()
            .and_then(|a| a.pod_anti_affinity.as_ref());
        let terms = |list: Option<&Vec<PodAffinityTerm>>| {
            let list = list.into_iter().flatten();
            list.map(|term| Term::new(term, pod)).collect()
        };
        let required = near.and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let forbidden = far.and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let liked = near.and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let disliked = far.and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let constraints = spec.topology_spread_constraints.iter().flatten();
        Self {
            affinity: terms(required),
            anti_affinity: terms(forbidden),
            preferred: weighted(liked, pod, 1)
                .chain(weighted(disliked, pod, -1))
                .collect(),
            spread: constraints.map(|c| Spread::new(c, pod)).collect(),
        }
    }

    /// True when pods that come later must be held against this one's terms.
    #[must_use]
    pub fn concerns_others(&self) -> bool {
        !self.anti_affinity.is_empty() || !self.affinity.is_empty() || !self.preferred.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn pod(namespace: &str, labels: Value, spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod = json!({"metadata": {"name": "p", "namespace": namespace, "labels": labels}, "spec": spec});
        serde_json::from_value(pod).unwrap()
    }

    fn term(extra: Value) -> Term {
        let mut term =
            json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "a"}}});
        term.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let spec = json!({"affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
        Terms::new(&pod("n", json!({"version": "1"}), spec))
            .affinity
            .remove(0)
    }

    #[test]
    fn a_term_means_its_own_namespace_unless_it_names_others() {
        let a = |namespace: &str| pod(namespace, json!({"app": "a"}), json!({}));
        assert!(term(json!({})).means(&a("n"), None));
        assert!(!term(json!({})).means(&a("m"), None));
        assert!(term(json!({"namespaces": ["m"]})).means(&a("m"), None));
        let labels: Labels = [("team".to_owned(), "x".to_owned())].into();
        let by_label = term(json!({"namespaceSelector": {"matchLabels": {"team": "x"}}}));
        assert!(by_label.means(&a("m"), Some(&labels)));
        assert!(!by_label.means(&a("n"), None));
        assert!(term(json!({"namespaceSelector": {}})).means(&a("m"), None));
    }

    #[test]
    fn match_label_keys_narrow_the_selector_to_the_pods_own_value() {
        let narrow = term(json!({"matchLabelKeys": ["version"]}));
        assert!(!narrow.means(
            &pod("n", json!({"app": "a", "version": "2"}), json!({})),
            None
        ));
        assert!(narrow.means(
            &pod("n", json!({"app": "a", "version": "1"}), json!({})),
            None
        ));
    }
}
