//! The node authorizer: what a node agent may do, narrowed to its own node and to what its pods refer to.
//!
//! Of pods an agent sees its own only (KEP-4601); nodes it sees all, because it keeps the way to each of them.
//!
//! A pod's references are looked up in the watch cache at the time of the request.

use std::sync::Arc;

use serde_json::Value;

use super::rules::Rule;
use crate::seam::{Attributes, Decision, ObjectReader, User};

/// The node a user is the agent of.
#[must_use]
pub fn node_of(user: &User) -> Option<&str> {
    if !user.groups.iter().any(|g| g == balsa_identity::GROUP_NODES) {
        return None;
    }
    user.name
        .strip_prefix(balsa_identity::NODE_USER_PREFIX)
        .filter(|n| !n.is_empty())
}

/// Decides requests of node agents.
pub struct NodeAuthorizer {
    reader: Arc<dyn ObjectReader>,
    rules: Vec<Rule>,
}

impl NodeAuthorizer {
    /// Over the objects of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self {
            reader,
            rules: super::bootstrap::node_rules(),
        }
    }

    /// Decides a request; no opinion on users that are no node agents.
    #[must_use]
    pub fn decide(&self, request: &Attributes) -> Decision {
        let Some(node) = node_of(&request.user) else {
            return Decision::NoOpinion(String::new());
        };
        let read = matches!(request.verb.as_str(), "get" | "list" | "watch");
        let outcome = match (request.group.as_str(), request.resource.as_str()) {
            // The agent tells when a claim's volume has grown.
            ("", "persistentvolumeclaims") if request.subresource == "status" => {
                let verb = matches!(request.verb.as_str(), "get" | "patch" | "update");
                self.referenced(request, node, verb)
            }
            ("", "secrets") if read && self.is_for_volume(request, node) => Ok(()),
            ("storage.k8s.io", "csinodes") => own_drivers(request, node),
            ("", "secrets" | "configmaps" | "persistentvolumeclaims") => {
                self.referenced(request, node, read && request.subresource.is_empty())
            }
            ("", "serviceaccounts") => {
                let verb = match request.subresource.as_str() {
                    "" => request.verb == "get",
                    "token" => request.verb == "create",
                    _ => false,
                };
                self.referenced(request, node, verb)
            }
            ("", "pods") if read && request.subresource.is_empty() => self.own_pods(request, node),
            ("", "persistentvolumes") if request.verb == "get" => self.bound_volume(request, node),
            ("coordination.k8s.io", "leases") => own_lease(request, node),
            _ if self.rules.iter().any(|rule| rule.allows(request)) => Ok(()),
            _ => Err(String::new()),
        };
        match outcome {
            Ok(()) => Decision::Allow(String::new()),
            Err(why) => Decision::NoOpinion(why),
        }
    }

    /// Allowed for a pod on the node, and for lists and watches that ask for nothing but the node's.
    fn own_pods(&self, request: &Attributes, node: &str) -> Result<(), String> {
        if request.verb != "get" {
            return if request.fields.required("spec.nodeName") == Some(node) {
                Ok(())
            } else {
                Err("can only list/watch pods with spec.nodeName field selector".into())
            };
        }
        let (namespace, name) = (&request.namespace, &request.name);
        match self.reader.get("", "pods", namespace, name) {
            Some(pod) if pod["spec"]["nodeName"] == node => Ok(()),
            _ => Err(format!(
                "no relationship found between node '{node}' and this object"
            )),
        }
    }

    /// Allowed when a pod on the node refers to the claim that the volume is bound to.
    fn bound_volume(&self, request: &Attributes, node: &str) -> Result<(), String> {
        let volume = self.reader.get("", "persistentvolumes", "", &request.name);
        let claim = volume.map(|volume| volume["spec"]["claimRef"].clone());
        let claim = claim.unwrap_or_default();
        let text = |key: &str| claim[key].as_str().unwrap_or_default().to_owned();
        let claim = Attributes {
            resource: "persistentvolumeclaims".to_owned(),
            namespace: text("namespace"),
            name: text("name"),
            ..request.clone()
        };
        self.referenced(&claim, node, true)
    }

    /// Whether a volume names the secret for its driver on nodes, and a pod on the node refers to its claim.
    fn is_for_volume(&self, request: &Attributes, node: &str) -> bool {
        if request.name.is_empty() || !request.subresource.is_empty() {
            return false;
        }
        let volumes = self.reader.list("", "persistentvolumes", None);
        let mut naming = volumes.iter().filter(|volume| {
            let references = [
                "nodePublishSecretRef",
                "nodeStageSecretRef",
                "nodeExpandSecretRef",
            ];
            references.iter().any(|key| {
                let secret = &volume["spec"]["csi"][*key];
                secret["name"] == *request.name && secret["namespace"] == *request.namespace
            })
        });
        naming.any(|volume| {
            let volume = Attributes {
                resource: "persistentvolumes".to_owned(),
                name: volume["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                ..request.clone()
            };
            self.bound_volume(&volume, node).is_ok()
        })
    }

    /// Allowed when a pod on the node refers to the object.
    fn referenced(
        &self,
        request: &Attributes,
        node: &str,
        verb_allowed: bool,
    ) -> Result<(), String> {
        if !verb_allowed {
            return Err(format!(
                "can only read resources of this type, not {}",
                request.verb
            ));
        }
        if request.name.is_empty() || request.namespace.is_empty() {
            return Err("can only read namespaced object of this type by name".into());
        }
        let found = self
            .reader
            .list("", "pods", Some(&request.namespace))
            .iter()
            .any(|pod| {
                pod["spec"]["nodeName"] == node && refers_to(pod, &request.resource, &request.name)
            });
        if found {
            return Ok(());
        }
        Err(format!(
            "no relationship found between node '{node}' and this object"
        ))
    }
}

/// A node's agent keeps the list of the drivers on its own node.
fn own_drivers(request: &Attributes, node: &str) -> Result<(), String> {
    match request.verb.as_str() {
        // The name of a new object may be unknown here; admission (NodeRestriction) checks it.
        "create" => Ok(()),
        "get" | "update" | "patch" | "delete" if request.name == node => Ok(()),
        "get" | "update" | "patch" | "delete" => {
            Err("can only access CSINode with the same name as the requesting node".into())
        }
        _ => Err("can only get, create, update, patch, or delete a CSINode".into()),
    }
}

fn own_lease(request: &Attributes, node: &str) -> Result<(), String> {
    if request.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    match request.verb.as_str() {
        // The name of a new object may be unknown here; admission (NodeRestriction) checks it.
        "create" => Ok(()),
        "get" | "update" | "patch" | "delete" if request.name == node => Ok(()),
        "get" | "update" | "patch" | "delete" => {
            Err("can only access node lease with the same name as the requesting node".into())
        }
        _ => Err("can only get, create, update, patch, or delete a node lease".into()),
    }
}

/// Whether a pod refers to a secret, configmap, claim or service account of its namespace.
#[must_use]
pub fn refers_to(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    match resource {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "persistentvolumeclaims" => items(&spec["volumes"])
            .any(|v| v["persistentVolumeClaim"]["claimName"] == name || is_ephemeral(pod, v, name)),
        "secrets" => {
            items(&spec["imagePullSecrets"]).any(|s| s["name"] == name)
                || items(&spec["volumes"]).any(|v| volume_secret(v, name))
                || uses_in_environment(spec, "secretKeyRef", "secretRef", name)
        }
        "configmaps" => {
            items(&spec["volumes"]).any(|v| {
                v["configMap"]["name"] == name
                    || items(&v["projected"]["sources"]).any(|s| s["configMap"]["name"] == name)
            }) || uses_in_environment(spec, "configMapKeyRef", "configMapRef", name)
        }
        _ => false,
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn is_ephemeral(pod: &Value, volume: &Value, claim: &str) -> bool {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    volume.get("ephemeral").is_some()
        && claim
            == format!(
                "{}-{}",
                text(&pod["metadata"]["name"]),
                text(&volume["name"])
            )
}

fn volume_secret(volume: &Value, name: &str) -> bool {
    volume["secret"]["secretName"] == name
        || items(&volume["projected"]["sources"]).any(|s| s["secret"]["name"] == name)
        || volume["csi"]["nodePublishSecretRef"]["name"] == name
        || [
            "cephfs",
            "flexVolume",
            "iscsi",
            "rbd",
            "scaleIO",
            "storageos",
        ]
        .iter()
        .any(|kind| volume[*kind]["secretRef"]["name"] == name)
        || volume["azureFile"]["secretName"] == name
}

fn uses_in_environment(spec: &Value, key_reference: &str, whole: &str, name: &str) -> bool {
    ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| items(&spec[*list]))
        .any(|container| {
            items(&container["env"]).any(|e| e["valueFrom"][key_reference]["name"] == name)
                || items(&container["envFrom"]).any(|e| e[whole]["name"] == name)
        })
}
