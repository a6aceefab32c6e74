//! What a ReplicaSet lacks, and its status.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use crate::support::pods;

/// Pods created or deleted in one reconcile at most.
const BURST: usize = 500;

/// What to do.
#[derive(Debug)]
pub(super) enum Plan {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// Compares active pods with what is wanted. `neighbours` are the active pods of related sets, this one's
/// included.
pub(super) fn plan(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    neighbours: &[Arc<Pod>],
    now: Timestamp,
) -> Plan {
    let wanted = set
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
        .max(0);
    let wanted = usize::try_from(wanted).unwrap_or_default();
    let mut active: Vec<Arc<Pod>> = owned
        .iter()
        .filter(|pod| pods::is_active(pod))
        .cloned()
        .collect();
    match active.len().cmp(&wanted) {
        std::cmp::Ordering::Equal => Plan::Nothing,
        std::cmp::Ordering::Less => Plan::Create((wanted - active.len()).min(BURST)),
        std::cmp::Ordering::Greater => {
            let mut crowd: HashMap<&str, usize> = HashMap::new();
            for pod in neighbours {
                *crowd.entry(pods::node_name(pod)).or_default() += 1;
            }
            active.sort_by_cached_key(|pod| {
                pods::deletion_rank(
                    pod,
                    crowd.get(pods::node_name(pod)).copied().unwrap_or_default(),
                    now,
                )
            });
            let surplus = (active.len() - wanted).min(BURST);
            active.truncate(surplus);
            Plan::Delete(active)
        }
    }
}

/// The status that follows from the pods; `failure` is what went wrong in this reconcile.
pub(super) fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    failure: Option<ReplicaSetCondition>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let min_ready = set
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or_default();
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let template_labels = template.and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let labeled = |pod: &Pod| {
        template_labels.into_iter().flatten().all(|(key, value)| {
            pod.metadata
                .labels
                .as_ref()
                .is_some_and(|labels| labels.get(key) == Some(value))
        })
    };
    let active: Vec<&Arc<Pod>> = owned.iter().filter(|pod| pods::is_active(pod)).collect();
    let count =
        |test: &dyn Fn(&Pod) -> bool| self::count(active.iter().filter(|pod| test(pod)).count());
    let terminating = owned
        .iter()
        .filter(|pod| pods::is_terminating(pod) && !pods::is_terminal(pod))
        .count();
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: nonzero(count(&labeled)),
        ready_replicas: nonzero(count(&pods::is_ready)),
        available_replicas: nonzero(count(&|pod| pods::is_available(pod, min_ready, now))),
        terminating_replicas: Some(self::count(terminating)),
        observed_generation: set.metadata.generation,
        conditions: conditions(set, failure),
    }
}

/// `ReplicaFailure` stays as it is while the failure is the same, and goes with it.
fn conditions(
    set: &ReplicaSet,
    failure: Option<ReplicaSetCondition>,
) -> Option<Vec<ReplicaSetCondition>> {
    let old = set
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut conditions: Vec<_> = old
        .iter()
        .filter(|old| old.type_ != "ReplicaFailure")
        .cloned()
        .collect();
    if let Some(failure) = failure {
        let same = old
            .into_iter()
            .find(|old| old.type_ == failure.type_ && old.reason == failure.reason);
        conditions.push(match same {
            Some(same) => ReplicaSetCondition {
                message: failure.message,
                ..same
            },
            None => failure,
        });
    }
    (!conditions.is_empty()).then_some(conditions)
}

fn count(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Zero counts are left out, as Go's `omitempty` does, so that statuses compare equal.
fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::ReplicaSetSpec;
    use kube::ResourceExt;

    use super::*;
    use crate::support::pods::tests::pod;

    fn set(replicas: i32) -> ReplicaSet {
        let spec = ReplicaSetSpec {
            replicas: Some(replicas),
            ..ReplicaSetSpec::default()
        };
        ReplicaSet {
            spec: Some(spec),
            ..ReplicaSet::default()
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(2000).unwrap()
    }

    #[test]
    fn finished_and_terminating_pods_are_replaced() {
        let mut going = pod("going", "Running", "a", true);
        going.metadata.deletion_timestamp = Some(balsa_client::time::now());
        let owned = [
            going,
            pod("failed", "Failed", "a", false),
            pod("ok", "Running", "a", true),
        ]
        .map(Arc::new);
        assert!(matches!(
            plan(&set(3), &owned, &owned, now()),
            Plan::Create(2)
        ));
    }

    #[test]
    fn surplus_pods_go_from_the_crowded_node() {
        let owned = [
            pod("a1", "Running", "a", true),
            pod("b1", "Running", "b", true),
            pod("b2", "Running", "b", true),
        ]
        .map(Arc::new);
        let Plan::Delete(victims) = plan(&set(2), &owned, &owned, now()) else {
            panic!("must delete")
        };
        assert_eq!(victims.len(), 1);
        assert!(victims[0].name_any().starts_with('b'));
    }

    #[test]
    fn a_huge_set_grows_in_bursts() {
        assert!(matches!(
            plan(&set(10_000), &[], &[], now()),
            Plan::Create(BURST)
        ));
    }

    #[test]
    fn status_counts_active_pods_and_leaves_zeros_out() {
        let owned = [
            pod("a", "Running", "a", true),
            pod("b", "Pending", "", false),
        ]
        .map(Arc::new);
        let status = status(&set(2), &owned, None, now());
        assert_eq!((status.replicas, status.ready_replicas), (2, Some(1)));
        assert_eq!(
            super::status(&set(0), &[], None, now()).ready_replicas,
            None
        );
    }

    #[test]
    fn a_failure_keeps_its_first_time_and_goes_when_it_is_over() {
        let failure = |message: &str, second| ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some("FailedCreate".into()),
            message: Some(message.into()),
            last_transition_time: Some(balsa_client::time::time(
                Timestamp::from_second(second).unwrap(),
            )),
        };
        let mut set = set(1);
        set.status = Some(status(&set, &[], Some(failure("quota", 1)), now()));
        set.status = Some(status(&set, &[], Some(failure("still quota", 9)), now()));
        let condition = &set.status.as_ref().unwrap().conditions.as_ref().unwrap()[0];
        assert_eq!(condition.message.as_deref(), Some("still quota"));
        assert_eq!(
            condition.last_transition_time,
            failure("", 1).last_transition_time
        );
        assert_eq!(status(&set, &[], None, now()).conditions, None);
    }
}
