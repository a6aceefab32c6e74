//! The pods of a DaemonSet: tolerations, the node they belong to, and their revision. Pure.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use kube::ResourceExt;

use crate::support::history::REVISION_LABEL;
use crate::support::pod_control::from_template;
use crate::support::pods;

/// The set's number of templates so far, kept for clients of apps/v1beta2.
const GENERATION: &str = "deprecated.daemonset.template.generation";
/// The same, on pods.
const GENERATION_LABEL: &str = "pod-template-generation";
const NODE_NAME_FIELD: &str = "metadata.name";

/// Tolerated by all daemon pods: they must run where others must not (yet).
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// The template's tolerations and those that each daemon pod has.
pub(super) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let network = ("node.kubernetes.io/network-unavailable", "NoSchedule");
    let extra = (spec.host_network == Some(true)).then_some(network);
    for (key, effect) in TOLERATED.into_iter().chain(extra) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let same = |other: &Toleration| {
            other.key == toleration.key
                && other.effect == toleration.effect
                && other.operator == toleration.operator
                && other.value.as_deref().unwrap_or_default().is_empty()
        };
        match all.iter_mut().find(|other| same(other)) {
            Some(own) => *own = toleration,
            None => all.push(toleration),
        }
    }
    all
}

/// A pod of the set for a node.
pub(super) fn new_pod(set: &DaemonSet, hash: &str, node: &str) -> Option<Pod> {
    let template = &set.spec.as_ref()?.template;
    let mut pod = from_template(set, template);
    let labels = pod.labels_mut();
    labels.insert(REVISION_LABEL.into(), hash.to_owned());
    if let Some(generation) = set.annotations().get(GENERATION) {
        labels.insert(GENERATION_LABEL.into(), generation.clone());
    }
    let spec = pod.spec.as_mut()?;
    spec.tolerations = Some(tolerations(spec));
    bind(spec, node);
    Some(pod)
}

/// Replaces required node affinity, which the set has looked at already, by the node's name.
fn bind(spec: &mut PodSpec, node: &str) {
    let affinity = spec.affinity.get_or_insert_default();
    let requirement = NodeSelectorRequirement {
        key: NODE_NAME_FIELD.into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    affinity
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![requirement]),
            match_expressions: None,
        }],
    });
}

/// The node that a pod runs on or is meant for.
pub(super) fn target_node(pod: &Pod) -> Option<&str> {
    let name = pods::node_name(pod);
    if !name.is_empty() {
        return Some(name);
    }
    let affinity = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut fields = required
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.find(|field| {
        field.key == NODE_NAME_FIELD
            && field.operator == "In"
            && field
                .values
                .as_ref()
                .is_some_and(|values| values.len() == 1)
    })?;
    named.values.as_ref()?.first().map(String::as_str)
}

/// True when the pod was made from the current template.
pub(super) fn is_updated(set: &DaemonSet, pod: &Pod, hash: &str) -> bool {
    let label = |key: &str| pod.labels().get(key).map(String::as_str);
    let generation = set.annotations().get(GENERATION).map(String::as_str);
    label(REVISION_LABEL) == Some(hash)
        || (generation.is_some() && label(GENERATION_LABEL) == generation)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::DaemonSetSpec;
    use k8s_openapi::api::core::v1::PodTemplateSpec;

    use super::*;

    #[test]
    fn a_pod_is_meant_for_its_node_and_tolerates_its_troubles() {
        let spec = PodSpec {
            host_network: Some(true),
            ..PodSpec::default()
        };
        let mut set = DaemonSet {
            spec: Some(DaemonSetSpec {
                template: PodTemplateSpec {
                    metadata: None,
                    spec: Some(spec),
                },
                ..DaemonSetSpec::default()
            }),
            ..DaemonSet::default()
        };
        set.metadata.name = Some("logs".into());
        let pod = new_pod(&set, "abc", "node-1").unwrap();
        assert_eq!(target_node(&pod), Some("node-1"));
        assert!(is_updated(&set, &pod, "abc"));
        assert!(!is_updated(&set, &pod, "def"));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("logs-"));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.tolerations.as_ref().unwrap().len(), 7);
        // Adding them again changes nothing.
        assert_eq!(tolerations(&spec).len(), 7);
    }
}
