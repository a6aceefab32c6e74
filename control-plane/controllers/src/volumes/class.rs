//! Classes: which one is the default, and the one that a new cluster starts with.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use super::provision::PROVISIONER;
use crate::context::Shared;
use crate::error::{ApiError, Result};

const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// On kube-system: the class was made once, and is not made again when somebody has removed it.
const MADE: &str = "balsa.io/local-path-class-created";
const NAME: &str = "local-path";
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// True for classes whose volumes wait for the first pod.
pub(super) fn waits(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The default class; of several the newest.
pub(super) fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let marked = |class: &&Arc<StorageClass>| {
        class
            .annotations()
            .get(IS_DEFAULT)
            .is_some_and(|value| value == "true")
    };
    classes.iter().filter(marked).max_by_key(|class| {
        let created = class
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        (created, std::cmp::Reverse(class.name_any()))
    })
}

/// Makes the class for folders on nodes, once in a cluster's life, so that claims work out of the box.
pub(super) async fn ensure_default(context: &Shared) {
    loop {
        match try_ensure(context).await {
            Ok(true) => return,
            // The cluster is so new that kube-system is not there.
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "cannot make the default StorageClass yet"),
        }
        tokio::select! {
            () = context.stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn try_ensure(context: &Shared) -> Result<bool> {
    let namespaces = context.cluster_api::<Namespace>();
    let Some(system) = namespaces.get_opt("kube-system").await? else {
        return Ok(false);
    };
    if system.annotations().contains_key(MADE) {
        return Ok(true);
    }
    let others = !context.informers.storage_classes.is_empty();
    let class = StorageClass {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            annotations: Some([(IS_DEFAULT.to_owned(), (!others).to_string())].into()),
            ..ObjectMeta::default()
        },
        provisioner: PROVISIONER.into(),
        reclaim_policy: Some("Delete".into()),
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        allow_volume_expansion: Some(false),
        ..StorageClass::default()
    };
    match context
        .cluster_api::<StorageClass>()
        .create(&PostParams::default(), &class)
        .await
    {
        Err(error) if !error.is_already_exists() => return Err(error.into()),
        _ => {}
    }
    let patch = json!({"metadata": {"annotations": {MADE: "true"}}});
    let patch = Patch::Merge(&patch);
    namespaces
        .patch("kube-system", &PatchParams::default(), &patch)
        .await?;
    Ok(true)
}
