//! What a scheduling plugin is. Plugins are pure: a pod and a node in, a verdict or a score out.

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::pod::PodInfo;

/// Why a node does not take a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// In the words of `FailedScheduling` events, for example `Insufficient cpu`.
    pub reason: String,
    /// Removing pods from the node would not help (upstream: UnschedulableAndUnresolvable).
    pub unresolvable: bool,
    /// It is the pod's own fault, whichever node is asked (upstream: rejected by a PreFilter).
    pub of_pod: bool,
}

impl Rejection {
    /// Something that freeing room could resolve.
    #[must_use]
    pub fn resolvable(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            unresolvable: false,
            of_pod: false,
        }
    }

    /// Something that only a change of the node or the pod could resolve.
    #[must_use]
    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            unresolvable: true,
            of_pod: false,
        }
    }

    /// Something that no node could take, so it is told once and without a count of nodes.
    #[must_use]
    pub fn of_pod(reason: impl Into<String>) -> Self {
        Self {
            of_pod: true,
            ..Self::unresolvable(reason)
        }
    }
}

/// Changes in the cluster that may make a pod schedulable. Plugins name those that matter to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterEvent {
    /// A pod left or ended, so its node has more room.
    PodGone,
    /// A pod came to a node or its labels changed: one that others want to be near.
    PodPlaced,
    /// A node appeared.
    NodeAdded,
    /// Labels, taints, room or `unschedulable` of a node changed.
    NodeChanged,
    /// A claim, a volume or a storage class came or changed.
    StorageChanged,
}

/// Says whether a node takes a pod at all.
pub trait Filter: Send + Sync {
    /// Name as upstream's, for logs and tests.
    fn name(&self) -> &'static str;
    /// All reasons against, none when the node fits.
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> Vec<Rejection>;
    /// Whether an event could turn this plugin's rejection around.
    fn wakes(&self, event: ClusterEvent) -> bool;
}

/// Says how well a node suits a pod among those that fit.
pub trait Score: Send + Sync {
    /// Name as upstream's.
    fn name(&self) -> &'static str;
    /// How much the plugin counts.
    fn weight(&self) -> i64;
    /// Raw score; the range is the plugin's own.
    fn score(&self, pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> i64;
    /// Turns raw scores of all candidates into 0..=100.
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Highest normalised score.
pub const MAX_SCORE: i64 = 100;

/// Scales raw scores so that the highest becomes 100 and the lowest, which may be negative, 0.
pub fn stretch(scores: &mut [i64]) {
    let (Some(min), Some(max)) = (scores.iter().min().copied(), scores.iter().max().copied())
    else {
        return;
    };
    for score in scores {
        *score = if max == min {
            0
        } else {
            (*score - min) * MAX_SCORE / (max - min)
        };
    }
}

/// Scales raw scores so that the highest becomes 100; `reverse` makes the lowest the best.
pub fn scale(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = if max == 0 {
            0
        } else {
            *score * MAX_SCORE / max
        };
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}
