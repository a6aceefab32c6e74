//! ServiceAccount: every pod runs as one, and its token, the cluster's CA certificate and the namespace are
//! mounted into its containers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use balsa_api::status::Status;
use rand::Rng as _;
use serde_json::{Value, json};

use super::{is, refuse};
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

/// Where clients in pods look for their credentials.
pub const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds; an hour and a little, which is how the token's issuer knows tokens of this origin.
pub const TOKEN_SECONDS: i64 = 3607;
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The default account of a new namespace comes a moment after the namespace; it is waited for.
const WAIT: Duration = Duration::from_millis(100);
const ATTEMPTS: usize = 10;

/// See the module.
pub struct ServiceAccount {
    reader: Arc<dyn ObjectReader>,
}

impl ServiceAccount {
    /// Over the accounts of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    async fn account(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let look = || self.reader.get("", "serviceaccounts", namespace, name);
        let attempts = if name == "default" { ATTEMPTS } else { 2 };
        for _ in 1..attempts {
            if let Some(found) = look() {
                return Some(found);
            }
            tokio::time::sleep(WAIT).await;
        }
        look()
    }
}

#[async_trait]
impl Admission for ServiceAccount {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if request.operation != Operation::Create || !is(request, "", "pods") {
            return Ok(());
        }
        let name = match request.object.as_deref_mut() {
            Some(pod) if pod["metadata"]["annotations"].get(MIRROR).is_some() => {
                return refuse_mirror(request);
            }
            Some(pod) => account_name(pod),
            None => return Ok(()),
        };
        let Some(account) = self.account(request.namespace, &name).await else {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                request.namespace
            );
            return Err(refuse(request, &why));
        };
        if let Some(pod) = request.object.as_deref_mut() {
            let spec = &mut pod["spec"];
            if should_mount(spec, &account) {
                mount_token(spec, &random_suffix());
            }
            if spec["imagePullSecrets"]
                .as_array()
                .is_none_or(Vec::is_empty)
                && let Some(secrets) = account["imagePullSecrets"]
                    .as_array()
                    .filter(|s| !s.is_empty())
            {
                spec["imagePullSecrets"] = Value::Array(secrets.clone());
            }
        }
        Ok(())
    }

    async fn validate(&self, _request: &AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}

/// A node's own pods have no account, so they may not name one.
fn refuse_mirror(request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let names_one = request.object.as_ref().is_some_and(|pod| {
        pod["spec"]["serviceAccountName"]
            .as_str()
            .is_some_and(|n| !n.is_empty())
    });
    if names_one {
        return Err(refuse(
            request,
            "a mirror pod may not reference service accounts",
        ));
    }
    Ok(())
}

/// The pod's account, `default` when it names none, written back with its old alias.
fn account_name(pod: &mut Value) -> String {
    let spec = &mut pod["spec"];
    let given = |field: &str| {
        spec[field]
            .as_str()
            .filter(|n| !n.is_empty())
            .map(str::to_owned)
    };
    let name = given("serviceAccountName")
        .or_else(|| given("serviceAccount"))
        .unwrap_or_else(|| "default".to_owned());
    spec["serviceAccountName"] = name.clone().into();
    spec["serviceAccount"] = name.clone().into();
    name
}

fn should_mount(spec: &Value, account: &Value) -> bool {
    let field = |v: &Value| v["automountServiceAccountToken"].as_bool();
    field(spec).or_else(|| field(account)).unwrap_or(true)
}

fn random_suffix() -> String {
    // The letters of generated names: no vowels, so that no words come out.
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5)
        .map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]))
        .collect()
}

/// Adds the volume, and its mount to every container that has nothing mounted there.
fn mount_token(spec: &mut Value, suffix: &str) {
    let existing = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|volume| {
            let name = volume["name"].as_str()?;
            (name.starts_with(VOLUME_PREFIX) && !volume["projected"].is_null())
                .then(|| name.to_owned())
        });
    let is_new = existing.is_none();
    let name = existing.unwrap_or_else(|| format!("{VOLUME_PREFIX}{suffix}"));
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            let mounted = |m: &Value| m["mountPath"] == MOUNT_PATH;
            if container["volumeMounts"]
                .as_array()
                .is_some_and(|all| all.iter().any(mounted))
            {
                continue;
            }
            push(
                container,
                "volumeMounts",
                json!({"name": name, "mountPath": MOUNT_PATH, "readOnly": true}),
            );
            needed = true;
        }
    }
    if needed && is_new {
        push(spec, "volumes", token_volume(&name));
    }
}

fn push(parent: &mut Value, field: &str, item: Value) {
    match parent[field].as_array_mut() {
        Some(list) => list.push(item),
        None => parent[field] = Value::Array(vec![item]),
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                }},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    })
}
