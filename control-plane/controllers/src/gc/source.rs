//! Metadata of any kind, cut down to what the graph needs before it is stored.

use balsa_client::{ListFrom, MetadataSource, Source};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryFutureExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{ListParams, ObjectMeta, WatchEvent, WatchParams};
use kube::core::Request;
use serde::Deserialize;

use crate::metadata::Meta;

pub(super) struct LeanSource(pub(super) MetadataSource);

fn lean(object: Meta) -> Meta {
    let meta = object.metadata;
    Meta {
        types: None,
        metadata: ObjectMeta {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            resource_version: meta.resource_version,
            deletion_timestamp: meta.deletion_timestamp,
            finalizers: meta.finalizers,
            owner_references: meta.owner_references,
            ..ObjectMeta::default()
        },
        _phantom: std::marker::PhantomData,
    }
}

impl Source<Meta> for LeanSource {
    fn list(&self, params: ListParams) -> BoxFuture<'_, kube::Result<ListFrom<Meta>>> {
        self.0
            .list(params)
            .map_ok(|list| ListFrom {
                items: list.items.into_iter().map(lean).collect(),
                ..list
            })
            .boxed()
    }

    fn watch(
        &self,
        params: WatchParams,
        version: String,
    ) -> BoxFuture<
        '_,
        kube::Result<futures::stream::BoxStream<'static, kube::Result<WatchEvent<Meta>>>>,
    > {
        let MetadataSource(api) = &self.0;
        let (client, url) = (api.clone().into_client(), api.resource_url());
        async move {
            let request = Request::new(url)
                .watch_metadata(&params, &version)
                .map_err(kube::Error::BuildRequest)?;
            let events = client.request_events::<Lean>(request).await?;
            let whole = |event: WatchEvent<Lean>| match event {
                WatchEvent::Added(lean) => WatchEvent::Added(lean.into()),
                WatchEvent::Modified(lean) => WatchEvent::Modified(lean.into()),
                WatchEvent::Deleted(lean) => WatchEvent::Deleted(lean.into()),
                WatchEvent::Bookmark(bookmark) => WatchEvent::Bookmark(bookmark),
                WatchEvent::Error(error) => WatchEvent::Error(error),
            };
            let change = move |event: kube::Result<WatchEvent<Lean>>| event.map(whole);
            Ok(events.map(change).boxed())
        }
        .boxed()
    }
}

/// An object as its changes are read: of all that happens in the cluster, only what the graph needs.
#[derive(Clone, Deserialize)]
struct Lean {
    #[serde(default)]
    metadata: LeanMetadata,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeanMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<Lean> for Meta {
    fn from(Lean { metadata }: Lean) -> Self {
        Self {
            types: None,
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                uid: metadata.uid,
                resource_version: metadata.resource_version,
                deletion_timestamp: metadata.deletion_timestamp,
                finalizers: metadata.finalizers,
                owner_references: metadata.owner_references,
                ..ObjectMeta::default()
            },
            _phantom: std::marker::PhantomData,
        }
    }
}
