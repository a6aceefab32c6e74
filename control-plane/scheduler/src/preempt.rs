//! Making room: which pods of lower priority go so that a pod fits. Pure. The rules are upstream's default
//! preemption (KEP-268): as few broken disruption budgets as possible, then the least important victims.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use balsa_api::selector::Selector;
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::cache::{Cache, NodeInfo};
use crate::context::Context;
use crate::cycle::{NoFit, Profile, counted};
use crate::pod::PodInfo;
use crate::terms::labels;

/// A disruption budget, digested.
#[derive(Debug, Clone)]
pub struct Budget {
    namespace: String,
    selector: Selector,
    allowed: i32,
    /// Pods whose eviction is counted already.
    disrupted: BTreeSet<String>,
}

impl Budget {
    /// Digests a budget.
    #[must_use]
    pub fn new(budget: &PodDisruptionBudget) -> Self {
        let spec = budget.spec.as_ref();
        let selector = spec
            .and_then(|s| s.selector.as_ref())
            .and_then(|s| serde_json::to_value(s).ok());
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|s| s.disrupted_pods.as_ref());
        Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector: Selector::from_label_selector(selector.as_ref())
                .unwrap_or_else(|_| Selector::nothing()),
            allowed: status.map_or(0, |s| s.disruptions_allowed),
            disrupted: disrupted
                .into_iter()
                .flat_map(|d| d.keys().cloned())
                .collect(),
        }
    }

    fn protects(&self, pod: &PodInfo) -> bool {
        let meta = &pod.pod.metadata;
        meta.namespace.as_deref() == Some(self.namespace.as_str())
            && self.selector.matches(&labels(&pod.pod))
            && !meta
                .name
                .as_ref()
                .is_some_and(|n| self.disrupted.contains(n))
    }
}

/// What to do so that a pod fits.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it will fit.
    pub node: String,
    /// Who has to go.
    pub victims: Vec<Arc<PodInfo>>,
}

/// A node, who would have to go there, and how many budgets that breaks.
struct Candidate<'c> {
    node: &'c NodeInfo,
    victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

/// When a pod came to run; among equals the longer-running one is more important.
fn started(pod: &PodInfo) -> Option<Timestamp> {
    let status = pod.pod.status.as_ref();
    status.and_then(|s| s.start_time.as_ref()).map(|t| t.0)
}

/// Most important first.
fn importance(pod: &PodInfo) -> (Reverse<i32>, Timestamp) {
    (
        Reverse(pod.priority),
        started(pod).unwrap_or(Timestamp::MAX),
    )
}

/// True when the pod may make others go: its policy allows it, and those that it made go before are gone.
#[must_use]
pub fn may(pod: &PodInfo, cache: &Cache) -> bool {
    let spec = pod.pod.spec.as_ref();
    if spec.and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return false;
    }
    let nominated = pod
        .pod
        .status
        .as_ref()
        .and_then(|s| s.nominated_node_name.as_deref());
    let waits = nominated.and_then(|n| cache.node(n)).is_some_and(|node| {
        node.running.values().any(|other| {
            other.priority < pod.priority && other.pod.metadata.deletion_timestamp.is_some()
        })
    });
    !waits
}

/// Chooses where to make room for a pod that fits nowhere.
///
/// # Errors
/// Why no room can be made, in the words of `FailedScheduling` events.
pub fn plan(
    profile: &Profile,
    pod: &PodInfo,
    cache: &Cache,
    failure: &NoFit,
    budgets: &[Budget],
) -> Result<Plan, String> {
    let mut context = Context::new(pod, cache);
    // Upstream looks at a tenth of the nodes, at least 100.
    let most = (failure.resolvable.len() / 10).max(100);
    let mut best: Option<Candidate<'_>> = None;
    let mut found = 0;
    for name in &failure.resolvable {
        let Some(node) = cache.node(name) else {
            continue;
        };
        let Some(candidate) = candidate(profile, pod, node, &mut context, budgets) else {
            continue;
        };
        found += 1;
        if best
            .as_ref()
            .is_none_or(|best| cost(&candidate) < cost(best))
        {
            best = Some(candidate);
        }
        if found >= most {
            break;
        }
    }
    best.map(|best| Plan {
        node: best.node.name.clone(),
        victims: best.victims,
    })
    .ok_or_else(|| explain(failure))
}

fn explain(failure: &NoFit) -> String {
    let hopeless = failure.nodes - failure.resolvable.len();
    let reasons: BTreeMap<String, usize> = [
        ("Preemption is not helpful for scheduling", hopeless),
        (
            "No preemption victims found for incoming pod",
            failure.resolvable.len(),
        ),
    ]
    .into_iter()
    .filter(|(_, count)| *count > 0)
    .map(|(reason, count)| (reason.to_owned(), count))
    .collect();
    format!(
        "0/{} nodes are available: {}.",
        failure.nodes,
        counted(&reasons)
    )
}

/// Lower is better: budgets broken, the most important victim, the sum of their priorities, their number, and
/// last how long the most important ones have run.
fn cost(candidate: &Candidate<'_>) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
    let victims = &candidate.victims;
    let highest = victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    // Shifted to be positive, so that many victims of negative priority are not better than few.
    let sum = victims
        .iter()
        .map(|v| i64::from(v.priority) - i64::from(i32::MIN))
        .sum();
    let earliest = victims
        .iter()
        .filter(|v| v.priority == highest)
        .filter_map(|v| started(v))
        .min();
    (
        candidate.violations,
        highest,
        sum,
        victims.len(),
        Reverse(earliest.unwrap_or(Timestamp::MAX)),
    )
}

/// The fewest and least important pods that have to leave one node; `None` when even all would not do. The context
/// is as before afterwards.
fn candidate<'c>(
    profile: &Profile,
    pod: &PodInfo,
    node: &'c NodeInfo,
    context: &mut Context<'_>,
    budgets: &[Budget],
) -> Option<Candidate<'c>> {
    let mut lower: Vec<Arc<PodInfo>> = node
        .running
        .values()
        .filter(|other| other.priority < pod.priority)
        .cloned()
        .collect();
    if lower.is_empty() {
        return None;
    }
    lower.sort_by_key(|other| importance(other));
    let mut emptied = node.clone();
    for other in &lower {
        emptied.remove(other);
        context.shift(pod, other, node, -1);
    }
    let mut victims = Vec::new();
    let mut violations = 0;
    let fits = profile.reject(pod, &emptied, context).is_none();
    if fits {
        // Those whose going breaks a budget are the first that may stay.
        let (breaking, harmless) = split(lower.clone(), budgets);
        for (other, breaks) in breaking
            .into_iter()
            .map(|p| (p, true))
            .chain(harmless.into_iter().map(|p| (p, false)))
        {
            emptied.add(&other);
            context.shift(pod, &other, node, 1);
            if profile.reject(pod, &emptied, context).is_some() {
                emptied.remove(&other);
                context.shift(pod, &other, node, -1);
                violations += usize::from(breaks);
                victims.push(other);
            }
        }
    }
    for other in if fits { &victims } else { &lower } {
        context.shift(pod, other, node, 1);
    }
    (fits && !victims.is_empty()).then_some(Candidate {
        node,
        victims,
        violations,
    })
}

/// Pods whose going would break a budget, and the others, each in the order given.
fn split(pods: Vec<Arc<PodInfo>>, budgets: &[Budget]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: Vec<i32> = budgets.iter().map(|b| b.allowed).collect();
    pods.into_iter().partition(|pod| {
        let mut breaks = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if budget.protects(pod) {
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        breaks
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, from_value, json};

    fn pod(name: &str, priority: i32, cpu: &str) -> Arc<PodInfo> {
        labelled(name, priority, cpu, json!({}))
    }

    fn labelled(name: &str, priority: i32, cpu: &str, extra: Value) -> Arc<PodInfo> {
        let mut pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"name": name}},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        for (key, value) in extra.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        Arc::new(PodInfo::new(Arc::new(from_value(pod).unwrap())))
    }

    fn cluster(nodes: &[&str], running: &[(Arc<PodInfo>, &str)]) -> Cache {
        let mut cache = Cache::default();
        for name in nodes {
            let node = json!({"metadata": {"name": name, "labels": {"host": name}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
            cache.set_node(Arc::new(from_value(node).unwrap()));
        }
        for (pod, node) in running {
            cache.set_pod(Arc::clone(pod), node);
        }
        cache
    }

    fn try_plan(
        pod: &PodInfo,
        cache: &Cache,
        budgets: &[Budget],
    ) -> Result<(String, Vec<String>), String> {
        let profile = Profile::default();
        let failure = profile.choose(pod, cache, 0).unwrap_err();
        let plan = plan(&profile, pod, cache, &failure, budgets)?;
        let mut names: Vec<String> = plan.victims.iter().map(|v| v.uid.clone()).collect();
        names.sort();
        Ok((plan.node, names))
    }

    #[test]
    fn only_as_many_go_as_are_in_the_way_the_least_important_first() {
        let running = [
            (pod("low", 1, "2"), "a"),
            (pod("mid", 2, "1"), "a"),
            (pod("equal", 9, "1"), "a"),
        ];
        let cache = cluster(&["a"], &running);
        let (node, victims) = try_plan(&pod("new", 9, "2"), &cache, &[]).unwrap();
        assert_eq!((node.as_str(), victims), ("a", vec!["low".to_owned()]));
    }

    #[test]
    fn the_node_with_the_least_important_victims_is_chosen() {
        let running = [
            (pod("x", 5, "4"), "a"),
            (pod("y", 3, "4"), "b"),
            (pod("z", 4, "4"), "c"),
        ];
        let cache = cluster(&["a", "b", "c"], &running);
        assert_eq!(try_plan(&pod("new", 9, "4"), &cache, &[]).unwrap().0, "b");
    }

    #[test]
    fn a_budget_is_broken_only_when_there_is_no_other_way() {
        let running = [(pod("x", 1, "4"), "a"), (pod("y", 3, "4"), "b")];
        let cache = cluster(&["a", "b"], &running);
        let budget = json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"name": "x"}}}, "status": {"disruptionsAllowed": 0,
            "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
        let budget = Budget::new(&from_value(budget).unwrap());
        let new = pod("new", 9, "4");
        assert_eq!(try_plan(&new, &cache, &[budget]).unwrap().0, "b");
        assert_eq!(try_plan(&new, &cache, &[]).unwrap().0, "a");
    }

    #[test]
    fn nobody_goes_for_a_pod_of_equal_priority_and_the_event_says_so() {
        let cache = cluster(&["a"], &[(pod("x", 9, "4"), "a")]);
        let why = try_plan(&pod("new", 9, "4"), &cache, &[]).unwrap_err();
        assert_eq!(
            why,
            "0/1 nodes are available: 1 No preemption victims found for incoming pod."
        );
        let why = try_plan(&pod("huge", 99, "9"), &cache, &[]).unwrap_err();
        assert_eq!(
            why,
            "0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        );
    }

    #[test]
    fn anti_affinity_can_be_resolved_by_making_the_other_go() {
        let far = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "host", "labelSelector": {"matchLabels": {"name": "x"}}}]}}});
        let cache = cluster(&["a"], &[(pod("x", 1, "1"), "a"), (pod("y", 1, "1"), "a")]);
        let (_, victims) = try_plan(&labelled("new", 9, "1", far), &cache, &[]).unwrap();
        assert_eq!(victims, ["x"]);
    }

    #[test]
    fn room_that_was_made_for_one_pod_is_not_given_to_a_lesser_one() {
        let mut cache = cluster(&["a"], &[]);
        cache.nominate(&pod("first", 9, "4"), Some("a"));
        let profile = Profile::default();
        assert!(profile.choose(&pod("lesser", 1, "1"), &cache, 0).is_err());
        assert!(profile.choose(&pod("greater", 10, "1"), &cache, 0).is_ok());
        assert!(profile.choose(&pod("first", 9, "4"), &cache, 0).is_ok());
    }
}
