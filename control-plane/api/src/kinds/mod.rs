//! The kinds that are built in, one file each, and what others need to know of their objects.
//!
//! [`builtin`] is the one list of what is served. A file declares names, defaults, checks, what an update may
//! change, and the columns of `kubectl get`. Rules and wording follow Kubernetes v1.35.

pub mod amounts;
mod binding;
mod config_map;
mod controller_revision;
mod convert;
mod declare;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod job;
mod lease;
pub mod namespace;
mod node;
pub mod pod;
mod priority_class;
mod rbac;
mod replica_set;
mod reviews;
mod secret;
mod service;
mod service_account;
pub mod walk;
mod workload;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use binding::validate_binding;
pub use convert::{Convert, converter};
pub use pod::resources::{pod_limits, pod_ready, pod_requests, qos_class};
pub use priority_class::SYSTEM_CLASSES;
pub use service::{needs_cluster_ip, needs_node_ports};
pub use service_account::{default_token_request, validate_token_request};
pub use workload::validate_scale;

use crate::kind::Kind;

/// All kinds whose behaviour is whole (API and controllers), by group and then by resource name, as discovery
/// lists them.
#[must_use]
pub fn builtin() -> Vec<Arc<Kind>> {
    let mut kinds = vec![
        binding::kind(),
        config_map::kind(),
        endpoints::kind(),
        event::core_kind(),
        namespace::kind(),
        node::kind(),
        pod::kind(),
        secret::kind(),
        service_account::kind(),
        service::kind(),
        controller_revision::kind(),
        deployment::kind(),
        replica_set::kind(),
    ];
    kinds.extend(reviews::kinds());
    kinds.extend([
        job::kind(),
        lease::kind(),
        endpoint_slice::kind(),
        event::events_kind(),
        rbac::cluster_role_binding::kind(),
        rbac::cluster_role::kind(),
        rbac::role_binding::kind(),
        rbac::role::kind(),
        priority_class::kind(),
    ]);
    kinds
}
