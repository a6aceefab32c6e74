//! What filters and scores know beyond the pod and the node: where the pods are that the pod's terms mean, counted
//! once per decision, so that each node costs lookups only.

use std::collections::HashMap;

use crate::cache::{Cache, NodeInfo};
use crate::pod::PodInfo;
use crate::terms::{Spread, Term, labels};

/// A place of a topology: label and value.
type Place = (String, String);

/// Counts of pods per place of one topology.
pub type Places = HashMap<String, i64>;

/// Everything counted for one pod.
pub struct Context<'c> {
    /// The cluster.
    pub cache: &'c Cache,
    /// Pods that all of the pod's required affinity terms mean, by place.
    pub near: HashMap<Place, i64>,
    /// For each required anti-affinity term, pods that it means by place.
    pub far: Vec<Places>,
    /// Pods whose required anti-affinity means this pod, by place.
    pub against: HashMap<Place, i64>,
    /// What preferences of this pod and of those there say of each place.
    pub liked: HashMap<Place, i64>,
    /// For each spread constraint, pods that it counts by place. All places where the pod might go are there.
    pub spread: Vec<Places>,
}

/// A node's value of a label.
#[must_use]
pub fn label<'n>(node: &'n NodeInfo, key: &str) -> Option<&'n str> {
    let labels = node.node.as_ref()?.metadata.labels.as_ref()?;
    labels.get(key).map(String::as_str)
}

fn place(node: &NodeInfo, key: &str) -> Option<Place> {
    label(node, key).map(|value| (key.to_owned(), value.to_owned()))
}

/// Weight of a required affinity of a pod that is there, as a preference to have this pod near (upstream's
/// HardPodAffinityWeight).
const HARD: i64 = 1;

impl<'c> Context<'c> {
    /// Counts for a pod.
    #[must_use]
    pub fn new(pod: &PodInfo, cache: &'c Cache) -> Self {
        let terms = &pod.terms;
        let mut context = Self {
            cache,
            near: HashMap::new(),
            far: vec![Places::new(); terms.anti_affinity.len()],
            against: HashMap::new(),
            liked: HashMap::new(),
            spread: vec![Places::new(); terms.spread.len()],
        };
        let asks = !terms.affinity.is_empty()
            || !terms.anti_affinity.is_empty()
            || !terms.preferred.is_empty();
        if asks || !terms.spread.is_empty() || cache.opinionated() > 0 {
            for node in cache.nodes() {
                context.open_places(pod, node);
                if asks || !terms.spread.is_empty() || node.opinionated > 0 {
                    for other in node.running.values() {
                        context.shift(pod, other, node, 1);
                    }
                }
            }
        }
        context
    }

    /// Places of spread constraints exist even when empty: they are the minimum that others are held against.
    fn open_places(&mut self, pod: &PodInfo, node: &NodeInfo) {
        for (spread, places) in pod.terms.spread.iter().zip(&mut self.spread) {
            if counts_node(pod, spread, node)
                && let Some(value) = label(node, &spread.topology_key)
            {
                places.entry(value.to_owned()).or_default();
            }
        }
    }

    /// Adds (`by` 1) or takes away (-1) what another pod on a node means for `pod`.
    pub fn shift(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        if other.uid == pod.uid {
            return;
        }
        let means = |term: &Term| term.means(&other.pod, self.cache.namespace(&other.pod));
        let terms = &pod.terms;
        if !terms.affinity.is_empty() && terms.affinity.iter().all(means) {
            for term in &terms.affinity {
                add(&mut self.near, place(node, &term.topology_key), by);
            }
        }
        for (term, places) in terms.anti_affinity.iter().zip(&mut self.far) {
            if means(term)
                && let Some(value) = label(node, &term.topology_key)
            {
                *places.entry(value.to_owned()).or_default() += by;
            }
        }
        for weighted in &terms.preferred {
            if means(&weighted.term) {
                let at = place(node, &weighted.term.topology_key);
                add(&mut self.liked, at, by * weighted.weight);
            }
        }
        self.shift_spread(pod, other, node, by);
        self.shift_opinions(pod, other, node, by);
    }

    fn shift_spread(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        let gone = other.pod.metadata.deletion_timestamp.is_some();
        if gone || other.pod.metadata.namespace != pod.pod.metadata.namespace {
            return;
        }
        for (spread, places) in pod.terms.spread.iter().zip(&mut self.spread) {
            if spread.selector.matches(&labels(&other.pod))
                && let Some(value) = label(node, &spread.topology_key)
                && let Some(count) = places.get_mut(value)
                && counts_node(pod, spread, node)
            {
                *count += by;
            }
        }
    }

    /// What the other pod's own terms say of this pod.
    fn shift_opinions(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        if !other.terms.concerns_others() {
            return;
        }
        let means = |term: &Term| term.means(&pod.pod, self.cache.namespace(&pod.pod));
        for term in other.terms.anti_affinity.iter().filter(|t| means(t)) {
            add(&mut self.against, place(node, &term.topology_key), by);
        }
        for term in other.terms.affinity.iter().filter(|t| means(t)) {
            add(&mut self.liked, place(node, &term.topology_key), by * HARD);
        }
        for weighted in other.terms.preferred.iter().filter(|w| means(&w.term)) {
            let at = place(node, &weighted.term.topology_key);
            add(&mut self.liked, at, by * weighted.weight);
        }
    }
}

fn add(counts: &mut HashMap<Place, i64>, at: Option<Place>, by: i64) {
    if let Some(at) = at {
        *counts.entry(at).or_default() += by;
    }
}

/// True when the pods of a node count for a constraint: the node has all the topology labels of the pod's
/// constraints of that kind, and the pod could go there as far as the constraint's policies look.
fn counts_node(pod: &PodInfo, spread: &Spread, node: &NodeInfo) -> bool {
    let keys = pod
        .terms
        .spread
        .iter()
        .filter(|s| s.required == spread.required);
    let labelled = keys
        .map(|s| &s.topology_key)
        .all(|k| label(node, k).is_some());
    let Some(object) = &node.node else {
        return false;
    };
    let wanted = || {
        let spec = pod.pod.spec.as_ref();
        spec.is_none_or(|spec| balsa_api::scheduling::wants_node(spec, object))
    };
    let tolerated = || {
        balsa_api::scheduling::untolerated(
            node.taints(),
            pod.tolerations(),
            &["NoSchedule", "NoExecute"],
        )
        .is_none()
    };
    labelled && (!spread.honor_affinity || wanted()) && (!spread.honor_taints || tolerated())
}
