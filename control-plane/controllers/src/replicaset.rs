//! ReplicaSets and ReplicationControllers: as many pods as asked for.
//!
//! Both are the same controller: a ReplicationController is looked at as the ReplicaSet it would be.

mod decide;
mod kind;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::ResourceExt;
use kube::api::PostParams;

use self::decide::{Plan, plan};
use self::kind::Replicated;
use crate::context::Shared;
use crate::error::{self, Error, Result};
use crate::support::batches::slow_start;
use crate::support::expectations::Expectations;
use crate::support::follow::follow_pods;
use crate::support::owner;
use crate::support::pod_control::{PodControl, from_template};
use crate::support::pods;
use crate::support::selector::Labels;

struct Controller<K> {
    context: Shared,
    pods: PodControl,
    expectations: Arc<Expectations>,
    queue: WorkQueue<Key>,
    kind: std::marker::PhantomData<fn() -> K>,
}

pub(crate) async fn run(context: Shared) {
    run_kind::<ReplicaSet>(context).await;
}

pub(crate) async fn run_replication(context: Shared) {
    run_kind::<ReplicationController>(context).await;
}

async fn run_kind<K: Replicated>(context: Shared) {
    let recorder = context.recorder(K::COMPONENT);
    let controller: Arc<Controller<K>> = Arc::new(Controller {
        pods: PodControl {
            context: Arc::clone(&context),
            recorder,
        },
        expectations: Arc::default(),
        queue: WorkQueue::default(),
        context: Arc::clone(&context),
        kind: std::marker::PhantomData,
    });
    let informer = K::informer(&context.informers);
    let queue = controller.queue.clone();
    informer.on_change(move |delta| queue.add(Key::of(&**delta.object())));
    follow_pods(
        &context,
        informer,
        &controller.queue,
        &controller.expectations,
        |set: &K, pod| {
            let view = set.view();
            let labels = view.spec.as_ref().map(|spec| Labels::parse(&spec.selector));
            matches!(labels, Some(Ok(labels)) if labels.matches(pod.metadata.labels.as_ref()))
        },
    );
    informer.synced().await;
    context.informers.pods.synced().await;
    let queue = controller.queue.clone();
    context
        .work(K::NAME, queue, move |key| {
            let this = Arc::clone(&controller);
            async move { this.reconcile(key).await }
        })
        .await;
}

impl<K: Replicated> Controller<K> {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let informer = K::informer(&self.context.informers);
        let Some(owner) = informer.get(&key.namespace, &key.name) else {
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        let set = owner.view();
        let Some(spec) = &set.spec else {
            return Ok(Outcome::Done);
        };
        let satisfied = self.expectations.satisfied(&key);
        let labels = Labels::parse(&spec.selector)?;
        let pods = self.pods.claim(&*owner, &labels, |_| true).await?;
        let mut failure = None;
        if satisfied && set.metadata.deletion_timestamp.is_none() {
            failure = self.manage(&key, &owner, &set, &pods).await.err();
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
        self.write_status(&owner, &set, status).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let next = pods::next_available(&pods, spec.min_ready_seconds.unwrap_or_default(), now);
        Ok(next.map_or(Outcome::Done, Outcome::After))
    }

    async fn manage(
        &self,
        key: &Key,
        owner: &K,
        set: &ReplicaSet,
        pods: &[Arc<Pod>],
    ) -> Result<()> {
        match plan(set, pods, &self.neighbours(set), Timestamp::now()) {
            Plan::Nothing => Ok(()),
            Plan::Create(count) => self.create(key, owner, set, count).await,
            Plan::Delete(victims) => self.delete(key, owner, victims).await,
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

    async fn create(&self, key: &Key, owner: &K, set: &ReplicaSet, count: usize) -> Result<()> {
        let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else {
            return Ok(());
        };
        let pod = from_template(owner, template);
        tracing::debug!(count, "creating pods");
        self.expectations.expect(key, count, HashSet::new());
        let done = slow_start(count, |_| async {
            match self.pods.create(owner, &pod).await {
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

    async fn delete(&self, key: &Key, owner: &K, victims: Vec<Arc<Pod>>) -> Result<()> {
        tracing::debug!(count = victims.len(), "deleting pods");
        self.expectations
            .expect(key, 0, victims.iter().filter_map(|pod| pod.uid()).collect());
        let deletions = victims.iter().map(|pod| async move {
            let deleted = self.pods.delete(owner, pod).await;
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

    async fn write_status(
        &self,
        owner: &K,
        set: &ReplicaSet,
        status: ReplicaSetStatus,
    ) -> Result<()> {
        let updated = owner.with_status(status);
        if updated.view().status == set.status {
            return Ok(());
        }
        let api = self.context.api::<K>(&set.namespace().unwrap_or_default());
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
