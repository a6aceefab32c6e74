//! One decision: which node takes this pod. Pure.

use std::collections::BTreeMap;

use crate::cache::{Cache, NodeInfo};
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, Rejection, Score};
use crate::pod::PodInfo;

/// Filters and scores in use.
pub struct Profile {
    /// See [`crate::plugins::filters`].
    pub filters: Vec<Box<dyn Filter>>,
    /// See [`crate::plugins::scores`].
    pub scores: Vec<Box<dyn Score>>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            filters: crate::plugins::filters(),
            scores: crate::plugins::scores(),
        }
    }
}

/// Why no node takes a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NoFit {
    /// Number of nodes asked.
    pub nodes: usize,
    /// Reasons and on how many nodes each was given.
    pub reasons: BTreeMap<String, usize>,
    /// What is wrong with the pod itself; then that alone is told.
    pub of_pod: Option<String>,
    /// Filters that rejected, by index in the profile: only events they wait for wake the pod.
    pub rejected_by: Vec<usize>,
    /// Nodes where making room could help.
    pub resolvable: Vec<String>,
    /// Why no room can be made; empty while nobody has tried.
    pub preemption: String,
}

/// `N reason` for each reason, as upstream sorts them.
pub(crate) fn counted(reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    parts.join(", ")
}

impl std::fmt::Display for NoFit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let reasons = match &self.of_pod {
            Some(reason) => reason.clone(),
            None => counted(&self.reasons),
        };
        write!(f, "0/{} nodes are available: {reasons}.", self.nodes)?;
        if !self.preemption.is_empty() {
            write!(f, " preemption: {}", self.preemption)?;
        }
        Ok(())
    }
}

/// Enough feasible nodes to score: all of a small cluster, a share of a large one (as upstream: 50 % less
/// one point per 125 nodes, at least 5 % and at least 100 nodes).
fn enough(nodes: usize) -> usize {
    const ALWAYS: usize = 100;
    if nodes <= ALWAYS {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(ALWAYS)
}

impl Profile {
    /// Chooses the best node for a pod. `start` is where in the order of nodes to begin, so that in a
    /// large cluster every node gets its turn; ties go to the first found from there.
    ///
    /// # Errors
    /// When no node takes it.
    pub fn choose<'c>(
        &self,
        pod: &PodInfo,
        cache: &'c Cache,
        start: usize,
    ) -> Result<&'c NodeInfo, NoFit> {
        let context = Context::new(pod, cache);
        let total = cache.len();
        let want = enough(total);
        let mut feasible = Vec::with_capacity(want);
        let mut failure = NoFit {
            nodes: total,
            ..NoFit::default()
        };
        for offset in 0..total {
            let Some(node) = cache.node_at(start + offset) else {
                continue;
            };
            match self.reject(pod, node, &context) {
                None => {
                    feasible.push(node);
                    if feasible.len() >= want {
                        break;
                    }
                }
                Some((filter, rejections)) => failure.count(node, filter, rejections),
            }
        }
        match feasible.as_slice() {
            [] => Err(failure),
            [only] => Ok(*only),
            _ => Ok(self.best(pod, &feasible, &context)),
        }
    }

    /// The first filter that rejects a node, with its reasons. Pods that wait for room there and go first count as
    /// if they were there already.
    #[must_use]
    pub fn reject(
        &self,
        pod: &PodInfo,
        node: &NodeInfo,
        context: &Context<'_>,
    ) -> Option<(usize, Vec<Rejection>)> {
        let ask = |node: &NodeInfo| {
            self.filters.iter().enumerate().find_map(|(index, filter)| {
                let rejections = filter.filter(pod, node, context);
                (!rejections.is_empty()).then_some((index, rejections))
            })
        };
        if !context.cache.nobody_nominated() {
            let mut crowded = None;
            for other in context.cache.nominated_before(pod, &node.name) {
                crowded.get_or_insert_with(|| node.clone()).add(other);
            }
            if let Some(rejected) = crowded.as_ref().and_then(ask) {
                return Some(rejected);
            }
        }
        ask(node)
    }

    fn best<'c>(
        &self,
        pod: &PodInfo,
        nodes: &[&'c NodeInfo],
        context: &Context<'_>,
    ) -> &'c NodeInfo {
        let mut sums = vec![0i64; nodes.len()];
        for plugin in &self.scores {
            let mut scores: Vec<i64> = nodes
                .iter()
                .map(|n| plugin.score(pod, n, context))
                .collect();
            plugin.normalize(&mut scores);
            for (sum, score) in sums.iter_mut().zip(scores) {
                *sum += score * plugin.weight();
            }
        }
        let mut best = 0;
        for (index, sum) in sums.iter().enumerate() {
            if *sum > sums[best] {
                best = index;
            }
        }
        nodes[best]
    }

    /// True when an event could make a pod schedulable that was rejected by `rejected_by`. Without any
    /// filter named (no nodes at all) every new node matters.
    #[must_use]
    pub fn wakes(&self, rejected_by: &[usize], event: ClusterEvent) -> bool {
        if rejected_by.is_empty() {
            return event == ClusterEvent::NodeAdded;
        }
        rejected_by
            .iter()
            .filter_map(|i| self.filters.get(*i))
            .any(|f| f.wakes(event))
    }
}

impl NoFit {
    fn count(&mut self, node: &NodeInfo, filter: usize, rejections: Vec<Rejection>) {
        if rejections.iter().all(|r| !r.unresolvable) {
            self.resolvable.push(node.name.clone());
        }
        for rejection in rejections {
            if rejection.of_pod {
                self.of_pod.get_or_insert_with(|| rejection.reason.clone());
            }
            *self.reasons.entry(rejection.reason).or_default() += 1;
        }
        if !self.rejected_by.contains(&filter) {
            self.rejected_by.push(filter);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::plugins::testing;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn cluster(nodes: &[(&str, Value)]) -> Cache {
        let mut cache = Cache::default();
        for (name, extra) in nodes {
            let mut value = json!({"metadata": {"name": name},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
            if let Some(spec) = extra.get("spec") {
                value["spec"] = spec.clone();
            }
            if let Some(allocatable) = extra.get("allocatable") {
                value["status"]["allocatable"] = allocatable.clone();
            }
            cache.set_node(Arc::new(serde_json::from_value(value).unwrap()));
        }
        cache
    }

    fn owned(uid: &str) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": uid, "uid": uid, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "o", "controller": true}]},
            "spec": {"containers": [{"name": "c"}]}});
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
    }

    #[test]
    fn replicas_of_one_owner_are_spread_over_the_nodes() {
        let mut cache = cluster(&[("a", json!({})), ("b", json!({}))]);
        let profile = Profile::default();
        for uid in ["1", "2", "3", "4"] {
            let pod = owned(uid);
            let node = profile.choose(&pod, &cache, 0).unwrap().name.clone();
            cache.set_pod(pod, &node);
        }
        let counts: Vec<i64> = cache.nodes().map(|n| n.pods).collect();
        assert_eq!(counts, [2, 2]);
    }

    #[test]
    fn the_failure_says_how_many_nodes_failed_and_why() {
        let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
        let cache = cluster(&[
            ("a", taint),
            ("b", json!({"allocatable": {"cpu": "1", "pods": "9"}})),
            ("c", json!({"spec": {"unschedulable": true}})),
        ]);
        let pod = testing::pod(
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}),
        );
        let failure = Profile::default().choose(&pod, &cache, 0).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: }, \
             1 node(s) were unschedulable."
        );
    }

    #[test]
    fn what_is_wrong_with_the_pod_itself_is_told_without_a_count() {
        let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
        let cache = cluster(&[("a", taint), ("b", json!({})), ("c", json!({}))]);
        let pod = testing::pod(json!({"containers": [{"name": "c"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "none"}}]}));
        let failure = Profile::default().choose(&pod, &cache, 0).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "0/3 nodes are available: persistentvolumeclaim \"none\" not found."
        );
    }

    #[test]
    fn without_nodes_the_failure_says_so() {
        let failure = Profile::default()
            .choose(&owned("1"), &Cache::default(), 0)
            .unwrap_err();
        assert_eq!(failure.to_string(), "no nodes available to schedule pods");
    }

    #[test]
    fn a_pod_rejected_for_room_wakes_when_a_pod_goes_but_one_rejected_by_labels_does_not() {
        let profile = Profile::default();
        let index = |name| {
            profile
                .filters
                .iter()
                .position(|f| f.name() == name)
                .unwrap()
        };
        assert!(profile.wakes(&[index("NodeResourcesFit")], ClusterEvent::PodGone));
        assert!(!profile.wakes(&[index("NodeAffinity")], ClusterEvent::PodGone));
        assert!(profile.wakes(&[], ClusterEvent::NodeAdded));
    }
}
