//! The part of the API that pod workers use, behind a trait so that they can be tested without a server.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use balsa_client::Informer;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
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
