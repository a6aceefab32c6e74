//! What runs where: the scheduler's picture of the nodes, with pods it has just placed assumed there
//! until the watch says so too.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod::{HostPort, PodInfo, Resources};

/// A node and what is on it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The object itself; `None` while only its pods are known.
    pub node: Option<Arc<Node>>,
    /// Name.
    pub name: String,
    /// What it has for pods.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub allowed_pods: i64,
    /// What its pods ask for.
    pub requested: Resources,
    /// What its pods weigh in scores (millicores, bytes).
    pub nonzero: (i64, i64),
    /// Ports its pods hold.
    pub ports: Vec<HostPort>,
    /// Number of pods.
    pub pods: i64,
    /// Number of pods by owner UID.
    pub owners: HashMap<String, i64>,
    /// Size in bytes of each image present, by name.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    fn empty(name: &str) -> Self {
        Self {
            node: None,
            name: name.to_owned(),
            allocatable: Resources::default(),
            allowed_pods: 0,
            requested: Resources::default(),
            nonzero: (0, 0),
            ports: Vec::new(),
            pods: 0,
            owners: HashMap::new(),
            images: HashMap::new(),
        }
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        self.allocatable = allocatable.map(Resources::from_list).unwrap_or_default();
        self.allowed_pods = allocatable
            .and_then(|list| list.get("pods"))
            .and_then(|q| q.0.parse::<balsa_api::quantity::Quantity>().ok())
            .map_or(0, |q| q.value());
        self.images = status
            .iter()
            .flat_map(|s| s.images.iter().flatten())
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                image
                    .names
                    .iter()
                    .flatten()
                    .map(move |name| (name.clone(), size))
            })
            .collect();
        self.node = Some(node);
    }

    /// Taints of the node.
    #[must_use]
    pub fn taints(&self) -> &[Taint] {
        self.node
            .as_ref()
            .and_then(|n| n.spec.as_ref()?.taints.as_deref())
            .unwrap_or_default()
    }

    /// `spec.unschedulable` (cordoned).
    #[must_use]
    pub fn unschedulable(&self) -> bool {
        self.node
            .as_ref()
            .and_then(|n| n.spec.as_ref()?.unschedulable)
            .unwrap_or(false)
    }

    fn add(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.requests);
        self.nonzero.0 += pod.nonzero.0;
        self.nonzero.1 += pod.nonzero.1;
        self.ports.extend(pod.ports.iter().cloned());
        self.pods += 1;
        if !pod.owner.is_empty() {
            *self.owners.entry(pod.owner.clone()).or_default() += 1;
        }
    }

    fn remove(&mut self, pod: &PodInfo) {
        self.requested.remove(&pod.requests);
        self.nonzero.0 -= pod.nonzero.0;
        self.nonzero.1 -= pod.nonzero.1;
        for port in &pod.ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
        self.pods -= 1;
        if let Some(count) = self.owners.get_mut(&pod.owner) {
            *count -= 1;
            if *count <= 0 {
                self.owners.remove(&pod.owner);
            }
        }
    }
}

/// All nodes with their pods.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: HashMap<String, NodeInfo>,
    /// Every counted pod: UID to (digest, node). Assumed ones are here before the API says so.
    pods: HashMap<String, (PodInfo, String)>,
    /// Names of real nodes in a stable order; filtering starts at a rotating place in it.
    order: Vec<String>,
}

impl Cache {
    /// A node appeared or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let info = self
            .nodes
            .entry(name.clone())
            .or_insert_with(|| NodeInfo::empty(&name));
        if info.node.is_none() {
            self.order.push(name);
        }
        info.set_node(node);
    }

    /// A node is gone. What its pods hold stays counted until they go, too.
    pub fn remove_node(&mut self, name: &str) {
        self.order.retain(|n| n != name);
        if let Some(info) = self.nodes.get_mut(name) {
            info.node = None;
            if info.pods <= 0 {
                self.nodes.remove(name);
            }
        }
    }

    /// A pod is, or is assumed to be, on a node.
    pub fn set_pod(&mut self, pod: PodInfo, node: &str) {
        self.remove_pod(&pod.uid);
        self.nodes
            .entry(node.to_owned())
            .or_insert_with(|| NodeInfo::empty(node))
            .add(&pod);
        self.pods.insert(pod.uid.clone(), (pod, node.to_owned()));
    }

    /// A pod left its node, ended, or could not be bound after all. True when it was counted.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some((pod, node)) = self.pods.remove(uid) else {
            return false;
        };
        if let Some(info) = self.nodes.get_mut(&node) {
            info.remove(&pod);
            if info.node.is_none() && info.pods <= 0 {
                self.nodes.remove(&node);
            }
        }
        true
    }

    /// Node that a pod is counted on.
    #[must_use]
    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.pods.get(uid).map(|(_, node)| node.as_str())
    }

    /// Real nodes in order.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.order.iter().filter_map(|name| self.nodes.get(name))
    }

    /// One real node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|n| n.node.is_some())
    }

    /// The `index`th real node, counted around.
    #[must_use]
    pub fn node_at(&self, index: usize) -> Option<&NodeInfo> {
        self.nodes
            .get(self.order.get(index % self.order.len().max(1))?)
    }

    /// Number of real nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// True without nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod(uid: &str) -> PodInfo {
        PodInfo::new(Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": uid, "uid": uid,
                    "ownerReferences": [{"apiVersion": "v1", "kind": "R", "name": "r", "uid": "o", "controller": true}]},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}},
                    "ports": [{"containerPort": 80, "hostPort": 80}]}]},
            }))
            .unwrap(),
        ))
    }

    fn node(name: &str) -> Arc<Node> {
        let value = json!({"metadata": {"name": name},
            "status": {"allocatable": {"cpu": "2", "pods": "110"}}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_removed_pod_gives_back_all_it_held() {
        let mut cache = Cache::default();
        cache.set_node(node("a"));
        cache.set_pod(pod("1"), "a");
        assert_eq!(cache.node("a").unwrap().requested.cpu, 1000);
        assert!(cache.remove_pod("1"));
        let info = cache.node("a").unwrap();
        assert_eq!(
            (
                info.requested.cpu,
                info.pods,
                info.ports.len(),
                info.owners.len()
            ),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn a_pod_confirmed_by_the_watch_is_counted_once() {
        let mut cache = Cache::default();
        cache.set_node(node("a"));
        cache.set_pod(pod("1"), "a");
        cache.set_pod(pod("1"), "a");
        assert_eq!(cache.node("a").unwrap().pods, 1);
    }

    #[test]
    fn pods_of_a_node_not_seen_yet_count_when_it_appears() {
        let mut cache = Cache::default();
        cache.set_pod(pod("1"), "a");
        assert!(cache.is_empty());
        cache.set_node(node("a"));
        assert_eq!(cache.node("a").unwrap().requested.cpu, 1000);
    }
}
