//! How many pods a PodDisruptionBudget can spare. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use balsa_client::time::time;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::support::pods;
use crate::support::template::share;

/// An eviction that was allowed and has not deleted its pod after this time will not do so any more.
pub(super) const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_secs(2 * 60);
const ALLOWED: &str = "DisruptionAllowed";

/// Pods as a budget sees them.
pub(super) struct View<'a> {
    pub(super) budget: &'a PodDisruptionBudget,
    pub(super) spec: &'a PodDisruptionBudgetSpec,
    pub(super) pods: &'a [Arc<Pod>],
    /// Replicas that the pods' controllers want, together.
    pub(super) scale: i32,
    pub(super) now: Timestamp,
}

/// Evictions under way, and those that came to nothing.
pub(super) struct Disrupted {
    pub(super) waiting: BTreeMap<String, Time>,
    pub(super) given_up: Vec<Arc<Pod>>,
    /// When the next one is given up.
    pub(super) recheck: Option<Duration>,
}

pub(super) fn disrupted(view: &View<'_>) -> Disrupted {
    let mut found = Disrupted {
        waiting: BTreeMap::new(),
        given_up: Vec::new(),
        recheck: None,
    };
    let status = view.budget.status.as_ref();
    let noted = status.and_then(|status| status.disrupted_pods.as_ref());
    for (name, since) in noted.into_iter().flatten() {
        let pod = view
            .pods
            .iter()
            .find(|pod| pod.metadata.name.as_ref() == Some(name));
        let Some(pod) = pod.filter(|pod| !pods::is_terminating(pod)) else {
            continue;
        };
        let left = DELETION_TIMEOUT - view.now.duration_since(since.0);
        if left <= SignedDuration::ZERO {
            found.given_up.push(Arc::clone(pod));
            continue;
        }
        let left = left.unsigned_abs();
        found.recheck = Some(found.recheck.map_or(left, |recheck| recheck.min(left)));
        found.waiting.insert(name.clone(), since.clone());
    }
    found
}

/// Expected pods, and how many of them must be healthy.
fn wanted(view: &View<'_>) -> (i32, i32) {
    let listed = i32::try_from(view.pods.len()).unwrap_or(i32::MAX);
    match (&view.spec.max_unavailable, &view.spec.min_available) {
        (Some(max), _) => {
            let spare = share(max, view.scale, true);
            (view.scale, view.scale.saturating_sub(spare).max(0))
        }
        (None, Some(IntOrString::Int(min))) => (listed, *min),
        (None, Some(percent)) => (view.scale, share(percent, view.scale, true)),
        (None, None) => (listed, 1),
    }
}

/// The status that follows.
pub(super) fn status(
    view: &View<'_>,
    disrupted: BTreeMap<String, Time>,
) -> PodDisruptionBudgetStatus {
    let healthy = |pod: &&Arc<Pod>| {
        !pods::is_terminating(pod)
            && !disrupted.contains_key(&pod.name_any())
            && pods::is_ready(pod)
    };
    let current = i32::try_from(view.pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let (expected, desired) = wanted(view);
    let allowed = if expected <= 0 {
        0
    } else {
        (current - desired).max(0)
    };
    let reason = if allowed > 0 {
        "SufficientPods"
    } else {
        "InsufficientPods"
    };
    PodDisruptionBudgetStatus {
        current_healthy: current,
        desired_healthy: desired,
        expected_pods: expected,
        disruptions_allowed: allowed,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: view.budget.metadata.generation,
        conditions: Some(conditions(view.budget, allowed > 0, reason, "", view.now)),
    }
}

/// Nothing may be disrupted while nobody knows how many pods there should be.
pub(super) fn failed(
    budget: &PodDisruptionBudget,
    message: &str,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        disruptions_allowed: 0,
        conditions: Some(conditions(budget, false, "SyncFailed", message, now)),
        ..budget.status.clone().unwrap_or_default()
    }
}

fn conditions(
    budget: &PodDisruptionBudget,
    allowed: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<Condition> {
    let status = if allowed { "True" } else { "False" };
    let old = budget
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
    let mut all = old.unwrap_or_default();
    let same = all
        .iter()
        .find(|c| c.type_ == ALLOWED && c.status == status);
    let since = same.map_or_else(|| time(now), |same| same.last_transition_time.clone());
    all.retain(|condition| condition.type_ != ALLOWED);
    all.push(Condition {
        type_: ALLOWED.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since,
    });
    all
}

/// How long a pod's `DisruptionTarget` condition still counts, for pods that have one and are not going; zero when
/// whoever set it has changed their mind. The agent's own word always counts.
pub(super) fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let condition = pods::condition(pod, "DisruptionTarget")?;
    if pods::is_terminating(pod)
        || pods::is_terminal(pod)
        || condition.status != "True"
        || condition.reason.as_deref() == Some("TerminationByKubelet")
    {
        return None;
    }
    let since = condition.last_transition_time.as_ref()?.0;
    let left = DELETION_TIMEOUT - now.duration_since(since);
    Some(left.max(SignedDuration::ZERO).unsigned_abs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::support::pods::tests::pod;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn budget(max: Option<IntOrString>, min: Option<IntOrString>) -> PodDisruptionBudget {
        PodDisruptionBudget {
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: max,
                min_available: min,
                ..PodDisruptionBudgetSpec::default()
            }),
            ..PodDisruptionBudget::default()
        }
    }

    fn viewing<T>(
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
        scale: i32,
        ask: impl FnOnce(&View<'_>) -> T,
    ) -> T {
        ask(&View {
            budget,
            spec: budget.spec.as_ref().unwrap(),
            pods,
            scale,
            now: at(2000),
        })
    }

    fn three() -> Vec<Arc<Pod>> {
        let of = |name, ready| Arc::new(pod(name, "Running", "n", ready));
        vec![of("a", true), of("b", true), of("c", false)]
    }

    /// Current, desired, expected, allowed.
    fn counts(budget: &PodDisruptionBudget, scale: i32) -> (i32, i32, i32, i32) {
        let status = viewing(budget, &three(), scale, |view| {
            status(view, disrupted(view).waiting)
        });
        (
            status.current_healthy,
            status.desired_healthy,
            status.expected_pods,
            status.disruptions_allowed,
        )
    }

    #[test]
    fn numbers_and_percentages_of_what_the_controllers_want() {
        let int = |n| Some(IntOrString::Int(n));
        let percent = |text: &str| Some(IntOrString::String(text.into()));
        assert_eq!(counts(&budget(int(1), None), 3), (2, 2, 3, 0));
        assert_eq!(counts(&budget(percent("50%"), None), 3), (2, 1, 3, 1));
        assert_eq!(counts(&budget(None, int(1)), 0), (2, 1, 3, 1));
        assert_eq!(counts(&budget(None, percent("50%")), 3), (2, 2, 3, 0));
        assert_eq!(counts(&budget(int(9), None), 3), (2, 0, 3, 2));
    }

    #[test]
    fn evicted_pods_count_as_gone_until_they_were_not() {
        let mut budget = budget(None, Some(IntOrString::Int(0)));
        let note = |second| BTreeMap::from([("a".to_owned(), time(at(second)))]);
        budget.status = Some(PodDisruptionBudgetStatus {
            disrupted_pods: Some(note(1990)),
            ..PodDisruptionBudgetStatus::default()
        });
        assert_eq!(counts(&budget, 3).0, 1);
        let recheck = viewing(&budget, &three(), 3, |view| disrupted(view).recheck);
        assert_eq!(recheck, Some(Duration::from_secs(110)));
        budget.status.as_mut().unwrap().disrupted_pods = Some(note(1000));
        assert_eq!(counts(&budget, 3).0, 2);
    }

    #[test]
    fn the_condition_keeps_its_time_while_it_stays() {
        let mut budget = budget(None, Some(IntOrString::Int(1)));
        let first = viewing(&budget, &three(), 3, |view| status(view, BTreeMap::new()));
        budget.status = Some(first.clone());
        let again = viewing(&budget, &three(), 3, |view| {
            status(
                &View {
                    now: at(3000),
                    ..*view
                },
                BTreeMap::new(),
            )
        });
        assert_eq!(again, first);
        assert_eq!(failed(&budget, "x", at(1)).disruptions_allowed, 0);
    }
}
