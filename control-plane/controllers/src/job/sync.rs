//! One reconcile of one Job.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use balsa_client::time::time;
use balsa_client::{EventType, Key, Outcome};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::decide::{self, Ending, Finished, Tally};
use super::pod::Place;
use super::{Controller, indexes, per_index, with_finalizer};
use crate::error::{self, Result, unless_gone};
use crate::support::batches::slow_start;

/// Pods moved into the status in one reconcile at most; the object must stay small.
const MAX_UNCOUNTED: usize = 500;

impl Controller {
    pub(super) async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(cached) = self.context.informers.jobs.get(&key.namespace, &key.name) else {
            self.expectations.forget(&key);
            self.released.lock().remove(&key);
            return Ok(Outcome::Done);
        };
        let mut job = (*cached).clone();
        let Some(spec) = job.spec.clone() else {
            return Ok(Outcome::Done);
        };
        if has(&job, "Complete")
            || has(&job, "Failed")
            || spec.managed_by.as_deref().is_some_and(foreign)
        {
            return Ok(Outcome::Done);
        }
        let satisfied = self.expectations.satisfied(&key);
        let now = Timestamp::now();
        let suspension = note_suspension(&mut job, &spec, now);
        let owned = self.claim(&job).await?;
        let mut tally = self.tally(&key, &job, &spec, &owned);
        let ending = decide::ending(&job, &spec, &tally, now);
        let mut retry = None;
        let managed = if ending.is_some() {
            self.delete_all(&key, &job, &mut tally).await
        } else if satisfied && job.metadata.deletion_timestamp.is_none() {
            self.manage(&key, &job, &spec, &mut tally, &owned, now)
                .await
                .map(|wait| retry = wait)
        } else {
            Ok(())
        };
        let held: HashSet<String> = owned
            .iter()
            .filter(|pod| decide::has_finalizer(pod))
            .filter_map(|p| p.uid())
            .collect();
        self.count(&key, &mut job, &spec, &tally, ending.as_ref(), &held, now)
            .await?;
        if let Some((reason, message)) = suspension {
            self.recorder
                .event(&job, EventType::Normal, reason, message);
        }
        managed?;
        let deadline = decide::deadline_left(&job, &spec, now).filter(|_| ending.is_none());
        Ok([retry, deadline]
            .into_iter()
            .flatten()
            .min()
            .map_or(Outcome::Done, Outcome::After))
    }

    fn tally(&self, key: &Key, job: &Job, spec: &JobSpec, owned: &[Arc<Pod>]) -> Tally {
        let released = self.released.lock().get(key).cloned().unwrap_or_default();
        decide::tally(job, spec, owned, &released)
    }

    /// Creates and deletes pods. Returns how long to wait before creating those that backoff holds back.
    async fn manage(
        &self,
        key: &Key,
        job: &Job,
        spec: &JobSpec,
        tally: &mut Tally,
        owned: &[Arc<Pod>],
        now: Timestamp,
    ) -> Result<Option<Duration>> {
        let mut plan = decide::plan(spec, tally, now);
        if !plan.delete.is_empty() {
            self.delete(key, job, &plan.delete, tally).await?;
        }
        if plan.create == 0 {
            return Ok(None);
        }
        let wait = if spec.backoff_limit_per_index.is_some() {
            hold_back_indexes(&mut plan, spec, owned, now)
        } else {
            Some(decide::backoff_left(owned, now)).filter(|wait| !wait.is_zero())
        };
        if plan.create == 0 || (wait.is_some() && spec.backoff_limit_per_index.is_none()) {
            return Ok(wait);
        }
        self.expectations.expect(key, plan.create, HashSet::new());
        let done = slow_start(plan.create, |i| {
            let place = plan
                .indexes
                .get(i)
                .map(|index| place(job, spec, owned, *index));
            let pod = super::pod::new_pod(job, spec, place);
            async move {
                match self.pods.create(job, &pod).await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        self.expectations.created(key, 1);
                        if error::namespace_terminating(&error) {
                            Ok(())
                        } else {
                            Err(error.into())
                        }
                    }
                }
            }
        })
        .await;
        self.expectations.created(key, done.skipped);
        tally.created = done.succeeded;
        done.error.map_or(Ok(wait), Err)
    }

    /// Nobody is to go on when the Job has ended.
    async fn delete_all(&self, key: &Key, job: &Job, tally: &mut Tally) -> Result<()> {
        let active = tally.active.clone();
        self.delete(key, job, &active, tally).await
    }

    async fn delete(
        &self,
        key: &Key,
        job: &Job,
        victims: &[Arc<Pod>],
        tally: &mut Tally,
    ) -> Result<()> {
        for pod in victims {
            self.expectations
                .expect_deletion(key, pod.metadata.uid.as_deref().unwrap_or_default());
        }
        let deletions = victims.iter().map(|pod| self.pods.delete(job, pod));
        let results = futures::future::join_all(deletions).await;
        let mut failed = None;
        for (pod, result) in victims.iter().zip(results) {
            match result {
                Ok(()) => {
                    tally.active.retain(|active| !Arc::ptr_eq(active, pod));
                    tally.terminating += 1;
                }
                Err(error) => {
                    self.expectations
                        .deleted(key, pod.metadata.uid.as_deref().unwrap_or_default());
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// The way of finished pods into the status, and the status itself.
    #[allow(clippy::too_many_arguments)]
    async fn count(
        &self,
        key: &Key,
        job: &mut Job,
        spec: &JobSpec,
        tally: &Tally,
        ending: Option<&Ending>,
        held: &HashSet<String>,
        now: Timestamp,
    ) -> Result<()> {
        let before = self
            .context
            .informers
            .jobs
            .get(&key.namespace, &key.name)
            .and_then(|job| job.status.clone());
        let released = self.released.lock().get(key).cloned().unwrap_or_default();
        let still: HashSet<&str> = held
            .iter()
            .filter(|uid| !released.contains(*uid))
            .map(String::as_str)
            .collect();
        let status = job.status.get_or_insert_default();
        decide::settle(status, &still);
        let due = |finished: &&Finished| !finished.held || ending.is_some();
        let due: Vec<&Finished> = tally.finished.iter().filter(due).collect();
        let batch: Vec<Finished> = due
            .iter()
            .take(MAX_UNCOUNTED)
            .map(|finished| (*finished).clone())
            .collect();
        if note_finished(status, spec, &batch) | note_failed_indexes(status, spec, tally) {
            self.put_status(job).await?;
        }
        let kept = self.release(key, &batch).await;
        let failed: HashSet<&str> = kept.iter().map(|(uid, _)| uid.as_str()).collect();
        let status = job.status.get_or_insert_default();
        decide::settle(status, &failed);
        status.active =
            decide::nonzero(i32::try_from(tally.active.len() + tally.created).unwrap_or(i32::MAX));
        status.ready = Some(i32::try_from(tally.ready()).unwrap_or(i32::MAX));
        status.terminating = Some(i32::try_from(tally.terminating).unwrap_or(i32::MAX));
        if decide::is_indexed(spec) {
            let completed = status.completed_indexes.as_deref().unwrap_or_default();
            let completed = indexes::parse(completed, decide::completions(spec)).len();
            status.succeeded = decide::nonzero(i32::try_from(completed).unwrap_or(i32::MAX));
        }
        let all_counted = batch.len() == due.len() && kept.is_empty();
        let event = ending.and_then(|ending| {
            let stopped = tally.active.is_empty() && tally.terminating == 0 && all_counted;
            end(status, ending, stopped, now)
        });
        if before.as_ref() != Some(&*status) {
            self.put_status(job).await?;
        }
        if let Some((type_, reason, message)) = event {
            self.recorder.event(job, type_, &reason, message);
        }
        match kept.into_iter().next() {
            Some((_, error)) => Err(error),
            None if !all_counted => {
                self.queue.add(key.clone());
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Takes the finalizer off; returns those that still have it, and why.
    async fn release(&self, key: &Key, batch: &[Finished]) -> Vec<(String, error::Error)> {
        let patches = batch.iter().map(|finished| async move {
            // Before the write, so that its event finds the note.
            self.released
                .lock()
                .entry(key.clone())
                .or_default()
                .insert(finished.uid.clone());
            let patch = with_finalizer(&finished.pod, false, json!({"metadata": {}}));
            let api = self.context.api::<Pod>(&key.namespace);
            let name = finished.pod.name_any();
            let patched = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await;
            match unless_gone(patched) {
                Ok(Some(_)) => None,
                // Gone: no event will clear the note if the deletion was seen before.
                Ok(None) => {
                    self.shown(key, &finished.uid);
                    None
                }
                Err(error) => {
                    self.shown(key, &finished.uid);
                    Some((finished.uid.clone(), error.into()))
                }
            }
        });
        futures::future::join_all(patches)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    async fn put_status(&self, job: &mut Job) -> Result<()> {
        let api = self
            .context
            .api::<Job>(&job.namespace().unwrap_or_default());
        let name = job.name_any();
        if let Some(updated) =
            unless_gone(api.replace_status(&name, &PostParams::default(), job).await)?
        {
            *job = updated;
        }
        Ok(())
    }
}

fn foreign(manager: &str) -> bool {
    manager != "kubernetes.io/job-controller"
}

fn has(job: &Job, type_: &str) -> bool {
    let conditions = job
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

/// Writes finished pods' uids into the status, and indexed completions. True when something was added.
fn note_finished(status: &mut JobStatus, spec: &JobSpec, batch: &[Finished]) -> bool {
    let before = status.clone();
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let mut completed = BTreeSet::new();
    for finished in batch.iter().filter(|finished| finished.counts) {
        // The index is enough not to count a success twice.
        if finished.succeeded && decide::is_indexed(spec) {
            completed.extend(indexes::index(&finished.pod));
            continue;
        }
        // A terminating pod that was noted as failed may yet succeed: it is counted as it was noted.
        let lists = [&uncounted.succeeded, &uncounted.failed];
        if lists
            .into_iter()
            .flatten()
            .flatten()
            .any(|uid| *uid == finished.uid)
        {
            continue;
        }
        let list = if finished.succeeded {
            &mut uncounted.succeeded
        } else {
            &mut uncounted.failed
        };
        list.get_or_insert_default().push(finished.uid.clone());
    }
    if decide::is_indexed(spec) {
        let known = status.completed_indexes.as_deref().unwrap_or_default();
        completed.extend(indexes::parse(known, decide::completions(spec)));
        let text = indexes::format(&completed);
        status.completed_indexes = (!text.is_empty()).then_some(text);
    }
    *status != before
}

/// Writes the indexes that are given up. True when that is news.
fn note_failed_indexes(status: &mut JobStatus, spec: &JobSpec, tally: &Tally) -> bool {
    if spec.backoff_limit_per_index.is_none() {
        return false;
    }
    let text = Some(indexes::format(&tally.failed_indexes));
    let news = status.failed_indexes != text;
    status.failed_indexes = text;
    news
}

/// With `backoffLimitPerIndex`: leaves out the indexes that have to wait; returns the shortest wait.
fn hold_back_indexes(
    plan: &mut decide::Plan,
    spec: &JobSpec,
    owned: &[Arc<Pod>],
    now: Timestamp,
) -> Option<Duration> {
    let mut shortest: Option<Duration> = None;
    plan.indexes.retain(|index| {
        let wait = per_index::wait(spec, owned, *index, now);
        if !wait.is_zero() {
            shortest = Some(shortest.map_or(wait, |shortest| shortest.min(wait)));
        }
        wait.is_zero()
    });
    plan.create = plan.indexes.len();
    shortest
}

fn place(job: &Job, spec: &JobSpec, owned: &[Arc<Pod>], index: u32) -> Place {
    let failures = spec
        .backoff_limit_per_index
        .map(|_| per_index::counts(job, spec, owned, index));
    Place { index, failures }
}

/// Start time and the `Suspended` condition; returns the event to write when it changed. A Job whose end is decided
/// keeps its start: the API wants one in finished Jobs.
fn note_suspension(
    job: &mut Job,
    spec: &JobSpec,
    now: Timestamp,
) -> Option<(&'static str, &'static str)> {
    if has(job, "FailureTarget") || has(job, "SuccessCriteriaMet") {
        return None;
    }
    let suspended = spec.suspend == Some(true);
    let was = has(job, "Suspended");
    let status = job.status.get_or_insert_default();
    if !suspended && (status.start_time.is_none() || was) {
        status.start_time = Some(time(now));
    }
    match (suspended, was) {
        (true, false) => {
            status.start_time = None;
            set(
                status,
                "Suspended",
                "True",
                "JobSuspended",
                "Job suspended",
                now,
            );
            Some(("Suspended", "Job suspended"))
        }
        (false, true) => {
            set(
                status,
                "Suspended",
                "False",
                "JobResumed",
                "Job resumed",
                now,
            );
            Some(("Resumed", "Job resumed"))
        }
        _ => None,
    }
}

fn set(
    status: &mut JobStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != type_);
    conditions.push(JobCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(time(now)),
        last_transition_time: Some(time(now)),
    });
}

/// Writes the decision first, and the end itself once all pods have stopped and are counted. Returns the
/// event that goes with the end.
fn end(
    status: &mut JobStatus,
    ending: &Ending,
    stopped: bool,
    now: Timestamp,
) -> Option<(EventType, String, String)> {
    let decision = if ending.success {
        "SuccessCriteriaMet"
    } else {
        "FailureTarget"
    };
    let known = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == decision && condition.status == "True");
    if !known {
        set(
            status,
            decision,
            "True",
            &ending.reason,
            &ending.message,
            now,
        );
    }
    if !stopped {
        return None;
    }
    let conclusion = if ending.success { "Complete" } else { "Failed" };
    set(
        status,
        conclusion,
        "True",
        &ending.reason,
        &ending.message,
        now,
    );
    // Empty when all is counted; the API wants it so in finished Jobs.
    status.uncounted_terminated_pods =
        Some(k8s_openapi::api::batch::v1::UncountedTerminatedPods::default());
    // Missing when the Job's last pods ended after it was suspended.
    let started = status.start_time.get_or_insert_with(|| time(now)).0;
    if ending.success {
        // Another leader's clock may have been ahead when the Job started.
        status.completion_time = Some(time(now.max(started)));
        Some((
            EventType::Normal,
            "Completed".into(),
            "Job completed".into(),
        ))
    } else {
        Some((
            EventType::Warning,
            ending.reason.clone(),
            ending.message.clone(),
        ))
    }
}

#[cfg(test)]
mod tests;
