//! Deletion of namespaces: pods first, then everything else that discovery knows, then the namespace.

mod conditions;

use std::sync::Arc;
use std::time::Duration;

use balsa_client::{Key, Outcome, WorkQueue};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams};
use kube::discovery::Scope;
use serde_json::json;

use self::conditions::{Found, conditions};
use crate::context::Shared;
use crate::error::{ApiError, Error, Result, unless_gone};
use crate::gc::discovery::{Discovered, discover};

const FINALIZER: &str = "kubernetes";
/// How soon to look again for content that finalizers hold; pods are followed by events.
const RECHECK: Duration = Duration::from_millis(500);
const RECHECK_PODS: Duration = Duration::from_secs(5);

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let namespaces = queue.clone();
    context.informers.namespaces.on_change(move |delta| {
        if !delta.is_delete() && delta.object().metadata.deletion_timestamp.is_some() {
            namespaces.add(Key::of(&**delta.object()));
        }
    });
    let (pods, this) = (queue.clone(), Arc::clone(&context));
    context.informers.pods.on_change(move |delta| {
        if !delta.is_delete() {
            return;
        }
        let namespace = delta.object().namespace().unwrap_or_default();
        let deleting = this.informers.namespaces.get("", &namespace);
        // Once per namespace: when its last pod is gone.
        if deleting.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
            && this.informers.pods.list_namespace(&namespace).is_empty()
        {
            pods.add(Key::new("", namespace));
        }
    });
    context.informers.namespaces.synced().await;
    context.informers.pods.synced().await;
    let this = Arc::clone(&context);
    context
        .work("namespace", queue, move |key| {
            let this = Arc::clone(&this);
            async move { reconcile(&this, &key.name).await }
        })
        .await;
}

async fn reconcile(context: &Shared, name: &str) -> Result<Outcome> {
    let api = context.cluster_api::<Namespace>();
    // Fresh: what is destroyed here must really be meant.
    let Some(namespace) = api.get_opt(name).await? else {
        return Ok(Outcome::Done);
    };
    if namespace.metadata.deletion_timestamp.is_none() {
        return Ok(Outcome::Done);
    }
    let finalizers = namespace
        .spec
        .as_ref()
        .and_then(|spec| spec.finalizers.clone())
        .unwrap_or_default();
    if finalizers.is_empty() {
        return Ok(Outcome::Done);
    }
    let found = empty(context, name).await;
    write_conditions(&api, &namespace, &found).await?;
    if found.all_gone() {
        finalize(context, &namespace).await?;
        return Ok(Outcome::Done);
    }
    match found.first_error {
        Some(error) => Err(error),
        None if found.pods_remain => Ok(Outcome::After(RECHECK_PODS)),
        None => Ok(Outcome::After(RECHECK)),
    }
}

/// Deletes what there is and reports what is left.
async fn empty(context: &Shared, namespace: &str) -> Found {
    let mut found = Found::default();
    let Discovered { resources, failed } = discover(&context.client).await;
    found.discovery_errors = failed;
    let resources: Vec<_> = resources
        .into_iter()
        .filter(|resource| {
            resource.scope == Scope::Namespaced && resource.can("delete") && resource.can("list")
        })
        .collect();
    let (pods, others): (Vec<_>, Vec<_>) = resources
        .into_iter()
        .partition(|resource| resource.api.group.is_empty() && resource.api.plural == "pods");
    for resource in pods {
        empty_resource(
            context,
            namespace,
            &resource.api,
            resource.can("deletecollection"),
            &mut found,
        )
        .await;
    }
    if !found.remaining.is_empty() {
        found.pods_remain = true;
        return found;
    }
    for resource in others {
        empty_resource(
            context,
            namespace,
            &resource.api,
            resource.can("deletecollection"),
            &mut found,
        )
        .await;
    }
    found
}

async fn empty_resource(
    context: &Shared,
    namespace: &str,
    resource: &ApiResource,
    collection: bool,
    found: &mut Found,
) {
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, resource);
    let label = if resource.group.is_empty() {
        format!("{}.", resource.plural)
    } else {
        format!("{}.{}", resource.plural, resource.group)
    };
    match delete_all(&context.client, &api, collection).await {
        Ok((left, _)) if left.is_empty() => {}
        Ok((left, count)) => {
            for finalizer in left
                .iter()
                .flat_map(|meta| meta.finalizers.iter().flatten())
            {
                *found.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
            found.remaining.insert(label, count);
        }
        Err(error) => {
            found.content_errors.push(error.to_string());
            found.first_error.get_or_insert(Error::Api(error));
        }
    }
}

type Metas = Vec<kube::api::ObjectMeta>;

/// How many objects of a kind are looked at in one round: a namespace may hold more than fits in memory.
const ROUND: u32 = 500;

/// Deletes all objects and returns those still there (the first [`ROUND`] of them) and their number.
async fn delete_all(
    client: &kube::Client,
    api: &Api<DynamicObject>,
    collection: bool,
) -> kube::Result<(Metas, usize)> {
    let list = ListParams::default().limit(ROUND);
    // Most namespaces have nothing of most kinds.
    let before = match api.list_metadata(&list).await {
        Err(error) if matches!(error.code(), 404 | 405) => return Ok((Vec::new(), 0)),
        other => other?,
    };
    if before.items.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let all_at_once = collection && delete_collection(client, api.resource_url()).await?;
    if !all_at_once {
        let params = DeleteParams::background();
        for object in &before.items {
            if object.metadata.deletion_timestamp.is_none() {
                unless_gone(api.delete(&object.name_any(), &params).await)?;
            }
        }
    }
    let after = api.list_metadata(&list).await?;
    let further = after.metadata.remaining_item_count.unwrap_or_default();
    let count = after.items.len() + usize::try_from(further).unwrap_or_default();
    let metas = after.items.into_iter().map(|object| object.metadata);
    Ok((metas.collect(), count))
}

/// Deletes a collection; false when its server cannot. The answer, all that was deleted, is not read: it may be large,
/// and nobody needs it.
async fn delete_collection(client: &kube::Client, url: &str) -> kube::Result<bool> {
    let body = br#"{"apiVersion":"v1","kind":"DeleteOptions","propagationPolicy":"Background"}"#;
    let request = Request::delete(url)
        .header("content-type", "application/json")
        .header(
            "accept",
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
        )
        .body(kube::client::Body::from(body.to_vec()))
        .map_err(kube::Error::HttpError)?;
    let answer = client.send(request).await?;
    let code = answer.status();
    if code.is_success() {
        return Ok(true);
    }
    if matches!(code.as_u16(), 404 | 405) {
        return Ok(false);
    }
    let said = answer.into_body().collect_bytes().await?;
    let status = serde_json::from_slice(&said).unwrap_or_else(|_| {
        kube::core::Status::failure(&format!("deleting {url}: {code}"), "").with_code(code.as_u16())
    });
    Err(kube::Error::Api(Box::new(status)))
}

async fn write_conditions(
    api: &Api<Namespace>,
    namespace: &Namespace,
    found: &Found,
) -> Result<()> {
    let old = namespace
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let new = conditions(&old, found, Timestamp::now());
    let terminating = namespace
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        == Some("Terminating");
    if new == old && terminating {
        return Ok(());
    }
    let status = NamespaceStatus {
        phase: Some("Terminating".into()),
        conditions: Some(new),
    };
    let patch = json!({"metadata": {"uid": namespace.uid()}, "status": status});
    let params = kube::api::PatchParams::default();
    unless_gone(
        api.patch_status(
            &namespace.name_any(),
            &params,
            &kube::api::Patch::Merge(&patch),
        )
        .await,
    )?;
    Ok(())
}

/// Takes our finalizer off, through the subresource that alone may do so; the API server then removes the
/// namespace.
async fn finalize(context: &Shared, namespace: &Namespace) -> Result<()> {
    let name = namespace.name_any();
    // Read again: the conditions just written have raised the version.
    let api = context.cluster_api::<Namespace>();
    let Some(mut fresh) = api.get_opt(&name).await? else {
        return Ok(());
    };
    if fresh.uid() != namespace.uid() {
        return Ok(());
    }
    if let Some(finalizers) = fresh
        .spec
        .as_mut()
        .and_then(|spec| spec.finalizers.as_mut())
    {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let body = serde_json::to_vec(&fresh).map_err(|error| Error::Invalid(error.to_string()))?;
    let request = Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| Error::Invalid(error.to_string()))?;
    unless_gone(context.client.request::<serde_json::Value>(request).await)?;
    Ok(())
}
