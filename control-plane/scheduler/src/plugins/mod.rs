//! The plugins, one file per concern.

pub mod affinity;
pub mod images;
pub mod ports;
pub mod resources;
pub mod spread;
pub mod taints;
pub mod unschedulable;

use crate::framework::{Filter, Score};

/// Filters in the order they are asked; the first that rejects a node ends the questions about it.
#[must_use]
pub fn filters() -> Vec<Box<dyn Filter>> {
    vec![
        Box::new(unschedulable::NodeUnschedulable),
        Box::new(taints::TaintToleration),
        Box::new(affinity::NodeAffinity),
        Box::new(ports::NodePorts),
        Box::new(resources::Fit),
    ]
}

/// Scores with upstream's weights.
#[must_use]
pub fn scores() -> Vec<Box<dyn Score>> {
    vec![
        Box::new(taints::TaintToleration),
        Box::new(affinity::NodeAffinity),
        Box::new(resources::LeastAllocated),
        Box::new(resources::BalancedAllocation),
        Box::new(spread::OwnerSpread),
        Box::new(images::ImageLocality),
    ]
}

#[cfg(test)]
pub(crate) mod testing {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::{Value, json};

    use crate::cache::{Cache, NodeInfo};
    use crate::pod::PodInfo;

    pub fn pod(spec: Value) -> PodInfo {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()))
    }

    pub fn node(value: Value) -> NodeInfo {
        let mut value = value;
        value["metadata"]["name"] = json!("a");
        let mut cache = Cache::default();
        cache.set_node(Arc::new(serde_json::from_value(value).unwrap()));
        cache.node("a").unwrap().clone()
    }
}
