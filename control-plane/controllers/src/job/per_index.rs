//! `backoffLimitPerIndex`: each index of a Job has failures of its own. Pure.
//!
//! How often an index has failed is written on its pods, and the last failed pod of an index keeps its finalizer
//! until it has a successor that carries the count on.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::decide::{finish_time, has_failed, has_finalizer};
use super::indexes;
use super::policy::{self, Meaning};
use crate::support::pods;

/// Failures of the index before this pod.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Failures of the index before this pod that policy did not count.
pub(super) const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

fn number(pod: &Pod, annotation: &str) -> u32 {
    let text = pod.annotations().get(annotation);
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// True when the index is given up with this failed pod.
pub(super) fn gives_up(spec: &JobSpec, pod: &Pod, meaning: &Meaning) -> bool {
    let Some(limit) = spec.backoff_limit_per_index else {
        return false;
    };
    match meaning {
        Meaning::FailIndex => true,
        Meaning::Ignore => false,
        _ => i64::from(number(pod, FAILURES)) >= i64::from(limit),
    }
}

/// The last failed pod of an index that has not been counted.
fn last_failed<'a>(spec: &JobSpec, owned: &'a [Arc<Pod>], index: u32) -> Option<&'a Arc<Pod>> {
    owned
        .iter()
        .filter(|pod| has_finalizer(pod) && has_failed(spec, pod))
        .filter(|pod| indexes::index(pod) == Some(index))
        .max_by_key(|pod| {
            let failures = number(pod, FAILURES) + number(pod, IGNORED);
            (failures, finish_time(pod), pod.uid())
        })
}

/// Uids of failed pods that wait for their successors.
pub(super) fn held(spec: &JobSpec, owned: &[Arc<Pod>], ended: &BTreeSet<u32>) -> HashSet<String> {
    if spec.backoff_limit_per_index.is_none() {
        return HashSet::new();
    }
    let indexes = |wanted: fn(&Pod) -> bool| {
        let pods = owned.iter().filter(move |pod| wanted(pod));
        pods.filter_map(|pod| indexes::index(pod))
            .collect::<BTreeSet<u32>>()
    };
    let running = indexes(pods::is_active);
    let all = indexes(|_| true);
    all.iter()
        .filter(|index| !running.contains(index) && !ended.contains(index))
        .filter_map(|index| last_failed(spec, owned, *index)?.uid())
        .collect()
}

/// Counted and ignored failures that the next pod of an index has behind it.
pub(super) fn counts(job: &Job, spec: &JobSpec, owned: &[Arc<Pod>], index: u32) -> (u32, u32) {
    let Some(last) = last_failed(spec, owned, index) else {
        return (0, 0);
    };
    let (failures, ignored) = (number(last, FAILURES), number(last, IGNORED));
    if policy::meaning(job, last) == Meaning::Ignore {
        (failures, ignored + 1)
    } else {
        (failures + 1, ignored)
    }
}

/// How long the next pod of an index must wait.
pub(super) fn wait(spec: &JobSpec, owned: &[Arc<Pod>], index: u32, now: Timestamp) -> Duration {
    let Some(last) = last_failed(spec, owned, index) else {
        return Duration::ZERO;
    };
    let doublings = (number(last, FAILURES) + number(last, IGNORED)).min(16);
    let backoff = super::decide::BACKOFF_FIRST
        .saturating_mul(1 << doublings)
        .min(super::decide::BACKOFF_MAX);
    let since = finish_time(last).unwrap_or(now);
    let waited = now.duration_since(since).max(SignedDuration::ZERO);
    backoff.saturating_sub(waited.unsigned_abs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::decide::FINALIZER;
    use super::super::indexes::INDEX;
    use super::*;
    use crate::support::pods::tests::pod;

    fn indexed(name: &str, phase: &str, index: u32, failures: u32) -> Arc<Pod> {
        let mut pod = pod(name, phase, "a", false);
        pod.annotations_mut()
            .insert(INDEX.into(), index.to_string());
        pod.annotations_mut()
            .insert(FAILURES.into(), failures.to_string());
        pod.finalizers_mut().push(FINALIZER.into());
        Arc::new(pod)
    }

    fn spec(limit: i32) -> JobSpec {
        JobSpec {
            backoff_limit_per_index: Some(limit),
            ..JobSpec::default()
        }
    }

    #[test]
    fn an_index_is_given_up_after_its_own_failures() {
        let first = indexed("a", "Failed", 0, 0);
        assert!(gives_up(&spec(0), &first, &Meaning::Count));
        assert!(!gives_up(&spec(1), &first, &Meaning::Count));
        assert!(gives_up(&spec(1), &first, &Meaning::FailIndex));
        assert!(!gives_up(&spec(0), &first, &Meaning::Ignore));
    }

    #[test]
    fn the_count_is_handed_on_and_the_failed_pod_waits_for_it() {
        let owned = [indexed("a", "Failed", 0, 1), indexed("b", "Running", 1, 0)];
        let spec = spec(5);
        assert_eq!(
            held(&spec, &owned, &BTreeSet::new()),
            HashSet::from(["a".to_owned()])
        );
        assert_eq!(counts(&Job::default(), &spec, &owned, 0), (2, 0));
        assert_eq!(counts(&Job::default(), &spec, &owned, 1), (0, 0));
        // It ended at second 1000; the second failure waits 20 s.
        let now = Timestamp::from_second(1005).unwrap();
        assert_eq!(wait(&spec, &owned, 0, now), Duration::from_secs(15));
        let replaced = [Arc::clone(&owned[0]), indexed("c", "Pending", 0, 2)];
        assert!(held(&spec, &replaced, &BTreeSet::new()).is_empty());
        assert!(held(&spec, &owned, &BTreeSet::from([0])).is_empty());
    }
}
