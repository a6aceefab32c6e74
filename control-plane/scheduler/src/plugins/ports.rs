//! Host ports.

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, Rejection};
use crate::pod::PodInfo;

/// Rejects nodes where a host port of the pod is taken.
pub struct NodePorts;

impl Filter for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> Vec<Rejection> {
        let taken = pod
            .ports
            .iter()
            .any(|port| node.ports.iter().any(|held| held.conflicts(port)));
        if taken {
            vec![Rejection::resolvable(
                "node(s) didn't have free ports for the requested pod ports",
            )]
        } else {
            Vec::new()
        }
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::PodGone | ClusterEvent::NodeAdded)
    }
}
