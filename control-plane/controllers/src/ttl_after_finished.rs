//! Finished Jobs with `ttlSecondsAfterFinished` are deleted when their time is up.

use std::sync::Arc;
use std::time::Duration;

use balsa_client::{Key, Outcome, WorkQueue};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};

use crate::context::Shared;
use crate::error::{Result, unless_gone};

pub(crate) async fn run(context: Shared) {
    let queue = WorkQueue::default();
    let jobs = queue.clone();
    context.informers.jobs.on_change(move |delta| {
        if !delta.is_delete() && time_left(delta.object(), Timestamp::now()).is_some() {
            jobs.add(Key::of(&**delta.object()));
        }
    });
    context.informers.jobs.synced().await;
    let this = Arc::clone(&context);
    context
        .work("ttl-after-finished", queue, move |key| {
            let this = Arc::clone(&this);
            async move { reconcile(&this, key).await }
        })
        .await;
}

/// Time until a finished Job is to be deleted; `None` if it is not.
fn time_left(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let finished = job
        .status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| {
            matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
        })?;
    let since = finished.last_transition_time.as_ref()?.0;
    let left = SignedDuration::from_secs(i64::from(ttl)) - now.duration_since(since);
    Some(left.max(SignedDuration::ZERO).unsigned_abs())
}

async fn reconcile(context: &Shared, key: Key) -> Result<Outcome> {
    let Some(cached) = context.informers.jobs.get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    match time_left(&cached, Timestamp::now()) {
        None => return Ok(Outcome::Done),
        Some(left) if !left.is_zero() => return Ok(Outcome::After(left)),
        Some(_) => {}
    }
    // The TTL may have been raised a moment ago: ask the server before destroying anything.
    let api = context.api::<Job>(&key.namespace);
    let Some(fresh) = api.get_opt(&key.name).await? else {
        return Ok(Outcome::Done);
    };
    match time_left(&fresh, Timestamp::now()) {
        None => Ok(Outcome::Done),
        Some(left) if !left.is_zero() => Ok(Outcome::After(left)),
        Some(_) => {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: fresh.uid(),
                    resource_version: fresh.resource_version(),
                }),
                ..DeleteParams::foreground()
            };
            unless_gone(api.delete(&key.name, &params).await)?;
            Ok(Outcome::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};

    use super::*;

    fn job(ttl: Option<i32>, finished: Option<i64>) -> Job {
        let condition = finished.map(|second| JobCondition {
            type_: "Complete".into(),
            status: "True".into(),
            last_transition_time: Some(balsa_client::time::time(
                Timestamp::from_second(second).unwrap(),
            )),
            ..JobCondition::default()
        });
        Job {
            spec: Some(JobSpec {
                ttl_seconds_after_finished: ttl,
                ..JobSpec::default()
            }),
            status: Some(JobStatus {
                conditions: condition.map(|c| vec![c]),
                ..JobStatus::default()
            }),
            ..Job::default()
        }
    }

    #[test]
    fn only_finished_jobs_with_a_ttl_expire() {
        let now = Timestamp::from_second(1010).unwrap();
        assert_eq!(time_left(&job(None, Some(1000)), now), None);
        assert_eq!(time_left(&job(Some(5), None), now), None);
        assert_eq!(
            time_left(&job(Some(15), Some(1000)), now),
            Some(Duration::from_secs(5))
        );
        assert_eq!(
            time_left(&job(Some(5), Some(1000)), now),
            Some(Duration::ZERO)
        );
    }
}
