//! Creating, deleting, adopting and releasing pods for an owner, with the events upstream writes.

use balsa_client::{EventRecorder, EventType};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Resource, ResourceExt};

use super::owner;
use crate::context::Shared;
use crate::error::{self, Result, unless_gone};

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
