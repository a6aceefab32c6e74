//! `status.phase`: source is kubelet's `getPhase`.

use k8s_openapi::api::core::v1::{ContainerStatus, PodSpec};

use super::containers::Statuses;
use super::{Verdict, reported_phase};
use crate::plan::Input;
use crate::spec::{self, Member, Role};

const PENDING: &str = "Pending";
const RUNNING: &str = "Running";
const SUCCEEDED: &str = "Succeeded";
const FAILED: &str = "Failed";

pub(super) fn of(
    input: &Input<'_>,
    spec: &PodSpec,
    statuses: &Statuses,
    verdict: &Verdict,
) -> &'static str {
    // An end is never taken back.
    match reported_phase(input.pod) {
        Some(SUCCEEDED) => return SUCCEEDED,
        Some(FAILED) => return FAILED,
        _ => {}
    }
    let stopped = !input.observed.alive() && !input.local.starting();
    let phase = count(spec, statuses, verdict, stopped);
    match verdict {
        Verdict::Failed { .. } if stopped => FAILED,
        // While its containers end, a failing pod still runs: its phase must not say they are gone.
        Verdict::Failed { .. } if matches!(phase, SUCCEEDED | FAILED) => RUNNING,
        _ => phase,
    }
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn running(status: &ContainerStatus) -> bool {
    status
        .state
        .as_ref()
        .is_some_and(|state| state.running.is_some())
}

fn ended_before(status: &ContainerStatus) -> bool {
    status
        .last_state
        .as_ref()
        .is_some_and(|state| state.terminated.is_some())
}

fn count(spec: &PodSpec, statuses: &Statuses, verdict: &Verdict, stopped: bool) -> &'static str {
    let members = spec::members(spec);
    let inits = members
        .iter()
        .filter(|member| member.role != Role::App)
        .zip(&statuses.inits);
    let apps: Vec<_> = members
        .iter()
        .filter(|member| member.role == Role::App)
        .zip(&statuses.apps)
        .collect();
    let untouched = apps.iter().all(|(_, status)| {
        exit_code(status).is_none() && !running(status) && !ended_before(status)
    });
    for (member, status) in inits {
        match init_outcome(member, status) {
            InitOutcome::Failed => return FAILED,
            InitOutcome::Pending if untouched && !(stopped && *verdict == Verdict::Deleting) => {
                return PENDING;
            }
            InitOutcome::Pending | InitOutcome::Done => {}
        }
    }
    let (mut alive, mut waiting, mut ended, mut failed, mut again) = (0, 0, 0, 0, 0);
    for (member, status) in &apps {
        if running(status) {
            alive += 1;
        } else if let Some(code) = exit_code(status) {
            ended += 1;
            failed += usize::from(code != 0);
            again += usize::from(member.restarts(code));
        } else if ended_before(status) {
            // Waits for its restart.
            ended += 1;
            failed += 1;
            again += 1;
        } else {
            waiting += 1;
        }
    }
    let final_end = *verdict == Verdict::Deleting && stopped;
    match () {
        () if waiting > 0 && !final_end => PENDING,
        () if alive > 0 => RUNNING,
        // Jobs that replace only failed pods wait for the end of one that never ran, too.
        () if ended == 0 && final_end => FAILED,
        () if ended == 0 => PENDING,
        () if again > 0 && !final_end => RUNNING,
        // Sidecars end after the others; the pod runs as long as they do.
        () if failed == 0
            && waiting == 0
            && (stopped || statuses.inits.iter().all(|status| !running(status))) =>
        {
            SUCCEEDED
        }
        () if failed == 0 && waiting == 0 => RUNNING,
        () => FAILED,
    }
}

enum InitOutcome {
    Done,
    Pending,
    Failed,
}

fn init_outcome(member: &Member<'_>, status: &ContainerStatus) -> InitOutcome {
    if member.role == Role::Sidecar {
        return if status.started == Some(true) {
            InitOutcome::Done
        } else {
            InitOutcome::Pending
        };
    }
    match exit_code(status) {
        Some(0) => InitOutcome::Done,
        Some(code) if !member.restarts(code) => InitOutcome::Failed,
        _ => InitOutcome::Pending,
    }
}
