//! Secrets of type `kubernetes.io/service-account-token`: filled in for the ServiceAccount they name, and removed
//! when it is gone.
//!
//! The token is bound to its Secret: deleting the Secret revokes it.

use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::Shared;
use crate::error::{ApiError, Result, unless_gone};
use crate::informers::TOKEN_SECRET;

const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// These tokens are for those who cannot renew one; 2^32 s is the longest that may be asked for.
const LIFETIME_SECONDS: i64 = 1 << 32;

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let secrets = queue.clone();
    context.informers.token_secrets.on_change(move |delta| {
        if !delta.is_delete() {
            secrets.add(Key::of(&**delta.object()));
        }
    });
    let (this, accounts) = (Arc::clone(&context), queue.clone());
    context.informers.service_accounts.on_change(move |delta| {
        let account = &**delta.object();
        if delta.old().is_some() && !delta.is_delete() {
            return;
        }
        let namespace = account.namespace().unwrap_or_default();
        for secret in this.informers.token_secrets.list_namespace(&namespace) {
            if secret.annotations().get(ACCOUNT_NAME) == account.metadata.name.as_ref() {
                accounts.add(Key::of(&*secret));
            }
        }
    });
    context.informers.token_secrets.synced().await;
    context.informers.service_accounts.synced().await;
    let this = Arc::clone(&context);
    context
        .work("serviceaccount-token", queue, move |key| {
            let this = Arc::clone(&this);
            async move { reconcile(&this, key).await }
        })
        .await;
}

/// What a Secret lacks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lacks {
    token: bool,
    ca: bool,
    namespace: bool,
    uid: bool,
}

impl Lacks {
    fn nothing(&self) -> bool {
        *self == Self::default()
    }
}

fn lacks(secret: &Secret, uid: &str, ca: &str) -> Lacks {
    let data = |key: &str| {
        let found = secret.data.as_ref().and_then(|data| data.get(key));
        found
            .map(|ByteString(bytes)| bytes.as_slice())
            .unwrap_or_default()
    };
    let namespace = secret.namespace().unwrap_or_default();
    Lacks {
        token: data("token").is_empty(),
        ca: !ca.is_empty() && data("ca.crt") != ca.as_bytes(),
        namespace: data("namespace") != namespace.as_bytes(),
        uid: secret.annotations().get(ACCOUNT_UID).map(String::as_str) != Some(uid),
    }
}

async fn reconcile(context: &Shared, key: Key) -> Result<Outcome> {
    let Some(secret) = context
        .informers
        .token_secrets
        .get(&key.namespace, &key.name)
    else {
        return Ok(Outcome::Done);
    };
    if secret.type_.as_deref() != Some(TOKEN_SECRET) || secret.metadata.deletion_timestamp.is_some()
    {
        return Ok(Outcome::Done);
    }
    let Some(name) = secret
        .annotations()
        .get(ACCOUNT_NAME)
        .filter(|name| !name.is_empty())
    else {
        return Ok(Outcome::Done);
    };
    let accounts = context.api::<ServiceAccount>(&key.namespace);
    let wanted_uid = secret
        .annotations()
        .get(ACCOUNT_UID)
        .filter(|uid| !uid.is_empty());
    let cached = context.informers.service_accounts.get(&key.namespace, name);
    let is_meant = |account: &ServiceAccount| {
        wanted_uid.is_none() || wanted_uid == account.metadata.uid.as_ref()
    };
    let account = match cached.filter(|account| is_meant(account)) {
        Some(account) => Some((*account).clone()),
        // The cache may be behind.
        None => accounts.get_opt(name).await?.filter(is_meant),
    };
    let Some(account) = account else {
        return delete(context, &key, &secret).await;
    };
    let uid = account.uid().unwrap_or_default();
    let lacks = lacks(&secret, &uid, &context.config.cluster_ca_pem);
    if lacks.nothing() {
        return Ok(Outcome::Done);
    }
    let mut text = serde_json::Map::new();
    if lacks.token {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: Vec::new(),
                expiration_seconds: Some(LIFETIME_SECONDS),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Secret".into()),
                    name: Some(key.name.clone()),
                    uid: secret.uid(),
                }),
            },
            ..TokenRequest::default()
        };
        let issued = match accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
        {
            Err(error) if error.is_not_found() => return Ok(Outcome::Retry),
            other => other?,
        };
        text.insert(
            "token".into(),
            json!(issued.status.map(|status| status.token)),
        );
    }
    if lacks.ca {
        text.insert("ca.crt".into(), json!(context.config.cluster_ca_pem));
    }
    if lacks.namespace {
        text.insert("namespace".into(), json!(key.namespace));
    }
    let patch = json!({
        "metadata": {
            "uid": secret.uid(),
            "resourceVersion": secret.resource_version(),
            "annotations": {ACCOUNT_UID: uid},
        },
        "stringData": text,
    });
    let api = context.api::<Secret>(&key.namespace);
    let patch = Patch::Merge(&patch);
    unless_gone(api.patch(&key.name, &PatchParams::default(), &patch).await)?;
    Ok(Outcome::Done)
}

async fn delete(context: &Shared, key: &Key, secret: &Secret) -> Result<Outcome> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: secret.uid(),
            resource_version: secret.resource_version(),
        }),
        ..DeleteParams::default()
    };
    unless_gone(
        context
            .api::<Secret>(&key.namespace)
            .delete(&key.name, &params)
            .await,
    )?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_complete_with_token_ca_namespace_and_uid() {
        let mut secret = Secret::default();
        secret.metadata.namespace = Some("shop".into());
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        assert!(lacks(&secret, "u", "ca").token);
        secret.data = Some(
            [
                ("token".to_owned(), bytes("t")),
                ("ca.crt".to_owned(), bytes("ca")),
                ("namespace".to_owned(), bytes("shop")),
            ]
            .into(),
        );
        assert!(lacks(&secret, "u", "ca").uid);
        secret
            .annotations_mut()
            .insert(ACCOUNT_UID.into(), "u".into());
        assert!(lacks(&secret, "u", "ca").nothing());
        assert!(lacks(&secret, "u", "new ca").ca);
    }
}
