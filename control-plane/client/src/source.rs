//! Where an informer gets its objects: list and watch of one kind.

use std::fmt::Debug;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DynamicObject, ListParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use serde::de::DeserializeOwned;

/// A full list, or one page of it.
pub struct ListFrom<K> {
    /// The objects.
    pub items: Vec<K>,
    /// Revision of the list; a watch goes on from here.
    pub resource_version: String,
    /// Token of the next page, or empty.
    pub continue_token: String,
}

/// A live watch.
pub type WatchStream<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

/// Lists and watches one kind. Implemented over [`Api`] here, and by fakes in tests.
pub trait Source<K>: Send + Sync + 'static {
    /// One page of a consistent list; `continue_token` is empty for the first.
    fn list(&self, params: ListParams) -> BoxFuture<'_, kube::Result<ListFrom<K>>>;
    /// A watch after `version`.
    fn watch(
        &self,
        params: WatchParams,
        version: String,
    ) -> BoxFuture<'_, kube::Result<WatchStream<K>>>;
}

/// Whole objects.
pub struct ApiSource<K>(pub Api<K>);

impl<K> Source<K> for ApiSource<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    fn list(&self, params: ListParams) -> BoxFuture<'_, kube::Result<ListFrom<K>>> {
        Box::pin(async move {
            let list = self.0.list(&params).await?;
            Ok(ListFrom {
                items: list.items,
                resource_version: list.metadata.resource_version.unwrap_or_default(),
                continue_token: list.metadata.continue_.unwrap_or_default(),
            })
        })
    }

    fn watch(
        &self,
        params: WatchParams,
        version: String,
    ) -> BoxFuture<'_, kube::Result<WatchStream<K>>> {
        Box::pin(async move { Ok(self.0.watch(&params, &version).await?.into_stream().boxed()) })
    }
}

/// Only the metadata of objects of any kind.
pub struct MetadataSource(pub Api<DynamicObject>);

impl Source<PartialObjectMeta<DynamicObject>> for MetadataSource {
    fn list(
        &self,
        params: ListParams,
    ) -> BoxFuture<'_, kube::Result<ListFrom<PartialObjectMeta<DynamicObject>>>> {
        Box::pin(async move {
            let list = self.0.list_metadata(&params).await?;
            Ok(ListFrom {
                items: list.items,
                resource_version: list.metadata.resource_version.unwrap_or_default(),
                continue_token: list.metadata.continue_.unwrap_or_default(),
            })
        })
    }

    fn watch(
        &self,
        params: WatchParams,
        version: String,
    ) -> BoxFuture<'_, kube::Result<WatchStream<PartialObjectMeta<DynamicObject>>>> {
        Box::pin(async move {
            Ok(self
                .0
                .watch_metadata(&params, &version)
                .await?
                .into_stream()
                .boxed())
        })
    }
}
