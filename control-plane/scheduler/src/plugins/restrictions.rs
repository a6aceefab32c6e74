//! Claims of mode `ReadWriteOncePod`: one pod in the cluster uses such a volume, others wait.

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, Rejection};
use crate::pod::PodInfo;

const CONFLICT: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

/// Rejects nodes while another pod uses a `ReadWriteOncePod` claim of this one.
pub struct VolumeRestrictions;

impl Filter for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> Vec<Rejection> {
        let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
        let storage = &context.cache.storage;
        let keys = pod
            .claims
            .iter()
            .map(|claim| format!("{namespace}/{claim}"));
        for key in keys.filter(|key| storage.is_for_one_pod(key)) {
            for (user, at) in context
                .cache
                .users(&key)
                .filter(|(user, _)| **user != pod.uid)
            {
                if *at != node.name {
                    return vec![Rejection::unresolvable(CONFLICT)];
                }
                // Preemption asks with the victims left out of the node.
                if node.running.contains_key(user) {
                    return vec![Rejection::resolvable(CONFLICT)];
                }
            }
        }
        Vec::new()
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::PodGone | ClusterEvent::StorageChanged)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::cache::Cache;

    fn pod(uid: &str) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": uid, "namespace": "n", "uid": uid}, "spec": {"containers": [{"name": "c"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
        Arc::new(PodInfo::new(Arc::new(from_value(pod).unwrap())))
    }

    fn cache(mode: &str) -> Cache {
        let mut cache = Cache::default();
        for name in ["a", "b"] {
            let node: Value = json!({"metadata": {"name": name}});
            cache.set_node(Arc::new(from_value(node).unwrap()));
        }
        let claim =
            json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {"accessModes": [mode]}});
        cache
            .storage
            .set_claim(Arc::new(from_value(claim).unwrap()));
        cache.set_pod(pod("1"), "a");
        cache
    }

    fn ask(cache: &Cache, node: &NodeInfo) -> Vec<bool> {
        let pod = pod("2");
        let context = Context::new(&pod, cache);
        let rejections = VolumeRestrictions.filter(&pod, node, &context);
        rejections.iter().map(|r| r.unresolvable).collect()
    }

    #[test]
    fn a_claim_for_one_pod_keeps_others_off_and_only_its_users_node_can_be_freed() {
        let cache = cache("ReadWriteOncePod");
        let (a, b) = (cache.node("a").unwrap(), cache.node("b").unwrap());
        assert_eq!(ask(&cache, a), [false]);
        assert_eq!(ask(&cache, b), [true]);
        let mut without = a.clone();
        without.remove(&pod("1"));
        assert!(ask(&cache, &without).is_empty());
    }

    #[test]
    fn claims_of_other_modes_are_shared_and_a_gone_user_frees_the_claim() {
        let shared = cache("ReadWriteOnce");
        assert!(ask(&shared, shared.node("b").unwrap()).is_empty());
        let mut freed = cache("ReadWriteOncePod");
        freed.remove_pod("1");
        assert!(ask(&freed, freed.node("b").unwrap()).is_empty());
    }
}
