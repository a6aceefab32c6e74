//! What the worker of a pod remembers between two calls of the reducer: steps under way, failures, probes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe, ResourceRequirements};

use crate::backoff::Backoff;
use crate::plan::Action;
use crate::spec::after;

/// Pause after a failed step of the pod as a whole (volumes, sandbox): doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Pause after a failed change of a container's resources.
const RESIZE_RETRY: Duration = Duration::from_secs(5);

/// A probe whose failure ends a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condemned {
    /// The startup probe.
    Startup,
    /// The liveness probe.
    Liveness,
}

impl Condemned {
    /// In the words of the `Killing` event.
    #[must_use]
    pub fn message(self, container: &str) -> String {
        let probe = match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
        };
        format!("Container {container} failed {probe} probe, will be restarted")
    }

    /// The probe, which may have a grace period of its own.
    #[must_use]
    pub fn probe(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// A step that is done once, and tried again when it fails.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Step {
    /// Not begun.
    #[default]
    Idle,
    /// Under way.
    Running,
    /// Done.
    Done,
    /// Failed; again at this time.
    Failed(Timestamp),
}

impl Step {
    /// May it be begun now?
    pub fn due(&self, now: Timestamp) -> bool {
        match self {
            Self::Idle => true,
            Self::Failed(again) => *again <= now,
            Self::Running | Self::Done => false,
        }
    }
}

/// Why a container could not be started: becomes its `waiting` state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    /// `ErrImagePull`, `CreateContainerConfigError`, ...
    pub reason: String,
    /// Words for people.
    pub message: String,
    /// Not before.
    pub retry_at: Timestamp,
}

/// What is remembered of one container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ContainerLocal {
    /// A start is under way.
    pub starting: bool,
    /// Its last start failed.
    pub failure: Option<StartFailure>,
    /// Crash-loop backoff.
    pub backoff: Backoff,
    /// Which instance the probe results below are of.
    pub probed: String,
    /// Readiness; `None` while no probe has decided.
    pub ready: Option<bool>,
    /// Startup probe passed; `None` while it has not.
    pub started: Option<bool>,
    /// The probe that condemned the instance.
    pub condemned: Option<Condemned>,
    /// Resources that the newest instance runs with; `None` if not known to differ from those granted.
    pub actuated: Option<ResourceRequirements>,
    /// A change of its resources is under way.
    pub resizing: bool,
    /// The last change of its resources failed: why, and when to try again.
    pub resize_failure: Option<(String, Timestamp)>,
}

/// Why the node failed a pod as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// It was running and was thrown out: becomes the condition `DisruptionTarget`.
    pub disruption: bool,
    /// Time for an orderly end; the pod's own when `None`.
    pub grace: Option<Duration>,
}

/// Why a resize waits: the condition `PodResizePending`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResizePending {
    /// `Deferred` or `Infeasible`.
    pub reason: &'static str,
    /// Words for people.
    pub message: String,
}

/// What is remembered of one pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Local {
    /// Volumes.
    pub volumes: Step,
    /// Making a sandbox.
    pub sandbox: Step,
    /// Failures in a row of the two steps above.
    pub failures: u32,
    /// Sandbox that is being stopped, or was.
    pub stopping_sandbox: Option<String>,
    /// Instances being killed, with the grace they were given.
    pub killing: BTreeMap<String, Duration>,
    /// Instances being removed.
    pub removing: BTreeSet<String>,
    /// Per container, by name.
    pub containers: BTreeMap<String, ContainerLocal>,
    /// When the node took the pod on.
    pub accepted_at: Option<Timestamp>,
    /// The node refused the pod, or threw it out.
    pub rejected: Option<Rejection>,
    /// The spec asks for resources that are not granted.
    pub resize_pending: Option<ResizePending>,
    /// What an ended pod held is being given back, or was.
    pub released: bool,
    /// When the pod was first seen to be going.
    pub stopping_since: Option<Timestamp>,
    /// The final clean-up is under way or done.
    pub finishing: bool,
}

impl Local {
    /// What is remembered of a container, made when missing.
    pub fn container(&mut self, name: &str) -> &mut ContainerLocal {
        self.containers.entry(name.to_owned()).or_default()
    }

    /// Is any container being started?
    pub fn starting(&self) -> bool {
        self.containers.values().any(|container| container.starting)
    }

    /// Notes that an action has begun.
    pub fn begin(&mut self, action: &Action, now: Timestamp) {
        match action {
            Action::PrepareVolumes => self.volumes = Step::Running,
            Action::CreateSandbox { .. } => self.sandbox = Step::Running,
            Action::StopSandbox { id } => self.stopping_sandbox = Some(id.clone()),
            Action::StartContainer {
                name,
                restart,
                changed,
                ..
            } => {
                let container = self.container(name);
                container.starting = true;
                container.probed.clear();
                container.ready = None;
                container.started = None;
                container.condemned = None;
                container.actuated = None;
                container.resize_failure = None;
                if *changed {
                    container.backoff = Backoff::default();
                }
                if *restart {
                    container.backoff.next(now);
                }
            }
            Action::KillContainer { id, grace, .. } => {
                self.killing.insert(id.clone(), *grace);
            }
            Action::RemoveContainer { id } => {
                self.removing.insert(id.clone());
            }
            Action::ResizeContainer { name, .. } => {
                let container = self.container(name);
                container.resizing = true;
                container.resize_failure = None;
            }
            Action::Release => {
                self.released = true;
                self.volumes = Step::Idle;
            }
            Action::Finish => self.finishing = true,
        }
    }

    /// Notes how the preparation of the volumes ended.
    pub fn volumes_done(&mut self, ok: bool, now: Timestamp) {
        self.volumes = self.outcome(ok, now);
    }

    /// Notes how the making of a sandbox ended.
    pub fn sandbox_done(&mut self, ok: bool, now: Timestamp) {
        // A new sandbox may be needed later: success is seen by observing it.
        self.sandbox = match self.outcome(ok, now) {
            Step::Done => Step::Idle,
            failed => failed,
        };
    }

    /// Notes how a change of a container's resources ended.
    pub fn resize_done(
        &mut self,
        name: &str,
        resources: ResourceRequirements,
        result: Result<(), String>,
        now: Timestamp,
    ) {
        let container = self.container(name);
        container.resizing = false;
        match result {
            Ok(()) => container.actuated = Some(resources),
            Err(message) => {
                container.resize_failure = Some((message, after(now, RESIZE_RETRY)));
            }
        }
    }

    /// Makes everything due that failed and was put off: the clock was set.
    pub fn retry_at_once(&mut self, now: Timestamp) {
        for step in [&mut self.volumes, &mut self.sandbox] {
            if let Step::Failed(again) = step {
                *again = now;
            }
        }
        for container in self.containers.values_mut() {
            if let Some(failure) = &mut container.failure {
                failure.retry_at = now;
            }
            if let Some((_, retry_at)) = &mut container.resize_failure {
                *retry_at = now;
            }
        }
    }

    /// Notes that a start has ended, and why it failed if it did.
    pub fn start_done(&mut self, name: &str, failure: Option<StartFailure>) {
        let container = self.container(name);
        container.starting = false;
        container.failure = failure;
    }

    fn outcome(&mut self, ok: bool, now: Timestamp) -> Step {
        if ok {
            self.failures = 0;
            return Step::Done;
        }
        self.failures += 1;
        let pause = RETRY
            .0
            .saturating_mul(1 << self.failures.min(10))
            .min(RETRY.1);
        Step::Failed(after(now, pause))
    }
}
