//! The running scheduler: informers in, decisions out, bindings in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_client::{Delta, EventRecorder, EventType, Informer, InformerOptions};
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use kube::api::{Api, ObjectMeta, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use crate::cache::Cache;
use crate::cycle::{NoFit, Profile};
use crate::framework::ClusterEvent;
use crate::pod::PodInfo;
use crate::queue::Queue;

/// What a scheduler needs.
pub struct Options {
    /// Talks to the API as `system:kube-scheduler`.
    pub client: kube::Client,
    /// `spec.schedulerName` of the pods it places.
    pub name: String,
    /// Bindings on their way at a time.
    pub bindings: usize,
}

impl Options {
    /// The default scheduler.
    #[must_use]
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            name: "default-scheduler".to_owned(),
            bindings: 128,
        }
    }
}

/// One binding may take this long.
const BIND: Duration = Duration::from_secs(10);
/// Even without any event the queue is looked at this often.
const IDLE: Duration = Duration::from_secs(30);

/// The scheduler as a task.
pub struct Scheduler {
    client: kube::Client,
    name: String,
    profile: Profile,
    /// Held only for a decision or an update, never across I/O.
    state: Mutex<State>,
    wake: Notify,
    events: EventRecorder,
    bindings: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    cache: Cache,
    queue: Queue,
    /// Where in the order of nodes the next decision begins.
    start: usize,
}

enum Decision {
    Bind(PodInfo, String),
    Refuse(PodInfo, NoFit),
    Wait(Option<Instant>),
}

impl Scheduler {
    /// Schedules until `stop`. Returns when everything it started has ended.
    pub async fn run(options: Options, stop: CancellationToken) {
        let events =
            EventRecorder::start(options.client.clone(), &options.name, None, stop.clone());
        let scheduler = Arc::new(Self {
            events,
            profile: Profile::default(),
            state: Mutex::default(),
            wake: Notify::new(),
            bindings: Arc::new(Semaphore::new(options.bindings)),
            client: options.client,
            name: options.name,
        });
        let span = info_span!("scheduler");
        scheduler.work(stop).instrument(span).await;
    }

    async fn work(self: Arc<Self>, stop: CancellationToken) {
        let nodes: Informer<Node> = Informer::start(
            Api::all(self.client.clone()),
            InformerOptions::default(),
            stop.clone(),
        );
        let pods: Informer<Pod> = Informer::start(
            Api::all(self.client.clone()),
            InformerOptions::default(),
            stop.clone(),
        );
        let this = Arc::clone(&self);
        nodes.on_change(move |delta| this.node_changed(delta));
        let this = Arc::clone(&self);
        pods.on_change(move |delta| this.pod_changed(delta));
        tokio::select! {
            () = stop.cancelled() => return,
            () = async { nodes.synced().await; pods.synced().await } => {}
        }
        loop {
            let decision = self.decide(Instant::now());
            match decision {
                Decision::Bind(pod, node) => self.bind_later(pod, node, &stop).await,
                Decision::Refuse(pod, failure) => self.refuse_later(pod, failure),
                Decision::Wait(until) => {
                    let pause =
                        until.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()));
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }

    /// Takes the next pod and decides; an accepted pod is assumed on its node before the lock is released.
    fn decide(&self, now: Instant) -> Decision {
        let mut state = self.state.lock();
        let Some(pod) = state.queue.pop(now) else {
            return Decision::Wait(state.queue.next_wake());
        };
        let start = state.start;
        match self.profile.choose(&pod, &state.cache, start) {
            Ok(node) => {
                let name = node.name.clone();
                state.start = (start + 1) % state.cache.len().max(1);
                state.cache.set_pod(pod.clone(), &name);
                Decision::Bind(pod, name)
            }
            Err(failure) => {
                state
                    .queue
                    .unschedulable(&pod.uid, failure.rejected_by.clone(), now);
                Decision::Refuse(pod, failure)
            }
        }
    }

    async fn bind_later(self: &Arc<Self>, pod: PodInfo, node: String, stop: &CancellationToken) {
        let permit = tokio::select! {
            () = stop.cancelled() => return,
            permit = Arc::clone(&self.bindings).acquire_owned() => permit,
        };
        let (this, stop) = (Arc::clone(self), stop.clone());
        let span = info_span!("bind", pod = %pod.key, node);
        let task = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = this.bind(&pod, &node) => {}
            }
            drop(permit);
        };
        tokio::spawn(task.instrument(span));
    }

    async fn bind(&self, pod: &PodInfo, node: &str) {
        let bound = tokio::time::timeout(BIND, self.post_binding(pod, node)).await;
        let error = match bound {
            Ok(Ok(())) => {
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.events
                    .event(&*pod.pod, EventType::Normal, "Scheduled", message);
                self.state.lock().queue.remove(&pod.uid);
                return;
            }
            Ok(Err(error)) => error,
            Err(_) => kube::Error::Service("the binding was not answered in time".into()),
        };
        let mut state = self.state.lock();
        state.cache.remove_pod(&pod.uid);
        if matches!(&error, kube::Error::Api(status) if status.code == 404 || status.code == 409) {
            // Gone, or bound by somebody else; the watch tells which.
            debug!(%error, "not bound");
            state.queue.remove(&pod.uid);
            return;
        }
        warn!(%error, "binding failed, trying again");
        state.queue.retry(&pod.uid, Instant::now());
        drop(state);
        self.wake.notify_one();
    }

    async fn post_binding(&self, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
        let meta = &pod.pod.metadata;
        let name = meta.name.clone().unwrap_or_default();
        let binding = Binding {
            metadata: ObjectMeta {
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                uid: meta.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let pods: Api<Pod> = Api::namespaced(
            self.client.clone(),
            meta.namespace.as_deref().unwrap_or_default(),
        );

        let _: serde_json::Value = pods
            .create_subresource("binding", &name, &PostParams::default(), &binding)
            .await?;
        Ok(())
    }

    fn refuse_later(self: &Arc<Self>, pod: PodInfo, failure: NoFit) {
        let message = failure.to_string();
        self.events.event(
            &*pod.pod,
            EventType::Warning,
            "FailedScheduling",
            message.clone(),
        );
        if says_already(&pod.pod, &message) {
            return;
        }
        let this = Arc::clone(self);
        let span = info_span!("refuse", pod = %pod.key);
        let task = async move {
            let outcome = tokio::time::timeout(BIND, this.post_unschedulable(&pod, &message)).await;
            if let Ok(Err(error)) = outcome {
                debug!(%error, "the PodScheduled condition was not written");
            }
        };
        tokio::spawn(task.instrument(span));
    }

    async fn post_unschedulable(&self, pod: &PodInfo, message: &str) -> Result<(), kube::Error> {
        let meta = &pod.pod.metadata;
        let pods: Api<Pod> = Api::namespaced(
            self.client.clone(),
            meta.namespace.as_deref().unwrap_or_default(),
        );
        let patch = json!({
            "metadata": {"uid": meta.uid},
            "status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastProbeTime": null, "lastTransitionTime": balsa_client::time::now(),
            }]},
        });
        let patch = kube::api::Patch::Strategic(patch);
        pods.patch_status(
            meta.name.as_deref().unwrap_or_default(),
            &Default::default(),
            &patch,
        )
        .await?;
        Ok(())
    }

    fn node_changed(&self, delta: &Delta<Node>) {
        let mut state = self.state.lock();
        let event = match delta {
            Delta::Added(node) => {
                state.cache.set_node(Arc::clone(node));
                ClusterEvent::NodeAdded
            }
            Delta::Updated { old, new } => {
                let matters = schedulable_part(old) != schedulable_part(new);
                state.cache.set_node(Arc::clone(new));
                if !matters {
                    return;
                }
                ClusterEvent::NodeChanged
            }
            Delta::Deleted(node) => {
                state
                    .cache
                    .remove_node(node.metadata.name.as_deref().unwrap_or_default());
                return;
            }
        };
        self.wake_for(&mut state, event);
        drop(state);
        self.wake.notify_one();
    }

    fn pod_changed(&self, delta: &Delta<Pod>) {
        let mut state = self.state.lock();
        let pod = PodInfo::new(Arc::clone(delta.object()));
        if delta.is_delete() || pod.finished() {
            state.queue.remove(&pod.uid);
            if state.cache.remove_pod(&pod.uid) {
                self.wake_for(&mut state, ClusterEvent::PodGone);
            }
        } else if let Some(node) = pod.node().map(str::to_owned) {
            state.queue.remove(&pod.uid);
            state.cache.set_pod(pod, &node);
        } else if pod.pod.metadata.deletion_timestamp.is_some() {
            state.queue.remove(&pod.uid);
        } else if self.is_ours(&pod) && state.cache.node_of(&pod.uid).is_none() && !is_echo(delta) {
            state.queue.add(pod);
        }
        drop(state);
        self.wake.notify_one();
    }

    fn is_ours(&self, pod: &PodInfo) -> bool {
        let spec = pod.pod.spec.as_ref();
        let name = spec
            .and_then(|s| s.scheduler_name.as_deref())
            .unwrap_or("default-scheduler");
        let gated = spec
            .and_then(|s| s.scheduling_gates.as_ref())
            .is_some_and(|g| !g.is_empty());
        name == self.name && !gated
    }

    fn wake_for(&self, state: &mut State, event: ClusterEvent) {
        state.queue.wake(Instant::now(), |rejected_by| {
            self.profile.wakes(rejected_by, event)
        });
    }
}

/// True when only the status of a waiting pod changed, as our own condition does: no reason to try again.
fn is_echo(delta: &Delta<Pod>) -> bool {
    match delta {
        Delta::Updated { old, new } => {
            old.spec == new.spec && old.metadata.labels == new.metadata.labels
        }
        Delta::Added(_) | Delta::Deleted(_) => false,
    }
}

fn says_already(pod: &Pod, message: &str) -> bool {
    pod.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| {
            c.type_ == "PodScheduled"
                && c.status == "False"
                && c.message.as_deref() == Some(message)
        })
}

/// What of a node decides about pods; heartbeats change none of it.
fn schedulable_part(node: &Node) -> impl PartialEq + '_ {
    let spec = node.spec.as_ref();
    (
        node.metadata.labels.as_ref(),
        spec.and_then(|s| s.taints.as_ref()),
        spec.and_then(|s| s.unschedulable),
        node.status.as_ref().and_then(|s| s.allocatable.as_ref()),
    )
}
