//! Volumes made for claims: a folder on the node that the claim's first pod was given. Pure.
//!
//! The node's agent makes the folder when the volume is mounted, and removes folders whose volume is gone.

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
    VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::ObjectMeta;

/// Name of the provisioner in classes.
pub(crate) const PROVISIONER: &str = "balsa.io/local-path";
/// On volumes: who made them.
pub(super) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const HOSTNAME: &str = "kubernetes.io/hostname";

pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid().unwrap_or_default())
}

/// A reference to a claim, as volumes have it.
pub(super) fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.namespace(),
        name: claim.metadata.name.clone(),
        uid: claim.uid(),
        resource_version: claim.resource_version(),
        field_path: None,
    }
}

/// The volume for a claim on a node, in a folder below `root`; or why there can be none.
pub(super) fn new_volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    root: &str,
) -> Result<PersistentVolume, &'static str> {
    let spec = claim.spec.clone().unwrap_or_default();
    let single = |mode: &String| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod";
    if !spec.access_modes.iter().flatten().all(single) {
        return Err("only the access modes ReadWriteOnce and ReadWriteOncePod are supported");
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("block volumes are not supported");
    }
    if spec.selector.is_some() {
        return Err("claim.spec.selector is not supported");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Err("claim.spec.dataSource is not supported");
    }
    let name = volume_name(claim);
    let (namespace, claimed) = (claim.namespace().unwrap_or_default(), claim.name_any());
    let root = class
        .parameters
        .as_ref()
        .and_then(|p| p.get("path"))
        .map_or(root, String::as_str);
    let host_path = HostPathVolumeSource {
        path: format!(
            "{}/{name}_{namespace}_{claimed}",
            root.trim_end_matches('/')
        ),
        type_: Some("DirectoryOrCreate".into()),
    };
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name),
            annotations: Some([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: spec.resources.and_then(|resources| resources.requests),
            access_modes: spec.access_modes,
            volume_mode: Some("Filesystem".into()),
            persistent_volume_reclaim_policy: class
                .reclaim_policy
                .clone()
                .or_else(|| Some("Delete".into())),
            storage_class_name: class.metadata.name.clone(),
            mount_options: class.mount_options.clone(),
            claim_ref: Some(reference(claim)),
            node_affinity: Some(on_node(node)),
            host_path: Some(host_path),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

fn on_node(node: &Node) -> VolumeNodeAffinity {
    let requirement = |key: &str, value: String| NodeSelectorRequirement {
        key: key.to_owned(),
        operator: "In".into(),
        values: Some(vec![value]),
    };
    let mut term = NodeSelectorTerm::default();
    match node.labels().get(HOSTNAME) {
        Some(host) => term.match_expressions = Some(vec![requirement(HOSTNAME, host.clone())]),
        None => term.match_fields = Some(vec![requirement("metadata.name", node.name_any())]),
    }
    VolumeNodeAffinity {
        required: Some(NodeSelector {
            node_selector_terms: vec![term],
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_volume_is_a_folder_on_the_claims_node() {
        let claim = |modes: &[&str]| -> PersistentVolumeClaim {
            let requests = json!({"requests": {"storage": "1Gi"}});
            from_value(json!({
                "metadata": {"name": "data", "namespace": "shop", "uid": "u1"},
                "spec": {"accessModes": modes, "resources": requests},
            }))
            .unwrap()
        };
        let node: Node = from_value(json!({"metadata": {"name": "a"}})).unwrap();
        let class: StorageClass =
            from_value(json!({"metadata": {"name": "local-path"}, "provisioner": PROVISIONER}))
                .unwrap();
        let volume = new_volume(&claim(&["ReadWriteOnce"]), &class, &node, "/data/").unwrap();
        let spec = volume.spec.unwrap();
        assert_eq!(spec.host_path.unwrap().path, "/data/pvc-u1_shop_data");
        assert_eq!(
            spec.persistent_volume_reclaim_policy.as_deref(),
            Some("Delete")
        );
        let required = spec.node_affinity.unwrap().required.unwrap();
        assert!(balsa_api::scheduling::selects_node(&required, &node));
        assert!(new_volume(&claim(&["ReadWriteMany"]), &class, &node, "/data").is_err());
    }
}
