//! Conditions of a pod that its node decides.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};

use super::containers::Statuses;
use super::time;
use crate::observed::Instance;
use crate::plan::Input;
use crate::resize::Bounds;
use crate::spec::{self, Role};

/// Conditions that every pod has.
const ALWAYS: [&str; 4] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
];

/// Conditions that a node decides and that are gone when they do not hold.
const SOMETIMES: [&str; 2] = [RESIZE_PENDING, RESIZE_IN_PROGRESS];

const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// Set when something is about to end the pod; the node sets it, and so do others.
pub(crate) const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// A condition's status, reason and message.
struct Finding {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Finding {
    fn yes() -> Self {
        Self {
            status: true,
            reason: None,
            message: None,
        }
    }

    fn because(reason: &'static str, message: String) -> Self {
        Self {
            status: true,
            reason: Some(reason),
            message: Some(message),
        }
    }

    fn no(reason: &'static str, message: impl Into<Option<String>>) -> Self {
        Self {
            status: false,
            reason: Some(reason),
            message: message.into(),
        }
    }
}

pub(super) fn all(
    input: &Input<'_>,
    spec: &PodSpec,
    statuses: &Statuses,
    phase: &str,
    old: &PodStatus,
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(spec, statuses, phase);
    let ready = ready(spec, &containers_ready, old);
    let sandbox = input
        .observed
        .sandbox
        .as_ref()
        .is_some_and(|sandbox| sandbox.ready);
    let network = Finding {
        status: sandbox,
        reason: None,
        message: None,
    };
    let findings = [
        network,
        initialized(spec, statuses, phase),
        ready,
        containers_ready,
    ];
    let mut conditions: Vec<_> = ALWAYS
        .iter()
        .zip(findings)
        .map(|(kind, finding)| condition(input, kind, finding, old))
        .collect();
    if let Some(pending) = &input.local.resize_pending {
        let finding = Finding::because(pending.reason, pending.message.clone());
        conditions.push(condition(input, RESIZE_PENDING, finding, old));
    }
    if let Some(finding) = resize_in_progress(input, spec) {
        conditions.push(condition(input, RESIZE_IN_PROGRESS, finding, old));
    }
    let rejected = input.local.rejected.as_ref();
    let disruption = rejected.filter(|rejection| rejection.disruption);
    if let Some(rejection) = disruption {
        let finding = Finding::because("TerminationByKubelet", rejection.message.clone());
        conditions.push(condition(input, DISRUPTION_TARGET, finding, old));
    }
    let ours = |kind: &str| {
        ALWAYS.contains(&kind)
            || SOMETIMES.contains(&kind)
            || (kind == DISRUPTION_TARGET && disruption.is_some())
    };
    let others = old
        .conditions
        .iter()
        .flatten()
        .filter(|condition| !ours(&condition.type_));
    conditions.extend(others.cloned());
    conditions
}

/// Does some running container not have what was granted to it yet?
fn resize_in_progress(input: &Input<'_>, spec: &PodSpec) -> Option<Finding> {
    let members = spec::members(spec);
    let behind = members.iter().filter_map(|member| {
        let local = input.local.containers.get(&member.container.name)?;
        let actuated = Bounds::of(Some(local.actuated.as_ref()?));
        let running = input
            .observed
            .newest(&member.container.name)
            .is_some_and(Instance::running);
        let granted = Bounds::of(member.container.resources.as_ref());
        (running && actuated != granted).then_some(local)
    });
    let mut behind = behind.peekable();
    behind.peek()?;
    let failure = behind.find_map(|local| local.resize_failure.clone());
    Some(match failure {
        Some((message, _)) => Finding::because("Error", message),
        None => Finding::yes(),
    })
}

fn condition(input: &Input<'_>, kind: &str, finding: Finding, old: &PodStatus) -> PodCondition {
    let status = if finding.status { "True" } else { "False" };
    let before = old
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind);
    let since = before
        .filter(|before| before.status == status)
        .and_then(|before| before.last_transition_time.clone());
    PodCondition {
        last_probe_time: None,
        last_transition_time: since.or_else(|| Some(time(input.now))),
        message: finding.message,
        observed_generation: input.pod.metadata.generation,
        reason: finding.reason.map(str::to_owned),
        status: status.to_owned(),
        type_: kind.to_owned(),
    }
}

fn names<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> String {
    statuses
        .map(|status| status.name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

fn initialized(spec: &PodSpec, statuses: &Statuses, phase: &str) -> Finding {
    let members = spec::members(spec);
    let roles = members
        .iter()
        .filter(|member| member.role != Role::App)
        .map(|member| member.role);
    let incomplete = statuses
        .inits
        .iter()
        .zip(roles)
        .filter(|(status, role)| match role {
            Role::Sidecar => status.started != Some(true),
            _ => !status.ready,
        });
    let incomplete = names(incomplete.map(|(status, _)| status));
    let begun = statuses
        .apps
        .iter()
        .any(|status| status.container_id.is_some());
    if phase == "Succeeded" {
        return Finding {
            status: true,
            reason: Some("PodCompleted"),
            message: None,
        };
    }
    if incomplete.is_empty() || begun {
        return Finding::yes();
    }
    Finding::no(
        "ContainersNotInitialized",
        format!("containers with incomplete status: [{incomplete}]"),
    )
}

fn containers_ready(spec: &PodSpec, statuses: &Statuses, phase: &str) -> Finding {
    match phase {
        "Succeeded" => return Finding::no("PodCompleted", None),
        "Failed" => return Finding::no("PodFailed", None),
        _ => {}
    }
    let members = spec::members(spec);
    let roles = members
        .iter()
        .filter(|member| member.role != Role::App)
        .map(|member| member.role);
    let sidecars = statuses
        .inits
        .iter()
        .zip(roles)
        .filter(|(_, role)| *role == Role::Sidecar);
    let all = sidecars.map(|(status, _)| status).chain(&statuses.apps);
    let unready = names(all.filter(|status| !status.ready));
    if unready.is_empty() {
        return Finding::yes();
    }
    Finding::no(
        "ContainersNotReady",
        format!("containers with unready status: [{unready}]"),
    )
}

fn ready(spec: &PodSpec, containers: &Finding, old: &PodStatus) -> Finding {
    if !containers.status {
        return Finding {
            status: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let missing = spec.readiness_gates.iter().flatten().filter_map(|gate| {
        let kind = &gate.condition_type;
        let condition = old
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == *kind);
        match condition {
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{kind}\" does not exist."
            )),
            Some(condition) if condition.status == "True" => None,
            Some(condition) => Some(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                condition.status
            )),
        }
    });
    let missing: Vec<String> = missing.collect();
    if missing.is_empty() {
        return Finding::yes();
    }
    Finding::no("ReadinessGatesNotReady", missing.join(", "))
}
