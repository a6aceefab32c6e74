//! What runs where: the scheduler's picture of the nodes, with pods it has just placed assumed there
//! until the watch says so too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Taint,
};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::drivers::Drivers;
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
    pub images: Arc<HashMap<String, i64>>,
    /// Its pods by UID.
    pub running: HashMap<String, Arc<PodInfo>>,
    /// How many of them say something of other pods.
    pub opinionated: usize,
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
            images: Arc::default(),
            running: HashMap::new(),
            opinionated: 0,
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
        let images = status
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
        self.images = Arc::new(images);
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

    /// Counts a pod as being here.
    pub fn add(&mut self, pod: &Arc<PodInfo>) {
        self.opinionated += usize::from(pod.terms.concerns_others());
        self.running.insert(pod.uid.clone(), Arc::clone(pod));
        self.requested.add(&pod.requests);
        self.nonzero.0 += pod.nonzero.0;
        self.nonzero.1 += pod.nonzero.1;
        self.ports.extend(pod.ports.iter().cloned());
        self.pods += 1;
        if !pod.owner.is_empty() {
            *self.owners.entry(pod.owner.clone()).or_default() += 1;
        }
    }

    /// Counts a pod, which was counted before, as gone.
    pub fn remove(&mut self, pod: &PodInfo) {
        self.opinionated -= usize::from(pod.terms.concerns_others());
        self.running.remove(&pod.uid);
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

/// Claims, volumes and classes.
#[derive(Debug, Default)]
pub struct Storage {
    /// By `namespace/name`.
    pub claims: HashMap<String, Arc<PersistentVolumeClaim>>,
    /// By name.
    pub volumes: HashMap<String, Arc<PersistentVolume>>,
    /// By name.
    pub classes: HashMap<String, Arc<StorageClass>>,
    /// What is known of CSI drivers.
    pub drivers: Drivers,
    /// Volumes that a decision gave to a claim (by key) and that the API does not show so yet.
    promised: HashMap<String, String>,
}

/// `namespace/name` of a claim.
#[must_use]
pub fn claim_key(claim: &PersistentVolumeClaim) -> String {
    let meta = &claim.metadata;
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

/// `namespace/name` of each claim that a pod uses.
fn claim_keys(pod: &PodInfo) -> impl Iterator<Item = String> {
    let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims = pod.claims.iter();
    claims.map(move |claim| format!("{namespace}/{claim}"))
}

impl Storage {
    /// True for a claim (`namespace/name`) that a single pod may use (`ReadWriteOncePod`).
    #[must_use]
    pub fn is_for_one_pod(&self, claim: &str) -> bool {
        let spec = self.claims.get(claim).and_then(|c| c.spec.as_ref());
        let mut modes = spec.iter().flat_map(|s| s.access_modes.iter().flatten());
        modes.any(|mode| mode == "ReadWriteOncePod")
    }

    /// A claim appeared or changed.
    pub fn set_claim(&mut self, claim: Arc<PersistentVolumeClaim>) {
        self.claims.insert(claim_key(&claim), claim);
    }

    /// A volume appeared or changed.
    pub fn set_volume(&mut self, volume: Arc<PersistentVolume>) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.volumes.insert(name, volume);
    }

    /// A class appeared or changed.
    pub fn set_class(&mut self, class: Arc<StorageClass>) {
        let name = class.metadata.name.clone().unwrap_or_default();
        self.classes.insert(name, class);
    }

    /// Keeps a volume for a claim until it is written, or could not be.
    pub fn promise(&mut self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.promised.insert(name, claim_key(claim));
    }

    /// The promise was kept, or is void.
    pub fn release(&mut self, volume: &PersistentVolume) {
        self.promised
            .remove(volume.metadata.name.as_deref().unwrap_or_default());
    }

    /// True when the volume is kept for another claim.
    #[must_use]
    pub fn is_promised(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        self.promised
            .get(name)
            .is_some_and(|holder| *holder != claim_key(claim))
    }
}

/// All nodes with their pods.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: HashMap<String, NodeInfo>,
    /// Every counted pod: UID to (digest, node). Assumed ones are here before the API says so.
    pods: HashMap<String, (Arc<PodInfo>, String)>,
    /// Pods that wait for room which others are making for them on a node, by UID.
    nominated: HashMap<String, (Arc<PodInfo>, String)>,
    /// Labels of namespaces.
    namespaces: HashMap<String, BTreeMap<String, String>>,
    /// Who uses a claim (`namespace/name`): UIDs of counted pods, and their nodes.
    users: HashMap<String, HashMap<String, String>>,
    /// How many pods on nodes say something of other pods.
    opinionated: usize,
    /// What persistent volumes there are.
    pub storage: Storage,
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
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid);
        self.nominated.remove(&pod.uid);
        self.opinionated += usize::from(pod.terms.concerns_others());
        for key in claim_keys(&pod) {
            let users = self.users.entry(key).or_default();
            users.insert(pod.uid.clone(), node.to_owned());
        }
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
        self.opinionated -= usize::from(pod.terms.concerns_others());
        for key in claim_keys(&pod) {
            if let Some(users) = self.users.get_mut(&key) {
                users.remove(uid);
                if users.is_empty() {
                    self.users.remove(&key);
                }
            }
        }
        if let Some(info) = self.nodes.get_mut(&node) {
            info.remove(&pod);
            if info.node.is_none() && info.pods <= 0 {
                self.nodes.remove(&node);
            }
        }
        true
    }

    /// Counted pods that use a claim (`namespace/name`), by UID, with their nodes.
    pub fn users(&self, claim: &str) -> impl Iterator<Item = (&String, &String)> {
        self.users.get(claim).into_iter().flatten()
    }

    /// How many pods on nodes say something of other pods.
    #[must_use]
    pub fn opinionated(&self) -> usize {
        self.opinionated
    }

    /// A pod waits for room on a node, or (`None`) does so no more.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: Option<&str>) {
        match node {
            Some(node) => {
                let entry = (Arc::clone(pod), node.to_owned());
                self.nominated.insert(pod.uid.clone(), entry);
            }
            None => {
                self.nominated.remove(&pod.uid);
            }
        }
    }

    /// Pods that wait for room on a node and go before `pod`.
    pub fn nominated_before<'a>(
        &'a self,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let all = self.nominated.values();
        all.filter(move |(other, at)| {
            at == node && other.uid != pod.uid && other.priority >= pod.priority
        })
        .map(|(other, _)| other)
    }

    /// True when no pod waits for room that others are making.
    #[must_use]
    pub fn nobody_nominated(&self) -> bool {
        self.nominated.is_empty()
    }

    /// A namespace appeared or changed.
    pub fn set_namespace(&mut self, namespace: &Namespace) {
        let meta = &namespace.metadata;
        let labels = meta.labels.clone().unwrap_or_default();
        self.namespaces
            .insert(meta.name.clone().unwrap_or_default(), labels);
    }

    /// Labels of a pod's namespace.
    #[must_use]
    pub fn namespace(&self, pod: &Pod) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(pod.metadata.namespace.as_deref()?)
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

    fn pod(uid: &str) -> Arc<PodInfo> {
        Arc::new(PodInfo::new(Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": uid, "uid": uid,
                    "ownerReferences": [{"apiVersion": "v1", "kind": "R", "name": "r", "uid": "o", "controller": true}]},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}},
                    "ports": [{"containerPort": 80, "hostPort": 80}]}]},
            }))
            .unwrap(),
        )))
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
