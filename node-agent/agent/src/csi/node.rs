//! What the API knows of the drivers of a node: its CSINode, and labels and an annotation of its Node. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::driver::Identity;

/// The driver's names of the node, by driver, as JSON.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// Says that volumes are attached by the attach-detach controller and not by the node's agent.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// Drivers by name.
pub(super) type Drivers = BTreeMap<String, Identity>;

/// The CSINode as it should be, if it is not.
pub(super) fn wanted(current: Option<&CSINode>, node: &Node, drivers: &Drivers) -> Option<CSINode> {
    let owner = owner(node);
    let entries: Vec<_> = drivers.iter().map(|(name, it)| entry(name, it)).collect();
    let Some(current) = current else {
        return Some(CSINode {
            metadata: ObjectMeta {
                name: node.metadata.name.clone(),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: CSINodeSpec { drivers: entries },
        });
    };
    let mut object = current.clone();
    object.metadata.owner_references = Some(vec![owner]);
    // In the order that is there, so that an equal set is left alone.
    let place = |driver: &CSINodeDriver| {
        let mut known = current.spec.drivers.iter();
        known.position(|known| known.name == driver.name)
    };
    object.spec.drivers = entries;
    object
        .spec
        .drivers
        .sort_by_key(|driver| place(driver).unwrap_or(usize::MAX));
    (object != *current).then_some(object)
}

/// Entries that are there and of which more changed than the API lets change: they have to go before they come
/// back.
pub(super) fn without_changed(current: &CSINode, drivers: &Drivers) -> Option<CSINode> {
    let changed = |known: &CSINodeDriver| {
        drivers.get(&known.name).is_some_and(|identity| {
            let entry = entry(&known.name, identity);
            entry.node_id != known.node_id || entry.topology_keys != known.topology_keys
        })
    };
    let mut object = current.clone();
    object.spec.drivers.retain(|known| !changed(known));
    (object.spec.drivers.len() != current.spec.drivers.len()).then_some(object)
}

fn owner(node: &Node) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    }
}

fn entry(name: &str, identity: &Identity) -> CSINodeDriver {
    let keys: Vec<_> = identity.topology.keys().cloned().collect();
    CSINodeDriver {
        name: name.to_owned(),
        node_id: identity.node_id.clone(),
        topology_keys: Some(keys).filter(|keys| !keys.is_empty()),
        allocatable: identity
            .limit
            .map(|count| VolumeNodeResources { count: Some(count) }),
    }
}

/// What to change in the Node's metadata, if anything: labels with where the node is, and the annotation with the
/// drivers' names of it.
pub(super) fn node_patch(node: &Node, drivers: &Drivers) -> Option<Value> {
    let labels: BTreeMap<_, _> = drivers
        .values()
        .flat_map(|identity| &identity.topology)
        .collect();
    let known = node.metadata.labels.clone().unwrap_or_default();
    let missing = labels
        .iter()
        .any(|(key, value)| known.get(*key) != Some(*value));
    let ids: BTreeMap<_, _> = drivers
        .iter()
        .map(|(name, identity)| (name, &identity.node_id))
        .collect();
    let annotations = node.metadata.annotations.as_ref();
    let had = annotations.and_then(|all| all.get(NODE_IDS));
    let ids = (!ids.is_empty()).then(|| json!(ids).to_string());
    let managed = annotations.is_some_and(|all| all.contains_key(MANAGED));
    if !missing && managed && had == ids.as_ref() {
        return None;
    }
    let annotations = json!({NODE_IDS: ids, MANAGED: "true"});
    Some(json!({"metadata": {"labels": labels, "annotations": annotations}}))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node() -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "uid": "u1"}})).unwrap()
    }

    fn drivers(id: &str) -> Drivers {
        let identity = Identity {
            node_id: id.to_owned(),
            limit: Some(3),
            topology: BTreeMap::from([("zone".to_owned(), "z1".to_owned())]),
        };
        Drivers::from([("d".to_owned(), identity)])
    }

    #[test]
    fn a_csinode_has_each_driver_once_and_is_left_alone_when_it_is_right() {
        let made = wanted(None, &node(), &drivers("x")).unwrap();
        let driver = &made.spec.drivers[0];
        assert_eq!((driver.name.as_str(), driver.node_id.as_str()), ("d", "x"));
        assert_eq!(
            driver.topology_keys.as_deref(),
            Some(&["zone".to_owned()][..])
        );
        assert_eq!(driver.allocatable.as_ref().unwrap().count, Some(3));
        assert_eq!(wanted(Some(&made), &node(), &drivers("x")), None);
        let emptied = wanted(Some(&made), &node(), &Drivers::new()).unwrap();
        assert!(emptied.spec.drivers.is_empty());
    }

    #[test]
    fn a_driver_that_knows_the_node_by_another_name_is_taken_out_first() {
        let made = wanted(None, &node(), &drivers("x")).unwrap();
        assert_eq!(without_changed(&made, &drivers("x")), None);
        let emptied = without_changed(&made, &drivers("y")).unwrap();
        assert!(emptied.spec.drivers.is_empty());
    }

    #[test]
    fn the_node_is_labelled_with_where_drivers_say_it_is() {
        let patch = node_patch(&node(), &drivers("x")).unwrap();
        assert_eq!(patch["metadata"]["labels"]["zone"], "z1");
        assert_eq!(patch["metadata"]["annotations"][NODE_IDS], r#"{"d":"x"}"#);
        let mut labelled = node();
        labelled.metadata.labels = Some([("zone".to_owned(), "z1".to_owned())].into());
        let annotations = [(NODE_IDS, r#"{"d":"x"}"#), (MANAGED, "true")];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
        labelled.metadata.annotations = Some(annotations.into());
        assert_eq!(node_patch(&labelled, &drivers("x")), None);
    }
}
