//! One pod's worker: gathers news, asks the reducer, takes the steps it plans, reports the status.

mod grants;
mod news;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use balsa_client::EventType;
use balsa_cri::Nanos;
use balsa_pod::{Action, Input, Instance, Local, Observed, Rejection, reasons, reduce};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::capacity;
use super::checkpoint::Checkpoint;
use super::context::Context;
use super::mailbox::{Mailbox, Snapshot};
use super::ops::{Ops, StartWish};
use super::status;
use crate::probes::Probes;
use crate::volumes::Prepared;

/// Pauses between attempts to write a status.
const PATCH_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long the first news of a sandbox wait for those of its containers, and the end of a container for the start of
/// the changed one that replaces it: mostly both come at once, and are written together.
const FIRST_NEWS: Duration = Duration::from_millis(1500);

/// One pod's worker.
pub(crate) struct Worker {
    context: Arc<Context>,
    mailbox: Arc<Mailbox>,
    ops: Ops,
    /// The pod as the API has it, with the resources that were granted and our own newest status.
    pod: Pod,
    /// The spec as the API has it.
    asked: PodSpec,
    /// What was granted, and what the instances run with.
    resources: Checkpoint,
    /// The mirror pod's UID, for a static pod that has one.
    mirror: Option<String>,
    /// The status that the API has.
    api_status: PodStatus,
    /// Revision of the newest object seen.
    version: u64,
    gone: bool,
    observed: Observed,
    local: Local,
    prepared: Prepared,
    refresh_at: Option<Timestamp>,
    /// A refresh is under way.
    refreshing: bool,
    refresh_again: bool,
    /// Ends told of before their instances were.
    early_exits: HashMap<String, (i32, Nanos)>,
    ooms: HashSet<String>,
    /// Instances whose end the runtime was asked about.
    settling: HashSet<String>,
    /// Steps under way, and when the last one ended: lists made before are stale.
    in_flight: usize,
    quiet_since: Instant,
    patching: bool,
    patch_at: Option<Instant>,
    patch_pause: Duration,
    /// Until when news wait for more.
    held_until: Option<Instant>,
    finish_planned: bool,
    finished: bool,
    probes: Probes,
    /// Containers whose crash loop was reported.
    backing_off: HashSet<(String, u32)>,
}

impl Worker {
    /// A worker for a pod, which may be running already.
    pub(crate) fn new(
        context: Arc<Context>,
        mailbox: Arc<Mailbox>,
        pod: Arc<Pod>,
        refused: Option<Rejection>,
    ) -> Self {
        let pod = Pod::clone(&pod);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let local = Local {
            accepted_at: Some(Timestamp::now()),
            rejected: refused,
            ..Local::default()
        };
        let ops = Ops {
            context: Arc::clone(&context),
            mailbox: Arc::clone(&mailbox),
            uid,
            going: CancellationToken::new(),
            tokens: Arc::default(),
        };
        let fresh = local.rejected.is_none();
        let mut worker = Self {
            probes: Probes::new(Arc::clone(&context), Arc::clone(&mailbox)),
            context,
            mailbox,
            ops,
            api_status: pod.status.clone().unwrap_or_default(),
            version: revision(&pod),
            asked: pod.spec.clone().unwrap_or_default(),
            resources: Checkpoint::default(),
            mirror: None,
            pod,
            gone: false,
            observed: Observed::default(),
            local,
            prepared: Prepared::new(),
            refresh_at: None,
            refreshing: false,
            refresh_again: false,
            early_exits: HashMap::new(),
            ooms: HashSet::new(),
            settling: HashSet::new(),
            in_flight: 0,
            quiet_since: Instant::now(),
            patching: false,
            patch_at: None,
            patch_pause: PATCH_RETRY.0,
            held_until: None,
            finish_planned: false,
            finished: false,
            backing_off: HashSet::new(),
        };
        if fresh {
            worker.recall_grants();
        }
        worker
    }

    /// Is it a pod of a file of the node, which the API only has a mirror of?
    fn is_static(&self) -> bool {
        capacity::pod_source(&self.pod) == Some("file")
    }

    /// Sees what the runtime has of the pod from before.
    pub(crate) async fn adopt(&mut self, snapshot: Snapshot) {
        self.compare(snapshot).await;
    }

    /// Runs until nothing is left of the pod, or until stopped; containers go on running then.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !self.finished {
            let wake = self.step();
            let sleep = async {
                match wake {
                    Some(wake) => tokio::time::sleep_until(wake).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.mailbox.wait() => {}
                () = sleep => {}
            }
            let news = self.mailbox.take();
            self.absorb(news).await;
        }
    }

    /// Plans, begins what is planned, and tells when to look again.
    fn step(&mut self) -> Option<Instant> {
        let now = Timestamp::now();
        self.note_going(now);
        let input = Input {
            pod: &self.pod,
            observed: &self.observed,
            local: &self.local,
            host_ips: &self.context.host_ips,
            now,
        };
        let plan = reduce(&input);
        let before = self.pod.status.replace(plan.status);
        self.report_resized(before.as_ref());
        // An end that another declared comes before that of the containers.
        let running = self.observed.instances.iter().any(Instance::running);
        if capacity::ended(&self.pod) && !running && !self.local.starting() {
            self.context.capacity.release(&self.ops.uid);
            self.context.devices.release(&self.ops.uid);
        }
        self.report_back_offs();
        for action in plan.actions {
            self.begin(action, now);
        }
        self.write_status();
        self.refresh(now);
        self.finish();
        let over = self.pod.metadata.deletion_timestamp.is_some();
        self.probes
            .sync(&self.pod, &self.observed, &self.local, over);

        let in_time =
            |at: Timestamp| Instant::now() + balsa_pod::spec::between(Timestamp::now(), at);
        let wakes = [
            plan.wake_at.map(in_time),
            self.patch_at,
            self.held_until,
            self.refresh_at
                .filter(|_| !self.refreshing && self.volumes_ready())
                .map(in_time),
        ];
        wakes.into_iter().flatten().min()
    }

    fn volumes_ready(&self) -> bool {
        self.local.volumes == balsa_pod::Step::Done
            && self.pod.metadata.deletion_timestamp.is_none()
    }

    fn note_going(&mut self, now: Timestamp) {
        if self.pod.metadata.deletion_timestamp.is_some() && self.local.stopping_since.is_none() {
            self.local.stopping_since = Some(now);
            self.ops.going.cancel();
        }
        let running: HashSet<&str> = self
            .observed
            .instances
            .iter()
            .filter(|known| known.running())
            .map(|known| known.id.as_str())
            .collect();
        self.local
            .killing
            .retain(|id, _| running.contains(id.as_str()));
        self.settling.retain(|id| running.contains(id.as_str()));
    }

    fn begin(&mut self, action: Action, now: Timestamp) {
        self.local.begin(&action, now);
        if action != Action::Finish {
            self.in_flight += 1;
        }
        let ops = self.ops.clone();
        let pod = self.pod.clone();
        let ips = self.ips();
        match action {
            Action::PrepareVolumes => self.ops.spawn("volumes", ops.volumes(pod, ips, false)),
            Action::CreateSandbox { attempt } => {
                self.ops.spawn("sandbox", ops.create_sandbox(pod, attempt))
            }
            Action::StopSandbox { id } => self.ops.spawn("stop-sandbox", ops.stop_sandbox(id)),
            Action::StartContainer { name, attempt, .. } => {
                let Some(sandbox) = &self.observed.sandbox else {
                    // The plan names a sandbox only when there is one.
                    self.local.start_done(&name, None);
                    self.in_flight -= 1;
                    return;
                };
                let target = pod.spec.as_ref().and_then(|spec| {
                    let target = balsa_pod::spec::target(spec, &name)?;
                    let instance = self.observed.newest(target)?;
                    Some(instance.id.clone()).filter(|_| instance.running())
                });
                let prepared = self.prepared.clone();
                let mut wish = StartWish::new(pod, name.clone(), attempt, sandbox, prepared);
                wish.target = target;
                self.note_actuated(&name);
                self.ops.spawn("start", ops.start_container(wish));
            }
            Action::KillContainer {
                id, grace, message, ..
            } => {
                let Some(instance) = self
                    .observed
                    .instances
                    .iter()
                    .find(|known| known.id == id)
                    .cloned()
                else {
                    self.in_flight -= 1;
                    return;
                };
                let ip = ips.first().cloned().unwrap_or_default();
                self.ops
                    .spawn("kill", ops.kill(pod, ip, instance, grace, message));
            }
            Action::RemoveContainer { id } => {
                let known = self.observed.instances.iter().find(|known| known.id == id);
                let (name, attempt) = known
                    .map(|known| (known.name.clone(), known.attempt))
                    .unwrap_or_default();
                self.ops.spawn("remove", ops.remove(id, name, attempt));
            }
            Action::ResizeContainer { id, name } => {
                self.ops.spawn("resize", ops.resize(pod, id, name));
            }
            Action::Release => self.ops.spawn("release", ops.release()),
            Action::Finish => self.finish_planned = true,
        }
    }

    fn ips(&self) -> Vec<String> {
        self.observed
            .sandbox
            .as_ref()
            .map(|sandbox| sandbox.ips.clone())
            .unwrap_or_default()
    }

    fn write_status(&mut self) {
        let waits = self.patch_at.is_some_and(|at| at > Instant::now());
        let held = self.held_until.take();
        if self.patching || waits || self.gone || self.finish_planned {
            return;
        }
        let uid = match (&self.mirror, self.is_static()) {
            (_, false) => self.ops.uid.clone(),
            (Some(mirror), true) => mirror.clone(),
            (None, true) => return,
        };
        self.patch_at = None;
        let wanted = self.pod.status.clone().unwrap_or_default();
        let Some(patch) = status::patch(&self.api_status, &wanted, &uid) else {
            return;
        };
        if self.in_flight > 0 && (status::is_of_sandbox(&patch) || self.replacing()) {
            let now = Instant::now();
            let until = held.unwrap_or(now + FIRST_NEWS);
            if now < until {
                self.held_until = Some(until);
                return;
            }
        }
        self.patching = true;
        self.ops
            .spawn("status", self.ops.clone().patch(self.pod.clone(), patch));
    }

    /// Has a container ended because its definition changed, so that the changed one is being started?
    fn replacing(&self) -> bool {
        let lasting =
            self.pod.metadata.deletion_timestamp.is_none() && self.local.rejected.is_none();
        let spec = self.pod.spec.iter();
        let mut containers = spec.flat_map(balsa_pod::spec::ordinary);
        lasting
            && containers.any(|container| {
                let newest = self.observed.newest(&container.name);
                newest.is_some_and(|newest| {
                    newest.exit().is_some() && balsa_pod::spec::changed(container, newest)
                })
            })
    }

    fn refresh(&mut self, now: Timestamp) {
        if !self.volumes_ready() || self.refresh_at.is_none_or(|at| at > now) {
            return;
        }
        self.refresh_at = None;
        if self.refreshing {
            self.refresh_again = true;
            return;
        }
        self.refreshing = true;
        self.in_flight += 1;
        self.ops.spawn(
            "refresh-volumes",
            self.ops.clone().volumes(self.pod.clone(), self.ips(), true),
        );
    }

    /// Begins the end, once no write of the status is under way that could come after it.
    fn finish(&mut self) {
        if !self.finish_planned || self.patching || self.refreshing {
            return;
        }
        self.finish_planned = false;
        self.in_flight += 1;
        let (pod, api) = (self.pod.clone(), self.api_status.clone());
        // A static pod's mirror goes when its file does.
        let in_api = !self.gone && !self.is_static();
        self.ops
            .spawn("finish", self.ops.clone().finish(pod, api, in_api));
    }

    /// Reports each crash-loop pause once.
    fn report_back_offs(&mut self) {
        let Some(status) = &self.pod.status else {
            return;
        };
        let all = status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses)
            .flatten();
        for container in all {
            let waiting = container
                .state
                .as_ref()
                .and_then(|state| state.waiting.as_ref());
            let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
            if reason != Some(reasons::CRASH_LOOP_BACK_OFF) {
                continue;
            }
            let attempt = u32::try_from(container.restart_count).unwrap_or(0);
            if self.backing_off.insert((container.name.clone(), attempt)) {
                self.backing_off
                    .retain(|(name, known)| *name != container.name || *known == attempt);
                let pod_name = balsa_pod::spec::event_name(&self.pod);
                let message = format!(
                    "Back-off restarting failed container {} in pod {pod_name}",
                    container.name
                );
                self.context.container_event(
                    &self.pod,
                    &container.name,
                    EventType::Warning,
                    "BackOff",
                    message,
                );
            }
        }
    }
}

fn revision(pod: &Pod) -> u64 {
    pod.metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}
