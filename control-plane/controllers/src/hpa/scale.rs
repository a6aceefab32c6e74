//! The scale subresource of whatever is scaled.

use http::Request;
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::Client;
use serde_json::Value;

use super::metrics;

/// Where a resource lies: group, version, plural.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
}

impl Resource {
    /// `deployments.apps`, `pods`.
    pub(super) fn name(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    fn url(&self, namespace: &str, name: &str) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        format!("{root}/namespaces/{namespace}/{}/{name}/scale", self.plural)
    }
}

/// The resource of a kind that every cluster has.
fn known(group: &str, kind: &str) -> Option<&'static str> {
    Some(match (group, kind) {
        ("apps", "Deployment") => "deployments",
        ("apps", "ReplicaSet") => "replicasets",
        ("apps", "StatefulSet") => "statefulsets",
        ("", "ReplicationController") => "replicationcontrollers",
        _ => return None,
    })
}

/// The resource that a reference speaks of; asks the API for kinds of others.
pub(super) async fn resource_of(
    client: &Client,
    reference: &CrossVersionObjectReference,
) -> Result<Resource, String> {
    let api_version = reference.api_version.as_deref().unwrap_or_default();
    let (group, version) = match api_version.split_once('/') {
        Some((_, version)) if version.contains('/') || version.is_empty() => {
            return Err(format!("unexpected GroupVersion string: {api_version}"));
        }
        Some((group, version)) => (group, version),
        None if api_version.is_empty() => ("", "v1"),
        None => ("", api_version),
    };
    let found = |plural: String| Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        plural,
    };
    if let Some(plural) = known(group, &reference.kind) {
        return Ok(found(plural.to_owned()));
    }
    let list: Result<APIResourceList, kube::Error> = if group.is_empty() {
        client.list_core_api_resources(version).await
    } else {
        client
            .list_api_group_resources(&format!("{group}/{version}"))
            .await
    };
    let resources = list.map(|list| list.resources).unwrap_or_default();
    let own = resources
        .into_iter()
        .find(|r| r.kind == reference.kind && !r.name.contains('/'));
    own.map(|r| found(r.name)).ok_or_else(|| {
        format!(
            "no matches for kind {:?} in group {group:?}",
            reference.kind
        )
    })
}

/// Reads the scale of an object.
pub(super) async fn read(
    client: &Client,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> Result<Value, kube::Error> {
    metrics::get(client, &resource.url(namespace, name)).await
}

/// Writes it back with another number; refused when it has changed since.
pub(super) async fn write(
    client: &Client,
    resource: &Resource,
    scale: &Value,
    replicas: i32,
) -> Result<(), kube::Error> {
    let mut scale = scale.clone();
    scale["spec"]["replicas"] = replicas.into();
    let metadata = &scale["metadata"];
    let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
    let url = resource.url(&text("namespace"), &text("name"));
    let request = Request::put(url)
        .header("content-type", "application/json")
        .body(scale.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request::<Value>(request).await.map(|_| ())
}
