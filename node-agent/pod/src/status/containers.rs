//! Statuses of containers.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, LinuxContainerUser, Pod, PodSpec,
    ResourceRequirements, VolumeMountStatus,
};

use super::{reasons, time};
use crate::backoff::go_duration;
use crate::observed::{Exit, Instance, InstanceState, User};
use crate::plan::Input;
use crate::resize;
use crate::spec::{self, Member, Role};

/// Exit code of a container that was lost: as if killed.
const LOST: i32 = 137;

/// Statuses in the order of the spec.
pub(super) struct Statuses {
    /// Of init containers.
    pub(super) inits: Vec<ContainerStatus>,
    /// Of ordinary containers.
    pub(super) apps: Vec<ContainerStatus>,
    /// Of ephemeral ones.
    pub(super) ephemeral: Vec<ContainerStatus>,
}

pub(super) fn all(input: &Input<'_>, spec: &PodSpec) -> Statuses {
    let members = spec::members(spec);
    let has_init = members.iter().any(|member| member.role != Role::App);
    let mut statuses = Statuses {
        inits: Vec::new(),
        apps: Vec::new(),
        ephemeral: Vec::new(),
    };
    for member in &spec::ephemeral(spec) {
        let mut status = one(input, member, false);
        // Nobody waits for it: it is neither ready nor started, as upstream.
        status.ready = false;
        status.started = None;
        statuses.ephemeral.push(status);
    }
    for member in &members {
        let status = one(input, member, has_init);
        if member.role == Role::App {
            statuses.apps.push(status)
        } else {
            statuses.inits.push(status)
        }
    }
    statuses
}

/// The status last reported of a container.
pub(crate) fn reported<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .chain(&status.ephemeral_container_statuses)
        .flatten();
    all.into_iter().find(|status| status.name == name)
}

/// How a container ended that was reported, and of which nothing is left on the node.
pub(crate) fn lost_exit(input: &Input<'_>, name: &str) -> Option<Exit> {
    let state = reported(input.pod, name)?.state.as_ref()?;
    if let Some(ended) = &state.terminated {
        return Some(Exit {
            code: ended.exit_code,
            reason: ended.reason.clone().unwrap_or_default(),
            message: ended.message.clone().unwrap_or_default(),
            started_at: ended.started_at.as_ref().map(|time| time.0),
            finished_at: ended
                .finished_at
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        });
    }
    let running = state.running.as_ref()?;
    Some(Exit {
        code: LOST,
        reason: reasons::CONTAINER_STATUS_UNKNOWN.to_owned(),
        message: "The container could not be located when the pod was deleted.  The container used to be Running"
            .to_owned(),
        started_at: running.started_at.as_ref().map(|time| time.0),
        finished_at: running.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    })
}

/// Has the instance started, its startup probe included?
pub(crate) fn started(input: &Input<'_>, container: &Container, instance: &Instance) -> bool {
    if !instance.running() {
        return false;
    }
    let Some(local) = input.local.containers.get(&container.name) else {
        return adopted(input, instance, true);
    };
    if local.starting {
        return false;
    }
    if container.startup_probe.is_none() {
        return true;
    }
    match local.started {
        Some(started) if local.probed == instance.id => started,
        _ => adopted(input, instance, false),
    }
}

/// What was reported of an instance that the node's agent found already running when it began.
fn adopted(input: &Input<'_>, instance: &Instance, otherwise: bool) -> bool {
    match reported(input.pod, &instance.name) {
        Some(status) if same_instance(status, instance) => status.started.unwrap_or(otherwise),
        _ => otherwise,
    }
}

fn same_instance(status: &ContainerStatus, instance: &Instance) -> bool {
    status
        .container_id
        .as_deref()
        .is_some_and(|id| id.rsplit('/').next() == Some(instance.id.as_str()))
}

fn ready(input: &Input<'_>, container: &Container, instance: &Instance) -> bool {
    if !started(input, container, instance) {
        return false;
    }
    if container.readiness_probe.is_none() {
        return true;
    }
    let local = input
        .local
        .containers
        .get(&container.name)
        .filter(|local| local.probed == instance.id);
    match local.and_then(|local| local.ready) {
        Some(ready) => ready,
        // No probe has spoken yet: a restarted agent must not take a serving pod out of its Services.
        None => reported(input.pod, &container.name)
            .is_some_and(|status| status.ready && same_instance(status, instance)),
    }
}

fn one(input: &Input<'_>, member: &Member<'_>, has_init: bool) -> ContainerStatus {
    let container: &Container = &member.container;
    let name = &container.name;
    let instances = input.observed.of(name);
    let newest = instances.first().copied();
    let shown = newest.filter(|instance| instance.state != InstanceState::Created);
    let waiting = waiting(input, member, newest, has_init);
    let exits: Vec<&Instance> = instances
        .iter()
        .copied()
        .filter(|instance| instance.exit().is_some())
        .collect();
    let lost = if newest.is_none() {
        lost_exit(input, name)
    } else {
        None
    };

    let (state, last) = match (&waiting, shown) {
        (None, Some(instance)) => {
            let skip = usize::from(instance.exit().is_some());
            (
                state_of(instance),
                exits.get(skip).map(|instance| state_of(instance)),
            )
        }
        (None, None) => (
            lost.as_ref()
                .map(|exit| exited(exit, None))
                .unwrap_or_default(),
            None,
        ),
        (Some(waiting), _) => {
            let last = exits.first().map(|instance| state_of(instance));
            let last = last.or_else(|| {
                lost.as_ref()
                    .map(|exit| exited(exit, reported_id(input, name)))
            });
            (
                ContainerState {
                    waiting: Some(waiting.clone()),
                    ..Default::default()
                },
                last,
            )
        }
    };
    let old = reported(input.pod, name);
    let last = last.or_else(|| {
        old.and_then(|old| old.last_state.clone())
            .filter(|_| exits.is_empty())
    });
    let live = shown.filter(|_| waiting.is_none());
    let initialised = member.role == Role::Init;
    let ready = match shown {
        Some(instance) if initialised => instance.exit().is_some_and(|exit| exit.code == 0),
        Some(instance) => live.is_some() && ready(input, container, instance),
        None => initialised && lost.as_ref().is_some_and(|exit| exit.code == 0),
    };
    let restart_count = newest.map_or_else(
        || old.map_or(0, |old| old.restart_count),
        |instance| i32::try_from(instance.attempt).unwrap_or(i32::MAX),
    );
    ContainerStatus {
        name: name.clone(),
        image: newest.map_or_else(
            || container.image.clone().unwrap_or_default(),
            |instance| instance.image.clone(),
        ),
        image_id: newest
            .map(|instance| instance.image_id.clone())
            .unwrap_or_default(),
        container_id: newest
            .map(|instance| format!("containerd://{}", instance.id))
            .or_else(|| old.and_then(|old| old.container_id.clone())),
        ready,
        started: Some(
            !initialised && live.is_some_and(|instance| started(input, container, instance)),
        ),
        restart_count,
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        resources: resources(input, container, live),
        allocated_resources: container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.clone()),
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone()),
        user: shown.and_then(|instance| instance.user.as_ref()).map(user),
        volume_mounts: mounts(container, shown),
        ..Default::default()
    }
}

/// What the container runs with, or is to run with.
fn resources(
    input: &Input<'_>,
    container: &Container,
    live: Option<&Instance>,
) -> Option<ResourceRequirements> {
    let running = live.is_some_and(Instance::running);
    let local = input.local.containers.get(&container.name);
    let actuated = local.and_then(|local| local.actuated.clone());
    actuated
        .filter(|_| running)
        .or_else(|| container.resources.clone())
}

fn reported_id(input: &Input<'_>, name: &str) -> Option<String> {
    reported(input.pod, name)?.container_id.clone()
}

fn state_of(instance: &Instance) -> ContainerState {
    match &instance.state {
        InstanceState::Created => ContainerState::default(),
        InstanceState::Running { started_at } => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: Some(time(*started_at)),
            }),
            ..Default::default()
        },
        InstanceState::Exited(exit) => exited(exit, Some(format!("containerd://{}", instance.id))),
    }
}

fn exited(exit: &Exit, container_id: Option<String>) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id,
            exit_code: exit.code,
            finished_at: Some(time(exit.finished_at)),
            message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
            reason: Some(exit.reason.clone()).filter(|reason| !reason.is_empty()),
            signal: None,
            started_at: exit.started_at.map(time),
        }),
        ..Default::default()
    }
}

fn user(user: &User) -> ContainerUser {
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: Some(user.groups.clone()).filter(|groups| !groups.is_empty()),
        }),
    }
}

fn mounts(container: &Container, shown: Option<&Instance>) -> Option<Vec<VolumeMountStatus>> {
    // What was asked for "if possible" is told as what came of it.
    let recursive = |path: &str| {
        let mut known = shown
            .iter()
            .flat_map(|instance| &instance.recursive_read_only);
        let path = path.trim_start_matches('/');
        known.any(|known| known.trim_start_matches('/') == path)
    };
    let mounts = container
        .volume_mounts
        .as_ref()?
        .iter()
        .map(|mount| VolumeMountStatus {
            mount_path: mount.mount_path.clone(),
            name: mount.name.clone(),
            read_only: mount.read_only,
            recursive_read_only: (mount.read_only == Some(true)).then(|| {
                let enabled = recursive(&mount.mount_path);
                if enabled { "Enabled" } else { "Disabled" }.to_owned()
            }),
        });
    Some(mounts.collect())
}

/// Why the container waits, if it does.
fn waiting(
    input: &Input<'_>,
    member: &Member<'_>,
    newest: Option<&Instance>,
    has_init: bool,
) -> Option<ContainerStateWaiting> {
    let name = &member.container.name;
    if newest.is_some_and(Instance::running) {
        return None;
    }
    let local = input
        .local
        .containers
        .get(name)
        .cloned()
        .unwrap_or_default();
    let exit = match newest {
        Some(instance) => instance.exit().cloned(),
        None => lost_exit(input, name),
    };
    let over = input.pod.metadata.deletion_timestamp.is_some()
        || input.local.rejected.is_some()
        || matches!(
            super::reported_phase(input.pod),
            Some("Succeeded" | "Failed")
        );
    if let Some(exit) = &exit {
        let ended_init = member.role == Role::Init && exit.code == 0;
        if ended_init || over || !member.restarts(exit.code) {
            return None;
        }
    }
    let resized = resize::outdated(&member.container, local.actuated.as_ref());
    let changed = newest.is_some_and(|newest| spec::changed(&member.container, newest));
    let crash = exit
        .as_ref()
        // What is being started again waits for nothing: upstream shows the end until the restart.
        .filter(|_| !resized && !changed && !local.starting)
        .and_then(|exit| local.backoff.until(exit.finished_at, input.now));
    let failure = local
        .failure
        .as_ref()
        .filter(|failure| crash.is_none() || failure.retry_at > input.now);
    if let Some(failure) = failure {
        return Some(ContainerStateWaiting {
            reason: Some(failure.reason.clone()),
            message: Some(failure.message.clone()).filter(|message| !message.is_empty()),
        });
    }
    if crash.is_some() {
        let pause = go_duration(local.backoff.pause());
        let message = format!(
            "back-off {pause} restarting failed container={name} pod={}",
            spec::event_name(input.pod)
        );
        let reason = Some(reasons::CRASH_LOOP_BACK_OFF.to_owned());
        return Some(ContainerStateWaiting {
            reason,
            message: Some(message),
        });
    }
    // Ended just now and about to be restarted: upstream shows the end until the restart.
    if newest.is_some_and(|instance| instance.exit().is_some()) {
        return None;
    }
    let reason = if has_init {
        reasons::POD_INITIALIZING
    } else {
        reasons::CONTAINER_CREATING
    };
    Some(ContainerStateWaiting {
        reason: Some(reason.to_owned()),
        message: None,
    })
}
