//! One pod's worker: gathers news, asks the reducer, takes the steps it plans, reports the status.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use balsa_client::EventType;
use balsa_cri::{ContainerState, Nanos};
use balsa_pod::{Action, Input, Instance, InstanceState, Local, Observed, reasons, reduce};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::context::Context;
use super::mailbox::{Mailbox, News, Snapshot};
use super::ops::{Done, Ops, StartWish};
use super::{observe, status};
use crate::cluster::ApiError;
use crate::probes::{ProbeKind, Probes, Verdict};
use crate::volumes::Prepared;

/// Pauses between attempts to write a status.
const PATCH_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// One pod's worker.
pub(crate) struct Worker {
    context: Arc<Context>,
    mailbox: Arc<Mailbox>,
    ops: Ops,
    /// The pod as the API has it, with our own newest status.
    pod: Pod,
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
    /// Steps under way, and when the last one ended: lists made before are stale.
    in_flight: usize,
    quiet_since: Instant,
    patching: bool,
    patch_at: Option<Instant>,
    patch_pause: Duration,
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
        refused: Option<(String, String)>,
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
        Self {
            probes: Probes::new(Arc::clone(&context), Arc::clone(&mailbox)),
            context,
            mailbox,
            ops,
            api_status: pod.status.clone().unwrap_or_default(),
            version: revision(&pod),
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
            in_flight: 0,
            quiet_since: Instant::now(),
            patching: false,
            patch_at: None,
            patch_pause: PATCH_RETRY.0,
            finish_planned: false,
            finished: false,
            backing_off: HashSet::new(),
        }
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

    async fn absorb(&mut self, news: News) {
        if let Some(pod) = news.pod {
            self.update_pod(&pod);
        }
        if news.gone && !self.gone {
            self.gone = true;
            // Whoever removed it without waiting wants its containers gone all the same.
            let now = Time(Timestamp::now());
            self.pod.metadata.deletion_timestamp.get_or_insert(now);
        }
        if let Some(evict) = news.evict {
            self.local.rejected.get_or_insert(evict);
        }
        for done in news.done {
            self.settle(done);
        }
        self.ooms.extend(news.ooms);
        for (id, end) in news.exits {
            self.note_exit(&id, end);
        }
        for id in news.changed {
            self.look_at(&id).await;
        }
        if let Some((asked, snapshot)) = news.snapshot {
            if self.in_flight > 0 || asked < self.quiet_since {
                self.context.relist.notify_one();
            } else {
                self.compare(snapshot).await;
            }
        }
        for ((instance, kind), verdict) in news.probes {
            self.note_probe(&instance, kind, verdict);
        }
        if news.objects_changed {
            // What failed for want of an object may work now.
            for container in self.local.containers.values_mut() {
                if let Some(failure) = &mut container.failure
                    && failure.reason == reasons::CREATE_CONTAINER_CONFIG_ERROR
                {
                    failure.retry_at = Timestamp::now();
                }
            }
            if let balsa_pod::Step::Failed(again) = &mut self.local.volumes {
                *again = Timestamp::now();
            }
            self.refresh_at = Some(Timestamp::now());
        }
    }

    fn update_pod(&mut self, pod: &Pod) {
        let version = revision(pod);
        if version < self.version && version > 0 {
            return;
        }
        self.version = version;
        self.api_status = pod.status.clone().unwrap_or_default();
        let own = self.pod.status.take();
        let changed = self.pod.metadata.labels != pod.metadata.labels
            || self.pod.metadata.annotations != pod.metadata.annotations;
        self.pod = pod.clone();
        self.pod.status = Some(match own {
            Some(own) => status::overlay(&self.api_status, &own),
            None => self.api_status.clone(),
        });
        if changed {
            // Downward API volumes show them.
            self.refresh_at = Some(Timestamp::now());
        }
    }

    fn settle(&mut self, done: Done) {
        let now = Timestamp::now();
        if !matches!(done, Done::Seen(_) | Done::Patched(_)) {
            self.in_flight = self.in_flight.saturating_sub(1);
            self.quiet_since = Instant::now();
        }
        match done {
            Done::Volumes(result) => {
                self.local.volumes_done(result.is_ok(), now);
                if let Ok((prepared, refresh)) = result {
                    self.prepared = prepared;
                    self.refresh_at = refresh;
                }
            }
            Done::Refreshed(at) => {
                self.refreshing = false;
                self.refresh_at = if std::mem::take(&mut self.refresh_again) {
                    Some(now)
                } else {
                    at
                };
            }
            Done::Sandbox(result) => {
                self.local.sandbox_done(result.is_ok(), now);
                if let Ok(sandbox) = result {
                    self.observed.sandbox = Some(sandbox);
                }
            }
            Done::SandboxStopped { id, ok } => {
                if !ok {
                    self.local.stopping_sandbox = None;
                } else if let Some(sandbox) = self
                    .observed
                    .sandbox
                    .as_mut()
                    .filter(|sandbox| sandbox.id == id)
                {
                    sandbox.ready = false;
                }
            }
            Done::Seen(instance) => self.see(instance),
            Done::Started { name, failure } => self.local.start_done(&name, failure),
            Done::Killed { id, ok } => {
                if !ok {
                    self.local.killing.remove(&id);
                }
            }
            Done::Removed { id, ok } => {
                self.local.removing.remove(&id);
                if ok {
                    self.observed.instances.retain(|instance| instance.id != id);
                }
            }
            Done::Patched(result) => self.patched(result),
            Done::Finished => self.finished = true,
        }
    }

    fn see(&mut self, mut instance: Instance) {
        if let Some((code, at)) = self.early_exits.remove(&instance.id) {
            instance.state = self.ended(&instance, code, at);
        }
        match self
            .observed
            .instances
            .iter_mut()
            .find(|known| known.id == instance.id)
        {
            // An end is never taken back by a status that lags behind.
            Some(known) if known.exit().is_some() => {}
            Some(known) => *known = instance,
            None => self.observed.instances.push(instance),
        }
    }

    fn ended(&self, instance: &Instance, code: i32, at: Nanos) -> InstanceState {
        let spec = self.pod.spec.as_ref();
        let container = spec.and_then(|spec| balsa_pod::spec::container(spec, &instance.name));
        let policy =
            container.and_then(|container| container.termination_message_policy.as_deref());
        let pod_dir = self.context.paths.pod(&self.ops.uid);
        let metadata = &self.pod.metadata;
        let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
        let logs = self.context.paths.pod_logs(
            namespace.unwrap_or_default(),
            name.unwrap_or_default(),
            &self.ops.uid,
        );
        let message = observe::termination_message(
            &super::container::message_file(&pod_dir, &instance.name, instance.attempt),
            policy.unwrap_or("File"),
            &logs.join(super::container::log_path(&instance.name, instance.attempt)),
            code,
        );
        let oom = self.ooms.contains(&instance.id);
        InstanceState::Exited(observe::exit(instance, code, at, oom, message))
    }

    fn note_exit(&mut self, id: &str, (code, at): (i32, Nanos)) {
        if let Some(sandbox) = self
            .observed
            .sandbox
            .as_mut()
            .filter(|sandbox| sandbox.id == id)
        {
            sandbox.ready = false;
            return;
        }
        let Some(index) = self
            .observed
            .instances
            .iter()
            .position(|instance| instance.id == id)
        else {
            if self.early_exits.len() < 64 {
                self.early_exits.insert(id.to_owned(), (code, at));
            }
            return;
        };
        if self.observed.instances[index].exit().is_none() {
            let state = self.ended(&self.observed.instances[index], code, at);
            self.observed.instances[index].state = state;
        }
    }

    /// Looks at one container or sandbox anew.
    async fn look_at(&mut self, id: &str) {
        if self
            .observed
            .sandbox
            .as_ref()
            .is_some_and(|sandbox| sandbox.id == id)
        {
            if let Ok(status) = self.context.runtime.sandbox_status(id).await {
                self.observed.sandbox = Some(observe::sandbox(&status));
            }
            return;
        }
        let Some(sandbox_id) = self
            .observed
            .instances
            .iter()
            .find(|known| known.id == id)
            .map(|i| i.sandbox_id.clone())
        else {
            return;
        };
        if let Ok(status) = self.context.runtime.container_status(id).await {
            self.see(observe::instance(&status, &sandbox_id));
        }
    }

    /// Brings what is known in line with the runtime's whole state.
    async fn compare(&mut self, snapshot: Snapshot) {
        let newest = snapshot
            .sandboxes
            .iter()
            .max_by_key(|sandbox| (sandbox.attempt, sandbox.created_at));
        match newest {
            None => self.observed.sandbox = None,
            Some(newest) => {
                let ready = newest.state == balsa_cri::SandboxState::Ready;
                let known = self.observed.sandbox.as_ref();
                let same = known.is_some_and(|known| known.id == newest.id && known.ready == ready);
                if !same && let Ok(status) = self.context.runtime.sandbox_status(&newest.id).await {
                    self.observed.sandbox = Some(observe::sandbox(&status));
                }
            }
        }
        let present: HashSet<&str> = snapshot
            .containers
            .iter()
            .map(|container| container.id.as_str())
            .collect();
        self.observed
            .instances
            .retain(|instance| present.contains(instance.id.as_str()));
        for container in &snapshot.containers {
            let known = self
                .observed
                .instances
                .iter()
                .find(|instance| instance.id == container.id);
            let same = known.is_some_and(|known| match container.state {
                ContainerState::Created => known.state == InstanceState::Created,
                ContainerState::Running => known.running() || known.exit().is_some(),
                ContainerState::Exited | ContainerState::Unknown => known.exit().is_some(),
            });
            if same {
                continue;
            }
            match self.context.runtime.container_status(&container.id).await {
                Ok(status) => self.see(observe::instance(&status, &container.sandbox_id)),
                Err(error) => debug!(%error, id = container.id, "no status of a listed container"),
            }
        }
    }

    fn note_probe(&mut self, instance: &str, kind: ProbeKind, verdict: Verdict) {
        let Some(name) = self
            .observed
            .instances
            .iter()
            .find(|known| known.id == instance)
            .map(|i| i.name.clone())
        else {
            return;
        };
        let local = self.local.container(&name);
        if local.probed != instance {
            local.probed = instance.to_owned();
            local.ready = None;
            local.started = None;
            local.condemned = None;
        }
        match (kind, verdict) {
            (ProbeKind::Readiness, Verdict::Passed) => local.ready = Some(true),
            (ProbeKind::Readiness, Verdict::Failed) => local.ready = Some(false),
            (ProbeKind::Startup, Verdict::Passed) => local.started = Some(true),
            (ProbeKind::Liveness, Verdict::Passed) => {}
            (ProbeKind::Startup, Verdict::Failed) => {
                local.condemned = Some(format!(
                    "Container {name} failed startup probe, will be restarted"
                ));
            }
            (ProbeKind::Liveness, Verdict::Failed) => {
                local.condemned = Some(format!(
                    "Container {name} failed liveness probe, will be restarted"
                ));
            }
        }
    }

    fn patched(&mut self, result: Result<Box<Pod>, ApiError>) {
        self.patching = false;
        match result {
            Ok(pod) => {
                self.patch_pause = PATCH_RETRY.0;
                self.update_pod(&pod);
            }
            Err(error) => {
                if error != ApiError::Gone {
                    warn!(%error, "could not write the pod's status");
                }
                self.patch_at = Some(Instant::now() + self.patch_pause);
                self.patch_pause = (self.patch_pause * 2).min(PATCH_RETRY.1);
            }
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
        self.pod.status = Some(plan.status);
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
                let wish = StartWish::new(pod, name, attempt, sandbox, self.prepared.clone());
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
        if self.patching || waits || self.gone || self.finish_planned {
            return;
        }
        self.patch_at = None;
        let wanted = self.pod.status.clone().unwrap_or_default();
        let Some(patch) = status::patch(&self.api_status, &wanted, &self.ops.uid) else {
            return;
        };
        self.patching = true;
        self.ops
            .spawn("status", self.ops.clone().patch(self.pod.clone(), patch));
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
        self.ops
            .spawn("finish", self.ops.clone().finish(pod, api, !self.gone));
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
