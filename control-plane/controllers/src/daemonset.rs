//! DaemonSets: one pod on every node that fits.
//!
//! Pods are bound to their node by affinity and placed by the scheduler. Templates that the set has had are kept
//! as ControllerRevisions; their hash labels the pods.

mod backoff;
mod decide;
mod pod;
mod sync;

use std::sync::Arc;

use balsa_client::{Delta, EventRecorder, Key, WorkQueue};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;

use self::backoff::Backoff;
use crate::context::Shared;
use crate::support::expectations::Expectations;
use crate::support::follow::follow_pods;
use crate::support::history::follow_revisions;
use crate::support::pod_control::PodControl;
use crate::support::selector::Labels;

struct Controller {
    context: Shared,
    recorder: EventRecorder,
    pods: PodControl,
    expectations: Arc<Expectations>,
    /// When pods failed lately, by set and node.
    backoff: Mutex<Backoff>,
    queue: WorkQueue<Key>,
}

pub(crate) async fn run(context: Shared) {
    let recorder = context.recorder("daemonset-controller");
    let controller = Arc::new(Controller {
        pods: PodControl {
            context: Arc::clone(&context),
            recorder: recorder.clone(),
        },
        recorder,
        expectations: Arc::default(),
        backoff: Mutex::default(),
        queue: WorkQueue::default(),
        context: Arc::clone(&context),
    });
    let informers = &context.informers;
    let queue = controller.queue.clone();
    informers
        .daemon_sets
        .on_change(move |delta| queue.add(Key::of(&**delta.object())));
    follow_pods(
        &context,
        &informers.daemon_sets,
        &controller.queue,
        &controller.expectations,
        |set: &DaemonSet, pod| {
            let spec = set.spec.as_ref();
            let labels = spec.and_then(|spec| Labels::parse(&spec.selector).ok());
            labels.is_some_and(|labels| labels.matches(pod.metadata.labels.as_ref()))
        },
    );
    follow_revisions::<DaemonSet>(&context, &controller.queue);
    let (this, queue) = (Arc::clone(&context), controller.queue.clone());
    informers.nodes.on_change(move |delta| {
        if fits_differently(delta) {
            for set in this.informers.daemon_sets.list() {
                queue.add(Key::of(&*set));
            }
        }
    });
    informers.daemon_sets.synced().await;
    informers.revisions.synced().await;
    informers.nodes.synced().await;
    informers.pods.synced().await;
    let queue = controller.queue.clone();
    context
        .work("daemonset", queue, move |key| {
            let this = Arc::clone(&controller);
            async move { this.reconcile(key).await }
        })
        .await;
}

/// True when the change of a node may change which sets run on it; heartbeats do not.
fn fits_differently(delta: &Delta<Node>) -> bool {
    let Delta::Updated { old, new } = delta else {
        return true;
    };
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}
