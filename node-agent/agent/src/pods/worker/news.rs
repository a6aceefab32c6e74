//! What a worker makes of its news.

use std::collections::HashSet;
use std::sync::Arc;

use balsa_cri::{ContainerState, Nanos};
use balsa_pod::{Condemned, Instance, InstanceState, StartFailure, reasons};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{PATCH_RETRY, Worker, revision};
use crate::cluster::ApiError;
use crate::pods::mailbox::{News, Snapshot};
use crate::pods::ops::Done;
use crate::pods::{container, observe, status};
use crate::probes::{ProbeKind, Verdict};

impl Worker {
    pub(super) async fn absorb(&mut self, news: News) {
        if let Some(pod) = news.pod {
            self.update_pod(&pod);
        }
        if news.gone && !self.gone {
            self.gone = true;
            // Whoever removed it without waiting wants its containers gone all the same.
            let now = Time(Timestamp::now());
            self.pod.metadata.deletion_timestamp.get_or_insert(now);
        }
        if let Some(mirror) = news.mirror {
            let status = mirror.as_ref().and_then(|mirror| mirror.status.clone());
            self.api_status = status.unwrap_or_default();
            self.mirror = mirror.and_then(|mirror| mirror.metadata.uid.clone());
        }
        if news.resize_again {
            self.grant();
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
        if news.clock_set {
            self.local.retry_at_once(Timestamp::now());
            // Their end is a time of the API's clock, and how far off that is was reckoned by the old one.
            self.ops.tokens = Arc::default();
            self.refresh_at = Some(Timestamp::now());
        }
        if news.objects_changed {
            // What failed for want of an object may work now.
            self.retry_configuration();
            if let balsa_pod::Step::Failed(again) = &mut self.local.volumes {
                *again = Timestamp::now();
            }
            self.refresh_at = Some(Timestamp::now());
        }
    }

    /// Has containers tried again at once whose configuration was wrong.
    fn retry_configuration(&mut self) {
        for container in self.local.containers.values_mut() {
            if let Some(failure) = &mut container.failure
                && failure.reason == reasons::CREATE_CONTAINER_CONFIG_ERROR
            {
                failure.retry_at = Timestamp::now();
            }
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
        self.asked = pod.spec.clone().unwrap_or_default();
        self.pod.status = Some(match own {
            Some(own) => status::overlay(&self.api_status, &own),
            None => self.api_status.clone(),
        });
        self.grant();
        if changed {
            // Downward API volumes show them, and environments and parts of volumes are made from them.
            self.retry_configuration();
            self.refresh_at = Some(Timestamp::now());
        }
    }

    fn settle(&mut self, done: Done) {
        let now = Timestamp::now();
        let midway = matches!(
            done,
            Done::Seen(_) | Done::Patched(_) | Done::Exited { .. } | Done::ImageVolumeFailed { .. }
        );
        if !midway {
            self.in_flight = self.in_flight.saturating_sub(1);
            self.quiet_since = Instant::now();
        }
        match done {
            Done::ImageVolumeFailed { volume, failure } => {
                self.note_image_volume(&volume, &failure);
            }
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
            Done::Started {
                name,
                seen,
                failure,
            } => {
                if let Some(seen) = seen {
                    self.see(seen);
                }
                self.local.start_done(&name, failure);
            }
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
            Done::Resized {
                name,
                resources,
                result,
            } => {
                if let Err(error) = &result {
                    self.report_resize_error(error);
                }
                self.local.resize_done(&name, resources, result, now);
                self.save_actuated();
            }
            Done::Released => {}
            Done::Exited { id, code, at } => self.note_exit(&id, (code, at)),
            Done::Finished => self.finished = true,
        }
    }

    fn note_image_volume(&mut self, volume: &str, failure: &StartFailure) {
        let spec = self.pod.spec.iter();
        let containers = spec.flat_map(balsa_pod::spec::ordinary);
        let waiting = containers.filter(|container| {
            let mut mounts = container.volume_mounts.iter().flatten();
            mounts.any(|mount| mount.name == volume)
        });
        for container in waiting {
            self.local.container(&container.name).failure = Some(failure.clone());
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
        let policy = container
            .as_ref()
            .and_then(|container| container.termination_message_policy.as_deref());
        let pod_dir = self.context.paths.pod(&self.ops.uid);
        let metadata = &self.pod.metadata;
        let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
        let logs = self.context.paths.pod_logs(
            namespace.unwrap_or_default(),
            name.unwrap_or_default(),
            &self.ops.uid,
        );
        let message = observe::termination_message(
            &container::message_file(&pod_dir, &instance.name, instance.attempt),
            policy.unwrap_or("File"),
            &logs.join(container::log_path(&instance.name, instance.attempt)),
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
            let known = &self.observed.instances[index];
            if self.needs_the_runtimes_word(known, code) && self.settling.insert(id.to_owned()) {
                let settle = self.ops.clone().settle_exit(known.clone(), code, at);
                self.ops.spawn("settle-exit", settle);
                return;
            }
            let state = self.ended(&self.observed.instances[index], code, at);
            self.observed.instances[index].state = state;
        }
    }

    /// Does the event of an end tell too little? The log may stand in for a message only once it is written to
    /// its end, and that a process was killed for want of memory may be known only after its end.
    fn needs_the_runtimes_word(&self, instance: &Instance, code: i32) -> bool {
        let ours = self.local.killing.contains_key(&instance.id);
        let spec = self.pod.spec.as_ref();
        let container = spec.and_then(|spec| balsa_pod::spec::container(spec, &instance.name));
        let policy = container.and_then(|own| own.termination_message_policy.clone());
        let by_log = policy.as_deref() == Some("FallbackToLogsOnError") && code != 0;
        let killed = code == 137 && !ours && !self.ooms.contains(&instance.id);
        by_log || killed
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
    pub(super) async fn compare(&mut self, snapshot: Snapshot) {
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
                local.condemned = Some(Condemned::Startup);
            }
            (ProbeKind::Liveness, Verdict::Failed) => {
                local.condemned = Some(Condemned::Liveness);
            }
        }
    }

    fn patched(&mut self, result: Result<Box<Pod>, ApiError>) {
        self.patching = false;
        match result {
            Ok(pod) => {
                self.patch_pause = PATCH_RETRY.0;
                if self.is_static() {
                    self.api_status = pod.status.unwrap_or_default();
                } else {
                    self.update_pod(&pod);
                }
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
}
