//! Jobs: pods until enough of them have succeeded.
//!
//! Each pod carries a finalizer until it has been counted, so that none is counted twice or not at all: its
//! uid first goes into `status.uncountedTerminatedPods`, then the finalizer comes off, then the count rises.

mod decide;
mod indexes;
mod per_index;
mod pod;
mod policy;
mod sync;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use balsa_client::{Delta, EventRecorder, Key, Outcome, WorkQueue};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::context::Shared;
use crate::error::Result;
use crate::informers::orphans_of;
use crate::support::expectations::Expectations;
use crate::support::owner::{self, Claim};
use crate::support::pod_control::PodControl;
use crate::support::pods;
use crate::support::selector::Labels;

struct Controller {
    context: Shared,
    recorder: EventRecorder,
    pods: PodControl,
    expectations: Expectations,
    /// Uids of pods whose finalizer was taken off and whose cached version still has it, by Job.
    released: Mutex<HashMap<Key, HashSet<String>>>,
    queue: WorkQueue<Key>,
    /// Pods with our finalizer whose Job is gone.
    orphans: WorkQueue<Key>,
}

pub(crate) async fn run(context: Shared) {
    let recorder = context.recorder("job-controller");
    let controller = Arc::new(Controller {
        pods: PodControl {
            context: Arc::clone(&context),
            recorder: recorder.clone(),
        },
        recorder,
        expectations: Expectations::default(),
        released: Mutex::default(),
        queue: WorkQueue::default(),
        orphans: WorkQueue::default(),
        context: Arc::clone(&context),
    });
    context.informers.jobs.synced().await;
    let this = Arc::clone(&controller);
    context
        .informers
        .jobs
        .on_change(move |delta| this.job_changed(delta));
    let this = Arc::clone(&controller);
    context
        .informers
        .pods
        .on_change(move |delta| this.pod_changed(delta));
    context.informers.pods.synced().await;
    let (worker, releaser) = (Arc::clone(&controller), Arc::clone(&controller));
    let jobs = context.work("job", controller.queue.clone(), move |key| {
        let this = Arc::clone(&worker);
        async move { this.reconcile(key).await }
    });
    let orphans = context.work("job-orphans", controller.orphans.clone(), move |key| {
        let this = Arc::clone(&releaser);
        async move { this.release_orphan(key).await }
    });
    tokio::join!(jobs, orphans);
}

impl Controller {
    fn job_changed(&self, delta: &Delta<Job>) {
        let job = &**delta.object();
        self.queue.add(Key::of(job));
        if delta.is_delete() {
            for pod in self
                .context
                .informers
                .pods_by_owner
                .get(&job.uid().unwrap_or_default())
            {
                self.orphans.add(Key::of(&*pod));
            }
        }
    }

    fn pod_changed(&self, delta: &Delta<Pod>) {
        let pod = &**delta.object();
        let owner = owner_of(&pod.metadata);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(key) = &owner {
            if matches!(delta, Delta::Added(_)) {
                self.expectations.created(key, 1);
            }
            if delta.is_delete() || pods::is_terminating(pod) {
                self.expectations.deleted(key, uid);
            }
            if delta.is_delete() || !decide::has_finalizer(pod) {
                self.shown(key, uid);
            }
            if self
                .context
                .informers
                .jobs
                .get(&key.namespace, &key.name)
                .is_none()
                && decide::has_finalizer(pod)
            {
                self.orphans.add(Key::of(pod));
            }
            self.queue.add(key.clone());
        }
        let before = delta.old().and_then(|old| owner_of(&old.metadata));
        if let Some(before) = before.filter(|before| Some(before) != owner.as_ref()) {
            self.queue.add(before);
        }
        if owner::controller_of(&pod.metadata).is_none() && !delta.is_delete() {
            if decide::has_finalizer(pod) {
                self.orphans.add(Key::of(pod));
            }
            for job in self
                .context
                .informers
                .jobs
                .list_namespace(&pod.namespace().unwrap_or_default())
            {
                if selects(&job, pod) {
                    self.queue.add(Key::of(&*job));
                }
            }
        }
    }

    /// The cache shows that a pod's finalizer is off.
    fn shown(&self, job: &Key, uid: &str) {
        let mut released = self.released.lock();
        if let Some(uids) = released.get_mut(job) {
            uids.remove(uid);
            if uids.is_empty() {
                released.remove(job);
            }
        }
    }

    /// The Job's pods, finished ones included, after adopting and releasing.
    async fn claim(&self, job: &Job) -> Result<Vec<Arc<Pod>>> {
        let (namespace, uid) = (
            job.namespace().unwrap_or_default(),
            job.uid().unwrap_or_default(),
        );
        let index = &self.context.informers.pods_by_owner;
        let mut owned = Vec::new();
        let no_selector = job.spec.as_ref().is_none_or(|spec| spec.selector.is_none());
        for pod in index.get(&uid) {
            if no_selector || selects(job, &pod) || job.metadata.deletion_timestamp.is_some() {
                owned.push(pod);
            } else {
                self.pods
                    .patch(
                        &pod,
                        &with_finalizer(&pod, false, owner::release_patch(&pod.metadata, &uid)),
                    )
                    .await?;
            }
        }
        for pod in index.get(&orphans_of(&namespace)) {
            let claim = owner::claim(&job.metadata, &pod.metadata, selects(job, &pod));
            if claim == Claim::Adopt && self.still_there(job).await? {
                let patch = owner::adopt_patch(&pod.metadata, owner::controller_ref(job));
                self.pods
                    .patch(&pod, &with_finalizer(&pod, true, patch))
                    .await?;
            }
        }
        Ok(owned)
    }

    async fn still_there(&self, job: &Job) -> Result<bool> {
        let api = self
            .context
            .api::<Job>(&job.namespace().unwrap_or_default());
        let fresh = api.get_metadata_opt(&job.name_any()).await?;
        Ok(fresh.is_some_and(|fresh| {
            fresh.metadata.uid == job.metadata.uid && fresh.metadata.deletion_timestamp.is_none()
        }))
    }

    async fn release_orphan(&self, key: Key) -> Result<Outcome> {
        let Some(pod) = self.context.informers.pods.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        if !decide::has_finalizer(&pod) {
            return Ok(Outcome::Done);
        }
        if let Some(owner) = owner_of(&pod.metadata) {
            let uid = &owner::controller_of(&pod.metadata).map(|owner| owner.uid.clone());
            // The server knows best whether the Job is there.
            let fresh = self
                .context
                .api::<Job>(&owner.namespace)
                .get_metadata_opt(&owner.name)
                .await?;
            if fresh.is_some_and(|fresh| fresh.metadata.uid == *uid) {
                return Ok(Outcome::Done);
            }
        }
        self.pods
            .patch(&pod, &with_finalizer(&pod, false, json!({"metadata": {}})))
            .await?;
        Ok(Outcome::Done)
    }
}

fn owner_of(meta: &ObjectMeta) -> Option<Key> {
    let controller = owner::controller_of(meta)?;
    let ours = controller.kind == "Job" && controller.api_version.starts_with("batch/");
    ours.then(|| {
        Key::new(
            meta.namespace.clone().unwrap_or_default(),
            controller.name.clone(),
        )
    })
}

fn selects(job: &Job, pod: &Pod) -> bool {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = selector.and_then(|selector| Labels::parse(selector).ok());
    labels.is_some_and(|labels| labels.matches(pod.metadata.labels.as_ref()))
}

/// Completes a merge patch of a pod's metadata so that the pod has our finalizer, or has it not. Guarded by
/// uid and version, as it replaces the list.
fn with_finalizer(pod: &Pod, has: bool, mut patch: Value) -> Value {
    let mut finalizers = pod.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != decide::FINALIZER);
    if has {
        finalizers.push(decide::FINALIZER.into());
    }
    let finalizers = if finalizers.is_empty() {
        Value::Null
    } else {
        json!(finalizers)
    };
    if let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("uid".into(), json!(pod.uid()));
        metadata.insert("resourceVersion".into(), json!(pod.resource_version()));
        metadata.insert("finalizers".into(), finalizers);
    }
    patch
}
