//! What has to be done about volumes. Pure.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use serde_json::json;

/// On attachments that the driver has done something for.
pub(crate) const FINALIZER: &str = "external-attacher/folders";

const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const SELECTED: &str = "volume.kubernetes.io/selected-node";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// The volume to make for a claim, if it is this driver's turn.
pub(crate) fn to_provision(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    driver: &str,
) -> Option<PersistentVolume> {
    let class = class.filter(|class| class.provisioner == driver)?;
    let spec = claim.spec.as_ref()?;
    let annotations = claim.annotations();
    let asked = annotations.get(PROVISIONER).is_some_and(|by| by == driver);
    let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    if !asked
        || spec.volume_name.is_some()
        || claim.metadata.deletion_timestamp.is_some()
        || (waits && !annotations.contains_key(SELECTED))
    {
        return None;
    }
    let uid = claim.metadata.uid.as_deref()?;
    let name = format!("pvc-{uid}");
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: driver}},
        "spec": {
            "capacity": {"storage": spec.resources.as_ref()?.requests.as_ref()?.get("storage")?},
            "accessModes": spec.access_modes,
            "volumeMode": spec.volume_mode,
            "persistentVolumeReclaimPolicy": class.reclaim_policy,
            "storageClassName": class.name_any(),
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": uid,
                "namespace": claim.namespace(), "name": claim.name_any()},
            "csi": {"driver": driver, "volumeHandle": name, "fsType": "folder"},
        },
    });
    serde_json::from_value(volume).ok()
}

/// Is a volume of the driver to be deleted, as nobody wants or has it?
pub(crate) fn is_to_delete(
    volume: &PersistentVolume,
    attachments: &[VolumeAttachment],
    driver: &str,
) -> bool {
    let spec = volume.spec.as_ref();
    let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let phase = volume
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let ours = volume
        .annotations()
        .get(PROVISIONED_BY)
        .is_some_and(|by| by == driver);
    let held = attachments
        .iter()
        .any(|attachment| attachment.spec.source.persistent_volume_name == volume.metadata.name);
    ours && policy == Some("Delete") && phase == Some("Released") && !held
}

/// Bytes of a quantity with a binary suffix or none.
fn bytes(quantity: &Quantity) -> i64 {
    let text = quantity.0.as_str();
    let number = |text: &str, shift: u32| text.parse::<i64>().map_or(0, |n| n << shift);
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
    let unit = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    unit.map_or_else(|| number(text, 0), |(rest, shift)| number(rest, shift))
}

/// A volume's capacity in bytes.
pub(crate) fn capacity(volume: &PersistentVolume) -> i64 {
    let spec = volume.spec.as_ref();
    let amounts = spec.and_then(|spec| spec.capacity.as_ref());
    amounts
        .and_then(|amounts| amounts.get("storage"))
        .map_or(0, bytes)
}

/// What a claim asks for beyond what its volume has.
pub(crate) fn to_grow_to(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Option<Quantity> {
    let bound = claim.spec.as_ref()?.volume_name == volume.metadata.name;
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    let asked = requests.get("storage")?;
    (bound && bytes(asked) > capacity(volume)).then(|| asked.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::Value;

    use super::*;

    fn claim(asked: &str, annotations: Value) -> PersistentVolumeClaim {
        let claim = json!({"metadata": {"name": "c", "namespace": "n", "uid": "1", "annotations": annotations},
            "spec": {"storageClassName": "folders", "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": asked}}}});
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn a_volume_is_made_when_the_binder_and_the_scheduler_have_spoken() {
        let class = json!({"metadata": {"name": "folders"}, "provisioner": "d",
            "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"});
        let class: StorageClass = serde_json::from_value(class).unwrap();
        let make = |annotations| to_provision(&claim("1Gi", annotations), Some(&class), "d");
        assert!(make(json!({})).is_none());
        assert!(make(json!({PROVISIONER: "d"})).is_none());
        let volume = make(json!({PROVISIONER: "d", SELECTED: "a"})).unwrap();
        assert_eq!(volume.name_any(), "pvc-1");
        assert_eq!(capacity(&volume), 1 << 30);
        assert!(!is_to_delete(&volume, &[], "d"));
    }

    #[test]
    fn a_volume_grows_to_what_its_claim_asks_for() {
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"capacity": {"storage": "1Gi"}}});
        let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
        let mut larger = claim("2Gi", json!({}));
        assert!(to_grow_to(&larger, &volume).is_none());
        larger.spec.as_mut().unwrap().volume_name = Some("pv".into());
        assert_eq!(to_grow_to(&larger, &volume).unwrap().0, "2Gi");
    }
}
