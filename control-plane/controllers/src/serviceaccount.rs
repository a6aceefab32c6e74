//! Each namespace has a ServiceAccount `default`.

use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::ResourceExt;
use kube::api::{ObjectMeta, PostParams};

use crate::context::Shared;
use crate::error::{ApiError, Result, namespace_terminating};

const NAME: &str = "default";

pub(crate) async fn run(context: Shared) {
    let queue = WorkQueue::default();
    let namespaces = queue.clone();
    context.informers.namespaces.on_change(move |delta| {
        if !delta.is_delete() && is_open(delta.object()) {
            namespaces.add(Key::of(&**delta.object()));
        }
    });
    let accounts = queue.clone();
    context.informers.service_accounts.on_change(move |delta| {
        if delta.is_delete() && delta.object().name_any() == NAME {
            accounts.add(Key::new("", delta.object().namespace().unwrap_or_default()));
        }
    });
    context.informers.namespaces.synced().await;
    context.informers.service_accounts.synced().await;
    let this = Arc::clone(&context);
    context
        .work("serviceaccount", queue, move |key| {
            let this = Arc::clone(&this);
            async move { reconcile(&this, &key.name).await }
        })
        .await;
}

/// True while a namespace takes new objects.
pub(crate) fn is_open(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none()
        && namespace
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            != Some("Terminating")
}

async fn reconcile(context: &Shared, namespace: &str) -> Result<Outcome> {
    let informers = &context.informers;
    let open = informers
        .namespaces
        .get("", namespace)
        .is_some_and(|namespace| is_open(&namespace));
    if !open || informers.service_accounts.get(namespace, NAME).is_some() {
        return Ok(Outcome::Done);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    match context
        .api::<ServiceAccount>(namespace)
        .create(&PostParams::default(), &account)
        .await
    {
        Ok(_) => Ok(Outcome::Done),
        Err(error)
            if error.is_already_exists()
                || namespace_terminating(&error)
                || error.is_not_found() =>
        {
            Ok(Outcome::Done)
        }
        Err(error) => Err(error.into()),
    }
}
