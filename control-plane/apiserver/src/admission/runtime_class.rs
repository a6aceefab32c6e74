//! RuntimeClass: a pod's class must exist, and gives the pod its overhead and the nodes that know the handler.
//!
//! Rules: upstream `plugin/pkg/admission/runtimeclass`, KEP-688.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::kinds::amounts::amounts;
use balsa_api::kinds::walk::Walk;
use balsa_api::status::Status;
use serde_json::{Map, Value};

use super::{is, patiently, refuse};
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

/// See the module.
pub struct RuntimeClass {
    reader: Arc<dyn ObjectReader>,
}

impl RuntimeClass {
    /// Over the classes of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    async fn class(&self, pod: &Value) -> Result<Option<Arc<Value>>, String> {
        let name = pod["spec"]["runtimeClassName"].text();
        if name.is_empty() {
            return Ok(None);
        }
        patiently(|| self.reader.get("node.k8s.io", "runtimeclasses", "", name))
            .await
            .map(Some)
            .ok_or_else(|| format!("pod rejected: RuntimeClass {name:?} not found"))
    }
}

#[async_trait]
impl Admission for RuntimeClass {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if request.operation != Operation::Create || !is(request, "", "pods") {
            return Ok(());
        }
        let Some(pod) = request.object.as_deref_mut() else {
            return Ok(());
        };
        let outcome = match self.class(pod).await {
            Ok(Some(class)) => apply(pod, &class),
            Ok(None) => Ok(()),
            Err(why) => Err(why),
        };
        outcome.map_err(|why| refuse(request, &why))
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        if request.operation != Operation::Create || !is(request, "", "pods") {
            return Ok(());
        }
        let Some(pod) = request.object.as_deref() else {
            return Ok(());
        };
        let class = self.class(pod).await.map_err(|why| refuse(request, &why))?;
        let given = amounts(&pod["spec"]["overhead"]);
        let defined = class.map(|c| amounts(&c["overhead"]["podFixed"]));
        let why = match defined {
            Some(defined) if defined == given => return Ok(()),
            None if given.is_empty() => return Ok(()),
            Some(_) => "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            None => {
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
            }
        };
        Err(refuse(request, why))
    }
}

fn apply(pod: &mut Value, class: &Value) -> Result<(), String> {
    let overhead = &class["overhead"]["podFixed"];
    if !overhead.is_empty() {
        let given = &pod["spec"]["overhead"];
        if !given.is_empty() && amounts(given) != amounts(overhead) {
            return Err(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into(),
            );
        }
        pod["spec"]["overhead"] = overhead.clone();
    }
    let scheduling = &class["scheduling"];
    if !scheduling["nodeSelector"].is_empty() {
        let mut selector: Map<String, Value> = pod["spec"]["nodeSelector"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        for (key, value) in scheduling["nodeSelector"].entries() {
            match selector.get(key) {
                Some(present) if present != value => {
                    return Err(format!(
                        "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                        value.text(),
                        present.text()
                    ));
                }
                _ => selector.insert(key.clone(), value.clone()),
            };
        }
        pod["spec"]["nodeSelector"] = selector.into();
    }
    if !scheduling["tolerations"].is_empty() {
        let mut all = pod["spec"]["tolerations"].items().to_vec();
        for toleration in scheduling["tolerations"].items() {
            if !all.contains(toleration) {
                all.push(toleration.clone());
            }
        }
        pod["spec"]["tolerations"] = all.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_class_gives_overhead_nodes_and_tolerations() {
        let class = json!({"overhead": {"podFixed": {"cpu": "250m"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm"}]}});
        let mut pod =
            json!({"spec": {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "a"}]}});
        assert_eq!(apply(&mut pod, &class), Ok(()));
        assert_eq!(
            pod["spec"],
            json!({"overhead": {"cpu": "250m"}, "nodeSelector": {"disk": "ssd", "vm": "yes"},
                "tolerations": [{"key": "a"}, {"key": "vm"}]})
        );
        let mut other = json!({"spec": {"nodeSelector": {"vm": "no"}}});
        assert!(apply(&mut other, &class).is_err_and(|why| why.starts_with("conflict: ")));
        let mut other = json!({"spec": {"overhead": {"cpu": "1"}}});
        assert!(apply(&mut other, &class).is_err());
    }
}
