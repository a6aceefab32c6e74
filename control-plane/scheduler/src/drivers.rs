//! What is known of CSI drivers: how many volumes a node takes, and where how much room is left.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use balsa_api::quantity::Quantity as Amount;
use balsa_api::selector::Selector;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What is known of CSI drivers.
#[derive(Debug, Default)]
pub struct Drivers {
    /// By node: most volumes of a driver on it, by driver. Drivers without a limit are not here.
    limits: HashMap<String, HashMap<String, usize>>,
    /// Those that tell how much room they have (`storageCapacity`), by name.
    telling: HashSet<String>,
    /// What they tell, by `namespace/name`.
    capacities: HashMap<String, Arc<CSIStorageCapacity>>,
}

fn bytes(quantity: Option<&Quantity>) -> Option<i64> {
    Some(quantity?.0.parse::<Amount>().ok()?.value())
}

fn capacity_key(capacity: &CSIStorageCapacity) -> String {
    let meta = &capacity.metadata;
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

impl Drivers {
    /// The drivers of a node changed, or (`gone`) are no more.
    pub fn set_node(&mut self, object: &CSINode, gone: bool) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let limits = object.spec.drivers.iter().filter_map(|driver| {
            let count = driver.allocatable.as_ref()?.count?;
            Some((driver.name.clone(), usize::try_from(count).unwrap_or(0)))
        });
        let limits: HashMap<_, _> = limits.collect();
        if gone || limits.is_empty() {
            self.limits.remove(&name);
        } else {
            self.limits.insert(name, limits);
        }
    }

    /// A driver appeared, changed, or is `gone`.
    pub fn set_driver(&mut self, driver: &CSIDriver, gone: bool) {
        let name = driver.metadata.name.clone().unwrap_or_default();
        if !gone && driver.spec.storage_capacity == Some(true) {
            self.telling.insert(name);
        } else {
            self.telling.remove(&name);
        }
    }

    /// A driver told how much room there is somewhere, or (`gone`) takes it back.
    pub fn set_capacity(&mut self, capacity: Arc<CSIStorageCapacity>, gone: bool) {
        let key = capacity_key(&capacity);
        if gone {
            self.capacities.remove(&key);
        } else {
            self.capacities.insert(key, capacity);
        }
    }

    /// Most volumes of each driver on a node; nothing when none has a limit.
    #[must_use]
    pub fn limits(&self, node: &str) -> Option<&HashMap<String, usize>> {
        self.limits.get(node)
    }

    /// Could a driver make a volume of this many bytes for a node? Yes, if it does not tell how much room it has.
    #[must_use]
    pub fn has_room(&self, driver: &str, class: &str, node: Option<&Node>, wanted: i64) -> bool {
        if !self.telling.contains(driver) {
            return true;
        }
        let labels = node.and_then(|node| node.metadata.labels.as_ref());
        self.capacities.values().any(|capacity| {
            // The largest volume says more than all room together.
            let most = capacity.maximum_volume_size.as_ref();
            let most = bytes(most.or(capacity.capacity.as_ref()));
            capacity.storage_class_name == class
                && most.is_some_and(|most| most >= wanted)
                && is_there(capacity, &labels)
        })
    }
}

/// Is the room to be had at a node with these labels? Room without a topology is nowhere.
fn is_there(
    capacity: &CSIStorageCapacity,
    labels: &Option<&std::collections::BTreeMap<String, String>>,
) -> bool {
    let Some(topology) = &capacity.node_topology else {
        return false;
    };
    let value = serde_json::to_value(topology).ok();
    Selector::from_label_selector(value.as_ref()).is_ok_and(|selector| selector.matches(labels))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn room_counts_where_the_driver_has_it_and_for_its_class() {
        let mut drivers = Drivers::default();
        let node = |zone: &str| -> Node {
            from_value(json!({"metadata": {"name": "a", "labels": {"zone": zone}}})).unwrap()
        };
        assert!(drivers.has_room("d", "fast", Some(&node("z1")), 1 << 40));
        let driver: CSIDriver =
            from_value(json!({"metadata": {"name": "d"}, "spec": {"storageCapacity": true}}))
                .unwrap();
        drivers.set_driver(&driver, false);
        assert!(!drivers.has_room("d", "fast", Some(&node("z1")), 1));
        let capacity = json!({"metadata": {"name": "c", "namespace": "n"}, "storageClassName": "fast",
            "capacity": "10Gi", "maximumVolumeSize": "2Gi", "nodeTopology": {"matchLabels": {"zone": "z1"}}});
        drivers.set_capacity(Arc::new(from_value(capacity).unwrap()), false);
        let room = |class: &str, zone: &str, gib: i64| {
            drivers.has_room("d", class, Some(&node(zone)), gib << 30)
        };
        assert!(room("fast", "z1", 2));
        assert!(!room("fast", "z1", 3) && !room("fast", "z2", 1) && !room("slow", "z1", 1));
    }

    #[test]
    fn a_nodes_limits_go_with_its_drivers() {
        let mut drivers = Drivers::default();
        let object = |list: Value| -> CSINode {
            from_value(json!({"metadata": {"name": "a"}, "spec": {"drivers": list}})).unwrap()
        };
        let limited = json!([{"name": "d", "nodeID": "a", "allocatable": {"count": 3}},
            {"name": "e", "nodeID": "a"}]);
        drivers.set_node(&object(limited), false);
        assert_eq!(drivers.limits("a").unwrap().get("d"), Some(&3));
        assert_eq!(drivers.limits("a").unwrap().get("e"), None);
        drivers.set_node(&object(json!([])), false);
        assert!(drivers.limits("a").is_none());
    }
}
