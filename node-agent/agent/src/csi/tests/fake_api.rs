//! An API in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{bound, object};
use crate::cluster::{ApiError, Bound, Cluster, Token};
use crate::csi::api::Api;
use crate::objects::Sources;
use crate::volumes::payload::TokenWant;

#[derive(Default)]
pub(super) struct FakeApi {
    pub(super) drivers: Mutex<HashMap<String, Arc<CSIDriver>>>,
    pub(super) attachments: Mutex<HashMap<String, VolumeAttachment>>,
    pub(super) csi_node: Mutex<Option<CSINode>>,
    /// The last change of the Node's status.
    pub(super) status: Mutex<Value>,
    /// The last change of a claim's status.
    pub(super) claim_patch: Mutex<Value>,
}

#[async_trait]
impl Api for FakeApi {
    async fn driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, String> {
        Ok(self.drivers.lock().get(name).cloned())
    }

    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, String> {
        Ok(self.attachments.lock().get(name).cloned())
    }

    async fn secret(&self, _: &str, name: &str) -> Result<BTreeMap<String, String>, String> {
        Ok([(name.to_owned(), "s3cret".to_owned())].into())
    }

    async fn patch_claim_status(&self, _: &str, _: &str, patch: &Value) -> Result<(), String> {
        *self.claim_patch.lock() = patch.clone();
        Ok(())
    }

    async fn csi_node(&self) -> Result<Option<CSINode>, String> {
        Ok(self.csi_node.lock().clone())
    }

    async fn write_csi_node(&self, object: &CSINode) -> Result<(), String> {
        *self.csi_node.lock() = Some(object.clone());
        Ok(())
    }

    fn node(&self) -> Option<Arc<Node>> {
        Some(Arc::new(object(
            json!({"metadata": {"name": "n1", "uid": "1"}}),
        )))
    }

    async fn patch_node(&self, _: &Value) -> Result<(), String> {
        Ok(())
    }

    async fn patch_node_status(&self, patch: &Value) -> Result<(), String> {
        *self.status.lock() = patch.clone();
        Ok(())
    }
}

#[async_trait]
impl Cluster for FakeApi {
    async fn patch_status(&self, _: &str, _: &str, _: &Value) -> Result<Pod, ApiError> {
        Err(ApiError::Gone)
    }

    async fn delete(&self, _: &str, _: &str, _: &str) -> Result<(), ApiError> {
        Ok(())
    }

    async fn sources(&self, _: &Pod) -> Result<Sources, String> {
        Ok(Sources::default())
    }

    fn release(&self, _: &str) {}

    async fn service_variables(&self, _: &str, _: bool) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    async fn runtime_handler(&self, class: &str) -> Result<String, String> {
        Ok(class.to_owned())
    }

    async fn claim(&self, _: &str, _: &str) -> Result<Bound, String> {
        Ok(bound())
    }

    async fn create_mirror(&self, _: &Pod) -> Result<(), ApiError> {
        Ok(())
    }

    async fn token(&self, _: &Pod, _: &TokenWant) -> Result<Token, String> {
        Ok(Token {
            text: "token".to_owned(),
            expires: jiff::Timestamp::MAX,
        })
    }
}
