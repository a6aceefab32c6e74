//! The part of the API that volumes of drivers need, behind a trait so that they can be tested without a server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use balsa_client::Informer;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::Value;

/// Time allowed to a call.
const DEADLINE: Duration = Duration::from_secs(15);

/// What volumes of drivers need of the API. Errors are for people.
#[async_trait]
pub(crate) trait Api: Send + Sync + 'static {
    /// How a driver wants to be treated, if it says so.
    async fn driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, String>;
    /// A VolumeAttachment, if there is one.
    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, String>;
    /// What a Secret holds; all of it must be text.
    async fn secret(&self, namespace: &str, name: &str)
    -> Result<BTreeMap<String, String>, String>;
    /// Changes a claim's status (merge patch).
    async fn patch_claim_status(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), String>;
    /// This node's CSINode, if there is one.
    async fn csi_node(&self) -> Result<Option<CSINode>, String>;
    /// Makes the CSINode, or replaces the version that it was read as.
    async fn write_csi_node(&self, object: &CSINode) -> Result<(), String>;
    /// This node as last seen.
    fn node(&self) -> Option<Arc<Node>>;
    /// Changes the Node's metadata (merge patch).
    async fn patch_node(&self, patch: &Value) -> Result<(), String>;
    /// Changes the Node's status (merge patch).
    async fn patch_node_status(&self, patch: &Value) -> Result<(), String>;
}

/// The real one.
pub(crate) struct KubeApi {
    pub(crate) client: kube::Client,
    pub(crate) node_name: String,
    pub(crate) nodes: Informer<Node>,
    pub(crate) drivers: Informer<CSIDriver>,
}

async fn within<T>(call: impl Future<Output = Result<T, kube::Error>> + Send) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(status.message),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the API server did not answer within {DEADLINE:?}")),
    }
}

#[async_trait]
impl Api for KubeApi {
    async fn driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, String> {
        // Not knowing it is no reason to treat it in the usual way.
        let synced = tokio::time::timeout(DEADLINE, self.drivers.synced()).await;
        synced.map_err(|_| "timed out waiting for the list of CSIDrivers".to_owned())?;
        Ok(self.drivers.get("", name))
    }

    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, String> {
        let api: kube::Api<VolumeAttachment> = kube::Api::all(self.client.clone());
        within(api.get_opt(name)).await
    }

    async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<BTreeMap<String, String>, String> {
        let api: kube::Api<Secret> = kube::Api::namespaced(self.client.clone(), namespace);
        let secret = within(api.get(name)).await;
        let secret =
            secret.map_err(|error| format!("failed to get secret {namespace}/{name}: {error}"))?;
        let entries = secret.data.unwrap_or_default().into_iter();
        entries
            .map(|(key, value)| match String::from_utf8(value.0) {
                Ok(value) => Ok((key, value)),
                Err(_) => Err(format!(
                    "secret {namespace}/{name}: the value of {key:?} is not text"
                )),
            })
            .collect()
    }

    async fn patch_claim_status(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), String> {
        let api: kube::Api<PersistentVolumeClaim> =
            kube::Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(patch);
        within(api.patch_status(name, &PatchParams::default(), &patch)).await?;
        Ok(())
    }

    async fn csi_node(&self) -> Result<Option<CSINode>, String> {
        let api: kube::Api<CSINode> = kube::Api::all(self.client.clone());
        within(api.get_opt(&self.node_name)).await
    }

    async fn write_csi_node(&self, object: &CSINode) -> Result<(), String> {
        let api: kube::Api<CSINode> = kube::Api::all(self.client.clone());
        let params = PostParams::default();
        if object.metadata.resource_version.is_none() {
            within(api.create(&params, object)).await?;
        } else {
            within(api.replace(&self.node_name, &params, object)).await?;
        }
        Ok(())
    }

    fn node(&self) -> Option<Arc<Node>> {
        self.nodes.get("", &self.node_name)
    }

    async fn patch_node(&self, patch: &Value) -> Result<(), String> {
        let api: kube::Api<Node> = kube::Api::all(self.client.clone());
        let patch = Patch::Merge(patch);
        within(api.patch(&self.node_name, &PatchParams::default(), &patch)).await?;
        Ok(())
    }

    async fn patch_node_status(&self, patch: &Value) -> Result<(), String> {
        let api: kube::Api<Node> = kube::Api::all(self.client.clone());
        let patch = Patch::Merge(patch);
        within(api.patch_status(&self.node_name, &PatchParams::default(), &patch)).await?;
        Ok(())
    }
}
