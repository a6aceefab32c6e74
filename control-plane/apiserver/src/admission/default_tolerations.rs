//! DefaultTolerationSeconds: for how long a pod stays on a node that is not ready or cannot be reached.

use async_trait::async_trait;
use balsa_api::status::Status;
use serde_json::{Value, json};

use super::{AdmissionConfig, is};
use crate::seam::{Admission, AdmissionRequest, Operation};

/// See the module.
pub struct DefaultTolerationSeconds {
    defaults: [(&'static str, i64); 2],
}

impl DefaultTolerationSeconds {
    /// With the configured seconds.
    #[must_use]
    pub fn new(config: &AdmissionConfig) -> Self {
        Self {
            defaults: [
                (
                    "node.kubernetes.io/not-ready",
                    config.not_ready_toleration_seconds,
                ),
                (
                    "node.kubernetes.io/unreachable",
                    config.unreachable_toleration_seconds,
                ),
            ],
        }
    }
}

/// Whether a toleration says something about a NoExecute taint with this key.
fn tolerates(toleration: &Value, taint: &str) -> bool {
    let empty_or = |field: &str, wanted: &str| {
        toleration[field]
            .as_str()
            .is_none_or(|value| value.is_empty() || value == wanted)
    };
    empty_or("key", taint) && empty_or("effect", "NoExecute")
}

#[async_trait]
impl Admission for DefaultTolerationSeconds {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || !is(request, "", "pods") {
            return Ok(());
        }
        let Some(pod) = request.object.as_deref_mut() else {
            return Ok(());
        };
        let mut tolerations = pod["spec"]["tolerations"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let given = tolerations.clone();
        for (taint, seconds) in self.defaults {
            if !given.iter().any(|t| tolerates(t, taint)) {
                tolerations.push(json!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
                }));
            }
        }
        if tolerations.len() > given.len() {
            pod["spec"]["tolerations"] = Value::Array(tolerations);
        }
        Ok(())
    }

    async fn validate(&self, _request: &AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}
