//! When a driver has to let a mounted volume grow, and what the claim says afterwards. Pure.

use balsa_api::quantity::Quantity as Amount;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

const STORAGE: &str = "storage";

/// Conditions of claims that say that growing is not over.
const UNDER_WAY: [&str; 4] = [
    "Resizing",
    "FileSystemResizePending",
    "ControllerResizeError",
    "NodeResizeError",
];

fn bytes(amount: Option<&Quantity>) -> Option<i64> {
    Some(amount?.0.parse::<Amount>().ok()?.value())
}

/// How large the file system has to become, in bytes, if the volume is larger than its claim has been told.
pub(super) fn needed(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<i64> {
    let capacity = volume.spec.as_ref()?.capacity.as_ref()?;
    let has = bytes(capacity.get(STORAGE))?;
    let told = claim.status.as_ref()?.capacity.as_ref()?;
    let told = bytes(told.get(STORAGE))?;
    (has > told).then_some(has)
}

/// The change of a claim's status once its volume has grown.
pub(super) fn done(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Value {
    let spec = volume.spec.clone().unwrap_or_default();
    let capacity = spec.capacity.unwrap_or_default();
    let status = claim.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.unwrap_or_default();
    conditions.retain(|condition| !UNDER_WAY.contains(&condition.type_.as_str()));
    let mut patch = json!({
        "metadata": {"resourceVersion": claim.metadata.resource_version},
        "status": {"capacity": {STORAGE: capacity.get(STORAGE)}, "conditions": conditions},
    });
    if status.allocated_resource_statuses.is_some() {
        patch["status"]["allocatedResourceStatuses"] = json!({STORAGE: null});
    }
    patch
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_volume_larger_than_its_claim_knows_is_grown_and_the_claim_told() {
        let claim = json!({"metadata": {"name": "c", "resourceVersion": "5"}, "spec": {},
            "status": {"capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": "NodeResizePending"},
                "conditions": [{"type": "FileSystemResizePending", "status": "True"}, {"type": "X", "status": "True"}]}});
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
        let volume = |size: &str| -> PersistentVolume {
            serde_json::from_value(json!({"spec": {"capacity": {"storage": size}}})).unwrap()
        };
        assert_eq!(needed(&claim, &volume("1Gi")), None);
        assert_eq!(needed(&claim, &volume("2Gi")), Some(2 << 30));
        let patch = done(&claim, &volume("2Gi"));
        assert_eq!(patch["status"]["capacity"]["storage"], "2Gi");
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(
            patch["status"]["allocatedResourceStatuses"],
            json!({"storage": null})
        );
        assert_eq!(patch["metadata"]["resourceVersion"], "5");
    }
}
