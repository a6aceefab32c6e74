//! What a StatefulSet does next, and its status. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::pod::{ordinal, revision};
use crate::support::pods;

/// All that decisions are made from.
pub(super) struct View<'a> {
    pub(super) set: &'a StatefulSet,
    pub(super) spec: &'a StatefulSetSpec,
    pub(super) pods: &'a [Arc<Pod>],
    /// Names of ControllerRevisions.
    pub(super) current: &'a str,
    pub(super) update: &'a str,
    pub(super) now: Timestamp,
}

/// One thing to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Make the pod of an ordinal, from the current or the update revision's template.
    Create { ordinal: i32, from_current: bool },
    /// Make claims that a pod waits for.
    Furnish(Arc<Pod>),
    /// Put labels of its identity back.
    Relabel(Arc<Pod>),
    /// Make room for a new pod of the same name.
    Recreate(Arc<Pod>),
    /// Remove: too many, or of an old revision.
    Delete(Arc<Pod>),
}

/// Pods by ordinal: those the set wants, and the others.
pub(super) struct Places {
    pub(super) replicas: BTreeMap<i32, Option<Arc<Pod>>>,
    /// Highest ordinal first.
    pub(super) condemned: Vec<Arc<Pod>>,
}

impl View<'_> {
    fn name(&self) -> String {
        self.set.name_any()
    }

    fn start(&self) -> i32 {
        let ordinals = self.spec.ordinals.as_ref();
        ordinals
            .and_then(|ordinals| ordinals.start)
            .unwrap_or_default()
    }

    pub(super) fn places(&self) -> Places {
        let (start, count) = (self.start(), self.spec.replicas.unwrap_or(1).max(0));
        let mut replicas: BTreeMap<i32, Option<Arc<Pod>>> = (start..start.saturating_add(count))
            .map(|ordinal| (ordinal, None))
            .collect();
        let mut condemned = Vec::new();
        for pod in self.pods {
            let Some(ordinal) = ordinal(&self.name(), pod) else {
                continue;
            };
            match replicas.get_mut(&ordinal) {
                Some(place) => *place = Some(Arc::clone(pod)),
                None => condemned.push((ordinal, Arc::clone(pod))),
            }
        }
        condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
        Places {
            replicas,
            condemned: condemned.into_iter().map(|(_, pod)| pod).collect(),
        }
    }

    fn rolls(&self) -> bool {
        let strategy = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.type_.as_deref());
        strategy != Some("OnDelete")
    }

    fn partition(&self) -> Option<i32> {
        let strategy = self.spec.update_strategy.as_ref();
        strategy?
            .rolling_update
            .as_ref()
            .map(|rolling| rolling.partition.unwrap_or_default())
    }

    /// True for ordinals that an update has not reached.
    fn keeps_current(&self, ordinal: i32) -> bool {
        if !self.rolls() {
            return false;
        }
        let reached = self.partition().unwrap_or_else(|| {
            let status = self.set.status.as_ref();
            status
                .and_then(|status| status.current_replicas)
                .unwrap_or_default()
        });
        ordinal < self.start().saturating_add(reached)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let min_ready = self.spec.min_ready_seconds.unwrap_or_default();
        is_running(pod) && pods::is_available(pod, min_ready, self.now)
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        self.is_available(pod) && !pods::is_terminating(pod)
    }
}

fn is_running(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

/// What to do next. In order, unless the set is `Parallel`: the first pod that is not as it should be holds back
/// all behind it.
pub(super) fn plan(view: &View<'_>) -> Vec<Action> {
    let ordered = view.spec.pod_management_policy.as_deref() != Some("Parallel");
    let places = view.places();
    let mut actions = Vec::new();
    let mut hold = false;
    for (ordinal, pod) in &places.replicas {
        hold |= !settle(view, *ordinal, pod.as_ref(), ordered, &mut actions);
        if hold && ordered {
            return actions;
        }
    }
    let unhealthy = first_unhealthy(view, &places);
    for pod in &places.condemned {
        if pods::is_terminating(pod) {
            if ordered {
                return actions;
            }
            continue;
        }
        // One that does not run may go even when it is the one that holds up all others.
        let is_first = unhealthy
            .as_ref()
            .is_some_and(|first| Arc::ptr_eq(first, pod));
        if ordered && !view.is_available(pod) && !is_first {
            return actions;
        }
        actions.push(Action::Delete(Arc::clone(pod)));
        if ordered {
            return actions;
        }
    }
    if !hold && view.rolls() {
        roll(view, &places, &mut actions);
    }
    actions
}

/// Of all pods that are not well, the one with the lowest ordinal.
fn first_unhealthy(view: &View<'_>, places: &Places) -> Option<Arc<Pod>> {
    let replicas = places.replicas.values().flatten();
    let mut all = replicas.chain(places.condemned.iter().rev());
    all.find(|pod| !view.is_healthy(pod)).cloned()
}

/// Brings one replica closer to what it should be. True when the next one may be looked at.
fn settle(
    view: &View<'_>,
    ordinal: i32,
    pod: Option<&Arc<Pod>>,
    ordered: bool,
    actions: &mut Vec<Action>,
) -> bool {
    let Some(pod) = pod else {
        actions.push(Action::Create {
            ordinal,
            from_current: view.keeps_current(ordinal),
        });
        return !ordered;
    };
    if pods::is_terminal(pod) {
        if !pods::is_terminating(pod) {
            actions.push(Action::Recreate(Arc::clone(pod)));
        }
        return false;
    }
    if pods::phase(pod) == "Pending" && !pods::is_terminating(pod) {
        actions.push(Action::Furnish(Arc::clone(pod)));
    }
    if ordered && !view.is_healthy(pod) {
        return false;
    }
    if pod.labels().get(super::pod::NAME_LABEL) != pod.metadata.name.as_ref() {
        actions.push(Action::Relabel(Arc::clone(pod)));
    }
    true
}

/// One pod at a time, from the highest ordinal down to the partition.
fn roll(view: &View<'_>, places: &Places, actions: &mut Vec<Action>) {
    let least = view
        .start()
        .saturating_add(view.partition().unwrap_or_default());
    for (ordinal, pod) in places.replicas.iter().rev() {
        if *ordinal < least {
            return;
        }
        let Some(pod) = pod else { return };
        if revision(pod) != view.update && !pods::is_terminating(pod) {
            actions.push(Action::Delete(Arc::clone(pod)));
            return;
        }
        if !view.is_healthy(pod) {
            return;
        }
    }
}

/// The status that follows from the pods.
pub(super) fn status(view: &View<'_>, collisions: Option<i32>) -> StatefulSetStatus {
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(view.pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let of = |wanted: &str| count(&|pod| !pods::is_terminating(pod) && revision(pod) == wanted);
    let replicas = count(&|_| true);
    let ready = count(&is_running);
    let (mut current, updated) = (of(view.current), of(view.update));
    let mut current_revision = view.current;
    let wanted = view.spec.replicas.unwrap_or(1);
    if view.rolls() && updated == wanted && ready == wanted && replicas == wanted {
        // The update is complete.
        (current, current_revision) = (updated, view.update);
    }
    let nonzero = |count: i32| (count != 0).then_some(count);
    StatefulSetStatus {
        replicas,
        ready_replicas: nonzero(ready),
        available_replicas: Some(count(&|pod| view.is_available(pod))),
        current_replicas: nonzero(current),
        updated_replicas: nonzero(updated),
        current_revision: Some(current_revision.to_owned()),
        update_revision: Some(view.update.to_owned()),
        observed_generation: view.set.metadata.generation,
        collision_count: Some(collisions.unwrap_or_default()),
        conditions: view
            .set
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone()),
    }
}

#[cfg(test)]
mod tests;
