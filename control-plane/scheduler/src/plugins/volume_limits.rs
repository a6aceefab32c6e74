//! How many volumes of a CSI driver a node takes.

use std::collections::HashSet;

use crate::cache::{NodeInfo, Storage};
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, Rejection};
use crate::pod::PodInfo;

/// Rejects nodes that would have more volumes of a driver than it has said that they take (upstream's
/// `NodeVolumeLimits`).
pub struct VolumeLimits;

/// A volume: its driver, and what tells it from others of that driver.
type Volume = (String, String);

/// The drivers' volumes that a pod uses. A claim without a volume counts as one that is to be made.
fn volumes_of(pod: &PodInfo, storage: &Storage) -> Vec<Volume> {
    let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims = pod.claims.iter().filter_map(|name| {
        let key = format!("{namespace}/{name}");
        let spec = storage.claims.get(&key)?.spec.as_ref()?;
        let named = spec.volume_name.as_deref().unwrap_or_default();
        if let Some(volume) = storage.volumes.get(named) {
            let source = volume.spec.as_ref()?.csi.as_ref()?;
            return Some((source.driver.clone(), source.volume_handle.clone()));
        }
        let class = storage.classes.get(spec.storage_class_name.as_deref()?)?;
        Some((class.provisioner.clone(), key))
    });
    claims.collect()
}

impl Filter for VolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> Vec<Rejection> {
        if pod.claims.is_empty() {
            return Vec::new();
        }
        let storage = &context.cache.storage;
        let Some(limits) = storage.drivers.limits(&node.name) else {
            return Vec::new();
        };
        let mut wanted: HashSet<Volume> = volumes_of(pod, storage).into_iter().collect();
        wanted.retain(|(driver, _)| limits.contains_key(driver));
        if wanted.is_empty() {
            return Vec::new();
        }
        let running = node.running.values();
        let there: HashSet<Volume> = running
            .filter(|other| !other.claims.is_empty())
            .flat_map(|other| volumes_of(other, storage))
            .collect();
        // What is there already costs nothing.
        let exceeds = wanted.difference(&there).any(|(driver, _)| {
            let of = |volumes: &mut dyn Iterator<Item = &Volume>| {
                volumes.filter(|volume| volume.0 == *driver).count()
            };
            let all = of(&mut there.union(&wanted));
            limits.get(driver).is_some_and(|limit| all > *limit)
        });
        if exceeds {
            return vec![Rejection::resolvable("node(s) exceed max volume count")];
        }
        Vec::new()
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(
            event,
            ClusterEvent::PodGone | ClusterEvent::StorageChanged | ClusterEvent::NodeAdded
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::cache::Cache;

    fn pod(uid: &str, claim: &str) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": uid, "namespace": "n", "uid": uid}, "spec": {"containers": [{"name": "c"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}});
        Arc::new(PodInfo::new(Arc::new(from_value(pod).unwrap())))
    }

    /// A node that takes that many volumes of a driver, with a pod that has claim `a`; claims `a` and `b`.
    fn cache(limit: Option<usize>) -> Cache {
        let mut cache = Cache::default();
        let node: Value = json!({"metadata": {"name": "a"}});
        cache.set_node(Arc::new(from_value(node).unwrap()));
        for name in ["a", "b"] {
            let claim =
                json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"volumeName": name}});
            let volume = json!({"metadata": {"name": name}, "spec": {"csi": {"driver": "d", "volumeHandle": name}}});
            cache
                .storage
                .set_claim(Arc::new(from_value(claim).unwrap()));
            cache
                .storage
                .set_volume(Arc::new(from_value(volume).unwrap()));
        }
        let allocatable = limit.map(|count| json!({"count": count}));
        let drivers = json!({"metadata": {"name": "a"}, "spec": {"drivers": [
            {"name": "d", "nodeID": "a", "allocatable": allocatable}]}});
        let drivers = from_value(drivers).unwrap();
        cache.storage.drivers.set_node(&drivers, false);
        cache.set_pod(pod("1", "a"), "a");
        cache
    }

    fn fits(cache: &Cache, claim: &str) -> bool {
        let pod = pod("2", claim);
        let context = Context::new(&pod, cache);
        let node = cache.node("a").unwrap();
        VolumeLimits.filter(&pod, node, &context).is_empty()
    }

    #[test]
    fn a_node_takes_no_more_volumes_than_its_driver_says() {
        assert!(fits(&cache(None), "b"));
        assert!(fits(&cache(Some(2)), "b"));
        assert!(!fits(&cache(Some(1)), "b"));
        // The volume is there already.
        assert!(fits(&cache(Some(1)), "a"));
    }
}
