//! Which volume suits a claim. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
};
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};

/// Older form of `storageClassName`, on claims and volumes.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The claim's class; empty for those that want none.
pub(super) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let named = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.storage_class_name.as_deref());
    claim
        .annotations()
        .get(OLD_CLASS)
        .map(String::as_str)
        .or(named)
        .unwrap_or_default()
}

/// True for claims that have neither a class nor chosen to have none.
pub(super) fn leaves_class_open(claim: &PersistentVolumeClaim) -> bool {
    let named = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.storage_class_name.as_ref());
    named.is_none() && !claim.annotations().contains_key(OLD_CLASS)
}

pub(super) fn class_of_volume(volume: &PersistentVolume) -> &str {
    let named = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.storage_class_name.as_deref());
    volume
        .annotations()
        .get(OLD_CLASS)
        .map(String::as_str)
        .or(named)
        .unwrap_or_default()
}

/// True when the reference is to this very claim, or to one of its name that need not exist yet.
pub(super) fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

fn size(
    amounts: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
) -> Quantity {
    let storage = amounts.and_then(|amounts| amounts.get("storage"));
    storage
        .and_then(|amount| amount.0.parse().ok())
        .unwrap_or(Quantity::ZERO)
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Why a volume that was chosen for a claim cannot be its volume.
pub(super) fn mismatch(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<&'static str> {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else {
        return Some("it has no spec");
    };
    let requested = wants
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    if size(has.capacity.as_ref()) < size(requested) {
        return Some("requested PV is too small");
    }
    if class_of_volume(volume) != class_of_claim(claim) {
        return Some("storageClassName does not match");
    }
    if mode(has.volume_mode.as_ref()) != mode(wants.volume_mode.as_ref()) {
        return Some("incompatible volumeMode");
    }
    let modes = has.access_modes.as_deref().unwrap_or_default();
    if !wants
        .access_modes
        .iter()
        .flatten()
        .all(|wanted| modes.contains(wanted))
    {
        return Some("incompatible accessMode");
    }
    None
}

fn is_selected(volume: &PersistentVolume, spec: &PersistentVolumeClaimSpec) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let Some(selector) = &spec.selector else {
        return true;
    };
    let labels = volume.metadata.labels.as_ref().unwrap_or(&NONE);
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

/// The volume that is meant for the claim, or else, if the claim may take any, the smallest that suits it.
pub(super) fn find<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
    may_take_any: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let reference =
        |volume: &PersistentVolume| volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
    let meant = volumes.iter().find(|volume| {
        reference(volume).is_some_and(|reference| refers_to(&reference, claim))
            && mismatch(volume, claim).is_none()
    });
    if meant.is_some() || !may_take_any {
        return meant;
    }
    volumes
        .iter()
        .filter(|volume| {
            reference(volume).is_none()
                && volume.metadata.deletion_timestamp.is_none()
                && mismatch(volume, claim).is_none()
                && is_selected(volume, spec)
        })
        .min_by_key(|volume| {
            let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
            (size(capacity), volume.name_any())
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, from_value, json};

    use super::*;

    fn volume(name: &str, size: &str, extra: Value) -> Arc<PersistentVolume> {
        let mut spec = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]});
        spec.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let volume = json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": spec});
        Arc::new(from_value(volume).unwrap())
    }

    fn claim(extra: Value) -> PersistentVolumeClaim {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}},
        });
        spec.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let meta = json!({"name": "data", "namespace": "shop", "uid": "u1"});
        from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    fn found(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>]) -> String {
        find(claim, volumes, true)
            .map(|volume| volume.name_any())
            .unwrap_or_default()
    }

    #[test]
    fn the_smallest_suitable_volume_is_taken() {
        let volumes = [
            volume("big", "10Gi", json!({})),
            volume("small", "1Gi", json!({})),
            volume("right", "3Gi", json!({})),
            volume("classy", "2Gi", json!({"storageClassName": "gold"})),
            volume("block", "2Gi", json!({"volumeMode": "Block"})),
        ];
        assert_eq!(found(&claim(json!({})), &volumes), "right");
        assert_eq!(
            found(&claim(json!({"storageClassName": "gold"})), &volumes),
            "classy"
        );
        assert_eq!(
            found(&claim(json!({"accessModes": ["ReadWriteMany"]})), &volumes),
            ""
        );
        let selecting = claim(json!({"selector": {"matchLabels": {"disk": "big"}}}));
        assert_eq!(found(&selecting, &volumes), "big");
    }

    #[test]
    fn a_volume_kept_for_a_claim_is_for_it_alone() {
        let kept = |uid: &str| {
            let reference = json!({"claimRef": {"name": "data", "namespace": "shop", "uid": uid}});
            [
                volume("kept", "9Gi", reference),
                volume("free", "2Gi", json!({})),
            ]
        };
        assert_eq!(found(&claim(json!({})), &kept("")), "kept");
        assert_eq!(found(&claim(json!({})), &kept("u1")), "kept");
        assert_eq!(found(&claim(json!({})), &kept("another")), "free");
        assert!(find(&claim(json!({})), &kept("another"), false).is_none());
    }
}
