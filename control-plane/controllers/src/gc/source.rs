//! Metadata of any kind, cut down to what the graph needs before it is stored.

use balsa_client::{ListFrom, MetadataSource, Source};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryFutureExt};
use kube::api::{ListParams, ObjectMeta, WatchEvent, WatchParams};

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
        let trim = |event: kube::Result<WatchEvent<Meta>>| {
            event.map(|event| match event {
                WatchEvent::Added(object) => WatchEvent::Added(lean(object)),
                WatchEvent::Modified(object) => WatchEvent::Modified(lean(object)),
                WatchEvent::Deleted(object) => WatchEvent::Deleted(lean(object)),
                other => other,
            })
        };
        self.0
            .watch(params, version)
            .map_ok(move |stream| stream.map(trim).boxed())
            .boxed()
    }
}
