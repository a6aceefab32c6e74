//! From a pod's change to the owners that it concerns.

use std::fmt::Debug;
use std::sync::Arc;

use balsa_client::{Delta, Informer, Key, WorkQueue};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::expectations::Expectations;
use super::{owner, pods};
use crate::context::Shared;

/// The controller of an object if it is of kind `K`, by the name in its reference.
pub(crate) fn owner_of<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<Key> {
    let controller = owner::controller_of(meta)?;
    let group = controller
        .api_version
        .rsplit_once('/')
        .map_or("", |(group, _)| group);
    (controller.kind == K::kind(&()) && group == K::group(&())).then(|| {
        Key::new(
            meta.namespace.clone().unwrap_or_default(),
            controller.name.clone(),
        )
    })
}

/// Queues owners of kind `K` when one of their pods, or an orphan that they select, changes; notes creations
/// and deletions that were asked for.
pub(crate) fn follow_pods<K>(
    context: &Shared,
    informer: &Informer<K>,
    queue: &WorkQueue<Key>,
    expectations: &Arc<Expectations>,
    selects: impl Fn(&K, &Pod) -> bool + Send + Sync + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (owners, queue, expectations) = (informer.clone(), queue.clone(), Arc::clone(expectations));
    context.informers.pods.on_change(move |delta| {
        let pod = &**delta.object();
        let owner = owner_of::<K>(&pod.metadata);
        if let Some(key) = &owner {
            note(&expectations, key, delta);
            queue.add(key.clone());
        }
        let before = delta.old().and_then(|old| owner_of::<K>(&old.metadata));
        if let Some(before) = before.filter(|before| Some(before) != owner.as_ref()) {
            queue.add(before);
        }
        if owner::controller_of(&pod.metadata).is_none() && !delta.is_delete() {
            for owner in owners.list_namespace(&pod.namespace().unwrap_or_default()) {
                if selects(&owner, pod) {
                    queue.add(Key::of(&*owner));
                }
            }
        }
    });
}

fn note(expectations: &Expectations, key: &Key, delta: &Delta<Pod>) {
    let pod = &**delta.object();
    if delta.is_delete() || pods::is_terminating(pod) {
        expectations.deleted(key, pod.metadata.uid.as_deref().unwrap_or_default());
    }
    if matches!(delta, Delta::Added(_)) {
        expectations.created(key, 1);
    }
}
