//! What a node's conditions and silence mean for its status, taints and pods. Pure.

use balsa_client::time::time;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};

use crate::support::pods;
use crate::taint_eviction::{NOT_READY, UNREACHABLE};

pub(super) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that only the node itself can know.
const FROM_NODE: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Conditions that, when true, keep new pods away.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

pub(super) fn status<'a>(node: &'a Node, type_: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .map(|condition| condition.status.as_str())
}

/// All conditions of a node that is not heard of, or `None` when they say so already.
pub(super) fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut changed = false;
    for type_ in FROM_NODE {
        match conditions
            .iter_mut()
            .find(|condition| condition.type_ == type_)
        {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(time(now));
                changed = true;
            }
            None => {
                conditions.push(NodeCondition {
                    type_: type_.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(time(now)),
                });
                changed = true;
            }
        }
    }
    changed.then_some(conditions)
}

/// What becomes of the pods of a node that is not heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silent {
    /// They go.
    Evict,
    /// It was not judged since this server leads, or since nobody was heard: as it was found.
    Undecided,
    /// They stay: no node is heard of at all, so it may well be us (upstream's full disruption).
    Spare,
}

/// The node's taints as its conditions demand, or `None` when they are so already. Others' taints stay.
pub(super) fn taints(node: &Node, silent: Silent, now: Timestamp) -> Option<Vec<Taint>> {
    let current = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match status(node, "Ready") {
        Some("True") => {}
        Some("False") => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        Some(_) => {
            wanted.push((UNREACHABLE, "NoSchedule"));
            let evicts = current
                .iter()
                .any(|taint| taint.key == UNREACHABLE && taint.effect == "NoExecute");
            if silent == Silent::Evict || silent == Silent::Undecided && evicts {
                wanted.push((UNREACHABLE, "NoExecute"));
            }
        }
        // A node that has just registered and said nothing yet keeps what it registered with.
        None => wanted.extend(
            current
                .iter()
                .filter(|taint| taint.key == NOT_READY)
                .map(|taint| (NOT_READY, taint.effect.as_str())),
        ),
    }
    wanted.extend(
        PRESSURES
            .iter()
            .filter(|(type_, _)| status(node, type_) == Some("True"))
            .map(|(_, key)| (*key, "NoSchedule")),
    );
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let wants = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> = current
        .iter()
        .filter(|taint| !is_ours(taint) || wants(taint))
        .cloned()
        .collect();
    for (key, effect) in &wanted {
        if !taints
            .iter()
            .any(|taint| taint.key == *key && taint.effect == *effect)
        {
            taints.push(Taint {
                key: (*key).into(),
                effect: (*effect).into(),
                time_added: Some(time(now)),
                value: None,
            });
        }
    }
    (taints != current).then_some(taints)
}

fn is_ours(taint: &Taint) -> bool {
    [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
        || PRESSURES
            .iter()
            .any(|(_, key)| *key == taint.key && taint.effect == "NoSchedule")
}

/// The pod's conditions with `Ready` false, or `None` when it is not ready anyway.
pub(super) fn unready_conditions(pod: &Pod, now: Timestamp) -> Option<Vec<PodCondition>> {
    if !pods::is_ready(pod) {
        return None;
    }
    let mut conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())?;
    for condition in conditions
        .iter_mut()
        .filter(|condition| condition.type_ == "Ready")
    {
        condition.status = "False".into();
        condition.last_transition_time = Some(time(now));
    }
    Some(conditions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus};

    use super::*;

    fn node(conditions: &[(&str, &str)], taints: &[(&str, &str)]) -> Node {
        let condition = |(type_, status): &(&str, &str)| NodeCondition {
            type_: (*type_).into(),
            status: (*status).into(),
            ..NodeCondition::default()
        };
        let taint = |(key, effect): &(&str, &str)| Taint {
            key: (*key).into(),
            effect: (*effect).into(),
            ..Taint::default()
        };
        Node {
            spec: Some(NodeSpec {
                taints: Some(taints.iter().map(taint).collect()),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                conditions: Some(conditions.iter().map(condition).collect()),
                ..NodeStatus::default()
            }),
            ..Node::default()
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1000).unwrap()
    }

    fn keys(taints: &[Taint]) -> Vec<(String, String)> {
        taints
            .iter()
            .map(|taint| (taint.key.clone(), taint.effect.clone()))
            .collect()
    }

    #[test]
    fn an_unheard_node_becomes_unknown_once() {
        let mut node = node(&[("Ready", "True"), ("NetworkUnavailable", "False")], &[]);
        let conditions = unknown_conditions(&node, now()).unwrap();
        let of = |type_: &str| {
            conditions
                .iter()
                .find(|condition| condition.type_ == type_)
                .unwrap()
        };
        assert_eq!(of("Ready").reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(
            of("MemoryPressure").reason.as_deref(),
            Some("NodeStatusNeverUpdated")
        );
        assert_eq!(of("NetworkUnavailable").status, "False");
        node.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(unknown_conditions(&node, now()), None);
    }

    #[test]
    fn taints_follow_readiness_and_leave_others_alone() {
        let unreachable = taints(
            &node(&[("Ready", "Unknown")], &[("gpu", "NoSchedule")]),
            Silent::Evict,
            now(),
        )
        .unwrap();
        assert_eq!(
            keys(&unreachable),
            [
                ("gpu".into(), "NoSchedule".into()),
                (UNREACHABLE.into(), "NoSchedule".into()),
                (UNREACHABLE.into(), "NoExecute".into()),
            ]
        );
        assert!(unreachable[2].time_added.is_some());
        let back = node(
            &[("Ready", "True")],
            &[("gpu", "NoSchedule"), (UNREACHABLE, "NoExecute")],
        );
        assert_eq!(
            keys(&taints(&back, Silent::Undecided, now()).unwrap()),
            [("gpu".into(), "NoSchedule".into())]
        );
        assert_eq!(
            taints(
                &node(&[("Ready", "True")], &[("gpu", "NoExecute")]),
                Silent::Undecided,
                now()
            ),
            None
        );
    }

    #[test]
    fn only_the_pods_of_nodes_that_were_judged_go() {
        let old = [(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")];
        let stay = &old[..1];
        let node = |taints: &[(&str, &str)]| node(&[("Ready", "Unknown")], taints);
        let after = |taints_before: &[(&str, &str)], silent| {
            taints(&node(taints_before), silent, now()).map(|taints| taints.len())
        };
        assert_eq!(after(stay, Silent::Evict), Some(2));
        assert_eq!(after(&old, Silent::Evict), None);
        assert_eq!(after(stay, Silent::Undecided), None);
        assert_eq!(
            after(&old, Silent::Undecided),
            None,
            "an earlier leader judged it"
        );
        assert_eq!(after(&old, Silent::Spare), Some(1));
    }

    #[test]
    fn a_new_node_keeps_the_taint_it_registered_with() {
        assert_eq!(
            taints(
                &node(&[], &[(NOT_READY, "NoSchedule")]),
                Silent::Undecided,
                now()
            ),
            None
        );
    }

    #[test]
    fn pressure_and_cordon_keep_new_pods_away() {
        let mut node = node(&[("Ready", "True"), ("DiskPressure", "True")], &[]);
        node.spec.as_mut().unwrap().unschedulable = Some(true);
        let keys = keys(&taints(&node, Silent::Undecided, now()).unwrap());
        assert_eq!(keys[0].0, "node.kubernetes.io/disk-pressure");
        assert_eq!(keys[1].0, UNSCHEDULABLE);
    }
}
