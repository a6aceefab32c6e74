//! Generic ephemeral volumes: a claim of its own for each such volume of a pod, which goes with the pod (KEP-1698).

use std::sync::Arc;

use balsa_client::{EventRecorder, EventType, Key, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::ResourceExt;
use kube::api::{ObjectMeta, PostParams};

use crate::context::Shared;
use crate::error::{self, ApiError, Error, Result};
use crate::support::{owner, pods};

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let recorder = context.recorder("ephemeral_volume");
    let waiting = queue.clone();
    context.informers.pods.on_change(move |delta| {
        let pod = &**delta.object();
        let news = delta.old().is_none();
        if news && !delta.is_delete() && ephemeral(pod).next().is_some() {
            waiting.add(Key::of(pod));
        }
    });
    let (this, claims) = (Arc::clone(&context), queue.clone());
    context.informers.claims.on_change(move |delta| {
        // Somebody deleted a claim that its pod still needs.
        let claim = &**delta.object();
        let controller = owner::controller_of(&claim.metadata);
        if let Some(owner) = controller.filter(|owner| delta.is_delete() && owner.kind == "Pod") {
            let namespace = claim.namespace().unwrap_or_default();
            if let Some(pod) = this.informers.pods.get(&namespace, &owner.name) {
                claims.add(Key::of(&*pod));
            }
        }
    });
    context.informers.pods.synced().await;
    context.informers.claims.synced().await;
    let this = Arc::clone(&context);
    context
        .work("ephemeral-volume", queue, move |key| {
            let (this, recorder) = (Arc::clone(&this), recorder.clone());
            async move { reconcile(&this, &recorder, key).await }
        })
        .await;
}

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes
        .into_iter()
        .flatten()
        .filter(|volume| volume.ephemeral.is_some())
}

/// The claim for a pod's volume.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.name_any(), volume.name)),
            namespace: pod.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![owner::controller_ref(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

async fn reconcile(context: &Shared, recorder: &EventRecorder, key: Key) -> Result<Outcome> {
    let Some(pod) = context.informers.pods.get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    if pods::is_terminating(&pod) || pods::is_terminal(&pod) {
        return Ok(Outcome::Done);
    }
    let api = context.api::<PersistentVolumeClaim>(&key.namespace);
    for wanted in ephemeral(&pod).filter_map(|volume| claim(&pod, volume)) {
        let name = wanted.name_any();
        let existing = match context.informers.claims.get(&key.namespace, &name) {
            Some(existing) => (*existing).clone(),
            None => match api.create(&PostParams::default(), &wanted).await {
                Ok(created) => created,
                Err(error) if error.is_already_exists() => api.get(&name).await?,
                Err(error) if error::namespace_terminating(&error) => return Ok(Outcome::Done),
                Err(error) => {
                    let text = format!(
                        "ephemeral volume: create PVC {name}: {}",
                        error::message(&error)
                    );
                    recorder.event(&*pod, EventType::Warning, "FailedBinding", text);
                    return Err(error.into());
                }
            },
        };
        let uid = pod.uid().unwrap_or_default();
        if !owner::is_controlled_by(&existing.metadata, &uid) {
            return Err(Error::Invalid(format!(
                "PVC {}/{name} was not created for pod {key} (pod is not owner)",
                key.namespace
            )));
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_claim_is_named_after_pod_and_volume_and_owned_by_the_pod() {
        let pod: Pod = from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1"},
            "spec": {"containers": [], "volumes": [
                {"name": "plain", "emptyDir": {}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"accessModes": ["ReadWriteOnce"]},
                }}},
            ]},
        }))
        .unwrap();
        let claims: Vec<_> = ephemeral(&pod)
            .filter_map(|volume| claim(&pod, volume))
            .collect();
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].name_any(), "web-scratch");
        assert!(owner::is_controlled_by(&claims[0].metadata, "u1"));
        assert_eq!(claims[0].labels()["a"], "b");
    }
}
