//! Who owns a StatefulSet's claims (`persistentVolumeClaimRetentionPolicy`): the garbage collector deletes them with
//! the set, or with the pod that a smaller set no longer has. Pure.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::support::owner;

fn deletes(policy: Option<&String>) -> bool {
    policy.is_some_and(|policy| policy == "Delete")
}

/// The claim's owners as policy wants them, or `None` when they are so already. `condemned` pods are those that
/// the set is about to lose by scaling.
pub(super) fn owners(
    set: &StatefulSet,
    pod: &Pod,
    condemned: bool,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let policy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let when_deleted = deletes(policy.and_then(|policy| policy.when_deleted.as_ref()));
    let when_scaled = deletes(policy.and_then(|policy| policy.when_scaled.as_ref()));
    let by_pod = condemned && when_scaled;
    let by_set = when_deleted && !by_pod;
    let current = claim.metadata.owner_references.clone().unwrap_or_default();
    let ours = |owner: &OwnerReference| {
        Some(&owner.uid) == set.metadata.uid.as_ref()
            || (owner.kind == "Pod" && Some(&owner.name) == pod.metadata.name.as_ref())
    };
    let mut wanted: Vec<_> = current
        .iter()
        .filter(|owner| !ours(owner))
        .cloned()
        .collect();
    // Somebody else manages the claim: it is theirs to delete.
    let foreign = wanted.iter().any(|owner| owner.controller == Some(true));
    if by_pod && !foreign {
        wanted.push(owner::controller_ref(pod));
    } else if by_set && !foreign {
        wanted.push(owner::controller_ref(set));
    }
    (wanted != current).then_some(wanted)
}

/// True for a claim that will go with a pod of the name that is gone already, or is going: a new pod must wait
/// for a new claim.
pub(super) fn is_stale(pod: &str, claim: &PersistentVolumeClaim) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    claim.metadata.deletion_timestamp.is_some()
        || owners
            .into_iter()
            .any(|owner| owner.kind == "Pod" && owner.name == pod)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::{
        StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
    };

    use super::*;

    fn set(deleted: &str, scaled: &str) -> StatefulSet {
        let policy = StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some(deleted.into()),
            when_scaled: Some(scaled.into()),
        };
        let mut set = StatefulSet {
            spec: Some(StatefulSetSpec {
                persistent_volume_claim_retention_policy: Some(policy),
                ..StatefulSetSpec::default()
            }),
            ..StatefulSet::default()
        };
        set.metadata.uid = Some("set".into());
        set
    }

    #[test]
    fn the_policy_decides_who_owns_a_claim() {
        let mut pod = Pod::default();
        pod.metadata.uid = Some("pod".into());
        pod.metadata.name = Some("web-1".into());
        let wanted = |set: &StatefulSet, condemned, claim: &PersistentVolumeClaim| {
            let owners = owners(set, &pod, condemned, claim)?;
            Some(
                owners
                    .into_iter()
                    .map(|owner| owner.uid)
                    .collect::<Vec<_>>(),
            )
        };
        let free = PersistentVolumeClaim::default();
        assert_eq!(wanted(&set("Retain", "Retain"), true, &free), None);
        assert_eq!(
            wanted(&set("Delete", "Retain"), true, &free).unwrap(),
            ["set"]
        );
        assert_eq!(wanted(&set("Retain", "Delete"), false, &free), None);
        assert_eq!(
            wanted(&set("Retain", "Delete"), true, &free).unwrap(),
            ["pod"]
        );
        assert_eq!(
            wanted(&set("Delete", "Delete"), true, &free).unwrap(),
            ["pod"]
        );
        let mut owned = free.clone();
        owned.metadata.owner_references = owners(&set("Delete", "Delete"), &pod, true, &free);
        assert!(is_stale("web-1", &owned) && !is_stale("web-1", &free));
        // Scaled up again before the pod was gone.
        assert_eq!(
            wanted(&set("Delete", "Delete"), false, &owned).unwrap(),
            ["set"]
        );
        assert_eq!(
            wanted(&set("Retain", "Retain"), false, &owned).unwrap(),
            Vec::<String>::new()
        );
    }
}
