//! Starts workers, hands out events, and cleans up after pods that went while nobody looked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use balsa_client::{Delta, EventType, Informer};
use balsa_cri::RuntimeEvent;
use balsa_pod::Rejection;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span, warn};

use super::capacity;
use super::clock::Clock;
use super::context::Context;
use super::mailbox::{Mailbox, Snapshot};
use super::sandbox::labels;
use super::statics::{self, Statics};
use super::strays::{self, Strays};
use super::worker::Worker;

/// How often the whole runtime is looked at, in case an event was lost.
const RELIST: Duration = Duration::from_secs(30);

/// Least time between two looks that workers asked for.
const RELIST_PAUSE: Duration = Duration::from_millis(500);

/// Pause before the runtime's events are watched anew.
const REWATCH: Duration = Duration::from_secs(1);

/// Whether a pod may run on the node.
enum Admission {
    /// Or why not.
    Decided(Option<Rejection>),
    /// It may if it gets its devices.
    WantsDevices,
}

/// Tells of a refusal by an event, and answers what the pod's status tells.
fn reject(context: &Context, pod: &Pod, (reason, message): capacity::Refusal) -> Rejection {
    context.event(pod, EventType::Warning, &reason, message.clone());
    Rejection {
        reason,
        message,
        disruption: false,
        grace: None,
    }
}

/// The workers of all pods.
pub(crate) struct Manager {
    context: Arc<Context>,
    pods: Informer<Pod>,
    statics: Statics,
    /// Mailboxes by pod UID. Never locked while a worker is told something that takes long: telling is a push.
    workers: Arc<Mutex<HashMap<String, Arc<Mailbox>>>>,
    strays: Arc<Strays>,
    stop: CancellationToken,
}

impl Manager {
    pub(crate) fn new(
        context: Arc<Context>,
        pods: Informer<Pod>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            statics: Statics::new(&context.config),
            context,
            pods,
            workers: Arc::default(),
            strays: Arc::default(),
            stop,
        })
    }

    /// Runs until stopped. Workers stop with it; containers do not.
    pub(crate) async fn run(self: Arc<Self>) {
        // Nothing is done to any pod before both sides are known: what runs must not be started again, and
        // what is missing from a half-read list must not be cleaned up.
        tokio::select! {
            () = self.stop.cancelled() => return,
            () = self.pods.synced() => {}
        }
        let events = self.watch_runtime();
        let Some(mut snapshots) = self.first_look().await else {
            return;
        };
        for pod in self.statics.read() {
            self.take_on(&pod, snapshots.remove(uid(&pod)).unwrap_or_default());
        }
        let mut known = self.pods.list();
        // Those that run first: what they hold is not to be given to others.
        known.sort_by_key(|pod| !snapshots.contains_key(uid(pod)));
        for pod in known.iter().filter(|pod| !statics::is_mirror(pod)) {
            self.take_on(pod, snapshots.remove(uid(pod)).unwrap_or_default());
        }
        // Strays may use theirs until they are cleaned up.
        self.context
            .devices
            .retain(|uid| self.workers.lock().contains_key(uid) || snapshots.contains_key(uid));
        self.clean_up_strays(&snapshots);
        let manager = Arc::clone(&self);
        self.pods.on_change(move |delta| manager.pod_changed(delta));
        if self.statics.any() {
            let manager = Arc::clone(&self);
            let follow = async move { manager.follow_statics().await };
            tokio::spawn(follow.instrument(info_span!("static-pods")));
        }
        self.follow(events).await;
    }

    /// Has the runtime tell of its events, in a task of its own.
    fn watch_runtime(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (events_tx, events) = mpsc::channel(1024);
        let runtime = Arc::clone(&self.context.runtime);
        let stop = self.stop.clone();
        let watch = async move { runtime.watch_events(events_tx, stop).await };
        tokio::spawn(watch.instrument(info_span!("runtime-events")));
        events
    }

    async fn first_look(&self) -> Option<HashMap<String, Snapshot>> {
        loop {
            match self.look().await {
                Ok(snapshots) => return Some(snapshots),
                Err(error) => warn!(%error, "cannot list what the runtime has, trying again"),
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    /// Everything that the runtime has, by pod UID.
    async fn look(&self) -> balsa_cri::Result<HashMap<String, Snapshot>> {
        let runtime = &self.context.runtime;
        let (sandboxes, containers) =
            tokio::try_join!(runtime.list_sandboxes(), runtime.list_containers())?;
        let mut snapshots: HashMap<String, Snapshot> = HashMap::new();
        for sandbox in sandboxes {
            self.context.routes.add(&sandbox.id, &sandbox.uid);
            snapshots
                .entry(sandbox.uid.clone())
                .or_default()
                .sandboxes
                .push(sandbox);
        }
        for container in containers {
            // Containers without the label are not pods' (somebody used the runtime by hand).
            let Some(uid) = container.labels.get(labels::POD_UID) else {
                continue;
            };
            self.context.routes.add(&container.id, uid);
            snapshots
                .entry(uid.clone())
                .or_default()
                .containers
                .push(container);
        }
        Ok(snapshots)
    }

    fn pod_changed(self: &Arc<Self>, delta: &Delta<Pod>) {
        let (Delta::Added(pod) | Delta::Deleted(pod) | Delta::Updated { new: pod, .. }) = delta;
        if statics::is_mirror(pod) {
            return self.statics.wake();
        }
        match delta {
            Delta::Deleted(pod) => self.pod_gone(pod),
            Delta::Added(pod) => self.pod_is(pod),
            Delta::Updated { old, new } => {
                // A namesake: the watch was away when one went and the other came.
                if uid(old) != uid(new) {
                    self.pod_gone(old);
                }
                self.pod_is(new);
            }
        }
    }

    fn pod_gone(&self, pod: &Arc<Pod>) {
        // As upstream, what the API has no more holds nothing: the scheduler gave its room away already.
        self.context.capacity.release(uid(pod));
        let mailbox = self.workers.lock().get(uid(pod)).cloned();
        if let Some(mailbox) = mailbox {
            let pod = Arc::clone(pod);
            mailbox.tell(|news| {
                news.pod = Some(pod);
                news.gone = true;
            });
        }
    }

    fn pod_is(&self, pod: &Arc<Pod>) {
        let known = self.workers.lock().get(uid(pod)).cloned();
        match known {
            Some(mailbox) => {
                let pod = Arc::clone(pod);
                mailbox.tell(|news| news.pod = Some(pod));
            }
            None => self.take_on(pod, Snapshot::default()),
        }
    }

    /// Starts a worker for a pod.
    fn take_on(&self, pod: &Arc<Pod>, snapshot: Snapshot) {
        let uid = uid(pod).to_owned();
        let mailbox = Arc::new(Mailbox::default());
        if self
            .workers
            .lock()
            .insert(uid.clone(), Arc::clone(&mailbox))
            .is_some()
        {
            warn!(uid, "a pod was taken on twice");
        }
        let admission = self.admission(pod, &snapshot);
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(pod));
        let (workers, stop) = (Arc::clone(&self.workers), self.stop.clone());
        let span = info_span!("pod", pod = balsa_pod::spec::display_name(&pod), uid);
        let run = async move {
            let refused = match admission {
                Admission::Decided(refused) => refused,
                // Plugins are asked for devices: others do not wait for that.
                Admission::WantsDevices => tokio::select! {
                    () = stop.cancelled() => return,
                    given = context.devices.admit(&pod) => given.err().map(|why| {
                        context.capacity.release(&uid);
                        reject(&context, &pod, why)
                    }),
                },
            };
            let mut worker = Worker::new(context, mailbox, pod, refused);
            worker.adopt(snapshot).await;
            worker.run(stop).await;
            workers.lock().remove(&uid);
        };
        tokio::spawn(run.instrument(span));
    }

    /// Enters a pod that is new to the node into its books, or refuses it.
    fn admission(&self, pod: &Pod, snapshot: &Snapshot) -> Admission {
        if capacity::ended(pod) {
            return Admission::Decided(None);
        }
        let status = pod.status.as_ref();
        let begun = status.is_some_and(|status| status.start_time.is_some())
            || !snapshot.sandboxes.is_empty();
        let books = &self.context.capacity;
        if begun || pod.metadata.deletion_timestamp.is_some() {
            books.adopt(pod);
            return Admission::Decided(None);
        }
        books.leave_out(self.context.devices.names());
        match books.admit(pod) {
            Err(why) => Admission::Decided(Some(reject(&self.context, pod, why))),
            Ok(()) if self.context.devices.wanted_by(pod) => Admission::WantsDevices,
            Ok(()) => Admission::Decided(None),
        }
    }

    /// Brings workers in line with the files of static pods, and mirrors in line with both, until stopped.
    async fn follow_statics(&self) {
        loop {
            let wanted = self.statics.read();
            for pod in self.statics.leaving(&wanted) {
                self.pod_gone(&pod);
            }
            for pod in &wanted {
                // A changed file is another pod, and the old one ends first: they may use the same things.
                let predecessor = self.statics.predecessor(pod);
                let ended = predecessor.is_none_or(|uid| !self.workers.lock().contains_key(&uid));
                // A file that could not be read for a moment is the same pod when it can.
                let leaves = self.strays.has(uid(pod));
                if ended && !leaves && !self.workers.lock().contains_key(uid(pod)) {
                    self.take_on(pod, Snapshot::default());
                }
            }
            self.mirror(&wanted).await;
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.statics.changed() => {}
            }
        }
    }

    async fn mirror(&self, wanted: &[Arc<Pod>]) {
        let known = self.pods.list();
        let mirrors = known.iter().filter(|pod| statics::is_mirror(pod));
        for stale in statics::stale(mirrors, wanted) {
            let (namespace, name) = (
                stale.metadata.namespace.as_deref().unwrap_or_default(),
                stale.metadata.name.as_deref().unwrap_or_default(),
            );
            let deleted = self
                .context
                .cluster
                .delete(namespace, name, uid(stale))
                .await;
            if let Err(error) = deleted {
                warn!(%error, name, "could not remove a mirror pod");
            }
        }
        for pod in wanted {
            let mirror = statics::mirror_of(pod, &known);
            if mirror.is_none() {
                let node = self.context.capacity.node();
                let made = statics::make_mirror(pod, &node);
                if let Err(error) = self.context.cluster.create_mirror(&made).await {
                    warn!(%error, "could not make a mirror pod");
                }
            }
            if let Some(mailbox) = self.workers.lock().get(uid(pod)).cloned() {
                mailbox.tell(|news| news.mirror = Some(mirror));
            }
        }
    }

    /// The UID by which the node knows a pod: that of the static pod for its mirror.
    pub(crate) fn own_uid(&self, namespace: &str, name: &str, uid: &str) -> String {
        let pods = self.statics.pods();
        let own = pods.iter().find(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.metadata.name.as_deref() == Some(name)
        });
        match own.and_then(|pod| pod.metadata.uid.clone()) {
            Some(own) => own,
            None => uid.to_owned(),
        }
    }

    /// Throws a pod out; false if it is not there any more.
    pub(crate) fn evict(&self, uid: &str, rejection: Rejection) -> bool {
        let mailbox = self.workers.lock().get(uid).cloned();
        let found = mailbox.is_some();
        if let Some(mailbox) = mailbox {
            mailbox.tell(|news| news.evict = Some(rejection));
        }
        found
    }

    async fn follow(&self, mut events: mpsc::Receiver<RuntimeEvent>) {
        let mut next_look = Instant::now() + RELIST;
        let mut clock = Clock::new(Timestamp::now(), Instant::now());
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                event = events.recv() => match event {
                    Some(RuntimeEvent::Resync) => next_look = Instant::now(),
                    Some(event) => self.dispatch(event),
                    None if self.stop.is_cancelled() => return,
                    None => {
                        // It ends by itself only by a fault, which must not leave the node without its agent.
                        error!("the watch of the runtime's events has ended, beginning it anew");
                        tokio::time::sleep(REWATCH).await;
                        events = self.watch_runtime();
                    }
                },
                () = self.context.relist.notified() => next_look = next_look.min(Instant::now() + RELIST_PAUSE),
                () = tokio::time::sleep_until(next_look) => {
                    if let Some(set) = clock.look(Timestamp::now(), Instant::now()) {
                        warn!(?set, "the machine's clock was set, trying again at once what was put off");
                        for mailbox in self.workers.lock().values() {
                            mailbox.tell(|news| news.clock_set = true);
                        }
                    }
                    self.look_again().await;
                    next_look = Instant::now() + RELIST;
                }
            }
        }
    }

    fn dispatch(&self, event: RuntimeEvent) {
        let id = match &event {
            RuntimeEvent::Exited { id, .. }
            | RuntimeEvent::Oom { id }
            | RuntimeEvent::Changed { id, .. } => id.clone(),
            RuntimeEvent::Resync => return,
        };
        let owner = self.context.routes.get(&id);
        let Some(mailbox) = owner.and_then(|uid| self.workers.lock().get(&uid).cloned()) else {
            return;
        };
        mailbox.tell(|news| match event {
            RuntimeEvent::Exited { code, at, .. } => {
                news.exits.insert(id, (code, at));
            }
            RuntimeEvent::Oom { .. } => {
                news.ooms.insert(id);
            }
            RuntimeEvent::Changed { .. } => {
                news.changed.insert(id);
            }
            RuntimeEvent::Resync => {}
        });
    }

    async fn look_again(&self) {
        let asked = Instant::now();
        let mut snapshots = match self.look().await {
            Ok(snapshots) => snapshots,
            Err(error) => {
                warn!(%error, "cannot list what the runtime has");
                return;
            }
        };
        for (uid, mailbox) in self.workers.lock().iter() {
            let snapshot = snapshots.remove(uid).unwrap_or_default();
            mailbox.tell(|news| news.snapshot = Some((asked, snapshot)));
        }
        self.clean_up_strays(&snapshots);
    }

    fn clean_up_strays(&self, snapshots: &HashMap<String, Snapshot>) {
        let known = |uid: &str| self.workers.lock().contains_key(uid);
        let found = strays::find(&self.context, snapshots, known);
        self.strays.clean(&self.context, found, &self.stop);
    }

    /// Tells pods that objects they refer to have changed.
    pub(crate) fn objects_changed(&self, uids: &[String]) {
        let workers = self.workers.lock();
        for mailbox in uids.iter().filter_map(|uid| workers.get(uid)) {
            mailbox.tell(|news| news.objects_changed = true);
        }
    }

    /// All pods of the node with the UIDs that the node knows them by: static ones in place of their mirrors.
    pub(crate) fn own_pods(&self) -> Vec<(String, Arc<Pod>)> {
        let mut pods = self.pods.list();
        pods.retain(|pod| !statics::is_mirror(pod));
        pods.extend(self.statics.pods());
        pods.into_iter()
            .map(|pod| (uid(&pod).to_owned(), pod))
            .collect()
    }

    /// All pods of the node as the API has them.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.list()
    }

    /// A pod by namespace and name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(namespace, name)
    }
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}
