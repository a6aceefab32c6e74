//! The running scheduler: informers in, decisions out, bindings in the background.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_client::{Deed, Delta, EventRecorder, EventType, Informer, InformerOptions};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kube::Resource as _;
use kube::api::Api;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use crate::act;
use crate::cache::{Cache, claim_key};
use crate::cycle::{NoFit, Profile};
use crate::framework::ClusterEvent;
use crate::plugins::volumes::{self, Need};
use crate::pod::PodInfo;
use crate::preempt::{self, Budget, Plan};
use crate::queue::Queue;

/// What a scheduler needs.
pub struct Options {
    /// Talks to the API as `system:kube-scheduler`.
    pub client: kube::Client,
    /// All pods ([`balsa_client::pods`]); somebody else in the process may follow the same.
    pub pods: Informer<Pod>,
    /// `spec.schedulerName` of the pods it places.
    pub name: String,
    /// Bindings on their way at a time.
    pub bindings: usize,
}

impl Options {
    /// The default scheduler.
    #[must_use]
    pub fn new(client: kube::Client, pods: Informer<Pod>) -> Self {
        Self {
            client,
            pods,
            name: "default-scheduler".to_owned(),
            bindings: 128,
        }
    }
}

/// Even without any event the queue is looked at this often.
const IDLE: Duration = Duration::from_secs(30);
/// How long a pod's volumes may take to be bound or made (upstream's bindTimeoutSeconds).
const VOLUMES: Duration = Duration::from_secs(600);
/// Pods that wait for volumes at a time.
const WAITING_FOR_VOLUMES: usize = 1024;

/// The scheduler as a task.
pub struct Scheduler {
    client: kube::Client,
    name: String,
    profile: Profile,
    /// Held only for a decision or an update, never across I/O.
    state: Mutex<State>,
    wake: Notify,
    /// Rung when a claim, a volume or a class changed.
    storage: Notify,
    events: EventRecorder,
    bindings: Arc<Semaphore>,
    volumes: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    cache: Cache,
    queue: Queue,
    /// By `namespace/name`.
    budgets: HashMap<String, Budget>,
    /// Where in the order of nodes the next decision begins.
    start: usize,
}

enum Decision {
    Bind(Arc<PodInfo>, String, Vec<Need>),
    Refuse(Arc<PodInfo>, NoFit, Option<Plan>),
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
            storage: Notify::new(),
            bindings: Arc::new(Semaphore::new(options.bindings)),
            volumes: Arc::new(Semaphore::new(WAITING_FOR_VOLUMES)),
            client: options.client,
            name: options.name,
        });
        let span = info_span!("scheduler");
        scheduler.work(options.pods, stop).instrument(span).await;
    }

    fn informer<K>(
        self: &Arc<Self>,
        stop: &CancellationToken,
        changed: fn(&Self, &Delta<K>),
    ) -> Informer<K>
    where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let informer = Informer::start(
            Api::all(self.client.clone()),
            InformerOptions::default(),
            stop.clone(),
        );
        self.heed(&informer, changed);
        informer
    }

    fn heed<K>(self: &Arc<Self>, informer: &Informer<K>, changed: fn(&Self, &Delta<K>))
    where
        K: kube::Resource + Clone + Send + Sync + 'static,
    {
        let this = Arc::clone(self);
        informer.on_change(move |delta| changed(&this, delta));
    }

    async fn work(self: Arc<Self>, pods: Informer<Pod>, stop: CancellationToken) {
        let nodes = self.informer(&stop, Self::node_changed);
        self.heed(&pods, Self::pod_changed);
        let namespaces = self.informer(&stop, Self::namespace_changed);
        let budgets = self.informer(&stop, Self::budget_changed);
        let claims = self.informer(&stop, Self::claim_changed);
        let volumes = self.informer(&stop, Self::volume_changed);
        let classes = self.informer(&stop, Self::class_changed);
        let driver_nodes = self.informer(&stop, Self::driver_node_changed);
        let drivers = self.informer(&stop, Self::driver_changed);
        let capacities = self.informer(&stop, Self::capacity_changed);
        let synced = async {
            tokio::join!(
                nodes.synced(),
                pods.synced(),
                namespaces.synced(),
                budgets.synced(),
                claims.synced(),
                volumes.synced(),
                classes.synced(),
                driver_nodes.synced(),
                drivers.synced(),
                capacities.synced(),
            );
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = synced => {}
        }
        loop {
            let decision = self.decide(Instant::now());
            match decision {
                Decision::Bind(pod, node, needs) => self.bind_later(pod, node, needs, &stop).await,
                Decision::Refuse(pod, failure, plan) => self.refuse_later(pod, &failure, plan),
                Decision::Wait(until) => {
                    let pause =
                        until.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()));
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = self.wake.notified() => {}
                        // Nobody woke it: pods that were forgotten have another try.
                        () = tokio::time::sleep(pause) => {
                            self.state.lock().queue.wake(Instant::now(), |_| false);
                        }
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
        let state = &mut *state;
        let Some(pod) = state.queue.pop(now) else {
            return Decision::Wait(state.queue.next_wake());
        };
        let start = state.start;
        match self.profile.choose(&pod, &state.cache, start) {
            Ok(node) => {
                let name = node.name.clone();
                let needs = needs(&pod, &state.cache, &name);
                for need in &needs {
                    if let Need::Bind(claim, volume) = need {
                        state.cache.storage.promise(volume, claim);
                    }
                }
                state.start = (start + 1) % state.cache.len().max(1);
                state.cache.set_pod(Arc::clone(&pod), &name);
                Decision::Bind(pod, name, needs)
            }
            Err(mut failure) => {
                let plan = self.make_room(state, &pod, &mut failure);
                let rejected_by = failure.rejected_by.clone();
                state.queue.unschedulable(&pod.uid, rejected_by, now);
                Decision::Refuse(pod, failure, plan)
            }
        }
    }

    /// Finds whom to evict for a pod that fits nowhere, and keeps the room for it.
    fn make_room(
        &self,
        state: &mut State,
        pod: &Arc<PodInfo>,
        failure: &mut NoFit,
    ) -> Option<Plan> {
        if failure.nodes == 0 || !preempt::may(pod, &state.cache) {
            return None;
        }
        let budgets: Vec<Budget> = state.budgets.values().cloned().collect();
        match preempt::plan(&self.profile, pod, &state.cache, failure, &budgets) {
            Ok(plan) => {
                state.cache.nominate(pod, Some(&plan.node));
                Some(plan)
            }
            Err(why) => {
                failure.preemption = why;
                None
            }
        }
    }

    async fn bind_later(
        self: &Arc<Self>,
        pod: Arc<PodInfo>,
        node: String,
        needs: Vec<Need>,
        stop: &CancellationToken,
    ) {
        // Volumes may take minutes; pods without must not wait behind them.
        let queue = if needs.is_empty() {
            &self.bindings
        } else {
            &self.volumes
        };
        let permit = tokio::select! {
            () = stop.cancelled() => return,
            permit = Arc::clone(queue).acquire_owned() => permit,
        };
        let (this, stop) = (Arc::clone(self), stop.clone());
        let span = info_span!("bind", pod = %pod.key, node);
        let task = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = this.bind(&pod, &node, &needs) => {}
            }
            drop(permit);
        };
        tokio::spawn(task.instrument(span));
    }

    async fn bind(&self, pod: &Arc<PodInfo>, node: &str, needs: &[Need]) {
        let mut outcome = self.provide(pod, node, needs).await;
        if outcome.is_ok() {
            outcome = act::within(act::bind(&self.client, pod, node)).await;
        }
        let Err(error) = outcome else {
            let message = format!("Successfully assigned {} to {node}", pod.key);
            let deed = Deed {
                reason: "Scheduled",
                action: "Binding",
                related: None,
            };
            self.events
                .deed(&*pod.pod, EventType::Normal, deed, message);
            self.state.lock().queue.remove(&pod.uid);
            return;
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

    /// Has the pod's claims bound; returns when they are.
    async fn provide(&self, pod: &PodInfo, node: &str, needs: &[Need]) -> Result<(), kube::Error> {
        for need in needs {
            let done = act::within(act::provide(&self.client, need, node)).await;
            if let (Need::Bind(_, volume), Err(_)) = (need, &done) {
                self.state.lock().cache.storage.release(volume);
            }
            // A volume that somebody took meanwhile is no reason to forget the pod.
            done.map_err(|error| kube::Error::Service(Box::new(error)))?;
        }
        let bound = async {
            loop {
                let changed = self.storage.notified();
                if self.claims_are_bound(pod) {
                    return;
                }
                // The bell may ring between the look and the wait.
                let _ = tokio::time::timeout(Duration::from_secs(1), changed).await;
            }
        };
        if needs.is_empty() || tokio::time::timeout(VOLUMES, bound).await.is_ok() {
            return Ok(());
        }
        Err(kube::Error::Service(
            "its volumes were not bound in time".into(),
        ))
    }

    fn claims_are_bound(&self, pod: &PodInfo) -> bool {
        let state = self.state.lock();
        let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
        pod.claims.iter().all(|claim| {
            let claim = state
                .cache
                .storage
                .claims
                .get(&format!("{namespace}/{claim}"));
            claim.is_some_and(|c| volumes::is_bound(c))
        })
    }

    fn refuse_later(self: &Arc<Self>, pod: Arc<PodInfo>, failure: &NoFit, plan: Option<Plan>) {
        let message = failure.to_string();
        let deed = Deed {
            reason: "FailedScheduling",
            action: "Scheduling",
            related: None,
        };
        self.events
            .deed(&*pod.pod, EventType::Warning, deed, message.clone());
        if plan.is_none() && says_already(&pod.pod, &message) {
            return;
        }
        let this = Arc::clone(self);
        let span = info_span!("refuse", pod = %pod.key);
        let task = async move {
            let node = plan.as_ref().map(|p| p.node.as_str());
            let told = act::within(act::tell(&this.client, &pod, &message, node)).await;
            if let Err(error) = told {
                debug!(%error, "the PodScheduled condition was not written");
            }
            if let Some(plan) = &plan {
                this.evict(&pod, plan).await;
            }
        };
        tokio::spawn(task.instrument(span));
    }

    async fn evict(&self, pod: &Arc<PodInfo>, plan: &Plan) {
        for victim in &plan.victims {
            let ended = act::within(act::evict(&self.client, victim, &self.name)).await;
            if let Err(error) = ended {
                warn!(%error, victim = %victim.key, "no room could be made");
                self.state.lock().cache.nominate(pod, None);
                return;
            }
            let message = format!("Preempted by pod {} on node {}", pod.uid, plan.node);
            let deed = Deed {
                reason: "Preempted",
                action: "Preempting",
                related: Some(pod.pod.object_ref(&())),
            };
            self.events
                .deed(&*victim.pod, EventType::Normal, deed, message);
        }
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
        let pod = Arc::new(PodInfo::new(Arc::clone(delta.object())));
        if delta.is_delete() || pod.finished() {
            state.queue.remove(&pod.uid);
            state.cache.nominate(&pod, None);
            if state.cache.remove_pod(&pod.uid) {
                self.wake_for(&mut state, ClusterEvent::PodGone);
            }
        } else if let Some(node) = pod.node().map(str::to_owned) {
            state.queue.remove(&pod.uid);
            let news = state.cache.node_of(&pod.uid).is_none() || relabelled(delta);
            state.cache.set_pod(pod, &node);
            if news {
                self.wake_for(&mut state, ClusterEvent::PodPlaced);
            }
        } else if pod.pod.metadata.deletion_timestamp.is_some() {
            state.queue.remove(&pod.uid);
            state.cache.nominate(&pod, None);
        } else if self.is_ours(&pod) && state.cache.node_of(&pod.uid).is_none() && !is_echo(delta) {
            state.queue.add(pod);
        }
        drop(state);
        self.wake.notify_one();
    }

    fn namespace_changed(&self, delta: &Delta<Namespace>) {
        self.state.lock().cache.set_namespace(delta.object());
    }

    fn budget_changed(&self, delta: &Delta<PodDisruptionBudget>) {
        let budget = delta.object();
        let meta = &budget.metadata;
        let key = format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        );
        let mut state = self.state.lock();
        if delta.is_delete() {
            state.budgets.remove(&key);
        } else {
            state.budgets.insert(key, Budget::new(budget));
        }
    }

    fn claim_changed(&self, delta: &Delta<PersistentVolumeClaim>) {
        let claim = Arc::clone(delta.object());
        self.storage_changed(|cache| {
            if delta.is_delete() {
                cache.storage.claims.remove(&claim_key(&claim));
            } else {
                cache.storage.set_claim(claim);
            }
        });
    }

    fn volume_changed(&self, delta: &Delta<PersistentVolume>) {
        let volume = Arc::clone(delta.object());
        self.storage_changed(|cache| {
            let claimed = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
            if claimed || delta.is_delete() {
                cache.storage.release(&volume);
            }
            if delta.is_delete() {
                let name = volume.metadata.name.as_deref().unwrap_or_default();
                cache.storage.volumes.remove(name);
            } else {
                cache.storage.set_volume(volume);
            }
        });
    }

    fn class_changed(&self, delta: &Delta<StorageClass>) {
        let class = Arc::clone(delta.object());
        self.storage_changed(|cache| {
            if delta.is_delete() {
                let name = class.metadata.name.as_deref().unwrap_or_default();
                cache.storage.classes.remove(name);
            } else {
                cache.storage.set_class(class);
            }
        });
    }

    fn driver_node_changed(&self, delta: &Delta<CSINode>) {
        self.storage_changed(|cache| {
            let drivers = &mut cache.storage.drivers;
            drivers.set_node(delta.object(), delta.is_delete());
        });
    }

    fn driver_changed(&self, delta: &Delta<CSIDriver>) {
        self.storage_changed(|cache| {
            let drivers = &mut cache.storage.drivers;
            drivers.set_driver(delta.object(), delta.is_delete());
        });
    }

    fn capacity_changed(&self, delta: &Delta<CSIStorageCapacity>) {
        let capacity = Arc::clone(delta.object());
        self.storage_changed(|cache| {
            let drivers = &mut cache.storage.drivers;
            drivers.set_capacity(capacity, delta.is_delete());
        });
    }

    fn storage_changed(&self, change: impl FnOnce(&mut Cache)) {
        let mut state = self.state.lock();
        change(&mut state.cache);
        self.wake_for(&mut state, ClusterEvent::StorageChanged);
        drop(state);
        self.storage.notify_waiters();
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

/// What a pod's claims need for it to run on a node; empty when nothing.
fn needs(pod: &PodInfo, cache: &Cache, node: &str) -> Vec<Need> {
    let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
    let Some(node) = cache.node(node) else {
        return Vec::new();
    };
    let needs = pod
        .claims
        .iter()
        .filter_map(|claim| volumes::need(&cache.storage, namespace, claim, node).ok());
    needs
        .filter(|need| !matches!(need, Need::Nothing))
        .collect()
}

fn relabelled(delta: &Delta<Pod>) -> bool {
    matches!(delta, Delta::Updated { old, new } if old.metadata.labels != new.metadata.labels)
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
