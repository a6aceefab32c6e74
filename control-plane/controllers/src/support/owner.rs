//! Owner references: who controls what, adoption and release.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::{Value, json};

/// The owner that manages an object, of which there is at most one.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// True when `uid` is the object's controller.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// A reference to `owner` as controller.
pub(crate) fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What a controller does about an object it might own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is ours.
    Own,
    /// Nobody's, and it matches: make it ours.
    Adopt,
    /// Ours, but it no longer matches: let it go.
    Release,
    /// Not our business.
    Ignore,
}

/// Decides on one object.
pub(crate) fn claim(owner: &ObjectMeta, object: &ObjectMeta, matches: bool) -> Claim {
    let owner_deleting = owner.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(controller) if Some(&controller.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Own,
        Some(_) if owner_deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner_deleting || !matches || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// Merge patch that adds an owner; guarded by uid and version, as it replaces the list.
pub(crate) fn adopt_patch(object: &ObjectMeta, owner: OwnerReference) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.push(owner);
    json!({"metadata": {
        "uid": object.uid, "resourceVersion": object.resource_version, "ownerReferences": owners,
    }})
}

/// Merge patch that removes an owner.
pub(crate) fn release_patch(object: &ObjectMeta, owner_uid: &str) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != owner_uid);
    let owners = if owners.is_empty() {
        Value::Null
    } else {
        json!(owners)
    };
    json!({"metadata": {
        "uid": object.uid, "resourceVersion": object.resource_version, "ownerReferences": owners,
    }})
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn meta(uid: &str, controller: Option<&str>) -> ObjectMeta {
        let owner = controller.map(|uid| OwnerReference {
            uid: uid.into(),
            controller: Some(true),
            ..OwnerReference::default()
        });
        ObjectMeta {
            uid: Some(uid.into()),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        }
    }

    fn deleting(mut meta: ObjectMeta) -> ObjectMeta {
        meta.deletion_timestamp = Some(balsa_client::time::now());
        meta
    }

    #[test]
    fn a_matching_orphan_is_adopted_unless_one_of_both_is_going() {
        let owner = meta("me", None);
        assert_eq!(claim(&owner, &meta("pod", None), true), Claim::Adopt);
        assert_eq!(claim(&owner, &meta("pod", None), false), Claim::Ignore);
        assert_eq!(
            claim(&owner, &deleting(meta("pod", None)), true),
            Claim::Ignore
        );
        assert_eq!(
            claim(&deleting(owner), &meta("pod", None), true),
            Claim::Ignore
        );
    }

    #[test]
    fn another_ones_object_is_left_alone() {
        assert_eq!(
            claim(&meta("me", None), &meta("pod", Some("you")), true),
            Claim::Ignore
        );
    }

    #[test]
    fn an_owned_object_that_no_longer_matches_is_released() {
        let owner = meta("me", None);
        assert_eq!(claim(&owner, &meta("pod", Some("me")), true), Claim::Own);
        assert_eq!(
            claim(&owner, &meta("pod", Some("me")), false),
            Claim::Release
        );
        assert_eq!(
            claim(&deleting(owner), &meta("pod", Some("me")), false),
            Claim::Ignore
        );
    }

    #[test]
    fn releasing_the_only_owner_removes_the_list() {
        let patch = release_patch(&meta("pod", Some("me")), "me");
        assert_eq!(
            patch.pointer("/metadata/ownerReferences"),
            Some(&Value::Null)
        );
    }
}
