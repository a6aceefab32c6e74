//! Cordoned nodes take no pods.

use balsa_api::scheduling::tolerates;

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, Rejection};
use crate::pod::PodInfo;

/// Rejects nodes with `spec.unschedulable`, unless the pod tolerates the taint that goes with it.
pub struct NodeUnschedulable;

impl Filter for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> Vec<Rejection> {
        let taint = k8s_openapi::api::core::v1::Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Default::default()
        };
        if node.unschedulable() && !pod.tolerations().iter().any(|t| tolerates(t, &taint)) {
            return vec![Rejection::unresolvable("node(s) were unschedulable")];
        }
        Vec::new()
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::NodeChanged)
    }
}
