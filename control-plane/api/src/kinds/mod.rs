//! The kinds that are built in, one file each, and what others need to know of their objects.
//!
//! [`builtin`] is the one list of what is served. A file declares names, defaults, checks, what an update may
//! change, and the columns of `kubectl get`. Rules and wording follow Kubernetes v1.35.

pub mod amounts;
mod binding;
mod config_map;
mod controller_revision;
mod convert;
mod cron_job;
mod daemon_set;
mod declare;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod horizontal_pod_autoscaler;
mod ingress;
mod ingress_class;
mod job;
mod lease;
mod limit_range;
mod namespace;
mod network_policy;
mod node;
mod persistent_volume;
mod persistent_volume_claim;
pub mod pod;
mod pod_disruption_budget;
mod pod_template;
mod priority_class;
mod rbac;
mod replica_set;
mod replication_controller;
mod resource_quota;
mod reviews;
mod secret;
mod service;
mod service_account;
mod stateful_set;
mod storage_class;
pub mod walk;
mod workload;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use convert::{Convert, converter};
pub use pod::resources::{pod_limits, pod_ready, pod_requests, qos_class};
pub use priority_class::SYSTEM_CLASSES;

use crate::kind::Kind;

/// All kinds that are built in, by group and then by resource name. Of a resource in two versions the one that is
/// stored comes first.
#[must_use]
pub fn builtin() -> Vec<Arc<Kind>> {
    let mut kinds = vec![
        binding::kind(),
        config_map::kind(),
        endpoints::kind(),
        event::core_kind(),
        limit_range::kind(),
        namespace::kind(),
        node::kind(),
        persistent_volume_claim::kind(),
        persistent_volume::kind(),
        pod::kind(),
        pod_template::kind(),
        replication_controller::kind(),
        resource_quota::kind(),
        secret::kind(),
        service_account::kind(),
        service::kind(),
        controller_revision::kind(),
        daemon_set::kind(),
        deployment::kind(),
        replica_set::kind(),
        stateful_set::kind(),
    ];
    kinds.extend(reviews::kinds());
    kinds.extend([
        horizontal_pod_autoscaler::kind(),
        cron_job::kind(),
        job::kind(),
        lease::kind(),
        endpoint_slice::kind(),
        event::events_kind(),
        ingress_class::kind(),
        ingress::kind(),
        network_policy::kind(),
        pod_disruption_budget::kind(),
        rbac::cluster_role_binding::kind(),
        rbac::cluster_role::kind(),
        rbac::role_binding::kind(),
        rbac::role::kind(),
        priority_class::kind(),
        storage_class::kind(),
    ]);
    kinds
}
