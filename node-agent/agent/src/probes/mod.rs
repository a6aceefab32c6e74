//! Probes of running containers: one task per probe and instance. Outcomes are told when they change.

mod run;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use balsa_client::EventType;
use balsa_pod::{Instance, InstanceState, Local, Observed};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, debug_span};

use crate::pods::{Context, Mailbox};
use run::Outcome;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ProbeKind {
    /// Has it come up?
    Startup,
    /// Is it stuck?
    Liveness,
    /// May it have traffic?
    Readiness,
}

impl ProbeKind {
    fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// What a probe has found, its thresholds applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is well.
    Passed,
    /// It is not.
    Failed,
}

/// The probes of one pod.
pub(crate) struct Probes {
    context: Arc<Context>,
    mailbox: Arc<Mailbox>,
    running: HashMap<(String, ProbeKind), DropGuard>,
}

impl Probes {
    pub(crate) fn new(context: Arc<Context>, mailbox: Arc<Mailbox>) -> Self {
        Self {
            context,
            mailbox,
            running: HashMap::new(),
        }
    }

    /// Starts probes of instances that have come, and stops those of instances that have gone.
    pub(crate) fn sync(&mut self, pod: &Pod, observed: &Observed, local: &Local, over: bool) {
        let wanted = wanted(pod, observed, local, over);
        let is_wanted = |key: &(String, ProbeKind)| {
            wanted.iter().any(|(container, instance, kind)| {
                instance.id == key.0 && *kind == key.1 && kind.of(container).is_some()
            })
        };
        self.running.retain(|key, _| is_wanted(key));
        let ip = observed
            .sandbox
            .as_ref()
            .and_then(|sandbox| sandbox.ips.first().cloned());
        for (container, instance, kind) in wanted {
            let key = (instance.id.clone(), kind);
            if self.running.contains_key(&key) {
                continue;
            }
            let Some(probe) = kind.of(container) else {
                continue;
            };
            let stop = CancellationToken::new();
            let task = Task {
                context: Arc::clone(&self.context),
                mailbox: Arc::clone(&self.mailbox),
                pod: pod.clone(),
                container: container.clone(),
                instance: instance.clone(),
                ip: ip
                    .clone()
                    .or_else(|| self.context.host_ips.first().cloned())
                    .unwrap_or_default(),
                kind,
                probe: probe.clone(),
            };
            let span = debug_span!("probe", container = container.name, kind = kind.word());
            let ended = stop.clone();
            let run = async move {
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = task.run() => {}
                }
            };
            tokio::spawn(run.instrument(span));
            self.running.insert(key, stop.drop_guard());
        }
    }
}

/// Which probes should run now: the startup probe first, the others once it has passed. A pod that is going
/// is only asked whether it is ready.
fn wanted<'a>(
    pod: &'a Pod,
    observed: &'a Observed,
    local: &Local,
    over: bool,
) -> Vec<(&'a Container, &'a Instance, ProbeKind)> {
    let mut wanted = Vec::new();
    let Some(spec) = &pod.spec else { return wanted };
    let inits = spec.init_containers.iter().flatten();
    for container in inits.chain(&spec.containers) {
        let Some(instance) = observed
            .newest(&container.name)
            .filter(|instance| instance.running())
        else {
            continue;
        };
        let local = local.containers.get(&container.name);
        let own = local.filter(|local| local.probed == instance.id);
        if own.is_some_and(|own| own.condemned.is_some())
            || local.is_some_and(|local| local.starting)
        {
            continue;
        }
        let started =
            container.startup_probe.is_none() || own.and_then(|own| own.started) == Some(true);
        let kinds: &[ProbeKind] = match (started, over) {
            (false, false) => &[ProbeKind::Startup],
            (false, true) => &[],
            (true, false) => &[ProbeKind::Liveness, ProbeKind::Readiness],
            (true, true) => &[ProbeKind::Readiness],
        };
        wanted.extend(kinds.iter().map(|kind| (container, instance, *kind)));
    }
    wanted.retain(|(container, _, kind)| kind.of(container).is_some());
    wanted
}

struct Task {
    context: Arc<Context>,
    mailbox: Arc<Mailbox>,
    pod: Pod,
    container: Container,
    instance: Instance,
    ip: String,
    kind: ProbeKind,
    probe: Probe,
}

impl Task {
    async fn run(self) {
        let seconds = |value: Option<i32>, least: i32, otherwise: i32| {
            Duration::from_secs(u64::try_from(value.unwrap_or(otherwise).max(least)).unwrap_or(1))
        };
        let delay = seconds(self.probe.initial_delay_seconds, 0, 0);
        let age = match self.instance.state {
            InstanceState::Running { started_at } => {
                balsa_pod::spec::between(started_at, Timestamp::now())
            }
            _ => Duration::ZERO,
        };
        let period = seconds(self.probe.period_seconds, 1, 10);
        let timeout = seconds(self.probe.timeout_seconds, 1, 1);
        let mut ticks =
            tokio::time::interval_at(Instant::now() + delay.saturating_sub(age), period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut judge = Judge::new(&self.probe);
        loop {
            ticks.tick().await;
            let outcome = run::once(
                &self.context,
                &self.probe,
                &self.container,
                &self.instance.id,
                &self.ip,
                timeout,
            )
            .await;
            self.report(&outcome);
            let Some(verdict) = judge.hear(!matches!(outcome, Outcome::Failure(_))) else {
                continue;
            };
            let key = (self.instance.id.clone(), self.kind);
            self.mailbox.tell(|news| {
                news.probes.insert(key, verdict);
            });
            let decided = match self.kind {
                ProbeKind::Startup => true,
                ProbeKind::Liveness => verdict == Verdict::Failed,
                ProbeKind::Readiness => false,
            };
            if decided {
                return;
            }
        }
    }
}

impl Task {
    fn report(&self, outcome: &Outcome) {
        let word = self.kind.word();
        let (reason, message) = match outcome {
            Outcome::Success => return,
            Outcome::Warning(output) => ("ProbeWarning", format!("{word} probe warning: {output}")),
            Outcome::Failure(output) => ("Unhealthy", format!("{word} probe failed: {output}")),
        };
        let name = &self.container.name;
        self.context
            .container_event(&self.pod, name, EventType::Warning, reason, message);
    }
}

/// Applies a probe's thresholds.
struct Judge {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
    told: Option<Verdict>,
}

impl Judge {
    fn new(probe: &Probe) -> Self {
        let threshold = |value: Option<i32>, otherwise: u32| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .filter(|value| *value > 0)
                .unwrap_or(otherwise)
        };
        Self {
            success_threshold: threshold(probe.success_threshold, 1),
            failure_threshold: threshold(probe.failure_threshold, 3),
            last: None,
            run: 0,
            told: None,
        }
    }

    /// Takes one result; answers when the verdict changes.
    fn hear(&mut self, success: bool) -> Option<Verdict> {
        self.run = if self.last == Some(success) {
            self.run.saturating_add(1)
        } else {
            1
        };
        self.last = Some(success);
        let (threshold, verdict) = if success {
            (self.success_threshold, Verdict::Passed)
        } else {
            (self.failure_threshold, Verdict::Failed)
        };
        if self.run < threshold || self.told == Some(verdict) {
            return None;
        }
        self.told = Some(verdict);
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_verdict_needs_its_threshold_and_is_told_once() {
        let mut judge = Judge::new(&Probe {
            success_threshold: Some(2),
            ..Probe::default()
        });
        let told: Vec<_> = [
            false, false, true, false, false, false, false, true, true, true,
        ]
        .map(|ok| judge.hear(ok))
        .into();
        let mut wanted = vec![None; 10];
        wanted[5] = Some(Verdict::Failed);
        wanted[8] = Some(Verdict::Passed);
        assert_eq!(told, wanted);
    }

    #[test]
    fn the_startup_probe_holds_back_the_others() {
        let probe = serde_json::json!({"tcpSocket": {"port": 1}});
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "c",
            "startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe}]}}))
            .unwrap();
        let instance = Instance {
            id: "i".to_owned(),
            name: "c".to_owned(),
            sandbox_id: "s".to_owned(),
            attempt: 0,
            state: InstanceState::Running {
                started_at: Timestamp::UNIX_EPOCH,
            },
            image: String::new(),
            image_id: String::new(),
            spec_hash: String::new(),
            user: None,
            recursive_read_only: Vec::new(),
        };
        let observed = Observed {
            sandbox: None,
            instances: vec![instance],
        };
        let mut local = Local::default();
        let kinds = |local: &Local, over| {
            wanted(&pod, &observed, local, over)
                .into_iter()
                .map(|(_, _, kind)| kind)
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(&local, false), [ProbeKind::Startup]);
        local.container("c").probed = "i".to_owned();
        local.container("c").started = Some(true);
        assert_eq!(
            kinds(&local, false),
            [ProbeKind::Liveness, ProbeKind::Readiness]
        );
        assert_eq!(kinds(&local, true), [ProbeKind::Readiness]);
    }
}
