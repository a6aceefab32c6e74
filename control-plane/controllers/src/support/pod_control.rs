//! Creating, deleting, adopting and releasing pods for an owner, with the events upstream writes.

use std::fmt::Debug;
use std::sync::Arc;

use balsa_client::{EventRecorder, EventType};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::owner::{self, Claim};
use super::pods;
use super::selector::Labels;
use crate::context::Shared;
use crate::error::{self, Result, unless_gone};
use crate::informers::orphans_of;

/// Writes pods on behalf of an owner.
#[derive(Clone)]
pub(crate) struct PodControl {
    pub(crate) context: Shared,
    pub(crate) recorder: EventRecorder,
}

impl PodControl {
    /// Creates a pod and tells of it in an event of its owner.
    pub(crate) async fn create<K>(&self, owner: &K, pod: &Pod) -> kube::Result<Pod>
    where
        K: Resource<DynamicType = ()>,
    {
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let created = self
            .context
            .api::<Pod>(namespace)
            .create(&PostParams::default(), pod)
            .await;
        match &created {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.name_any());
                self.recorder
                    .event(owner, EventType::Normal, "SuccessfulCreate", message);
            }
            Err(error) if error::namespace_terminating(error) => {}
            Err(error) => {
                let message = format!("Error creating: {}", error::message(error));
                self.recorder
                    .event(owner, EventType::Warning, "FailedCreate", message);
            }
        }
        created
    }

    /// Deletes a pod, unless another has its name by now.
    pub(crate) async fn delete<K>(&self, owner: &K, pod: &Pod) -> kube::Result<()>
    where
        K: Resource<DynamicType = ()>,
    {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match unless_gone(
            self.context
                .api::<Pod>(&namespace)
                .delete(&name, &params)
                .await,
        ) {
            Ok(Some(_)) => {
                let message = format!("Deleted pod: {name}");
                self.recorder
                    .event(owner, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                let message = format!("Error deleting: {}", error::message(&error));
                self.recorder
                    .event(owner, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }

    /// An owner's pods, finished and terminating ones included, after adopting and releasing. `member` says
    /// whether a pod can be the owner's at all, beside its labels.
    pub(crate) async fn claim<K>(
        &self,
        owner: &K,
        labels: &Labels,
        member: impl Fn(&Pod) -> bool,
    ) -> Result<Vec<Arc<Pod>>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let index = &self.context.informers.pods_by_owner;
        let meta = owner.meta();
        let uid = meta.uid.clone().unwrap_or_default();
        let orphans = orphans_of(meta.namespace.as_deref().unwrap_or_default());
        let mut claimed = Vec::new();
        let mut confirmed = None;
        for pod in index.get(&uid).into_iter().chain(index.get(&orphans)) {
            let matches = labels.matches(pod.metadata.labels.as_ref()) && member(&pod);
            match owner::claim(meta, &pod.metadata, matches) {
                Claim::Own => claimed.push(pod),
                Claim::Release => {
                    self.patch(&pod, &owner::release_patch(&pod.metadata, &uid))
                        .await?;
                }
                Claim::Adopt if !pods::is_terminal(&pod) => {
                    if confirmed.is_none() {
                        confirmed = Some(still_there(&self.context, owner).await?);
                    }
                    if confirmed == Some(true) {
                        let patch = owner::adopt_patch(&pod.metadata, owner::controller_ref(owner));
                        self.patch(&pod, &patch).await?;
                        claimed.push(pod);
                    }
                }
                Claim::Adopt | Claim::Ignore => {}
            }
        }
        Ok(claimed)
    }

    /// Carries out a merge patch of a pod's metadata; a pod that is gone meanwhile is no error.
    pub(crate) async fn patch(&self, pod: &Pod, patch: &serde_json::Value) -> Result<()> {
        let api = self
            .context
            .api::<Pod>(&pod.namespace().unwrap_or_default());
        let patched = api
            .patch(
                &pod.name_any(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await;
        unless_gone(patched)?;
        Ok(())
    }
}

/// Asks the server, as the cache may be behind, before anything is adopted.
pub(crate) async fn still_there<K>(context: &Shared, owner: &K) -> Result<bool>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let meta = owner.meta();
    let api = context.api::<K>(meta.namespace.as_deref().unwrap_or_default());
    let fresh = api
        .get_metadata_opt(meta.name.as_deref().unwrap_or_default())
        .await?;
    Ok(fresh.is_some_and(|fresh| {
        fresh.metadata.uid == meta.uid && fresh.metadata.deletion_timestamp.is_none()
    }))
}

/// A pod from an owner's template; the server completes `generateName`.
pub(crate) fn from_template<K>(owner: &K, template: &PodTemplateSpec) -> Pod
where
    K: Resource<DynamicType = ()>,
{
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!(
                "{}-",
                owner.meta().name.as_deref().unwrap_or_default()
            )),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner::controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        ..Pod::default()
    }
}
