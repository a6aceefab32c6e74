//! Deployments: a new ReplicaSet for each template, and replicas moved to it within limits.

mod math;
mod revision;
mod rollout;
mod status;

use std::sync::Arc;

use balsa_client::{Delta, EventRecorder, Key, Outcome, WorkQueue};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};

use self::rollout::Rollout;
use crate::context::Shared;
use crate::error::{Result, unless_gone};
use crate::informers::orphans_of;
use crate::support::owner::{self, Claim};
use crate::support::selector::Labels;

struct Controller {
    context: Shared,
    recorder: EventRecorder,
    queue: WorkQueue<Key>,
}

pub(crate) async fn run(context: Shared) {
    let controller = Arc::new(Controller {
        recorder: context.recorder("deployment-controller"),
        queue: WorkQueue::default(),
        context: Arc::clone(&context),
    });
    let informers = &context.informers;
    let this = Arc::clone(&controller);
    informers
        .deployments
        .on_change(move |delta| this.queue.add(Key::of(&**delta.object())));
    let this = Arc::clone(&controller);
    informers
        .replica_sets
        .on_change(move |delta| this.set_changed(delta));
    let this = Arc::clone(&controller);
    informers
        .pods
        .on_change(move |delta| this.pod_changed(delta));
    informers.deployments.synced().await;
    informers.replica_sets.synced().await;
    informers.pods.synced().await;
    let queue = controller.queue.clone();
    context
        .work("deployment", queue, move |key| {
            let this = Arc::clone(&controller);
            async move { this.reconcile(key).await }
        })
        .await;
}

impl Controller {
    fn set_changed(&self, delta: &Delta<ReplicaSet>) {
        let set = &**delta.object();
        let owners = delta
            .old()
            .into_iter()
            .map(|old| &old.metadata)
            .chain([&set.metadata]);
        let mut owned = false;
        for key in owners.filter_map(owner_of) {
            owned = true;
            self.queue.add(key);
        }
        if owned || delta.is_delete() || owner::controller_of(&set.metadata).is_some() {
            return;
        }
        for deployment in self
            .context
            .informers
            .deployments
            .list_namespace(&set.namespace().unwrap_or_default())
        {
            let labels = deployment
                .spec
                .as_ref()
                .and_then(|spec| Labels::parse(&spec.selector).ok());
            if labels.is_some_and(|labels| labels.matches(set.metadata.labels.as_ref())) {
                self.queue.add(Key::of(&*deployment));
            }
        }
    }

    /// Recreate waits until the last old pod is gone.
    fn pod_changed(&self, delta: &Delta<Pod>) {
        let pod = &**delta.object();
        if !delta.is_delete() && !crate::support::pods::is_terminal(pod) {
            return;
        }
        let informers = &self.context.informers;
        let namespace = pod.namespace().unwrap_or_default();
        let set = owner::controller_of(&pod.metadata)
            .filter(|owner| owner.kind == "ReplicaSet")
            .and_then(|owner| informers.replica_sets.get(&namespace, &owner.name));
        let Some(key) = set.and_then(|set| owner_of(&set.metadata)) else {
            return;
        };
        let deployment = informers.deployments.get(&key.namespace, &key.name);
        if deployment.is_some_and(|deployment| math::is_recreate(&deployment)) {
            self.queue.add(key);
        }
    }

    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(deployment) = self
            .context
            .informers
            .deployments
            .get(&key.namespace, &key.name)
        else {
            return Ok(Outcome::Done);
        };
        let sets = self.claim(&deployment).await?;
        let rollout = Rollout::new(&self.context, &self.recorder, (*deployment).clone(), sets);
        Box::pin(rollout.run()).await
    }

    /// The Deployment's sets, after adopting and releasing.
    async fn claim(&self, deployment: &Deployment) -> Result<Vec<ReplicaSet>> {
        let Some(spec) = &deployment.spec else {
            return Ok(Vec::new());
        };
        let labels = Labels::parse(&spec.selector)?;
        let (namespace, uid) = (
            deployment.namespace().unwrap_or_default(),
            deployment.uid().unwrap_or_default(),
        );
        let index = &self.context.informers.replica_sets_by_owner;
        let api = self.context.api::<ReplicaSet>(&namespace);
        let mut sets = Vec::new();
        for set in index
            .get(&uid)
            .into_iter()
            .chain(index.get(&orphans_of(&namespace)))
        {
            let matches = labels.matches(set.metadata.labels.as_ref());
            let patch = match owner::claim(&deployment.metadata, &set.metadata, matches) {
                Claim::Own => {
                    sets.push((*set).clone());
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Release => owner::release_patch(&set.metadata, &uid),
                Claim::Adopt if self.still_there(deployment).await? => {
                    owner::adopt_patch(&set.metadata, owner::controller_ref(deployment))
                }
                Claim::Adopt => continue,
            };
            let patched = api
                .patch(
                    &set.name_any(),
                    &PatchParams::default(),
                    &Patch::Merge(&patch),
                )
                .await;
            // A released set is no longer ours; an adopted one is, in its new version.
            if let Some(patched) = unless_gone(patched)?
                && owner::is_controlled_by(&patched.metadata, &uid)
            {
                sets.push(patched);
            }
        }
        Ok(sets)
    }

    async fn still_there(&self, deployment: &Deployment) -> Result<bool> {
        let api = self
            .context
            .api::<Deployment>(&deployment.namespace().unwrap_or_default());
        let fresh = api.get_metadata_opt(&deployment.name_any()).await?;
        Ok(fresh.is_some_and(|fresh| {
            fresh.metadata.uid == deployment.metadata.uid
                && fresh.metadata.deletion_timestamp.is_none()
        }))
    }
}

fn owner_of(meta: &ObjectMeta) -> Option<Key> {
    let controller = owner::controller_of(meta)?;
    let ours = controller.kind == "Deployment" && controller.api_version.starts_with("apps/");
    ours.then(|| {
        Key::new(
            meta.namespace.clone().unwrap_or_default(),
            controller.name.clone(),
        )
    })
}
