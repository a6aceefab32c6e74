//! Where daemon pods belong, which ones are to be made and removed, and the status. Pure.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use balsa_api::scheduling::{untolerated, wants_node};
use balsa_client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::pod::{is_updated, target_node, tolerations};
use crate::support::pods;
use crate::support::template::share;

/// The set's pods by the node they run on or are meant for.
pub(super) type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;

/// Sorts pods by node, the oldest first. Those that are finished and on their way out are nobody's concern.
pub(super) fn by_node(owned: &[Arc<Pod>]) -> ByNode {
    let mut nodes = ByNode::new();
    for pod in owned {
        if pods::is_terminal(pod) && pods::is_terminating(pod) {
            continue;
        }
        if let Some(node) = target_node(pod) {
            nodes
                .entry(node.to_owned())
                .or_default()
                .push(Arc::clone(pod));
        }
    }
    for list in nodes.values_mut() {
        // One with a node first: it is the one that runs.
        list.sort_by_cached_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (pods::node_name(pod).is_empty(), created, pod.name_any())
        });
    }
    nodes
}

/// What a set has to do with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    /// A pod is to be started there.
    pub(super) run: bool,
    /// A pod that is there may stay.
    pub(super) stay: bool,
}

/// Whether the set's pods belong on the node.
pub(super) fn fit(spec: &DaemonSetSpec, node: &Node) -> Fit {
    let Some(pod) = &spec.template.spec else {
        return Fit {
            run: false,
            stay: false,
        };
    };
    let named = pod.node_name.as_deref().unwrap_or_default();
    if (!named.is_empty() && named != node.name_any()) || !wants_node(pod, node) {
        return Fit {
            run: false,
            stay: false,
        };
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let taints = taints.unwrap_or_default();
    let tolerated = tolerations(pod);
    Fit {
        run: untolerated(taints, &tolerated, &["NoSchedule", "NoExecute"]).is_none(),
        stay: untolerated(taints, &tolerated, &["NoExecute"]).is_none(),
    }
}

/// All that decisions are made from.
pub(super) struct View<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) spec: &'a DaemonSetSpec,
    pub(super) nodes: &'a [Arc<Node>],
    pub(super) pods: &'a ByNode,
    /// Hash of the current template.
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
}

/// What to do.
#[derive(Default)]
pub(super) struct Plan {
    /// Names of nodes.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) events: Vec<(EventType, &'static str, String)>,
    /// When a failed pod may be replaced.
    pub(super) retry: Option<Duration>,
}

impl View<'_> {
    fn updated(&self, pod: &Pod) -> bool {
        is_updated(self.set, pod, self.hash)
    }

    fn available(&self, pod: &Pod) -> bool {
        let min_ready = self.spec.min_ready_seconds.unwrap_or_default();
        pods::is_available(pod, min_ready, self.now)
    }

    fn on(&self, node: &str) -> &[Arc<Pod>] {
        self.pods.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// How many nodes should run a pod.
    fn desired(&self) -> i32 {
        let wanted = self.nodes.iter().filter(|node| fit(self.spec, node).run);
        count(wanted.count())
    }

    /// `maxSurge` and `maxUnavailable`, in pods; one may always be unavailable when neither allows anything.
    pub(super) fn limits(&self) -> (i32, i32) {
        let rolling = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.rolling_update.as_ref());
        let desired = self.desired();
        let of = |value: Option<&IntOrString>, default: i32| {
            share(value.unwrap_or(&IntOrString::Int(default)), desired, true)
        };
        let surge = of(rolling.and_then(|r| r.max_surge.as_ref()), 0);
        let unavailable = of(rolling.and_then(|r| r.max_unavailable.as_ref()), 1);
        if surge == 0 && unavailable == 0 && desired > 0 {
            (0, 1)
        } else {
            (surge, unavailable)
        }
    }

    fn surges(&self) -> bool {
        let rolling = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.rolling_update.as_ref());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
        surge.is_some_and(|surge| share(surge, 100, true) > 0)
    }
}

/// Pods missing from nodes, and pods too many. `backoff` says how long a node's failed pod must wait.
pub(super) fn manage(view: &View<'_>, mut backoff: impl FnMut(&str) -> Duration) -> Plan {
    let mut plan = Plan::default();
    for node in view.nodes {
        let name = node.name_any();
        let there = view.on(&name);
        let fit = fit(view.spec, node);
        if fit.run && there.is_empty() {
            plan.create.push(name);
        } else if fit.stay {
            let running = remove_finished(&mut plan, &name, there, &mut backoff);
            plan.delete.extend(duplicates(view, running));
        } else {
            let staying = there.iter().filter(|pod| !pods::is_terminating(pod));
            plan.delete.extend(staying.cloned());
        }
    }
    // Meant for nodes that do not exist: they would stay Pending for ever.
    let known: HashSet<String> = view.nodes.iter().map(|node| node.name_any()).collect();
    for (name, there) in view.pods {
        if !known.contains(name) {
            let unplaced = there
                .iter()
                .filter(|pod| pods::node_name(pod).is_empty() && !pods::is_terminating(pod));
            plan.delete.extend(unplaced.cloned());
        }
    }
    plan
}

/// Pods on a node that are neither finished nor going; finished ones are removed.
fn remove_finished(
    plan: &mut Plan,
    node: &str,
    there: &[Arc<Pod>],
    backoff: &mut impl FnMut(&str) -> Duration,
) -> Vec<Arc<Pod>> {
    let mut running = Vec::new();
    for pod in there.iter().filter(|pod| !pods::is_terminating(pod)) {
        let full_name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        match pods::phase(pod) {
            "Failed" => {
                let wait = backoff(node);
                if !wait.is_zero() {
                    plan.retry = Some(plan.retry.map_or(wait, |retry| retry.min(wait)));
                    continue;
                }
                let message = format!(
                    "Found failed daemon pod {full_name} on node {node}, will try to kill it"
                );
                plan.events
                    .push((EventType::Warning, "FailedDaemonPod", message));
                plan.delete.push(Arc::clone(pod));
            }
            "Succeeded" => {
                let message = format!(
                    "Found succeeded daemon pod {full_name} on node {node}, will try to delete it"
                );
                plan.events
                    .push((EventType::Normal, "SucceededDaemonPod", message));
                plan.delete.push(Arc::clone(pod));
            }
            _ => running.push(Arc::clone(pod)),
        }
    }
    running
}

/// Pods beyond the one a node should have; with surge, an old one stays until the new one is available.
fn duplicates(view: &View<'_>, running: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    if !view.surges() {
        return running.into_iter().skip(1).collect();
    }
    let (mut new, mut old): (Option<Arc<Pod>>, Option<Arc<Pod>>) = (None, None);
    let mut extra = Vec::new();
    for pod in running {
        let slot = if view.updated(&pod) {
            &mut new
        } else {
            &mut old
        };
        if slot.is_none() {
            *slot = Some(pod);
        } else {
            extra.push(pod);
        }
    }
    if let (Some(new), Some(old)) = (new, old)
        && (!pods::is_ready(&old) || view.available(&new))
    {
        extra.push(old);
    }
    extra
}

/// The one new and one old pod of a node; `None` when there are several of a kind, which [`manage`] sorts out.
fn pair<'a>(view: &View<'_>, there: &'a [Arc<Pod>]) -> Option<[Option<&'a Arc<Pod>>; 2]> {
    let mut found = [None, None];
    for pod in there.iter().filter(|pod| !pods::is_terminating(pod)) {
        let slot = &mut found[usize::from(!view.updated(pod))];
        if slot.is_some() {
            return None;
        }
        *slot = Some(pod);
    }
    Some(found)
}

/// The next step of a rolling update.
pub(super) fn roll(view: &View<'_>) -> Plan {
    let (surge, unavailable) = view.limits();
    if view.surges() && surge > 0 {
        roll_with_surge(view, surge)
    } else {
        roll_in_place(view, unavailable)
    }
}

fn roll_in_place(view: &View<'_>, limit: i32) -> Plan {
    let mut plan = Plan::default();
    let mut candidates = Vec::new();
    let mut unavailable = 0;
    for there in view.pods.values() {
        match pair(view, there) {
            Some([Some(new), None]) => unavailable += i32::from(!view.available(new)),
            // It serves nobody: replacing it costs nothing.
            Some([None, Some(old)]) if !view.available(old) => {
                unavailable += 1;
                plan.delete.push(Arc::clone(old));
            }
            Some([None, Some(old)]) => candidates.push(Arc::clone(old)),
            _ => unavailable += 1,
        }
    }
    let room = usize::try_from(limit - unavailable).unwrap_or_default();
    plan.delete.extend(candidates.into_iter().take(room));
    plan
}

fn roll_with_surge(view: &View<'_>, limit: i32) -> Plan {
    let mut plan = Plan::default();
    let mut candidates = Vec::new();
    let mut surging = 0;
    for (node, there) in view.pods {
        match pair(view, there) {
            Some([None, Some(old)]) if !view.available(old) => plan.create.push(node.clone()),
            Some([None, Some(_)]) => candidates.push(node.clone()),
            Some([_, None]) => {}
            _ => surging += 1,
        }
    }
    let room = usize::try_from(limit - surging).unwrap_or_default();
    plan.create.extend(candidates.into_iter().take(room));
    let fitting = view.nodes.iter().filter(|node| fit(view.spec, node).run);
    let fitting: HashSet<String> = fitting.map(|node| node.name_any()).collect();
    plan.create.retain(|name| fitting.contains(name));
    plan
}

/// The status that follows; `observed` is false while earlier work is not visible yet.
pub(super) fn status(view: &View<'_>, collisions: Option<i32>, observed: bool) -> DaemonSetStatus {
    let old = view.set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        collision_count: collisions,
        observed_generation: if observed {
            view.set.metadata.generation
        } else {
            old.observed_generation
        },
        conditions: old.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    for node in view.nodes {
        let there = view.on(&node.name_any());
        if !fit(view.spec, node).run {
            status.number_misscheduled += i32::from(!there.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(first) = there.first() else { continue };
        status.current_number_scheduled += 1;
        let ready = there.iter().find(|pod| pods::is_ready(pod));
        let seen = ready.unwrap_or(first);
        status.number_ready += i32::from(ready.is_some());
        available += i32::from(there.iter().any(|pod| view.available(pod)));
        updated += i32::from(view.updated(seen));
    }
    let unavailable = status.desired_number_scheduled - available;
    let nonzero = |count: i32| (count != 0).then_some(count);
    status.updated_number_scheduled = nonzero(updated);
    status.number_available = nonzero(available);
    status.number_unavailable = nonzero(unavailable);
    status
}

fn count(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
