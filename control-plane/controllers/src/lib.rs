//! The controllers: each watches, decides with a pure function, and writes through the API like anybody else.
//!
//! Run by the Raft leader only: [`Controllers::start`] when it becomes leader, its `stop` token when it no
//! longer is. Every controller is idempotent, so a half-done reconcile is finished by the next leader.

mod attach;
mod certificates;
mod clusterrole_aggregation;
mod config;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod ephemeral_volumes;
mod error;
mod gc;
mod hpa;
mod informers;
mod job;
mod metadata;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod pod_gc;
mod quota;
mod replicaset;
mod root_ca;
mod service_cidr;
mod serviceaccount;
mod statefulset;
mod support;
mod taint_eviction;
mod token_secrets;
mod ttl_after_finished;
mod volumes;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_client::Informer;
use k8s_openapi::api::core::v1::Pod;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use config::{Config, Failover};

use context::{Context, Shared};

/// When nodes were last heard of; the node link implements it.
pub trait NodeHeartbeats: Send + Sync + 'static {
    /// When this server last heard from the node, or `None` if it never did.
    fn last_seen(&self, node: &str) -> Option<Instant>;
}

/// For servers without a node link, and for tests: only Leases count.
pub struct NoHeartbeats;

impl NodeHeartbeats for NoHeartbeats {
    fn last_seen(&self, _node: &str) -> Option<Instant> {
        None
    }
}

/// All controllers.
pub struct Controllers;

impl Controllers {
    /// Starts all controllers; the handle ends when all have stopped after `stop`. `pods` are all of the cluster's
    /// ([`balsa_client::pods`]).
    ///
    /// A controller that panics is logged and started again. Must be called inside a tokio runtime.
    pub fn start(
        client: kube::Client,
        pods: Informer<Pod>,
        config: Config,
        heartbeats: Arc<dyn NodeHeartbeats>,
        stop: CancellationToken,
    ) -> JoinHandle<()> {
        // Not `stop` itself: informers outlive nothing, so one child token ends all of it.
        let context = Context::new(client, pods, config, heartbeats, stop);
        tokio::spawn(run(context).instrument(tracing::info_span!("controllers")))
    }
}

async fn run(context: Shared) {
    let mut tasks = JoinSet::new();
    let mut add = |name, controller| supervise(&mut tasks, &context, name, controller);
    add("namespace", boxed(namespace::run));
    add("serviceaccount", boxed(serviceaccount::run));
    add("serviceaccount-token", boxed(token_secrets::run));
    add("root-ca", boxed(root_ca::run));
    add("servicecidr", boxed(service_cidr::run));
    add("certificatesigningrequest", boxed(certificates::run));
    add("replicaset", boxed(replicaset::run));
    add("replicationcontroller", boxed(replicaset::run_replication));
    add("deployment", boxed(deployment::run));
    add("daemonset", boxed(daemonset::run));
    add("statefulset", boxed(statefulset::run));
    add("job", boxed(job::run));
    add("cronjob", boxed(cronjob::run));
    add("horizontalpodautoscaler", boxed(hpa::run));
    add("disruption", boxed(disruption::run));
    add("resourcequota", boxed(quota::run));
    add("persistentvolume-binder", boxed(volumes::run));
    add("attachdetach", boxed(attach::run));
    add("ephemeral-volume", boxed(ephemeral_volumes::run));
    add("volume-protection", boxed(volumes::run_protection));
    add("endpoints", boxed(endpoints::run_endpoints));
    add("endpointslice", boxed(endpoints::run_slices));
    add("endpointslice-mirroring", boxed(endpoints::run_mirroring));
    add("garbage-collector", boxed(gc::run));
    add("pod-gc", boxed(pod_gc::run));
    add("node-ipam", boxed(node_ipam::run));
    add("node-lifecycle", boxed(node_lifecycle::run));
    add("taint-eviction", boxed(taint_eviction::run));
    add("ttl-after-finished", boxed(ttl_after_finished::run));
    add(
        "clusterrole-aggregation",
        boxed(clusterrole_aggregation::run),
    );
    while tasks.join_next().await.is_some() {}
}

type Controller = Box<dyn Fn(Shared) -> futures::future::BoxFuture<'static, ()> + Send + Sync>;

fn boxed<F, R>(controller: F) -> Controller
where
    F: Fn(Shared) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    Box::new(move |context| Box::pin(controller(context)))
}

const RESTART_PAUSE: Duration = Duration::from_secs(1);

fn supervise(
    tasks: &mut JoinSet<()>,
    context: &Shared,
    name: &'static str,
    controller: Controller,
) {
    let context = Arc::clone(context);
    let span = tracing::info_span!("controller", name);
    let inner = span.clone();
    tasks.spawn(
        async move {
            while !context.stop.is_cancelled() {
                let mut attempt =
                    tokio::spawn(controller(Arc::clone(&context)).instrument(inner.clone()));
                let ended = tokio::select! {
                    ended = &mut attempt => ended,
                    () = context.stop.cancelled() => {
                        // Reconciles are idempotent and writes fenced: nothing needs to be waited for.
                        attempt.abort();
                        return;
                    }
                };
                if let Err(error) = ended {
                    tracing::error!(%error, "controller failed; starting it again");
                }
                tokio::time::sleep(RESTART_PAUSE).await;
            }
        }
        .instrument(span),
    );
}

#[cfg(test)]
mod tests;
