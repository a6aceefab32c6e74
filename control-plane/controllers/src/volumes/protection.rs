//! Claims that pods use, volumes that are bound and attributes classes that either names stay until they are free,
//! even when somebody has deleted them.

use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::context::Shared;
use crate::error::{Result, unless_gone};
use crate::informers::claims_of;
use crate::support::pods;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES_CLASS: &str = "kubernetes.io/vac-protection";

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
    let classes = follow_attributes_classes(&context);
    context.informers.attributes_classes.synced().await;
    context.informers.claims.synced().await;
    context.informers.volumes.synced().await;
    context.informers.pods.synced().await;
    let (this, that) = (Arc::clone(&context), Arc::clone(&context));
    let other = Arc::clone(&context);
    let classes = context.work("vac-protection", classes, move |key| {
        let this = Arc::clone(&other);
        async move { protect_attributes_class(&this, key).await }
    });
    let claims = context.work("pvc-protection", claims, move |key| {
        let this = Arc::clone(&this);
        async move { protect_claim(&this, key).await }
    });
    let volumes = context.work("pv-protection", volumes, move |key| {
        let this = Arc::clone(&that);
        async move { protect_volume(&this, key).await }
    });
    tokio::join!(claims, volumes, classes);
}

/// Deleted attributes classes, and those that a changed claim or volume may have set free.
fn follow_attributes_classes(context: &Shared) -> WorkQueue<Key> {
    let classes: WorkQueue<Key> = WorkQueue::default();
    let queue = classes.clone();
    context
        .informers
        .attributes_classes
        .on_change(move |delta| {
            if !delta.is_delete() && wants_look(&delta.object().metadata, ATTRIBUTES_CLASS) {
                queue.add(Key::of(&**delta.object()));
            }
        });
    let queue = classes.clone();
    context.informers.claims.on_change(move |delta| {
        let old = delta.old().map(|old| &**old);
        for name in old
            .into_iter()
            .chain([&**delta.object()])
            .flat_map(attributes_of_claim)
        {
            queue.add(Key::new(String::new(), name));
        }
    });
    let queue = classes.clone();
    context.informers.volumes.on_change(move |delta| {
        let old = delta.old().map(|old| &**old);
        for name in old
            .into_iter()
            .chain([&**delta.object()])
            .flat_map(attributes_of_volume)
        {
            queue.add(Key::new(String::new(), name));
        }
    });
    classes
}

/// The attributes classes that a claim asks for, has, or is being moved to.
fn attributes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let wanted = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let current = status.and_then(|s| s.current_volume_attributes_class_name.clone());
    let target = status
        .and_then(|s| s.modify_volume_status.as_ref())
        .and_then(|m| m.target_volume_attributes_class_name.clone());
    [wanted, current, target]
        .into_iter()
        .flatten()
        .filter(|name| !name.is_empty())
        .collect()
}

fn attributes_of_volume(volume: &PersistentVolume) -> Option<String> {
    let name = volume.spec.as_ref()?.volume_attributes_class_name.clone();
    name.filter(|name| !name.is_empty())
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

async fn protect_attributes_class(context: &Shared, key: Key) -> Result<Outcome> {
    let Some(class) = context.informers.attributes_classes.get("", &key.name) else {
        return Ok(Outcome::Done);
    };
    if !wants_look(&class.metadata, ATTRIBUTES_CLASS) {
        return Ok(Outcome::Done);
    }
    let deleting = class.metadata.deletion_timestamp.is_some();
    if deleting && attributes_class_is_used(context, &key.name).await? {
        return Ok(Outcome::Done);
    }
    let api = context.cluster_api::<VolumeAttributesClass>();
    let patch = Patch::Merge(patch(&class.metadata, ATTRIBUTES_CLASS, !deleting));
    unless_gone(api.patch(&key.name, &PatchParams::default(), &patch).await)?;
    Ok(Outcome::Done)
}

async fn attributes_class_is_used(context: &Shared, name: &str) -> Result<bool> {
    let by_claim =
        |claim: &PersistentVolumeClaim| attributes_of_claim(claim).iter().any(|n| n == name);
    let by_volume =
        |volume: &PersistentVolume| attributes_of_volume(volume).as_deref() == Some(name);
    let informers = &context.informers;
    if informers.claims.list().iter().any(|c| by_claim(c))
        || informers.volumes.list().iter().any(|v| by_volume(v))
    {
        return Ok(true);
    }
    // The caches may be behind; the class goes for good.
    let claims = Api::<PersistentVolumeClaim>::all(context.client.clone())
        .list(&ListParams::default())
        .await?;
    if claims.items.iter().any(by_claim) {
        return Ok(true);
    }
    let volumes = context
        .cluster_api::<PersistentVolume>()
        .list(&ListParams::default())
        .await?;
    Ok(volumes.items.iter().any(by_volume))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_claim_holds_the_attributes_class_it_had_and_the_one_it_moves_to() {
        let claim = json!({"spec": {"volumeAttributesClassName": "gold"}, "status": {
            "currentVolumeAttributesClassName": "silver",
            "modifyVolumeStatus": {"targetVolumeAttributesClassName": "gold", "status": "InProgress"}}});
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
        assert_eq!(attributes_of_claim(&claim), ["gold", "silver", "gold"]);
        assert!(attributes_of_claim(&PersistentVolumeClaim::default()).is_empty());
    }

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
