//! NodeRestriction: a node agent writes only its own node, its own lease and the pods bound to it.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::Status;
use serde_json::{Map, Value};

use super::refuse;
use crate::authz::node_of;
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels under kubernetes.io and k8s.io that a node may set on itself.
const OWN_LABELS: [&str; 13] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
];
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io/", "node.kubernetes.io/"];

/// See the module.
pub struct NodeRestriction {
    reader: Arc<dyn ObjectReader>,
}

impl NodeRestriction {
    /// Over the pods of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    fn check(&self, request: &AdmissionRequest<'_>, node: &str) -> Result<(), String> {
        match (
            &*request.kind.group,
            &*request.kind.plural,
            request.subresource,
        ) {
            ("", "pods", "") => self.pod(request, node),
            ("", "pods", "status") => {
                if request.operation != Operation::Update {
                    return Err(format!(
                        "unexpected operation on the status of a pod by node {node:?}"
                    ));
                }
                let bound = request
                    .old
                    .is_some_and(|pod| pod["spec"]["nodeName"] == node);
                ok_or(bound, || {
                    format!(
                        "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                    )
                })
            }
            ("", "pods", "eviction") => ok_or(self.is_bound(request, node), || {
                format!("node {node:?} can only evict pods with spec.nodeName set to itself")
            }),
            ("", "pods", other) => Err(format!("unexpected pod subresource {other:?}")),
            ("", "nodes", _) => node_write(request, node),
            ("coordination.k8s.io", "leases", _) => lease(request, node),
            ("storage.k8s.io", "csinodes", _) => own_drivers(request, node),
            _ => Ok(()),
        }
    }

    fn is_bound(&self, request: &AdmissionRequest<'_>, node: &str) -> bool {
        let pod = self.reader.get("", "pods", request.namespace, request.name);
        pod.is_some_and(|pod| pod["spec"]["nodeName"] == node)
    }

    fn pod(&self, request: &AdmissionRequest<'_>, node: &str) -> Result<(), String> {
        match request.operation {
            Operation::Create => {
                let Some(pod) = request.object.as_deref() else {
                    return Ok(());
                };
                if pod["metadata"]["annotations"].get(MIRROR).is_none() {
                    return Err(format!(
                        "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
                    ));
                }
                ok_or(pod["spec"]["nodeName"] == node, || {
                    format!("node {node:?} can only create pods with spec.nodeName set to itself")
                })
            }
            Operation::Delete => {
                let bound = match request.old {
                    Some(pod) => pod["spec"]["nodeName"] == node,
                    None => self.is_bound(request, node),
                };
                ok_or(bound, || {
                    format!("node {node:?} can only delete pods with spec.nodeName set to itself")
                })
            }
            _ => Err(format!(
                "node {node:?} cannot update pods, only their status"
            )),
        }
    }
}

fn ok_or(condition: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why()) }
}

fn node_write(request: &AdmissionRequest<'_>, node: &str) -> Result<(), String> {
    let object = request.object.as_deref();
    let own_name = object.and_then(|o| o["metadata"]["name"].as_str());
    let name = if request.name.is_empty() {
        own_name.unwrap_or_default()
    } else {
        request.name
    };
    if name != node {
        return Err(format!(
            "node {node:?} is not allowed to modify node {name:?}"
        ));
    }
    let Some(object) = object else { return Ok(()) };
    if let Some(old) = request.old {
        // A status update carries the stored spec.
        if request.subresource.is_empty() && object["spec"]["taints"] != old["spec"]["taints"] {
            return Err(format!("node {node:?} is not allowed to modify taints"));
        }
    }
    let changed = forbidden_labels(object, request.old);
    if changed.is_empty() {
        return Ok(());
    }
    let verb = if request.old.is_some() {
        "modify"
    } else {
        "set the following"
    };
    let separator = if request.old.is_some() { ":" } else { "" };
    Err(format!(
        "is not allowed to {verb} labels{separator} {}",
        changed.join(", ")
    ))
}

/// Labels that changed and that only an administrator may change, sorted.
fn forbidden_labels(object: &Value, old: Option<&Value>) -> Vec<String> {
    let empty = Map::new();
    let labels = |o: Option<&Value>| -> Map<String, Value> {
        o.and_then(|o| o["metadata"]["labels"].as_object())
            .unwrap_or(&empty)
            .clone()
    };
    let (new, old) = (labels(Some(object)), labels(old));
    let mut changed: Vec<String> = new
        .keys()
        .chain(old.keys())
        .filter(|key| new.get(*key) != old.get(*key) && !may_set(key))
        .cloned()
        .collect();
    changed.sort();
    changed.dedup();
    changed
}

fn may_set(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else {
        return true;
    };
    let within = |parent: &str| {
        domain == parent
            || domain
                .strip_suffix(parent)
                .is_some_and(|d| d.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    OWN_LABELS.contains(&label) || OWN_PREFIXES.iter().any(|p| label.starts_with(p))
}

fn own_drivers(request: &AdmissionRequest<'_>, node: &str) -> Result<(), String> {
    let object = request.object.as_deref();
    let own_name = object.and_then(|o| o["metadata"]["name"].as_str());
    ok_or(own_name.unwrap_or(request.name) == node, || {
        "can only access CSINode with the same name as the requesting node".into()
    })
}

fn lease(request: &AdmissionRequest<'_>, node: &str) -> Result<(), String> {
    if request.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    let own_name = request
        .object
        .as_deref()
        .and_then(|o| o["metadata"]["name"].as_str());
    let name = own_name.unwrap_or(request.name);
    ok_or(name == node, || {
        "can only access node lease with the same name as the requesting node".into()
    })
}

#[async_trait]
impl Admission for NodeRestriction {
    async fn mutate(&self, _request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(node) = node_of(request.user) else {
            return Ok(());
        };
        self.check(request, node)
            .map_err(|why| refuse(request, &why))
    }
}
