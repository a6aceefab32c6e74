//! What has to happen for a volume to be attached where pods use it, and nowhere else. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use sha2::{Digest, Sha256};

/// Taint by which people say that a node is surely off, and its volumes may be taken from it (KEP-2268).
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A VolumeAttachment of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attachment {
    pub(super) name: String,
    pub(super) node: String,
    /// Its deletion was asked for, and its attacher has not finished.
    pub(super) leaving: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Attach the volume to a node.
    Attach { node: String },
    /// Detach it, if its node lets go of it.
    Detach { name: String, node: String },
    /// A node wants it and has to wait, as it is attached elsewhere and cannot be at two nodes.
    Blocked { node: String },
}

/// May the volume be at one node only?
pub(super) fn is_exclusive(volume: &PersistentVolume) -> bool {
    let spec = volume.spec.as_ref();
    let modes = spec.and_then(|spec| spec.access_modes.as_deref());
    let shared = |mode: &String| mode == "ReadOnlyMany" || mode == "ReadWriteMany";
    !modes.unwrap_or_default().iter().any(shared)
}

/// The steps for one volume. `wanted` are the nodes with pods that use it, in the order in which they may have it.
pub(super) fn steps(wanted: &[String], exclusive: bool, attachments: &[Attachment]) -> Vec<Step> {
    let mut steps = Vec::new();
    for attachment in attachments {
        if !attachment.leaving && !wanted.contains(&attachment.node) {
            steps.push(Step::Detach {
                name: attachment.name.clone(),
                node: attachment.node.clone(),
            });
        }
    }
    let mut holders: BTreeSet<&String> = attachments.iter().map(|known| &known.node).collect();
    for node in wanted {
        // One that is leaving this node has to be gone before the next can be made: it has the same name.
        if holders.contains(node) {
            continue;
        }
        if exclusive && !holders.is_empty() {
            steps.push(Step::Blocked { node: node.clone() });
            continue;
        }
        holders.insert(node);
        steps.push(Step::Attach { node: node.clone() });
    }
    steps
}

/// What the node of an unwanted attachment says to its being taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consent {
    Given,
    /// It still has the volume mounted.
    Withheld,
    /// It still had it when last heard of, which is not lately: after a long time it is taken anyway.
    Silent,
}

/// Whether a volume may be taken from a node; `None` if there is no such node.
pub(super) fn consent(node: Option<&Node>, volume: &str) -> Consent {
    let Some(node) = node else {
        return Consent::Given;
    };
    let status = node.status.as_ref();
    let in_use = status.and_then(|status| status.volumes_in_use.as_ref());
    if !in_use.is_some_and(|names| names.iter().any(|name| name == volume)) {
        return Consent::Given;
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let mut taints = taints.unwrap_or_default().iter();
    if taints.any(|taint| taint.key == OUT_OF_SERVICE) {
        return Consent::Given;
    }
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    if conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True") {
        return Consent::Withheld;
    }
    Consent::Silent
}

/// The name of the VolumeAttachment for a volume on a node; agents look for it by this name, as kubelets do.
pub(super) fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    format!("csi-{}", hex::encode(digest))
}

/// What a Node's status calls a volume.
pub(super) fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn at(node: &str, leaving: bool) -> Attachment {
        Attachment {
            name: format!("va-{node}"),
            node: node.to_owned(),
            leaving,
        }
    }

    fn attach(node: &str) -> Step {
        Step::Attach { node: node.into() }
    }

    fn blocked(node: &str) -> Step {
        Step::Blocked { node: node.into() }
    }

    fn detach(node: &str) -> Step {
        Step::Detach {
            name: format!("va-{node}"),
            node: node.into(),
        }
    }

    #[test]
    fn a_volume_goes_where_pods_are_and_leaves_when_they_do() {
        let a = ["a".to_owned()];
        assert_eq!(steps(&a, true, &[]), [attach("a")]);
        assert_eq!(steps(&a, true, &[at("a", false)]), []);
        assert_eq!(steps(&[], true, &[at("a", false)]), [detach("a")]);
        assert_eq!(steps(&[], true, &[at("a", true)]), []);
        // A pod came back before the detaching was over.
        assert_eq!(steps(&a, true, &[at("a", true)]), []);
    }

    #[test]
    fn a_volume_for_one_node_waits_until_it_is_free_and_a_shared_one_does_not() {
        let both = ["a".to_owned(), "b".to_owned()];
        assert_eq!(steps(&both, true, &[]), [attach("a"), blocked("b")]);
        let b = ["b".to_owned()];
        assert_eq!(
            steps(&b, true, &[at("a", false)]),
            [detach("a"), blocked("b")]
        );
        assert_eq!(steps(&b, true, &[at("a", true)]), [blocked("b")]);
        assert_eq!(steps(&both, false, &[at("a", false)]), [attach("b")]);
    }

    #[test]
    fn a_node_keeps_what_it_has_mounted_unless_it_is_surely_off() {
        let node = |extra: Value| -> Node {
            let mut node = json!({"metadata": {"name": "a"}, "spec": {}, "status": {"volumesInUse": ["v"],
                "conditions": [{"type": "Ready", "status": "True"}]}});
            for (key, value) in extra.as_object().unwrap() {
                node[key] = value.clone();
            }
            serde_json::from_value(node).unwrap()
        };
        assert_eq!(consent(None, "v"), Consent::Given);
        assert_eq!(consent(Some(&node(json!({}))), "w"), Consent::Given);
        assert_eq!(consent(Some(&node(json!({}))), "v"), Consent::Withheld);
        let off = json!({"spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]}});
        assert_eq!(consent(Some(&node(off)), "v"), Consent::Given);
        let lost = json!({"status": {"volumesInUse": ["v"], "conditions": [{"type": "Ready", "status": "Unknown"}]}});
        assert_eq!(consent(Some(&node(lost)), "v"), Consent::Silent);
    }

    #[test]
    fn names_are_those_that_agents_and_attachers_know() {
        let name = attachment_name("h", "d", "n1");
        assert_eq!(name.len(), 4 + 64);
        assert_eq!(unique_name("d", "h"), "kubernetes.io/csi/d^h");
        let volume = |modes: Value| -> PersistentVolume {
            serde_json::from_value(json!({"spec": {"accessModes": modes}})).unwrap()
        };
        assert!(is_exclusive(&volume(json!(["ReadWriteOnce"]))));
        assert!(!is_exclusive(&volume(json!([
            "ReadWriteOnce",
            "ReadOnlyMany"
        ]))));
    }
}
