//! Pods of one owner go to different nodes where they can.

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{Score, scale};
use crate::pod::PodInfo;

/// Prefers nodes with fewer pods of the same controller. It weighs enough that two replicas land on two
/// nodes of like size even if one is somewhat fuller.
pub struct OwnerSpread;

impl Score for OwnerSpread {
    fn name(&self) -> &'static str {
        "OwnerSpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> i64 {
        if pod.owner.is_empty() {
            return 0;
        }
        node.owners.get(&pod.owner).copied().unwrap_or(0)
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, true);
    }
}
