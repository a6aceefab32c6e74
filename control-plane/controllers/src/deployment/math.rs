//! How many replicas each set of a Deployment gets. Pure.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::revision;
use crate::support::template::share;

/// Limits of a rolling update, in pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fenceposts {
    pub(super) surge: i32,
    pub(super) unavailable: i32,
}

pub(super) fn wanted(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or_default()
}

pub(super) fn total<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i32 {
    sets.into_iter().map(size).sum()
}

pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// Surge is rounded up and unavailability down; when both come to nothing, one pod may be unavailable, or
/// nothing could ever move.
pub(super) fn fenceposts(deployment: &Deployment) -> Fenceposts {
    if is_recreate(deployment) {
        return Fenceposts {
            surge: 0,
            unavailable: 0,
        };
    }
    let replicas = wanted(deployment);
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref())
        .and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
    let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let default = IntOrString::String("25%".into());
    let surge = share(surge.unwrap_or(&default), replicas, true);
    let unavailable = share(unavailable.unwrap_or(&default), replicas, false);
    let unavailable = if surge == 0 && unavailable == 0 {
        1
    } else {
        unavailable
    };
    Fenceposts {
        surge,
        unavailable: unavailable.min(replicas),
    }
}

/// Size of the new set: as much as the surge leaves room for.
pub(super) fn new_set_size(deployment: &Deployment, all: &[&ReplicaSet], new_size: i32) -> i32 {
    let wanted = wanted(deployment);
    if is_recreate(deployment) {
        return wanted;
    }
    let room = wanted + fenceposts(deployment).surge - total(all.iter().copied());
    if room <= 0 || new_size >= wanted {
        new_size
    } else {
        new_size + room.min(wanted - new_size)
    }
}

/// New size of the new set in a rolling update, or `None` when it has the right one.
pub(super) fn reconcile_new(
    deployment: &Deployment,
    all: &[&ReplicaSet],
    new: &ReplicaSet,
) -> Option<i32> {
    let (wanted, size) = (wanted(deployment), size(new));
    let target = if size > wanted {
        wanted
    } else {
        new_set_size(deployment, all, size)
    };
    (target != size).then_some(target)
}

/// New sizes of old sets (in the order given: oldest first) in a rolling update: unhealthy pods go first,
/// then as many as availability allows.
pub(super) fn reconcile_old(
    deployment: &Deployment,
    old: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|set| size(set)).collect();
    let min_available = wanted(deployment) - fenceposts(deployment).unavailable;
    let new_unavailable = new.map_or(0, |new| size(new) - available(new));
    let all = total(old.iter().copied()) + new.map_or(0, size);
    let mut budget = all - min_available - new_unavailable;
    if budget <= 0 {
        return sizes;
    }
    for (set, size) in old.iter().zip(&mut sizes) {
        let unhealthy = (*size - available(set)).clamp(0, budget);
        *size -= unhealthy;
        budget -= unhealthy;
    }
    let all_available: i32 =
        old.iter().map(|set| available(set)).sum::<i32>() + new.map_or(0, available);
    let mut surplus = all_available - min_available;
    for size in &mut sizes {
        let down = (*size).clamp(0, surplus.max(0));
        *size -= down;
        surplus -= down;
    }
    sizes
}

/// Sizes after the Deployment was resized in the middle of a rollout: each active set in proportion, what
/// rounding leaves to the first. `active` is given by creation, oldest first; sizes come in the same order.
pub(super) fn proportional(deployment: &Deployment, active: &[&ReplicaSet]) -> Vec<i32> {
    let wanted = wanted(deployment);
    let allowed = if wanted > 0 {
        wanted + fenceposts(deployment).surge
    } else {
        0
    };
    let to_add = allowed - total(active.iter().copied());
    let mut order: Vec<usize> = (0..active.len()).collect();
    // Largest first; among equals the newest first when growing, the oldest when shrinking.
    order.sort_by_key(|&i| {
        let age = if to_add > 0 { active.len() - i } else { i };
        (active.get(i).map_or(0, |set| -size(set)), age)
    });
    let mut sizes: Vec<i32> = active.iter().map(|set| size(set)).collect();
    let mut added = 0;
    for &i in &order {
        let (Some(set), Some(size)) = (active.get(i), sizes.get_mut(i)) else {
            continue;
        };
        let share = proportion(deployment, set, to_add, added);
        *size += share;
        added += share;
    }
    if let Some(first) = order.first().and_then(|&first| sizes.get_mut(first)) {
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

fn proportion(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, set);
    let left = to_add - added;
    if to_add > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let wanted = wanted(deployment);
    if wanted == 0 {
        return -size(set);
    }
    let before = set
        .annotations()
        .get(revision::MAX_REPLICAS)
        .and_then(|text| text.parse::<i32>().ok())
        .filter(|before| *before > 0)
        .or_else(|| {
            deployment
                .status
                .as_ref()
                .and_then(|status| status.replicas)
        })
        .filter(|before| *before > 0);
    let Some(before) = before else { return 0 };
    let max = wanted + fenceposts(deployment).surge;
    // Rounded to the nearest, without floats.
    let scaled =
        (2 * i64::from(size(set)) * i64::from(max) + i64::from(before)) / (2 * i64::from(before));
    i32::try_from(scaled).unwrap_or(i32::MAX) - size(set)
}

#[cfg(test)]
mod tests;
