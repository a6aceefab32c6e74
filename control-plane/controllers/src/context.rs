//! What all controllers share.

use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use balsa_client::{EventRecorder, Informer, Outcome, WorkQueue, Workers};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::Api;
use tokio_util::sync::CancellationToken;

use crate::NodeHeartbeats;
use crate::config::Config;
use crate::error::{ApiError, Error, Result};
use crate::informers::Informers;
use crate::metadata::Metadata;

pub(crate) struct Context {
    pub(crate) client: kube::Client,
    pub(crate) config: Config,
    pub(crate) heartbeats: Arc<dyn NodeHeartbeats>,
    pub(crate) informers: Informers,
    pub(crate) metadata: Metadata,
    pub(crate) stop: CancellationToken,
}

pub(crate) type Shared = Arc<Context>;

impl Context {
    pub(crate) fn new(
        client: kube::Client,
        pods: Informer<Pod>,
        config: Config,
        heartbeats: Arc<dyn NodeHeartbeats>,
        stop: CancellationToken,
    ) -> Shared {
        let informers = Informers::start(&client, pods, &stop);
        Arc::new(Self {
            client,
            config,
            heartbeats,
            informers,
            metadata: Metadata::default(),
            stop,
        })
    }

    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn cluster_api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }

    pub(crate) fn recorder(&self, component: &str) -> EventRecorder {
        EventRecorder::start(self.client.clone(), component, None, self.stop.clone())
    }

    /// Works on a queue until stopped. Conflicts are normal and retried without noise.
    pub(crate) async fn work<K, F, R>(&self, name: &'static str, queue: WorkQueue<K>, reconcile: F)
    where
        K: Hash + Eq + Clone + Display + Send + Sync + 'static,
        F: Fn(K) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Outcome>> + Send + 'static,
    {
        let workers = Workers::new(name, self.config.concurrency);
        workers
            .run(queue, self.stop.clone(), move |key| {
                let call = reconcile(key);
                async move {
                    match call.await {
                        Err(Error::Api(error)) if error.is_conflict() => Ok(Outcome::Retry),
                        other => other,
                    }
                }
            })
            .await;
    }
}
