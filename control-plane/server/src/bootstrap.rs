//! What the leader makes sure of at its start: the default roles and bindings of RBAC.

use std::time::Duration;

use balsa_apiserver::authz::{Ensure, reconcile};
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const AGAIN: Duration = Duration::from_millis(500);

/// Brings every object to what it should be; objects that an administrator took over are left alone.
/// Tries until it succeeds or `stop`.
pub async fn ensure(client: kube::Client, objects: Vec<Value>, stop: CancellationToken) {
    loop {
        match ensure_all(&client, &objects).await {
            Ok(0) => return,
            Ok(written) => {
                info!(written, "default roles and bindings are in place");
                return;
            }
            Err(error) => {
                warn!(%error, "default roles and bindings could not be written, trying again")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn ensure_all(client: &kube::Client, objects: &[Value]) -> Result<usize, kube::Error> {
    let mut written = 0;
    for object in objects {
        if ensure_one(client, object).await? {
            written += 1;
        }
    }
    Ok(written)
}

async fn ensure_one(client: &kube::Client, wanted: &Value) -> Result<bool, kube::Error> {
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    let api = api(client, wanted, wanted["metadata"]["namespace"].as_str());
    let present = match api.get_opt(name).await? {
        Some(present) => Some(serde_json::to_value(present).map_err(kube::Error::SerdeError)?),
        None => None,
    };
    let written = match reconcile(present.as_ref(), wanted) {
        Ensure::Nothing => return Ok(false),
        Ensure::Create(object) => api.create(&PostParams::default(), &dynamic(object)?).await,
        Ensure::Update(object) => {
            api.replace(name, &PostParams::default(), &dynamic(object)?)
                .await
        }
    };
    match written {
        Ok(_) => Ok(true),
        // Written by another server in the same moment.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn dynamic(object: Value) -> Result<DynamicObject, kube::Error> {
    serde_json::from_value(object).map_err(kube::Error::SerdeError)
}

fn api(client: &kube::Client, object: &Value, namespace: Option<&str>) -> Api<DynamicObject> {
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}
