//! The plugins, one file per concern.

pub mod affinity;
pub mod devices;
pub mod images;
pub mod pod_affinity;
pub mod ports;
pub mod resources;
pub mod restrictions;
pub mod spread;
pub mod taints;
pub mod topology;
pub mod unschedulable;
pub mod volume_limits;
pub mod volumes;

use crate::framework::{Filter, Score};

/// Filters in the order they are asked; the first that rejects a node ends the questions about it.
#[must_use]
pub fn filters() -> Vec<Box<dyn Filter>> {
    vec![
        Box::new(unschedulable::NodeUnschedulable),
        Box::new(devices::DynamicResources),
        Box::new(taints::TaintToleration),
        Box::new(affinity::NodeAffinity),
        Box::new(ports::NodePorts),
        Box::new(resources::Fit),
        Box::new(restrictions::VolumeRestrictions),
        Box::new(volume_limits::VolumeLimits),
        Box::new(volumes::VolumeBinding),
        Box::new(topology::PodTopologySpread),
        Box::new(pod_affinity::InterPodAffinity),
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
        Box::new(topology::PodTopologySpread),
        Box::new(pod_affinity::InterPodAffinity),
        Box::new(images::ImageLocality),
    ]
}

#[cfg(test)]
pub(crate) mod testing {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::{Value, json};

    use crate::cache::{Cache, NodeInfo};
    use crate::context::Context;
    use crate::pod::PodInfo;

    pub fn pod(spec: Value) -> PodInfo {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()))
    }

    /// Nodes `a` and `b` in zones of their own with pods (app, spec, node) on them, and a new pod of an app.
    pub fn zones(app: &str, spec: Value, running: &[(&str, Value, &str)]) -> (Cache, PodInfo) {
        let digest = |uid: &str, app: &str, spec: &Value| {
            let mut spec = spec.clone();
            spec["containers"] = json!([{"name": "c"}]);
            let pod = json!({"metadata": {"name": uid, "namespace": "n", "uid": uid, "labels": {"app": app}}, "spec": spec});
            PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()))
        };
        let mut cache = Cache::default();
        for name in ["a", "b"] {
            let node = json!({"metadata": {"name": name, "labels": {"zone": name}}});
            cache.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        for (index, (app, spec, node)) in running.iter().enumerate() {
            cache.set_pod(Arc::new(digest(&index.to_string(), app, spec)), node);
        }
        (cache, digest("new", app, &spec))
    }

    /// A context that counted nothing.
    pub fn context(cache: &Cache) -> Context<'_> {
        Context::new(&pod(json!({})), cache)
    }

    pub fn node(value: Value) -> NodeInfo {
        let mut value = value;
        value["metadata"]["name"] = json!("a");
        let mut cache = Cache::default();
        cache.set_node(Arc::new(serde_json::from_value(value).unwrap()));
        cache.node("a").unwrap().clone()
    }
}
