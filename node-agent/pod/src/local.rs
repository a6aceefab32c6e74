//! What the worker of a pod remembers between two calls of the reducer: steps under way, failures, probes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::Backoff;
use crate::plan::Action;
use crate::spec::after;

/// Pause after a failed step of the pod as a whole (volumes, sandbox): doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

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
    /// A liveness or startup probe condemned the instance, in these words.
    pub condemned: Option<String>,
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
    /// The node refused the pod, or threw it out: reason and message of its failure.
    pub rejected: Option<(String, String)>,
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
            Action::StartContainer { name, restart, .. } => {
                let container = self.container(name);
                container.starting = true;
                container.probed.clear();
                container.ready = None;
                container.started = None;
                container.condemned = None;
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
