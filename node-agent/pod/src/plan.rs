//! The reducer: from what is wanted and seen to what to do.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};

use crate::local::Local;
use crate::observed::{Exit, Instance, InstanceState, Observed, Sandbox};
use crate::resize::{self, Bounds};
use crate::spec::{self, Member, Role, after, between};
use crate::status::{self, Verdict};

/// Least grace that is left to containers killed last in a graceful end.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// What the reducer looks at.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The pod as the API has it, its last reported status included.
    pub pod: &'a Pod,
    /// What is seen of it.
    pub observed: &'a Observed,
    /// What is remembered of it.
    pub local: &'a Local,
    /// Addresses of the node, primary first.
    pub host_ips: &'a [String],
    /// Now.
    pub now: Timestamp,
}

/// Something for the worker to do. Those under way are in [`Local`] and are not planned again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make all volumes ready.
    PrepareVolumes,
    /// Make a sandbox.
    CreateSandbox {
        /// Which one of the pod's sandboxes.
        attempt: u32,
    },
    /// Stop a sandbox.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Have the image, make an instance, start it, run its postStart hook.
    StartContainer {
        /// Name of the container.
        name: String,
        /// Number of the instance: the restart count.
        attempt: u32,
        /// Sandbox to make it in.
        sandbox_id: String,
        /// It ran before.
        restart: bool,
        /// Its definition changed since it last ran: earlier crashes don't count.
        changed: bool,
    },
    /// Run the preStop hook and stop an instance.
    KillContainer {
        /// Its id.
        id: String,
        /// Name of the container.
        name: String,
        /// Time for an orderly end, preStop included.
        grace: Duration,
        /// Words for the `Killing` event.
        message: String,
    },
    /// Remove an ended instance.
    RemoveContainer {
        /// Its id.
        id: String,
    },
    /// Have the runtime give a running instance what the pod's spec now says.
    ResizeContainer {
        /// Its id.
        id: String,
        /// Name of the container.
        name: String,
    },
    /// The pod has ended and stays in the API: give back its volumes and its cgroup. Its logs stay.
    Release,
    /// Nothing runs any more: clean up, report, and remove the pod from the API.
    Finish,
}

/// What follows from an [`Input`].
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What to do, now and at the same time.
    pub actions: Vec<Action>,
    /// What to report.
    pub status: PodStatus,
    /// When to look again even if nothing happens.
    pub wake_at: Option<Timestamp>,
}

/// Decides.
pub fn reduce(input: &Input<'_>) -> Plan {
    let Some(spec) = input.pod.spec.as_ref() else {
        return Plan {
            actions: Vec::new(),
            status: PodStatus::default(),
            wake_at: None,
        };
    };
    let mut planner = Planner {
        input,
        spec,
        members: spec::members(spec),
        actions: Vec::new(),
        wake_at: None,
    };
    let verdict = planner.decide();
    let status = status::compute(input, spec, &verdict);
    Plan {
        actions: planner.actions,
        status,
        wake_at: planner.wake_at,
    }
}

struct Planner<'a> {
    input: &'a Input<'a>,
    spec: &'a PodSpec,
    members: Vec<Member<'a>>,
    actions: Vec<Action>,
    wake_at: Option<Timestamp>,
}

/// Why everything is stopped.
struct Stop {
    grace: Duration,
    /// The pod leaves the node for good.
    finish: bool,
}

impl<'a> Planner<'a> {
    fn decide(&mut self) -> Verdict {
        self.prune();
        if let Some(grace) = spec::deletion_grace(self.input.pod) {
            self.stop(&Stop {
                grace,
                finish: true,
            });
            return Verdict::Deleting;
        }
        if let Some(rejection) = &self.input.local.rejected {
            let own = spec::grace_period(self.spec);
            self.stop(&Stop {
                grace: rejection.grace.map_or(own, |grace| grace.min(own)),
                finish: false,
            });
            return Verdict::Failed {
                reason: rejection.reason.clone(),
                message: rejection.message.clone(),
            };
        }
        if self.deadline_exceeded() {
            self.stop(&Stop {
                grace: spec::grace_period(self.spec),
                finish: false,
            });
            return Verdict::Failed {
                reason: "DeadlineExceeded".to_owned(),
                message: "Pod was active on the node longer than the specified deadline".to_owned(),
            };
        }
        if self.ended() {
            self.stop(&Stop {
                grace: spec::grace_period(self.spec),
                finish: false,
            });
            return Verdict::Ended;
        }
        self.run();
        Verdict::Running
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Removes ended instances beyond the newest two of each container.
    fn prune(&mut self) {
        let mut doomed = Vec::new();
        for member in &self.members {
            let instances = self.input.observed.of(&member.container.name);
            let old = instances
                .into_iter()
                .skip(2)
                .filter(|instance| !instance.running());
            doomed.extend(old.map(|instance| instance.id.clone()));
        }
        doomed.retain(|id| !self.input.local.removing.contains(id));
        self.actions
            .extend(doomed.into_iter().map(|id| Action::RemoveContainer { id }));
    }

    fn deadline_exceeded(&mut self) -> bool {
        let status = self.input.pod.status.as_ref();
        if status.is_some_and(|status| status.reason.as_deref() == Some("DeadlineExceeded")) {
            return true;
        }
        let Some(seconds) = self.spec.active_deadline_seconds else {
            return false;
        };
        let started = status
            .and_then(|status| status.start_time.as_ref())
            .map(|time| time.0);
        let Some(started) = started.or(self.input.local.accepted_at) else {
            return false;
        };
        let deadline = after(
            started,
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        );
        if deadline > self.input.now {
            self.wake(deadline);
            return false;
        }
        !self.ended()
    }

    /// Has the pod run to its end?
    fn ended(&self) -> bool {
        let phase = self
            .input
            .pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return true;
        }
        if self.input.local.starting() {
            return false;
        }
        let apps = self
            .members
            .iter()
            .filter(|member| member.role == Role::App);
        let mut apps = apps.peekable();
        if apps.peek().is_none() {
            return false;
        }
        apps.all(|member| self.finally_ended(member)) || self.init_failed()
    }

    /// Has the container ended, not to be started again?
    fn finally_ended(&self, member: &Member<'_>) -> bool {
        last_exit(self.input, &member.container.name)
            .is_some_and(|exit| !member.restarts(exit.code))
    }

    fn init_failed(&self) -> bool {
        if self.initialized() {
            return false;
        }
        let inits = self
            .members
            .iter()
            .filter(|member| member.role == Role::Init);
        inits.into_iter().any(|member| {
            let exit = last_exit(self.input, &member.container.name);
            exit.is_some_and(|exit| exit.code != 0 && !member.restarts(exit.code))
        })
    }

    /// Stops containers, sidecars last and in reverse order, then the sandbox.
    fn stop(&mut self, stop: &Stop) {
        let local = self.input.local;
        let sidecar = |name: &str| {
            self.members
                .iter()
                .position(|member| member.role == Role::Sidecar && member.container.name == name)
        };
        let running: Vec<_> = self
            .input
            .observed
            .instances
            .iter()
            .filter(|instance| instance.running())
            .collect();
        let (last, first): (Vec<_>, Vec<_>) = running
            .iter()
            .partition(|instance| sidecar(&instance.name).is_some());
        let mut doomed: Vec<(&Instance, Duration)> = Vec::new();
        if !first.is_empty() {
            doomed.extend(
                first
                    .into_iter()
                    .map(|instance: &Instance| (instance, stop.grace)),
            );
        } else if let Some(instance) = last
            .into_iter()
            .max_by_key(|instance| sidecar(&instance.name))
        {
            let since = local.stopping_since.unwrap_or(self.input.now);
            let left = stop.grace.saturating_sub(between(since, self.input.now));
            doomed.push((instance, left.max(LEAST_GRACE.min(stop.grace))));
        }
        for (instance, grace) in doomed {
            self.kill(
                instance,
                grace,
                format!("Stopping container {}", instance.name),
            );
        }
        if !running.is_empty() || local.starting() {
            return;
        }
        match &self.input.observed.sandbox {
            Some(sandbox) if sandbox.ready => {
                if local.stopping_sandbox.as_ref() != Some(&sandbox.id) {
                    self.actions.push(Action::StopSandbox {
                        id: sandbox.id.clone(),
                    });
                }
            }
            _ => {
                let busy = [&local.sandbox, &local.volumes].contains(&&crate::local::Step::Running);
                let held = local.volumes != crate::local::Step::Idle
                    || self.input.observed.sandbox.is_some()
                    || !self.input.observed.instances.is_empty();
                if stop.finish && !busy && !local.finishing {
                    self.actions.push(Action::Finish);
                } else if !stop.finish && !busy && held && !local.released {
                    self.actions.push(Action::Release);
                }
            }
        }
    }

    fn kill(&mut self, instance: &Instance, grace: Duration, message: String) {
        // Killed already: again only if it must go sooner now.
        if self
            .input
            .local
            .killing
            .get(&instance.id)
            .is_some_and(|given| *given <= grace)
        {
            return;
        }
        let (id, name) = (instance.id.clone(), instance.name.clone());
        self.actions.push(Action::KillContainer {
            id,
            name,
            grace,
            message,
        });
    }

    fn run(&mut self) {
        if self.input.local.volumes.due(self.input.now) {
            self.actions.push(Action::PrepareVolumes);
        } else if let crate::local::Step::Failed(again) = self.input.local.volumes {
            self.wake(again);
        }
        match &self.input.observed.sandbox {
            Some(sandbox) if sandbox.ready => {
                if self.input.local.volumes == crate::local::Step::Done {
                    self.run_containers(sandbox);
                }
            }
            dead => self.replace_sandbox(dead.as_ref()),
        }
    }

    fn replace_sandbox(&mut self, dead: Option<&Sandbox>) {
        let orphans: Vec<_> = self
            .input
            .observed
            .instances
            .iter()
            .filter(|instance| instance.running())
            .collect();
        for instance in &orphans {
            self.kill(
                instance,
                spec::grace_period(self.spec),
                "Pod sandbox changed, it will be killed and re-created.".to_owned(),
            );
        }
        let stopping =
            dead.is_some_and(|dead| self.input.local.stopping_sandbox.as_ref() != Some(&dead.id));
        if stopping && let Some(dead) = dead {
            // Its network must be given back before the next one takes another address.
            self.actions.push(Action::StopSandbox {
                id: dead.id.clone(),
            });
        }
        if !orphans.is_empty() || self.input.local.starting() {
            return;
        }
        if self.input.local.sandbox.due(self.input.now) {
            self.actions.push(Action::CreateSandbox {
                attempt: dead.map_or(0, |dead| dead.attempt + 1),
            });
        } else if let crate::local::Step::Failed(again) = self.input.local.sandbox {
            self.wake(again);
        }
    }

    /// Have the init containers done their work in this sandbox?
    fn initialized(&self) -> bool {
        let Some(sandbox) = &self.input.observed.sandbox else {
            return false;
        };
        let apps = self
            .members
            .iter()
            .filter(|member| member.role == Role::App);
        apps.into_iter()
            .any(|member| self.in_sandbox(member, sandbox).is_some())
    }

    fn in_sandbox(&self, member: &Member<'_>, sandbox: &Sandbox) -> Option<&'a Instance> {
        let newest = self
            .input
            .observed
            .of(&member.container.name)
            .into_iter()
            .next();
        newest.filter(|instance| instance.sandbox_id == sandbox.id)
    }

    fn run_containers(&mut self, sandbox: &Sandbox) {
        for member in spec::ephemeral(self.spec) {
            self.run_ephemeral(&member, sandbox);
        }
        let initialized = self.initialized();
        for member in self.members.clone() {
            let done = match member.role {
                Role::Init if initialized => true,
                Role::Init => self.run_init(&member, sandbox),
                Role::Sidecar => self.keep_running(&member, sandbox) || initialized,
                Role::App | Role::Ephemeral => {
                    self.keep_running(&member, sandbox);
                    true
                }
            };
            if !done {
                return;
            }
        }
    }

    /// Starts an ephemeral container that never ran. Its end is final, in this sandbox or another.
    fn run_ephemeral(&mut self, member: &Member<'_>, sandbox: &Sandbox) {
        let name = &member.container.name;
        let newest = self.input.observed.newest(name);
        let begun = match newest.map(|instance| &instance.state) {
            Some(InstanceState::Created) => false,
            Some(_) => true,
            None => status::lost_exit(self.input, name).is_some(),
        };
        if !begun {
            self.start(member, sandbox);
        }
    }

    /// Runs an init container; true when it has succeeded.
    fn run_init(&mut self, member: &Member<'_>, sandbox: &Sandbox) -> bool {
        match self
            .in_sandbox(member, sandbox)
            .map(|instance| &instance.state)
        {
            Some(InstanceState::Exited(exit)) if exit.code == 0 => true,
            Some(InstanceState::Running { .. }) => false,
            _ => {
                self.start(member, sandbox);
                false
            }
        }
    }

    /// Keeps a container running as its policy wants; true when it has started.
    fn keep_running(&mut self, member: &Member<'_>, sandbox: &Sandbox) -> bool {
        let Some(instance) = self.in_sandbox(member, sandbox) else {
            if !self.finally_ended(member) {
                self.start(member, sandbox);
            }
            return false;
        };
        match &instance.state {
            InstanceState::Running { .. } => {
                if !self.check(member, instance) {
                    self.resize(member, instance);
                }
                status::started(self.input, &member.container, instance)
            }
            InstanceState::Created => {
                self.start(member, sandbox);
                false
            }
            InstanceState::Exited(exit) => {
                if member.restarts(exit.code) {
                    self.start(member, sandbox);
                }
                false
            }
        }
    }

    /// Kills an instance that a probe condemned or whose image has changed; true if it must go.
    fn check(&mut self, member: &Member<'_>, instance: &Instance) -> bool {
        let name = &member.container.name;
        let changed = spec::changed(&member.container, instance);
        let local = self
            .input
            .local
            .containers
            .get(name)
            .filter(|local| local.probed == instance.id);
        let condemned = local.and_then(|local| local.condemned);
        let message = match condemned {
            Some(condemned) => condemned.message(name),
            None if changed => format!("Container {name} definition changed, will be restarted"),
            None => return false,
        };
        let own = condemned
            .filter(|_| !changed)
            .and_then(|condemned| condemned.probe(&member.container))
            .and_then(|probe| probe.termination_grace_period_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs);
        self.kill(
            instance,
            own.unwrap_or_else(|| spec::grace_period(self.spec)),
            message,
        );
        true
    }

    /// Gives a running instance what was granted since it was started, by a restart if its policy wants that.
    fn resize(&mut self, member: &Member<'_>, instance: &Instance) {
        let container = &member.container;
        let Some(local) = self.input.local.containers.get(&container.name) else {
            return;
        };
        let Some(actuated) = &local.actuated else {
            return;
        };
        let from = Bounds::of(Some(actuated));
        let to = Bounds::of(container.resources.as_ref());
        if from == to || local.resizing || local.starting {
            return;
        }
        if let Some((_, retry_at)) = &local.resize_failure
            && *retry_at > self.input.now
        {
            self.wake(*retry_at);
            return;
        }
        if resize::needs_restart(container, &from, &to) {
            let message = format!("Container {} resize requires restart", container.name);
            return self.kill(instance, spec::grace_period(self.spec), message);
        }
        self.actions.push(Action::ResizeContainer {
            id: instance.id.clone(),
            name: container.name.clone(),
        });
    }

    fn start(&mut self, member: &Member<'_>, sandbox: &Sandbox) {
        let name = &member.container.name;
        let local = self
            .input
            .local
            .containers
            .get(name)
            .cloned()
            .unwrap_or_default();
        let newest = self.input.observed.newest(name);
        let exit = newest.and_then(Instance::exit);
        let now = self.input.now;
        let shown = local
            .failure
            .as_ref()
            .map(|failure| failure.retry_at)
            .filter(|at| *at > now);
        let changed = newest.is_some_and(|newest| spec::changed(&member.container, newest));
        let resized = resize::outdated(&member.container, local.actuated.as_ref());
        let pause = exit
            .filter(|_| !resized && !changed)
            .and_then(|exit| local.backoff.until(exit.finished_at, now));
        // Looked at after either: what is reported changes from one reason to the other.
        for later in [shown, pause].into_iter().flatten() {
            self.wake(later);
        }
        if shown.or(pause).is_some() {
            return;
        }
        let planned = self
            .actions
            .iter()
            .any(|action| matches!(action, Action::StartContainer { .. }));
        // One at a time, in order: a container may count on those before it.
        if planned || self.input.local.starting() {
            return;
        }
        self.actions.push(Action::StartContainer {
            name: name.clone(),
            attempt: next_attempt(self.input, name),
            sandbox_id: sandbox.id.clone(),
            restart: exit.is_some(),
            changed,
        });
    }
}

fn next_attempt(input: &Input<'_>, name: &str) -> u32 {
    if let Some(newest) = input.observed.newest(name) {
        return newest.attempt + 1;
    }
    // Its instances are gone, but the count must not go back.
    match status::reported(input.pod, name) {
        Some(status) if status.container_id.is_some() => {
            u32::try_from(status.restart_count).unwrap_or(0) + 1
        }
        Some(status) => u32::try_from(status.restart_count).unwrap_or(0),
        None => 0,
    }
}

/// How the container last ended, as seen or as reported before its instances went; `None` if it runs or never ran.
pub(crate) fn last_exit(input: &Input<'_>, name: &str) -> Option<Exit> {
    if let Some(newest) = input.observed.newest(name) {
        return newest.exit().cloned();
    }
    status::lost_exit(input, name)
}
