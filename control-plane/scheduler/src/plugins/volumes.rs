//! Persistent volumes: where those of a pod can be reached, or could be made.

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_api::quantity::Quantity;
use balsa_api::scheduling::selects_node;
use balsa_api::selector::Selector;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::cache::{NodeInfo, Storage};
use crate::context::Context;
use crate::framework::{ClusterEvent, Filter, Rejection};
use crate::pod::PodInfo;

/// On a claim: the node that its volume is to be made for.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Rejects nodes that cannot reach a bound claim's volume, or where none is free or could be made for a claim that
/// waits for its first consumer.
pub struct VolumeBinding;

/// What has to happen to a claim before the pod can be bound to a node.
#[derive(Debug, Clone)]
pub enum Need {
    /// Nothing: it is bound.
    Nothing,
    /// Bind it to this volume.
    Bind(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>),
    /// Have a volume made for this node.
    Provision(Arc<PersistentVolumeClaim>),
}

/// What has to happen to one of a pod's claims for it to run on a node.
///
/// # Errors
/// Why the node is out of the question.
pub fn need(
    storage: &Storage,
    namespace: &str,
    claim: &str,
    node: &NodeInfo,
) -> Result<Need, Rejection> {
    let Some(object) = storage.claims.get(&format!("{namespace}/{claim}")) else {
        let reason = format!("persistentvolumeclaim \"{claim}\" not found");
        return Err(Rejection::of_pod(reason));
    };
    if object.metadata.deletion_timestamp.is_some() {
        let reason = format!("persistentvolumeclaim \"{claim}\" is being deleted");
        return Err(Rejection::of_pod(reason));
    }
    let target = node.node.as_deref();
    if is_bound(object) {
        return reachable(storage, object, target).map(|()| Need::Nothing);
    }
    let class = class_of(storage, object);
    let waits = |class: &&StorageClass| {
        class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
    };
    let Some(class) = class.filter(waits) else {
        return Err(Rejection::of_pod(
            "pod has unbound immediate PersistentVolumeClaims",
        ));
    };
    let annotations = object.metadata.annotations.as_ref();
    let chosen = annotations.and_then(|a| a.get(SELECTED_NODE));
    let none =
        || Rejection::unresolvable("node(s) didn't find available persistent volumes to bind");
    if chosen.is_some_and(|chosen| *chosen != node.name) {
        return Err(none());
    }
    if let Some(volume) = free_volume(storage, object, target) {
        return Ok(Need::Bind(Arc::clone(object), volume));
    }
    if class.provisioner == NO_PROVISIONER || !allows(class, target) {
        return Err(none());
    }
    let resources = object.spec.as_ref().and_then(|s| s.resources.as_ref());
    let wanted = storage_of(resources.and_then(|r| r.requests.as_ref()));
    let wanted = wanted.map_or(0, |wanted| wanted.value());
    let class_name = class.metadata.name.as_deref().unwrap_or_default();
    let drivers = &storage.drivers;
    if !drivers.has_room(&class.provisioner, class_name, target, wanted) {
        return Err(Rejection::unresolvable(
            "node(s) did not have enough free storage",
        ));
    }
    Ok(Need::Provision(Arc::clone(object)))
}

/// True when a claim has its volume for good.
#[must_use]
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    named.is_some_and(|n| !n.is_empty()) && phase == Some("Bound")
}

fn reachable(
    storage: &Storage,
    claim: &PersistentVolumeClaim,
    node: Option<&Node>,
) -> Result<(), Rejection> {
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
    let Some(volume) = storage.volumes.get(name.unwrap_or_default()) else {
        return Err(Rejection::unresolvable(
            "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
        ));
    };
    if is_on(volume, node) {
        return Ok(());
    }
    Err(Rejection::unresolvable(
        "node(s) had volume node affinity conflict",
    ))
}

/// The volume's node affinity allows the node.
fn is_on(volume: &PersistentVolume, node: Option<&Node>) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required.as_ref());
    required.is_none_or(|selector| node.is_some_and(|node| selects_node(selector, node)))
}

fn class_of<'s>(storage: &'s Storage, claim: &PersistentVolumeClaim) -> Option<&'s StorageClass> {
    let name = claim.spec.as_ref()?.storage_class_name.as_deref()?;
    storage.classes.get(name).map(Arc::as_ref)
}

/// `allowedTopologies` of a class: any of its terms, all expressions of a term.
fn allows(class: &StorageClass, node: Option<&Node>) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let labels = node.and_then(|n| n.metadata.labels.as_ref());
    terms.is_empty()
        || terms.iter().any(|term| {
            let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
            expressions.iter().all(|e| {
                let value = labels.and_then(|l| l.get(&e.key));
                value.is_some_and(|value| e.values.contains(value))
            })
        })
}

fn storage_of(
    list: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
) -> Option<Quantity> {
    list?.get("storage")?.0.parse().ok()
}

/// The smallest free volume on the node that satisfies the claim.
fn free_volume(
    storage: &Storage,
    claim: &PersistentVolumeClaim,
    node: Option<&Node>,
) -> Option<Arc<PersistentVolume>> {
    let wanted = claim.spec.as_ref()?;
    let requests = wanted.resources.as_ref().and_then(|r| r.requests.as_ref());
    let size = storage_of(requests)?;
    let selector = match &wanted.selector {
        None => Selector::everything(),
        some => Selector::from_label_selector(serde_json::to_value(some).ok().as_ref()).ok()?,
    };
    let fits = |volume: &&Arc<PersistentVolume>| {
        let Some(spec) = volume.spec.as_ref() else {
            return false;
        };
        let free = match &spec.claim_ref {
            None => true,
            Some(claimed) => {
                claimed.name == claim.metadata.name && claimed.namespace == claim.metadata.namespace
            }
        };
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        let wanted_modes = wanted.access_modes.as_deref().unwrap_or_default();
        let mode = |m: &Option<String>| m.as_deref() != Some("Block");
        free && volume.metadata.deletion_timestamp.is_none()
            && !storage.is_promised(volume, claim)
            && spec.storage_class_name.as_deref().unwrap_or_default()
                == wanted.storage_class_name.as_deref().unwrap_or_default()
            && mode(&spec.volume_mode) == mode(&wanted.volume_mode)
            && wanted_modes.iter().all(|m| modes.contains(m))
            && storage_of(spec.capacity.as_ref()).is_some_and(|have| have >= size)
            && selector.matches(&volume.metadata.labels.as_ref())
            && is_on(volume, node)
    };
    let found = storage.volumes.values().filter(fits);
    found
        .min_by_key(|v| {
            storage_of(v.spec.as_ref().and_then(|s| s.capacity.as_ref())).map(|q| q.value())
        })
        .cloned()
}

impl Filter for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, context: &Context<'_>) -> Vec<Rejection> {
        let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
        let storage = &context.cache.storage;
        let needs = pod
            .claims
            .iter()
            .map(|claim| need(storage, namespace, claim, node));
        needs.filter_map(Result::err).take(1).collect()
    }

    fn wakes(&self, event: ClusterEvent) -> bool {
        matches!(
            event,
            ClusterEvent::StorageChanged | ClusterEvent::NodeAdded | ClusterEvent::NodeChanged
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::plugins::testing;
    use serde_json::{Value, from_value, json};

    fn storage(claim: Value, volumes: &[Value]) -> Storage {
        let mut storage = Storage::default();
        let mut claim = claim;
        claim["metadata"] = json!({"name": "c", "namespace": "n"});
        claim["spec"]["accessModes"] = json!(["ReadWriteOnce"]);
        claim["spec"]["resources"] = json!({"requests": {"storage": "1Gi"}});
        storage.set_claim(Arc::new(from_value(claim).unwrap()));
        for volume in volumes {
            storage.set_volume(Arc::new(from_value(volume.clone()).unwrap()));
        }
        for (name, mode, provisioner) in [
            ("local", "WaitForFirstConsumer", NO_PROVISIONER),
            ("path", "WaitForFirstConsumer", "balsa.io/local-path"),
            ("now", "Immediate", "x"),
        ] {
            let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
            storage.set_class(Arc::new(from_value(class).unwrap()));
        }
        storage
    }

    fn volume(name: &str, size: &str, node: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": size}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}}})
    }

    fn ask(storage: &Storage) -> Result<Need, Rejection> {
        need(storage, "n", "c", &testing::node(json!({})))
    }

    #[test]
    fn a_waiting_claim_takes_the_smallest_volume_of_the_node_that_is_large_enough() {
        let volumes = [
            volume("big", "9Gi", "a"),
            volume("fit", "2Gi", "a"),
            volume("small", "1Mi", "a"),
            volume("far", "1Gi", "b"),
        ];
        let found = ask(&storage(
            json!({"spec": {"storageClassName": "local"}}),
            &volumes,
        ))
        .unwrap();
        let Need::Bind(_, chosen) = found else {
            panic!("{found:?}")
        };
        assert_eq!(chosen.metadata.name.as_deref(), Some("fit"));
    }

    #[test]
    fn without_a_free_volume_a_provisioner_helps_or_nothing_does() {
        let provision = ask(&storage(json!({"spec": {"storageClassName": "path"}}), &[]));
        assert!(matches!(provision, Ok(Need::Provision(_))));
        let none = ask(&storage(
            json!({"spec": {"storageClassName": "local"}}),
            &[],
        ))
        .unwrap_err();
        assert!(
            none.reason
                .contains("didn't find available persistent volumes")
        );
        let immediate =
            ask(&storage(json!({"spec": {"storageClassName": "now"}}), &[])).unwrap_err();
        assert!(immediate.reason.contains("unbound immediate"));
    }

    #[test]
    fn a_bound_claim_ties_the_pod_to_its_volumes_nodes() {
        let bound = json!({"spec": {"storageClassName": "local", "volumeName": "v"}, "status": {"phase": "Bound"}});
        assert!(matches!(
            ask(&storage(bound.clone(), &[volume("v", "1Gi", "a")])),
            Ok(Need::Nothing)
        ));
        let conflict = ask(&storage(bound.clone(), &[volume("v", "1Gi", "b")])).unwrap_err();
        assert!(conflict.reason.contains("volume node affinity conflict"));
        assert!(ask(&storage(bound, &[])).is_err());
    }
}
