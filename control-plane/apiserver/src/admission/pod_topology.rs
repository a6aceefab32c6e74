//! PodTopologyLabels: a pod carries the zone and region of its node from the moment it is bound, so that it can read
//! them through the downward API (KEP-4742).

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use balsa_api::status::Status;

use super::is;
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

const LABELS: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

/// See the module.
pub struct PodTopologyLabels {
    reader: Arc<dyn ObjectReader>,
}

impl PodTopologyLabels {
    /// Over the nodes of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }
}

#[async_trait]
impl Admission for PodTopologyLabels {
    /// Labels the Binding, from which the pod takes them over; a pod that is made for a node at once.
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let bound = request.kind.group.is_empty()
            && request.kind.plural == "pods"
            && request.subresource == "binding";
        let made = is(request, "", "pods");
        if request.operation != Operation::Create || !(bound || made) {
            return Ok(());
        }
        let Some(object) = request.object.as_deref_mut() else {
            return Ok(());
        };
        let node = if bound {
            object["target"]["name"].text()
        } else {
            object["spec"]["nodeName"].text()
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(node) = self.reader.get("", "nodes", "", node) else {
            return Ok(());
        };
        for key in LABELS {
            if let Some(value) = object::label(&node, key) {
                object::set_label(object, key, value);
            }
        }
        Ok(())
    }

    async fn validate(&self, _request: &AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}
