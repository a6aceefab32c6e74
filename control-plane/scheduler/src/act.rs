//! What the scheduler writes: bindings, conditions, and the end of pods that have to make room.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use tracing::debug;

use crate::plugins::volumes::{Need, SELECTED_NODE};
use crate::pod::PodInfo;

/// One request may take this long.
pub const DEADLINE: Duration = Duration::from_secs(10);

fn pods(client: &kube::Client, pod: &PodInfo) -> Api<Pod> {
    let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
    Api::namespaced(client.clone(), namespace)
}

fn name(pod: &PodInfo) -> &str {
    pod.pod.metadata.name.as_deref().unwrap_or_default()
}

/// Does something within the deadline.
///
/// # Errors
/// What was done, or that it took too long.
pub async fn within<T>(
    what: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    tokio::time::timeout(DEADLINE, what)
        .await
        .unwrap_or_else(|_| Err(kube::Error::Service("it was not answered in time".into())))
}

/// Says on which node a pod runs.
///
/// # Errors
/// The API's.
pub async fn bind(client: &kube::Client, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
    let meta = &pod.pod.metadata;
    let binding = Binding {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let _: serde_json::Value = pods(client, pod)
        .create_subresource("binding", name(pod), &PostParams::default(), &binding)
        .await?;
    Ok(())
}

/// Says in the pod's status why it is not scheduled, and where room is being made for it.
///
/// # Errors
/// The API's.
pub async fn tell(
    client: &kube::Client,
    pod: &PodInfo,
    message: &str,
    nominated: Option<&str>,
) -> Result<(), kube::Error> {
    let mut patch = json!({
        "metadata": {"uid": pod.pod.metadata.uid},
        "status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": balsa_client::time::now(),
            "observedGeneration": pod.pod.metadata.generation,
        }]},
    });
    if let Some(node) = nominated {
        patch["status"]["nominatedNodeName"] = json!(node);
    }
    pods(client, pod)
        .patch_status(name(pod), &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    Ok(())
}

/// Ends a pod so that another fits; its status says why (KEP-3329).
///
/// # Errors
/// The API's; a pod that is gone already is none.
pub async fn evict(
    client: &kube::Client,
    victim: &PodInfo,
    scheduler: &str,
) -> Result<(), kube::Error> {
    let api = pods(client, victim);
    if victim.pod.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let patch = json!({
        "metadata": {"uid": victim.pod.metadata.uid},
        "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
            "lastTransitionTime": balsa_client::time::now(),
            "observedGeneration": victim.pod.metadata.generation,
        }]},
    });
    let patch = Patch::Strategic(patch);
    let params = PatchParams::default();
    if let Err(error) = api.patch_status(name(victim), &params, &patch).await {
        debug!(%error, "the victim's condition was not written");
    }
    let only_this_one = DeleteParams {
        preconditions: Some(Preconditions {
            uid: victim.pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name(victim), &only_this_one).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Does what a claim needs before its pod can be bound to `node`.
///
/// # Errors
/// The API's.
pub async fn provide(client: &kube::Client, need: &Need, node: &str) -> Result<(), kube::Error> {
    match need {
        Need::Nothing => Ok(()),
        Need::Provision(claim) => {
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            let patch = json!({"metadata": {
                "uid": claim.metadata.uid, "annotations": {SELECTED_NODE: node}}});
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            Ok(())
        }
        Need::Bind(claim, volume) => {
            let api: Api<PersistentVolume> = Api::all(client.clone());
            let patch = json!({
                "metadata": {"resourceVersion": volume.metadata.resource_version},
                "spec": {"claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": claim.metadata.namespace, "name": claim.metadata.name,
                    "uid": claim.metadata.uid}},
            });
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            Ok(())
        }
    }
}
