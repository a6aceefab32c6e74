//! StatefulSets: pods with names, storage and an order.
//!
//! Names are deterministic, so nothing is ever made twice; what is done next follows from the pods alone.

mod claims;
mod decide;
mod pod;
mod sync;

use std::sync::Arc;

use balsa_client::{EventRecorder, Key, WorkQueue};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;

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
    queue: WorkQueue<Key>,
}

pub(crate) async fn run(context: Shared) {
    let recorder = context.recorder("statefulset-controller");
    let controller = Arc::new(Controller {
        pods: PodControl {
            context: Arc::clone(&context),
            recorder: recorder.clone(),
        },
        recorder,
        expectations: Arc::default(),
        queue: WorkQueue::default(),
        context: Arc::clone(&context),
    });
    let informers = &context.informers;
    let queue = controller.queue.clone();
    informers
        .stateful_sets
        .on_change(move |delta| queue.add(Key::of(&**delta.object())));
    follow_pods(
        &context,
        &informers.stateful_sets,
        &controller.queue,
        &controller.expectations,
        |set: &StatefulSet, pod| {
            let spec = set.spec.as_ref();
            let labels = spec.and_then(|spec| Labels::parse(&spec.selector).ok());
            pod::is_member(&set.name_any(), pod)
                && labels.is_some_and(|labels| labels.matches(pod.metadata.labels.as_ref()))
        },
    );
    follow_revisions::<StatefulSet>(&context, &controller.queue);
    informers.stateful_sets.synced().await;
    informers.revisions.synced().await;
    informers.claims.synced().await;
    informers.pods.synced().await;
    let queue = controller.queue.clone();
    context
        .work("statefulset", queue, move |key| {
            let this = Arc::clone(&controller);
            async move { this.reconcile(key).await }
        })
        .await;
}
