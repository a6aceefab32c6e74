//! Each namespace has the cluster's CA in the ConfigMap `kube-root-ca.crt`, for pods to trust the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::Shared;
use crate::error::{ApiError, Result, namespace_terminating};
use crate::informers::ROOT_CA;
use crate::serviceaccount::is_open;

const FIELD: &str = "ca.crt";

pub(crate) async fn run(context: Shared) {
    if context.config.cluster_ca_pem.is_empty() {
        tracing::warn!(
            "no cluster CA is configured, so none is published; pods cannot verify the API server"
        );
        context.stop.cancelled().await;
        return;
    }
    let queue = WorkQueue::default();
    let namespaces = queue.clone();
    context.informers.namespaces.on_change(move |delta| {
        if !delta.is_delete() && is_open(delta.object()) {
            namespaces.add(Key::of(&**delta.object()));
        }
    });
    let maps = queue.clone();
    context.informers.root_ca_maps.on_change(move |delta| {
        maps.add(Key::new("", delta.object().namespace().unwrap_or_default()));
    });
    context.informers.namespaces.synced().await;
    context.informers.root_ca_maps.synced().await;
    let this = Arc::clone(&context);
    context
        .work("root-ca", queue, move |key| {
            let this = Arc::clone(&this);
            async move { reconcile(&this, &key.name).await }
        })
        .await;
}

async fn reconcile(context: &Shared, namespace: &str) -> Result<Outcome> {
    let open = context
        .informers
        .namespaces
        .get("", namespace)
        .is_some_and(|namespace| is_open(&namespace));
    if !open {
        return Ok(Outcome::Done);
    }
    let data = BTreeMap::from([(FIELD.to_owned(), context.config.cluster_ca_pem.clone())]);
    let api = context.api::<ConfigMap>(namespace);
    let result = match context.informers.root_ca_maps.get(namespace, ROOT_CA) {
        Some(map) if map.data.as_ref() == Some(&data) => return Ok(Outcome::Done),
        Some(map) => {
            let patch =
                json!({"metadata": {"resourceVersion": map.resource_version()}, "data": data});
            api.patch(ROOT_CA, &PatchParams::default(), &Patch::Merge(&patch))
                .await
        }
        None => {
            let note = "The CA that signs this cluster's API server certificates, as pods need it to verify \
                        the server inside the cluster.";
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(ROOT_CA.into()),
                    namespace: Some(namespace.into()),
                    annotations: Some(BTreeMap::from([(
                        "kubernetes.io/description".into(),
                        note.into(),
                    )])),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            api.create(&PostParams::default(), &map).await
        }
    };
    match result {
        Ok(_) => Ok(Outcome::Done),
        Err(error)
            if error.is_already_exists()
                || error.is_not_found()
                || namespace_terminating(&error) =>
        {
            Ok(Outcome::Done)
        }
        Err(error) => Err(error.into()),
    }
}
