//! ReplicaSets: as many pods as asked for.

mod decide;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use balsa_client::{Delta, Key, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::PostParams;

use self::decide::{Plan, plan};
use crate::context::Shared;
use crate::error::{self, Error, Result};
use crate::informers::orphans_of;
use crate::support::batches::slow_start;
use crate::support::expectations::Expectations;
use crate::support::owner::{self, Claim};
use crate::support::pod_control::{PodControl, from_template};
use crate::support::pods;
use crate::support::selector::Labels;

struct Controller {
    context: Shared,
    pods: PodControl,
    expectations: Expectations,
    queue: WorkQueue<Key>,
}

pub(crate) async fn run(context: Shared) {
    let recorder = context.recorder("replicaset-controller");
    let controller = Arc::new(Controller {
        pods: PodControl {
            context: Arc::clone(&context),
            recorder,
        },
        expectations: Expectations::default(),
        queue: WorkQueue::default(),
        context: Arc::clone(&context),
    });
    let this = Arc::clone(&controller);
    context
        .informers
        .replica_sets
        .on_change(move |delta| this.queue.add(Key::of(&**delta.object())));
    let this = Arc::clone(&controller);
    context
        .informers
        .pods
        .on_change(move |delta| this.pod_changed(delta));
    context.informers.replica_sets.synced().await;
    context.informers.pods.synced().await;
    let queue = controller.queue.clone();
    context
        .work("replicaset", queue, move |key| {
            let this = Arc::clone(&controller);
            async move { this.reconcile(key).await }
        })
        .await;
}

impl Controller {
    fn pod_changed(&self, delta: &Delta<Pod>) {
        let pod = &**delta.object();
        let owner = self.owner_of(&pod.metadata);
        if let Some(key) = &owner {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            match delta {
                _ if delta.is_delete() || pods::is_terminating(pod) => {
                    self.expectations.deleted(key, uid);
                    if matches!(delta, Delta::Added(_)) {
                        self.expectations.created(key, 1);
                    }
                }
                Delta::Added(_) => self.expectations.created(key, 1),
                _ => {}
            }
            self.queue.add(key.clone());
        }
        let before = delta.old().and_then(|old| self.owner_of(&old.metadata));
        if let Some(before) = before.filter(|before| Some(before) != owner.as_ref()) {
            self.queue.add(before);
        }
        if owner.is_none() && owner::controller_of(&pod.metadata).is_none() && !delta.is_delete() {
            self.offer_orphan(pod);
        }
    }

    /// The ReplicaSet that controls an object, by the name in its reference.
    fn owner_of(&self, meta: &ObjectMeta) -> Option<Key> {
        let controller = owner::controller_of(meta)?;
        let ours = controller.kind == "ReplicaSet" && controller.api_version.starts_with("apps/");
        ours.then(|| {
            Key::new(
                meta.namespace.clone().unwrap_or_default(),
                controller.name.clone(),
            )
        })
    }

    fn offer_orphan(&self, pod: &Pod) {
        for set in self
            .context
            .informers
            .replica_sets
            .list_namespace(&pod.namespace().unwrap_or_default())
        {
            let matches = set
                .spec
                .as_ref()
                .and_then(|spec| Labels::parse(&spec.selector).ok());
            if matches.is_some_and(|labels| labels.matches(pod.metadata.labels.as_ref())) {
                self.queue.add(Key::of(&*set));
            }
        }
    }

    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(set) = self
            .context
            .informers
            .replica_sets
            .get(&key.namespace, &key.name)
        else {
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        let satisfied = self.expectations.satisfied(&key);
        let pods = self.claim(&set).await?;
        let mut failure = None;
        if satisfied && set.metadata.deletion_timestamp.is_none() {
            failure = self.manage(&key, &set, &pods).await.err();
        }
        let now = Timestamp::now();
        let status = decide::status(
            &set,
            &pods,
            failure
                .as_ref()
                .map(|error| failure_condition(error, too_many(&set, &pods))),
            now,
        );
        self.write_status(&set, status).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let min_ready = set
            .spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or_default();
        let next = pods
            .iter()
            .filter(|pod| pods::is_ready(pod))
            .map(|pod| pods::available_in(pod, min_ready, now))
            .filter(|left| !left.is_zero())
            .min();
        Ok(next.map_or(Outcome::Done, Outcome::After))
    }

    /// The set's pods, finished and terminating ones included, after adopting and releasing.
    async fn claim(&self, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>> {
        let Some(spec) = &set.spec else {
            return Ok(Vec::new());
        };
        let labels = Labels::parse(&spec.selector)?;
        let index = &self.context.informers.pods_by_owner;
        let uid = set.uid().unwrap_or_default();
        let mut pods = Vec::new();
        let mut confirmed = None;
        for pod in index
            .get(&uid)
            .into_iter()
            .chain(index.get(&orphans_of(&set.namespace().unwrap_or_default())))
        {
            let matches = labels.matches(pod.metadata.labels.as_ref());
            match owner::claim(&set.metadata, &pod.metadata, matches) {
                Claim::Own => pods.push(pod),
                Claim::Release => {
                    self.pods
                        .patch(&pod, &owner::release_patch(&pod.metadata, &uid))
                        .await?
                }
                Claim::Adopt if !pods::is_terminal(&pod) => {
                    if confirmed.is_none() {
                        confirmed = Some(self.still_there(set).await?);
                    }
                    if confirmed == Some(true) {
                        let patch = owner::adopt_patch(&pod.metadata, owner::controller_ref(set));
                        self.pods.patch(&pod, &patch).await?;
                        pods.push(pod);
                    }
                }
                Claim::Adopt | Claim::Ignore => {}
            }
        }
        Ok(pods)
    }

    /// Asks the server, as the cache may be behind, before anything is adopted.
    async fn still_there(&self, set: &ReplicaSet) -> Result<bool> {
        let api = self
            .context
            .api::<ReplicaSet>(&set.namespace().unwrap_or_default());
        let fresh = api.get_metadata_opt(&set.name_any()).await?;
        Ok(fresh.is_some_and(|fresh| {
            fresh.metadata.uid == set.metadata.uid && fresh.metadata.deletion_timestamp.is_none()
        }))
    }

    async fn manage(&self, key: &Key, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<()> {
        match plan(set, pods, &self.neighbours(set), Timestamp::now()) {
            Plan::Nothing => Ok(()),
            Plan::Create(count) => self.create(key, set, count).await,
            Plan::Delete(victims) => self.delete(key, set, victims).await,
        }
    }

    /// Pods of this set and of all others with the same controller (the old sets of a Deployment), to see
    /// which nodes are crowded.
    fn neighbours(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let informers = &self.context.informers;
        let mut uids: BTreeSet<String> = set.uid().into_iter().collect();
        if let Some(controller) = owner::controller_of(&set.metadata) {
            uids.extend(
                informers
                    .replica_sets_by_owner
                    .get(&controller.uid)
                    .iter()
                    .filter_map(|s| s.uid()),
            );
        }
        uids.iter()
            .flat_map(|uid| informers.pods_by_owner.get(uid))
            .filter(|pod| pods::is_active(pod))
            .collect()
    }

    async fn create(&self, key: &Key, set: &ReplicaSet, count: usize) -> Result<()> {
        let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else {
            return Ok(());
        };
        let pod = from_template(set, template);
        tracing::debug!(count, "creating pods");
        self.expectations.expect(key, count, HashSet::new());
        let done = slow_start(count, |_| async {
            match self.pods.create(set, &pod).await {
                Ok(_) => Ok(()),
                Err(error) => {
                    self.expectations.created(key, 1);
                    // The whole namespace is going; this set goes with it.
                    if error::namespace_terminating(&error) {
                        Ok(())
                    } else {
                        Err(error.into())
                    }
                }
            }
        })
        .await;
        self.expectations.created(key, done.skipped);
        done.error.map_or(Ok(()), Err)
    }

    async fn delete(&self, key: &Key, set: &ReplicaSet, victims: Vec<Arc<Pod>>) -> Result<()> {
        tracing::debug!(count = victims.len(), "deleting pods");
        self.expectations
            .expect(key, 0, victims.iter().filter_map(|pod| pod.uid()).collect());
        let deletions = victims.iter().map(|pod| async move {
            let deleted = self.pods.delete(set, pod).await;
            if deleted.is_err() {
                self.expectations
                    .deleted(key, pod.metadata.uid.as_deref().unwrap_or_default());
            }
            deleted
        });
        let results = futures::future::join_all(deletions).await;
        results.into_iter().collect::<kube::Result<Vec<()>>>()?;
        Ok(())
    }

    async fn write_status(&self, set: &ReplicaSet, status: ReplicaSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api = self
            .context
            .api::<ReplicaSet>(&set.namespace().unwrap_or_default());
        let updated = ReplicaSet {
            status: Some(status),
            ..set.clone()
        };
        error::unless_gone(
            api.replace_status(&set.name_any(), &PostParams::default(), &updated)
                .await,
        )?;
        Ok(())
    }
}

fn too_many(set: &ReplicaSet, pods: &[Arc<Pod>]) -> bool {
    let wanted = set
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    i32::try_from(pods.iter().filter(|pod| pods::is_active(pod)).count()).unwrap_or(i32::MAX)
        > wanted
}

/// `deleting` tells whether pods were to be created or deleted when it failed.
fn failure_condition(error: &Error, deleting: bool) -> ReplicaSetCondition {
    ReplicaSetCondition {
        type_: "ReplicaFailure".into(),
        status: "True".into(),
        reason: Some(
            if deleting {
                "FailedDelete"
            } else {
                "FailedCreate"
            }
            .into(),
        ),
        message: Some(match error {
            Error::Api(error) => error::message(error),
            other => other.to_string(),
        }),
        last_transition_time: Some(balsa_client::time::now()),
    }
}
