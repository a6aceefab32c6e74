//! CronJobs: Jobs at the times of a schedule.

mod decide;
mod schedule;

use std::sync::Arc;

use balsa_client::time::time;
use balsa_client::{EventRecorder, EventType, Key, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams, Preconditions};

use self::decide::conclusion;
use crate::context::Shared;
use crate::error::{self, ApiError, Result, unless_gone};
use crate::support::follow::owner_of;
use crate::support::owner;

struct Controller {
    context: Shared,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let controller = Arc::new(Controller {
        recorder: context.recorder("cronjob-controller"),
        context: Arc::clone(&context),
    });
    let crons = queue.clone();
    context
        .informers
        .cron_jobs
        .on_change(move |delta| crons.add(Key::of(&**delta.object())));
    let jobs = queue.clone();
    context.informers.jobs.on_change(move |delta| {
        let owners = delta.old().into_iter().chain([delta.object()]);
        for owner in owners.filter_map(|job| owner_of::<CronJob>(&job.metadata)) {
            jobs.add(owner);
        }
    });
    context.informers.cron_jobs.synced().await;
    context.informers.jobs.synced().await;
    context
        .work("cronjob", queue, move |key| {
            let this = Arc::clone(&controller);
            async move { this.reconcile(key).await }
        })
        .await;
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let informers = &self.context.informers;
        let Some(cached) = informers.cron_jobs.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let mut cron = (*cached).clone();
        let Some(spec) = cron.spec.clone() else {
            return Ok(Outcome::Done);
        };
        let jobs = informers.jobs_by_owner.get(&cron.uid().unwrap_or_default());
        self.follow_jobs(&mut cron, &jobs).await?;
        let mut outcome = Outcome::Done;
        let mut started = Ok(());
        if cron.metadata.deletion_timestamp.is_none() {
            let plan = decide::plan(&cron, &spec, Timestamp::now());
            outcome = plan.again.map_or(Outcome::Done, Outcome::After);
            started = self.carry_out(&mut cron, &spec, plan).await;
        }
        self.write_status(&cached, &cron).await?;
        started?;
        self.clean_up(&cron, &spec, &jobs).await?;
        Ok(outcome)
    }

    /// Brings `status.active` up to date with what has become of its Jobs.
    async fn follow_jobs(&self, cron: &mut CronJob, jobs: &[Arc<Job>]) -> Result<()> {
        let mut active = decide::active(cron).to_vec();
        for job in jobs {
            let listed = active
                .iter()
                .position(|known| known.uid == job.metadata.uid);
            match (conclusion(job), listed) {
                (Some(conclusion), Some(position)) => {
                    active.remove(position);
                    let name = job.name_any();
                    let message = format!("Saw completed job: {name}, condition: {conclusion}");
                    self.tell(cron, EventType::Normal, "SawCompletedJob", message);
                }
                (None, None) if job.metadata.deletion_timestamp.is_none() => {
                    self.find_again(cron, job, &mut active).await?;
                }
                _ => {}
            }
            note_success(cron, job);
        }
        let mut known = Vec::new();
        for reference in active {
            if self.is_there(cron, jobs, &reference).await? {
                known.push(reference);
            } else {
                let name = reference.name.unwrap_or_default();
                let message = format!("Active job went missing: {name}");
                self.tell(cron, EventType::Normal, "MissingJob", message);
            }
        }
        let status = cron.status.get_or_insert_default();
        status.active = (!known.is_empty()).then_some(known);
        Ok(())
    }

    /// A running Job that the status does not list: started by a leader that did not get to write it down, or not
    /// by us at all.
    async fn find_again(
        &self,
        cron: &mut CronJob,
        job: &Job,
        active: &mut Vec<ObjectReference>,
    ) -> Result<()> {
        let api = self
            .context
            .api::<CronJob>(&cron.namespace().unwrap_or_default());
        let fresh = api.get_opt(&cron.name_any()).await?;
        let listed = fresh.as_ref().map(decide::active).unwrap_or_default();
        if let Some(known) = listed.iter().find(|known| known.uid == job.metadata.uid) {
            // Only the cache is behind.
            active.push(known.clone());
            return Ok(());
        }
        active.push(reference(job));
        let message = format!(
            "Saw a job that the controller did not create or forgot: {}",
            job.name_any()
        );
        self.tell(cron, EventType::Warning, "UnexpectedJob", message);
        Ok(())
    }

    async fn is_there(
        &self,
        cron: &CronJob,
        jobs: &[Arc<Job>],
        reference: &ObjectReference,
    ) -> Result<bool> {
        if jobs.iter().any(|job| job.metadata.uid == reference.uid) {
            return Ok(true);
        }
        // The cache may not have it yet.
        let api = self
            .context
            .api::<Job>(&cron.namespace().unwrap_or_default());
        let name = reference.name.as_deref().unwrap_or_default();
        let found = api.get_metadata_opt(name).await?;
        Ok(found.is_some_and(|found| found.metadata.uid == reference.uid))
    }

    async fn carry_out(
        &self,
        cron: &mut CronJob,
        spec: &CronJobSpec,
        plan: decide::Plan,
    ) -> Result<()> {
        for (type_, reason, message) in plan.events {
            self.tell(cron, type_, reason, message);
        }
        let Some(at) = plan.start else { return Ok(()) };
        for job in &plan.replace {
            self.delete(
                cron,
                job.name.as_deref().unwrap_or_default(),
                job.uid.clone(),
            )
            .await?;
        }
        if let Some(active) = cron
            .status
            .as_mut()
            .and_then(|status| status.active.as_mut())
        {
            active.retain(|job| !plan.replace.contains(job));
        }
        let wanted = decide::new_job(cron, spec, at);
        let api = self
            .context
            .api::<Job>(&cron.namespace().unwrap_or_default());
        let job = match api.create(&PostParams::default(), &wanted).await {
            Ok(job) => {
                let message = format!("Created job {}", job.name_any());
                self.tell(cron, EventType::Normal, "SuccessfulCreate", message);
                job
            }
            Err(error) if error.is_already_exists() => {
                // Made by an earlier attempt, or somebody else's: then this time is used up all the same.
                let existing = api.get(&wanted.name_any()).await?;
                let uid = cron.uid().unwrap_or_default();
                if !owner::is_controlled_by(&existing.metadata, &uid) {
                    cron.status.get_or_insert_default().last_schedule_time = Some(time(at));
                    return Ok(());
                }
                existing
            }
            Err(error) if error::namespace_terminating(&error) => return Ok(()),
            Err(error) => {
                let message = format!("Error creating job: {}", error::message(&error));
                self.tell(cron, EventType::Warning, "FailedCreate", message);
                return Err(error.into());
            }
        };
        let status = cron.status.get_or_insert_default();
        status.last_schedule_time = Some(time(at));
        let active = status.active.get_or_insert_default();
        if conclusion(&job).is_none() && !active.iter().any(|known| known.uid == job.metadata.uid) {
            active.push(reference(&job));
        }
        Ok(())
    }

    async fn clean_up(&self, cron: &CronJob, spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Result<()> {
        for job in decide::surplus(spec, jobs) {
            if job.metadata.deletion_timestamp.is_none() {
                self.delete(cron, &job.name_any(), job.uid()).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, cron: &CronJob, name: &str, uid: Option<String>) -> Result<()> {
        let api = self
            .context
            .api::<Job>(&cron.namespace().unwrap_or_default());
        let params = DeleteParams {
            preconditions: uid.map(|uid| Preconditions {
                uid: Some(uid),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match unless_gone(api.delete(name, &params).await) {
            Ok(Some(_)) => {
                let message = format!("Deleted job {name}");
                self.tell(cron, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                let message = format!("Deleted job: {}", error::message(&error));
                self.tell(cron, EventType::Warning, "FailedDelete", message);
                Err(error.into())
            }
        }
    }

    async fn write_status(&self, before: &CronJob, cron: &CronJob) -> Result<()> {
        if before.status == cron.status {
            return Ok(());
        }
        let api = self
            .context
            .api::<CronJob>(&cron.namespace().unwrap_or_default());
        unless_gone(
            api.replace_status(&cron.name_any(), &PostParams::default(), cron)
                .await,
        )?;
        Ok(())
    }

    fn tell(&self, cron: &CronJob, type_: EventType, reason: &str, message: String) {
        self.recorder.event(cron, type_, reason, message);
    }
}

fn note_success(cron: &mut CronJob, job: &Job) {
    if conclusion(job) != Some("Complete") {
        return;
    }
    let completed = job
        .status
        .as_ref()
        .and_then(|status| status.completion_time.clone());
    let status = cron.status.get_or_insert_default();
    if completed > status.last_successful_time {
        status.last_successful_time = completed;
    }
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        namespace: job.namespace(),
        name: job.metadata.name.clone(),
        uid: job.uid(),
        resource_version: job.resource_version(),
        field_path: None,
    }
}
