//! What pods' states mean to controllers.

use std::cmp::Reverse;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::ResourceExt;

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Counts towards wanted replicas.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_terminating(pod)
}

pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == type_)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// Ready for at least `min_ready_seconds`.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod) && available_in(pod, min_ready_seconds, now).is_zero()
}

/// How long a ready pod still has to stay ready to count as available.
pub(crate) fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Duration {
    if min_ready_seconds <= 0 {
        return Duration::ZERO;
    }
    let Some(since) = ready_since(pod) else {
        return Duration::from_secs(u64::from(min_ready_seconds.unsigned_abs()));
    };
    let left = SignedDuration::from_secs(i64::from(min_ready_seconds)) - now.duration_since(since);
    left.max(SignedDuration::ZERO).unsigned_abs()
}

/// When the next of the ready pods becomes available; `None` when all are.
pub(crate) fn next_available<'a>(
    pods: impl IntoIterator<Item = &'a std::sync::Arc<Pod>>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Option<Duration> {
    pods.into_iter()
        .filter(|pod| is_ready(pod))
        .map(|pod| available_in(pod, min_ready_seconds, now))
        .filter(|left| !left.is_zero())
        .min()
}

/// How often containers of the pod were started again, init containers too.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    restart_counts(pod).sum()
}

fn restart_counts(pod: &Pod) -> impl Iterator<Item = i32> {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref());
    let init = status.and_then(|status| status.init_container_statuses.as_deref());
    let all = containers.into_iter().chain(init).flatten();
    all.map(|status| status.restart_count)
}

/// A sort key: pods that come first are the first to be deleted when there are too many. `neighbours` is how
/// many pods of the same owner run on the pod's node.
pub(crate) fn deletion_rank(pod: &Pod, neighbours: usize, now: Timestamp) -> impl Ord + use<> {
    let assigned = !node_name(pod).is_empty();
    let phase = match phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost: i32 = pod
        .annotations()
        .get("controller.kubernetes.io/pod-deletion-cost")
        .and_then(|cost| cost.parse().ok())
        .unwrap_or_default();
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (
        assigned,
        phase,
        is_ready(pod),
        cost,
        Reverse(neighbours),
        age_class(ready_since(pod), now),
        // The container that was started most often speaks for the pod.
        Reverse(restart_counts(pod).max().unwrap_or_default()),
        age_class(created, now),
        // A stable order among equals.
        pod.metadata.uid.clone(),
    )
}

/// Ages compared on a logarithmic scale, the young first: small differences do not matter.
fn age_class(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let seconds = since.map_or(0, |since| now.duration_since(since).as_secs().max(0));
    64 - seconds.unsigned_abs().leading_zeros()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};

    use super::*;

    /// A pod for tests.
    pub(crate) fn pod(name: &str, phase: &str, node: &str, ready: bool) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("default".into());
        pod.metadata.uid = Some(name.into());
        let node_name = (!node.is_empty()).then(|| node.to_owned());
        pod.spec = Some(PodSpec {
            node_name,
            ..PodSpec::default()
        });
        let ready = PodCondition {
            type_: "Ready".into(),
            status: if ready { "True" } else { "False" }.into(),
            last_transition_time: Some(balsa_client::time::time(
                Timestamp::from_second(1000).unwrap(),
            )),
            ..PodCondition::default()
        };
        pod.status = Some(PodStatus {
            phase: Some(phase.into()),
            conditions: Some(vec![ready]),
            ..PodStatus::default()
        });
        pod
    }

    #[test]
    fn unassigned_then_pending_then_unready_then_crowded_pods_go_first() {
        let now = Timestamp::from_second(2000).unwrap();
        let mut pods = [
            (pod("ready-alone", "Running", "a", true), 1),
            (pod("ready-crowded", "Running", "b", true), 2),
            (pod("unready", "Running", "b", false), 2),
            (pod("pending", "Pending", "a", false), 1),
            (pod("unassigned", "Pending", "", false), 0),
        ];
        pods.sort_by_key(|(pod, neighbours)| deletion_rank(pod, *neighbours, now));
        let order: Vec<String> = pods.iter().map(|(pod, _)| pod.name_any()).collect();
        assert_eq!(
            order,
            [
                "unassigned",
                "pending",
                "unready",
                "ready-crowded",
                "ready-alone"
            ]
        );
    }

    #[test]
    fn a_cheaper_pod_goes_before_an_older_one() {
        let now = Timestamp::from_second(2000).unwrap();
        let mut cheap = pod("cheap", "Running", "a", true);
        cheap.annotations_mut().insert(
            "controller.kubernetes.io/pod-deletion-cost".into(),
            "-5".into(),
        );
        let other = pod("other", "Running", "a", true);
        assert!(deletion_rank(&cheap, 1, now) < deletion_rank(&other, 1, now));
    }

    #[test]
    fn a_ready_pod_is_available_after_min_ready_seconds() {
        let ready = pod("p", "Running", "a", true);
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(is_available(&ready, 0, at(1000)));
        assert!(!is_available(&ready, 10, at(1009)));
        assert_eq!(available_in(&ready, 10, at(1009)), Duration::from_secs(1));
        assert!(is_available(&ready, 10, at(1010)));
    }
}
