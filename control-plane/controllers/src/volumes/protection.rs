//! Claims that pods use, and volumes that are bound, stay until they are free, even when somebody has deleted them.

use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::context::Shared;
use crate::error::{Result, unless_gone};
use crate::informers::claims_of;
use crate::support::pods;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

pub(crate) async fn run(context: Shared) {
    let claims: WorkQueue<Key> = WorkQueue::default();
    let volumes: WorkQueue<Key> = WorkQueue::default();
    let queue = claims.clone();
    context.informers.claims.on_change(move |delta| {
        if !delta.is_delete() && wants_look(&delta.object().metadata, CLAIM) {
            queue.add(Key::of(&**delta.object()));
        }
    });
    let queue = volumes.clone();
    context.informers.volumes.on_change(move |delta| {
        if !delta.is_delete() && wants_look(&delta.object().metadata, VOLUME) {
            queue.add(Key::of(&**delta.object()));
        }
    });
    let (this, queue) = (Arc::clone(&context), claims.clone());
    context.informers.pods.on_change(move |delta| {
        let pod = &**delta.object();
        if !delta.is_delete() && !pods::is_terminal(pod) {
            return;
        }
        let namespace = pod.namespace().unwrap_or_default();
        for name in claims_of(pod) {
            let claim = this.informers.claims.get(&namespace, &name);
            if claim.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some()) {
                queue.add(Key::new(namespace.clone(), name));
            }
        }
    });
    context.informers.claims.synced().await;
    context.informers.volumes.synced().await;
    context.informers.pods.synced().await;
    let (this, that) = (Arc::clone(&context), Arc::clone(&context));
    let claims = context.work("pvc-protection", claims, move |key| {
        let this = Arc::clone(&this);
        async move { protect_claim(&this, key).await }
    });
    let volumes = context.work("pv-protection", volumes, move |key| {
        let this = Arc::clone(&that);
        async move { protect_volume(&this, key).await }
    });
    tokio::join!(claims, volumes);
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|own| own == finalizer)
}

/// Deleted and still protected, or made when nobody gave it protection.
fn wants_look(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.deletion_timestamp.is_some() == has(meta, finalizer)
}

/// Merge patch that gives protection, or takes it.
fn patch(meta: &ObjectMeta, finalizer: &str, protect: bool) -> Value {
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    finalizers.retain(|own| own != finalizer);
    if protect {
        finalizers.push(finalizer.to_owned());
    }
    json!({"metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers,
    }})
}

async fn protect_claim(context: &Shared, key: Key) -> Result<Outcome> {
    let Some(claim) = context.informers.claims.get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    if !wants_look(&claim.metadata, CLAIM) {
        return Ok(Outcome::Done);
    }
    let deleting = claim.metadata.deletion_timestamp.is_some();
    if deleting && is_used(context, &key).await? {
        return Ok(Outcome::Done);
    }
    let api = context.api::<PersistentVolumeClaim>(&key.namespace);
    let patch = Patch::Merge(patch(&claim.metadata, CLAIM, !deleting));
    unless_gone(api.patch(&key.name, &PatchParams::default(), &patch).await)?;
    Ok(Outcome::Done)
}

/// Pods without a node do not count: no agent starts a pod whose claim is being deleted.
fn uses(pod: &Pod, claim: &str) -> bool {
    !pods::node_name(pod).is_empty() && claims_of(pod).any(|used| used == claim)
}

async fn is_used(context: &Shared, key: &Key) -> Result<bool> {
    let index = &context.informers.pods_by_claim;
    let cached = index.get(&format!("{}/{}", key.namespace, key.name));
    if cached.iter().any(|pod| uses(pod, &key.name)) {
        return Ok(true);
    }
    // The cache may be behind, and the data would be lost: ask the server.
    let pods = context
        .api::<Pod>(&key.namespace)
        .list(&ListParams::default())
        .await?;
    Ok(pods.items.iter().any(|pod| uses(pod, &key.name)))
}

async fn protect_volume(context: &Shared, key: Key) -> Result<Outcome> {
    let Some(volume) = context.informers.volumes.get("", &key.name) else {
        return Ok(Outcome::Done);
    };
    if !wants_look(&volume.metadata, VOLUME) {
        return Ok(Outcome::Done);
    }
    let deleting = volume.metadata.deletion_timestamp.is_some();
    let phase = volume
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if deleting && phase == Some("Bound") {
        return Ok(Outcome::Done);
    }
    let api = context.cluster_api::<PersistentVolume>();
    let patch = Patch::Merge(patch(&volume.metadata, VOLUME, !deleting));
    unless_gone(api.patch(&key.name, &PatchParams::default(), &patch).await)?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_is_given_to_the_living_and_looked_at_for_the_dying() {
        let mut meta = ObjectMeta::default();
        assert!(wants_look(&meta, CLAIM));
        meta.finalizers = Some(vec!["other".into(), CLAIM.into()]);
        assert!(!wants_look(&meta, CLAIM));
        meta.deletion_timestamp = Some(balsa_client::time::now());
        assert!(wants_look(&meta, CLAIM));
        let free = patch(&meta, CLAIM, false);
        assert_eq!(
            free.pointer("/metadata/finalizers"),
            Some(&json!(["other"]))
        );
    }
}
