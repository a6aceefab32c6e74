//! Resource claims (dynamic resource allocation, KEP-4381): nobody allocates devices here yet, so pods that need some
//! wait, and say why, instead of running without them.

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, Rejection};
use crate::pod::PodInfo;

/// Rejects every node for pods with resource claims.
pub struct DynamicResources;

impl Filter for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn filter(&self, pod: &PodInfo, _node: &NodeInfo, _context: &Context<'_>) -> Vec<Rejection> {
        let claims = pod
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.resource_claims.as_ref());
        if claims.is_none_or(Vec::is_empty) {
            return Vec::new();
        }
        vec![Rejection::unresolvable(
            "cannot allocate all claims: resource claims are not supported by this scheduler",
        )]
    }

    /// Nothing helps: a pod's claims cannot change.
    fn wakes(&self, _event: ClusterEvent) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cache::Cache;
    use crate::plugins::testing;

    #[test]
    fn a_pod_that_needs_devices_waits_instead_of_running_without() {
        let cache = Cache::default();
        let context = testing::context(&cache);
        let node = testing::node(json!({}));
        let wants = json!({"resourceClaims": [{"name": "gpu", "resourceClaimName": "c"}]});
        let rejected = DynamicResources.filter(&testing::pod(wants), &node, &context);
        assert!(rejected.iter().all(|r| r.unresolvable) && rejected.len() == 1);
        let plain = testing::pod(json!({}));
        assert!(DynamicResources.filter(&plain, &node, &context).is_empty());
    }
}
