//! What a Job's pods amount to, and what to do next. Pure.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::policy::{self, Meaning};
use super::{indexes, per_index};
use crate::support::pods;

/// Keeps a finished pod until it has been counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";

pub(super) const BACKOFF_FIRST: Duration = Duration::from_secs(10);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// A Job with its pods, as they count.
pub(super) struct Tally {
    pub(super) active: Vec<Arc<Pod>>,
    /// Made in this reconcile; not among `active`.
    pub(super) created: usize,
    pub(super) terminating: usize,
    /// Indexes of those, for indexed Jobs.
    pub(super) terminating_indexes: BTreeSet<u32>,
    /// Finished pods that still carry the finalizer and are to be counted, or not (by policy).
    pub(super) finished: Vec<Finished>,
    /// Including those of `finished` and those not yet counted in the status.
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    /// Indexes with a succeeded pod, for indexed Jobs.
    pub(super) succeeded_indexes: BTreeSet<u32>,
    /// Indexes that are given up, by `backoffLimitPerIndex`.
    pub(super) failed_indexes: BTreeSet<u32>,
    /// By podFailurePolicy.
    pub(super) fail_job: Option<String>,
}

impl Tally {
    /// Pods that are ready, of those still active.
    pub(super) fn ready(&self) -> usize {
        let active = self.active.iter();
        active.filter(|pod| pods::is_ready(pod)).count()
    }
}

/// A finished pod on its way into the status.
#[derive(Clone)]
pub(super) struct Finished {
    pub(super) pod: Arc<Pod>,
    pub(super) uid: String,
    pub(super) succeeded: bool,
    /// False for failures that policy ignores.
    pub(super) counts: bool,
    /// Waits for its successor, which takes over how often the index has failed.
    pub(super) held: bool,
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub(super) fn completions(spec: &JobSpec) -> u32 {
    spec.completions
        .and_then(|count| u32::try_from(count).ok())
        .unwrap_or_default()
}

/// Terminating pods are only replaced once they have failed.
pub(super) fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

pub(super) fn has_finalizer(pod: &Pod) -> bool {
    pod.finalizers()
        .iter()
        .any(|finalizer| finalizer == FINALIZER)
}

/// True for a pod that will not succeed any more.
pub(super) fn has_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pods::is_terminating(pod) && (!replaces_only_failed(spec) || never_ran(pod)),
    }
}

/// True for a pod that was deleted before its containers ran, and that its node has let go: nobody will write an
/// end into its status any more, only our finalizer keeps it.
fn never_ran(pod: &Pod) -> bool {
    pods::phase(pod) == "Pending" && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// Counts. `released` are pods whose finalizer was taken off a moment ago, which the cache may not show.
pub(super) fn tally(
    job: &Job,
    spec: &JobSpec,
    owned: &[Arc<Pod>],
    released: &HashSet<String>,
) -> Tally {
    let status = job.status.clone().unwrap_or_default();
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let (uncounted_succeeded, uncounted_failed) = (
        uncounted.succeeded.unwrap_or_default(),
        uncounted.failed.unwrap_or_default(),
    );
    let indexed = is_indexed(spec);
    let limit = completions(spec);
    let mut succeeded_indexes = if indexed {
        indexes::parse(
            status.completed_indexes.as_deref().unwrap_or_default(),
            limit,
        )
    } else {
        BTreeSet::new()
    };
    let mut failed_indexes = match &status.failed_indexes {
        Some(text) if indexed => indexes::parse(text, limit),
        _ => BTreeSet::new(),
    };
    let mut finished = Vec::new();
    let (mut new_succeeded, mut new_failed) = (0, 0);
    let mut fail_job = None;
    for pod in owned {
        let uid = pod.uid().unwrap_or_default();
        if !has_finalizer(pod) || released.contains(&uid) {
            continue;
        }
        let succeeded = pods::phase(pod) == "Succeeded";
        if !succeeded && !has_failed(spec, pod) {
            continue;
        }
        let known = uncounted_succeeded.contains(&uid) || uncounted_failed.contains(&uid);
        let mut counts = true;
        if succeeded && indexed {
            match indexes::index(pod).filter(|index| *index < limit) {
                Some(index) => counts = succeeded_indexes.insert(index) || known,
                None => counts = false,
            }
        } else if !succeeded {
            let meaning = policy::meaning(job, pod);
            if indexed && per_index::gives_up(spec, pod, &meaning) {
                failed_indexes.extend(indexes::index(pod).filter(|index| *index < limit));
            }
            match meaning {
                Meaning::Count | Meaning::FailIndex => {}
                Meaning::Ignore => counts = false,
                Meaning::FailJob(message) => {
                    fail_job.get_or_insert(message);
                }
            }
        }
        if counts && !known {
            if succeeded {
                new_succeeded += 1
            } else {
                new_failed += 1
            }
        }
        finished.push(Finished {
            pod: Arc::clone(pod),
            uid,
            succeeded,
            counts,
            held: false,
        });
    }
    // One of several pods for an index was enough.
    failed_indexes.retain(|index| !succeeded_indexes.contains(index));
    let ended = succeeded_indexes.union(&failed_indexes).copied().collect();
    let held = per_index::held(spec, owned, &ended);
    for finished in &mut finished {
        finished.held = held.contains(&finished.uid);
    }
    let count = |list: &[String]| i32::try_from(list.len()).unwrap_or(i32::MAX);
    let active: Vec<Arc<Pod>> = owned
        .iter()
        .filter(|pod| pods::is_active(pod))
        .cloned()
        .collect();
    let terminating: Vec<&Arc<Pod>> = owned
        .iter()
        .filter(|pod| pods::is_terminating(pod) && !pods::is_terminal(pod))
        .collect();
    Tally {
        terminating: terminating.len(),
        terminating_indexes: terminating
            .iter()
            .filter_map(|pod| indexes::index(pod))
            .filter(|_| indexed)
            .collect(),
        succeeded: if indexed {
            i32::try_from(succeeded_indexes.len()).unwrap_or(i32::MAX)
        } else {
            status.succeeded.unwrap_or_default() + new_succeeded + count(&uncounted_succeeded)
        },
        failed: status.failed.unwrap_or_default() + new_failed + count(&uncounted_failed),
        active,
        created: 0,
        finished,
        succeeded_indexes,
        failed_indexes,
        fail_job,
    }
}

/// How a Job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Ending {
    fn new(success: bool, reason: &str, message: impl Into<String>) -> Option<Self> {
        Some(Self {
            success,
            reason: reason.to_owned(),
            message: message.into(),
        })
    }
}

/// Whether the Job has come to its end.
pub(super) fn ending(job: &Job, spec: &JobSpec, tally: &Tally, now: Timestamp) -> Option<Ending> {
    if let Some(decided) = decided(job) {
        return Some(decided);
    }
    if let Some(message) = &tally.fail_job {
        return Ending::new(false, "PodFailurePolicy", message.clone());
    }
    let default = spec.backoff_limit_per_index.map_or(6, |_| i32::MAX);
    let limit = spec.backoff_limit.unwrap_or(default);
    if tally.failed > limit || restarts_exceed(spec, tally, limit) {
        return Ending::new(
            false,
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        );
    }
    if deadline_left(job, spec, now).is_some_and(|left| left.is_zero()) {
        return Ending::new(
            false,
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        );
    }
    if let Some(failed) = indexes_failed(spec, tally) {
        return Some(failed);
    }
    if let Some(policy) = spec.success_policy.as_ref().filter(|_| is_indexed(spec))
        && let Some(message) = policy::success(policy, &tally.succeeded_indexes, completions(spec))
    {
        return Ending::new(true, "SuccessPolicy", message);
    }
    let complete = match spec.completions {
        // A work queue: one success says that all is done, once the others have stopped.
        None => tally.succeeded > 0 && tally.active.is_empty(),
        Some(completions) => tally.succeeded >= completions && tally.active.is_empty(),
    };
    let reached = "Reached expected number of succeeded pods";
    complete
        .then(|| Ending::new(true, "CompletionsReached", reached))
        .flatten()
}

/// Too many indexes are given up, or all others have succeeded.
fn indexes_failed(spec: &JobSpec, tally: &Tally) -> Option<Ending> {
    let failed = tally.failed_indexes.len();
    let max = spec
        .max_failed_indexes
        .and_then(|max| usize::try_from(max).ok());
    if max.is_some_and(|max| failed > max) {
        return Ending::new(
            false,
            "MaxFailedIndexesExceeded",
            "Job has exceeded the specified maximal number of failed indexes",
        );
    }
    let all = usize::try_from(completions(spec)).unwrap_or(usize::MAX);
    if failed > 0 && failed + tally.succeeded_indexes.len() >= all {
        return Ending::new(false, "FailedIndexes", "Job has failed indexes");
    }
    None
}

/// An ending that an earlier reconcile has decided on and written down.
fn decided(job: &Job) -> Option<Ending> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| {
        condition.status == "True"
            && matches!(
                condition.type_.as_str(),
                "FailureTarget" | "SuccessCriteriaMet"
            )
    })?;
    Ending::new(
        found.type_ == "SuccessCriteriaMet",
        found.reason.as_deref().unwrap_or_default(),
        found.message.clone().unwrap_or_default(),
    )
}

/// Containers restarted in place count too.
fn restarts_exceed(spec: &JobSpec, tally: &Tally, limit: i32) -> bool {
    let policy = spec
        .template
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let restarts: i32 = tally
        .active
        .iter()
        .filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"))
        .map(|pod| pods::restarts(pod))
        .sum();
    if limit == 0 {
        restarts > 0
    } else {
        restarts >= limit
    }
}

/// Time left until activeDeadlineSeconds; `None` without one.
pub(super) fn deadline_left(job: &Job, spec: &JobSpec, now: Timestamp) -> Option<Duration> {
    let seconds = spec
        .active_deadline_seconds
        .filter(|_| spec.suspend != Some(true))?;
    let start = job.status.as_ref()?.start_time.as_ref()?.0;
    let left = SignedDuration::from_secs(seconds) - now.duration_since(start);
    Some(left.max(SignedDuration::ZERO).unsigned_abs())
}

/// How many pods should be active.
pub(super) fn wanted_active(spec: &JobSpec, tally: &Tally) -> usize {
    if spec.suspend == Some(true) {
        return 0;
    }
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or_default();
    match spec.completions {
        None if tally.succeeded > 0 => tally.active.len().min(parallelism),
        None => parallelism,
        Some(completions) => {
            let left = usize::try_from(completions - tally.succeeded).unwrap_or_default();
            parallelism.min(left.saturating_sub(tally.failed_indexes.len()))
        }
    }
}

/// What to do about the number of pods.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: usize,
    /// Indexes of the pods to create, for indexed Jobs.
    pub(super) indexes: Vec<u32>,
    pub(super) delete: Vec<Arc<Pod>>,
}

/// Pods created or deleted in one reconcile at most.
const BURST: usize = 500;

pub(super) fn plan(spec: &JobSpec, tally: &Tally, now: Timestamp) -> Plan {
    let wanted = wanted_active(spec, tally);
    let mut plan = Plan::default();
    let mut active = tally.active.clone();
    let mut busy = tally.succeeded_indexes.clone();
    busy.extend(&tally.failed_indexes);
    if is_indexed(spec) {
        // Of several pods for one index, and of those without a valid one, only the best stays.
        active.sort_by_cached_key(|pod| std::cmp::Reverse(pods::deletion_rank(pod, 0, now)));
        active.retain(|pod| {
            let good = indexes::index(pod)
                .is_some_and(|index| index < completions(spec) && busy.insert(index));
            if !good {
                plan.delete.push(Arc::clone(pod));
            }
            good
        });
    }
    if active.len() > wanted {
        active.sort_by_cached_key(|pod| pods::deletion_rank(pod, 0, now));
        plan.delete.extend(active.drain(..active.len() - wanted));
    }
    plan.delete.truncate(BURST);
    let held = if replaces_only_failed(spec) {
        // Their indexes are not free either (upstream's `firstPendingIndexes`).
        busy.extend(&tally.terminating_indexes);
        tally.terminating
    } else {
        0
    };
    plan.create = wanted.saturating_sub(active.len() + held).min(BURST);
    if is_indexed(spec) {
        plan.indexes = indexes::pending(plan.create, completions(spec), &busy);
        plan.create = plan.indexes.len();
    }
    plan
}

/// How long to wait before making new pods, after failures since the last success. Computed from the pods
/// themselves, so that a new leader knows it too.
pub(super) fn backoff_left(owned: &[Arc<Pod>], now: Timestamp) -> Duration {
    let finished_at = |phase: &str| {
        let all = owned.iter().filter(move |pod| pods::phase(pod) == phase);
        all.filter_map(|pod| finish_time(pod)).collect::<Vec<_>>()
    };
    let last_success = finished_at("Succeeded").into_iter().max();
    let failures: Vec<Timestamp> = finished_at("Failed")
        .into_iter()
        .filter(|at| last_success.is_none_or(|success| *at > success))
        .collect();
    let Some(last) = failures.iter().max() else {
        return Duration::ZERO;
    };
    let doublings = u32::try_from(failures.len() - 1)
        .unwrap_or(u32::MAX)
        .min(16);
    let backoff = BACKOFF_FIRST
        .saturating_mul(1 << doublings)
        .min(BACKOFF_MAX);
    let waited = now
        .duration_since(*last)
        .max(SignedDuration::ZERO)
        .unsigned_abs();
    backoff.saturating_sub(waited)
}

pub(super) fn finish_time(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_deref())
        .unwrap_or_default();
    let ended = statuses
        .iter()
        .filter_map(|status| {
            Some(
                status
                    .state
                    .as_ref()?
                    .terminated
                    .as_ref()?
                    .finished_at
                    .as_ref()?
                    .0,
            )
        })
        .max();
    ended
        .or_else(|| {
            pods::condition(pod, "Ready")?
                .last_transition_time
                .as_ref()
                .map(|time| time.0)
        })
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|time| time.0))
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

/// Moves what has been released from the uncounted lists into the counts.
pub(super) fn settle(status: &mut JobStatus, still_held: &HashSet<&str>) {
    let Some(uncounted) = &mut status.uncounted_terminated_pods else {
        return;
    };
    let take = |list: &mut Option<Vec<String>>| {
        let before = list.as_ref().map_or(0, Vec::len);
        if let Some(list) = list {
            list.retain(|uid| still_held.contains(uid.as_str()));
        }
        let after = list.as_ref().map_or(0, Vec::len);
        *list = list.take().filter(|list| !list.is_empty());
        i32::try_from(before - after).unwrap_or(i32::MAX)
    };
    let (succeeded, failed) = (take(&mut uncounted.succeeded), take(&mut uncounted.failed));
    status.succeeded = nonzero(status.succeeded.unwrap_or_default() + succeeded);
    status.failed = nonzero(status.failed.unwrap_or_default() + failed);
}

/// Zero counts are left out, as Go's `omitempty` does.
pub(super) fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

#[cfg(test)]
mod tests;
