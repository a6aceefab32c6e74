//! The status that is reported of a pod.

mod conditions;
mod containers;
mod phase;
pub mod reasons;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(crate) use containers::{lost_exit, reported, started};

use crate::plan::Input;
use crate::{qos, spec};

/// What the planner found the pod to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// On its way or running.
    Running,
    /// All its containers ran to their ends.
    Ended,
    /// Being deleted.
    Deleting,
    /// Failed as a whole.
    Failed {
        /// `status.reason`.
        reason: String,
        /// `status.message`.
        message: String,
    },
}

/// A time as the API keeps it: to the second.
pub(crate) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The status to report.
pub(crate) fn compute(input: &Input<'_>, spec: &PodSpec, verdict: &Verdict) -> PodStatus {
    let old = input.pod.status.clone().unwrap_or_default();
    let generation = input.pod.metadata.generation;
    let containers = containers::all(input, spec);
    let phase = phase::of(input, spec, &containers, verdict);
    let (reason, message) = match verdict {
        Verdict::Failed { reason, message } => (Some(reason.clone()), Some(message.clone())),
        _ => (old.reason.clone(), old.message.clone()),
    };
    let never_ran =
        matches!(verdict, Verdict::Failed { .. }) && input.observed.instances.is_empty();
    let conditions = if never_ran {
        old.conditions.clone()
    } else {
        Some(conditions::all(input, spec, &containers, phase, &old))
    };
    let ips = pod_ips(input, spec, &old);
    let host_ips = input
        .host_ips
        .iter()
        .map(|ip| HostIP { ip: ip.clone() })
        .collect::<Vec<_>>();
    PodStatus {
        conditions,
        container_statuses: (!never_ran).then_some(containers.apps),
        init_container_statuses: Some(containers.inits)
            .filter(|inits| !inits.is_empty() && !never_ran),
        ephemeral_container_statuses: Some(containers.ephemeral)
            .filter(|ephemeral| !ephemeral.is_empty() && !never_ran),
        host_ip: input.host_ips.first().cloned(),
        host_ips: Some(host_ips).filter(|ips| !ips.is_empty()),
        message,
        observed_generation: generation,
        phase: Some(phase.to_owned()),
        pod_ip: ips.first().cloned(),
        pod_ips: Some(ips.into_iter().map(|ip| PodIP { ip }).collect::<Vec<_>>())
            .filter(|ips| !ips.is_empty()),
        qos_class: Some(qos::class(spec).as_str().to_owned()),
        reason,
        start_time: old
            .start_time
            .clone()
            .or_else(|| input.local.accepted_at.map(time)),
        ..old
    }
}

fn pod_ips(input: &Input<'_>, spec: &PodSpec, old: &PodStatus) -> Vec<String> {
    if spec::host_network(spec) {
        // As upstream: shown once the pod has a sandbox.
        let shown = input.observed.sandbox.is_some() || old.pod_ip.is_some();
        return if shown {
            input.host_ips.to_vec()
        } else {
            Vec::new()
        };
    }
    match &input.observed.sandbox {
        Some(sandbox) if sandbox.ready => sandbox.ips.clone(),
        _ => old
            .pod_ips
            .iter()
            .flatten()
            .map(|ip| ip.ip.clone())
            .collect(),
    }
}

/// Was the pod reported to have ended?
pub(crate) fn reported_phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}
