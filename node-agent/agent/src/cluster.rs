//! The part of the API that pod workers use, behind a trait so that they can be tested without a server.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use balsa_client::Informer;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::Value;

use crate::objects::{Objects, Sources};
use crate::pods::env;
use crate::volumes::payload::TokenWant;

/// Time allowed to a call.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    /// The pod, or this pod of that name, is no more.
    #[error("the pod is gone")]
    Gone,
    /// Anything else; again later.
    #[error("{0}")]
    Other(String),
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if matches!(status.code, 404 | 409) => Self::Gone,
            kube::Error::Api(status) => Self::Other(status.message),
            other => Self::Other(other.to_string()),
        }
    }
}

/// A token with its life.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) expires: jiff::Timestamp,
}

/// A claim with the volume that it is bound to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bound {
    pub(crate) claim: PersistentVolumeClaim,
    pub(crate) volume: PersistentVolume,
}

/// What pod workers need of the API.
#[async_trait]
pub(crate) trait Cluster: Send + Sync + 'static {
    /// Patches a pod's status (strategic merge).
    async fn patch_status(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Pod, ApiError>;
    /// Removes a pod whose containers are gone.
    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ApiError>;
    /// ConfigMaps and Secrets that a pod refers to, followed until released.
    async fn sources(&self, pod: &Pod) -> Result<Sources, String>;
    /// The pod needs them no longer.
    fn release(&self, uid: &str);
    /// Environment variables about Services.
    async fn service_variables(&self, namespace: &str, links: bool) -> BTreeMap<String, String>;
    /// The runtime's handler that a RuntimeClass names; the error is for people.
    async fn runtime_handler(&self, class: &str) -> Result<String, String>;
    /// A claim with the volume that it is bound to; the error is for people.
    async fn claim(&self, namespace: &str, name: &str) -> Result<Bound, String>;
    /// Runs a pod's mirror: makes the object that shows a static pod to the API's users.
    async fn create_mirror(&self, pod: &Pod) -> Result<(), ApiError>;
    /// A token of the pod's service account, bound to the pod.
    async fn token(&self, pod: &Pod, want: &TokenWant) -> Result<Token, String>;
}

/// The real one.
pub(crate) struct KubeCluster {
    pub(crate) client: kube::Client,
    pub(crate) objects: Objects,
    pub(crate) services: Informer<Service>,
}

async fn within<T>(future: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ApiError> {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(result) => result.map_err(ApiError::from),
        Err(_) => Err(ApiError::Other(format!(
            "the API server did not answer within {DEADLINE:?}"
        ))),
    }
}

#[async_trait]
impl Cluster for KubeCluster {
    async fn patch_status(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Pod, ApiError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        within(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))).await
    }

    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ApiError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let preconditions = Preconditions {
            resource_version: None,
            uid: Some(uid.to_owned()),
        };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        within(api.delete(name, &params)).await.map(|_| ())
    }

    async fn sources(&self, pod: &Pod) -> Result<Sources, String> {
        self.objects.sources(pod).await
    }

    fn release(&self, uid: &str) {
        self.objects.release(uid);
    }

    async fn service_variables(&self, namespace: &str, links: bool) -> BTreeMap<String, String> {
        if tokio::time::timeout(DEADLINE, self.services.synced())
            .await
            .is_err()
        {
            tracing::warn!(
                "Services are not known yet: a container starts without their variables"
            );
        }
        let mut services = if links {
            self.services.list_namespace(namespace)
        } else {
            Vec::new()
        };
        services.extend(self.services.get("default", "kubernetes"));
        env::service_variables(services.iter().map(|service| &**service), namespace, links)
    }

    async fn runtime_handler(&self, class: &str) -> Result<String, String> {
        let api: Api<RuntimeClass> = Api::all(self.client.clone());
        match within(api.get_opt(class)).await {
            Ok(Some(found)) => Ok(found.handler),
            Ok(None) => Err(format!(
                "failed to get sandbox runtime: RuntimeClass \"{class}\" not found"
            )),
            Err(error) => Err(format!("failed to get sandbox runtime: {error}")),
        }
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Bound, String> {
        let wrong = |why: String| format!("error processing PVC {namespace}/{name}: {why}");
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let claim = within(claims.get(name)).await;
        let claim = claim
            .map_err(|error| wrong(format!("failed to fetch PVC from API server: {error}")))?;
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let volume = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.clone());
        let Some(volume) = volume.filter(|_| phase == Some("Bound")) else {
            return Err(wrong("PVC is not bound".to_owned()));
        };
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let volume = within(volumes.get(&volume)).await;
        let volume = volume
            .map_err(|error| wrong(format!("failed to fetch PV from API server: {error}")))?;
        let reference = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        if reference.and_then(|claim| claim.uid.as_ref()) != claim.metadata.uid.as_ref() {
            return Err(wrong("PV is bound to another claim".to_owned()));
        }
        Ok(Bound { claim, volume })
    }

    async fn create_mirror(&self, pod: &Pod) -> Result<(), ApiError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        within(api.create(&PostParams::default(), pod))
            .await
            .map(|_| ())
    }

    async fn token(&self, pod: &Pod, want: &TokenWant) -> Result<Token, String> {
        let metadata = &pod.metadata;
        let account = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.as_deref())
            .unwrap_or("default");
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: Some(want.audience.clone())
                    .filter(|audience| !audience.is_empty())
                    .into_iter()
                    .collect(),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: metadata.name.clone(),
                    uid: metadata.uid.clone(),
                }),
                expiration_seconds: Some(want.seconds),
            },
            ..TokenRequest::default()
        };
        let answer =
            within(api.create_token_request(account, &PostParams::default(), &request)).await;
        let answer = answer.map_err(|error| format!("failed to fetch token: {error}"))?;
        let status = answer
            .status
            .ok_or("failed to fetch token: the answer has none")?;
        Ok(Token {
            text: status.token,
            expires: status.expiration_timestamp.0,
        })
    }
}
