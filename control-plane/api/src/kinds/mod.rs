//! The kinds that are built in, one file each, and what others need to know of their objects.
//!
//! [`builtin`] is the one list of what is served. A file declares names, defaults, checks, what an update may
//! change, and the columns of `kubectl get`. Rules and wording follow Kubernetes v1.35.

mod admission;
pub mod amounts;
mod api_service;
mod binding;
mod certificate_signing_request;
mod component_status;
mod config_map;
mod controller_revision;
mod convert;
mod cron_job;
mod csi_driver;
mod csi_node;
mod csi_storage_capacity;
mod custom_resource_definition;
mod daemon_set;
mod declare;
mod deployment;
mod dra;
mod endpoint_slice;
mod endpoints;
mod event;
mod flow_control;
mod horizontal_pod_autoscaler;
mod ingress;
mod ingress_class;
mod ip_address;
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
mod runtime_class;
mod secret;
mod service;
mod service_account;
mod service_cidr;
mod stateful_set;
mod storage_class;
mod volume_attachment;
mod volume_attributes_class;
pub mod walk;
mod workload;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use admission::{
    mutating_admission_policy, mutating_admission_policy_binding, mutating_webhook_configuration,
    validating_admission_policy, validating_admission_policy_binding,
    validating_webhook_configuration,
};

pub use component_status::{COMPONENTS, component_status};
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
        component_status::kind(),
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
        mutating_admission_policy_binding::kind(),
        mutating_admission_policy::kind(),
        mutating_webhook_configuration::kind(),
        validating_admission_policy_binding::kind(),
        validating_admission_policy::kind(),
        validating_webhook_configuration::kind(),
        api_service::kind(),
        horizontal_pod_autoscaler::kind(),
        horizontal_pod_autoscaler::v1::kind(),
        custom_resource_definition::kind(),
        cron_job::kind(),
        job::kind(),
        certificate_signing_request::kind(),
        lease::kind(),
        endpoint_slice::kind(),
        event::events_kind(),
        flow_control::flow_schema::kind(),
        flow_control::priority_level_configuration::kind(),
        ingress_class::kind(),
        ingress::kind(),
        ip_address::kind(),
        network_policy::kind(),
        service_cidr::kind(),
        runtime_class::kind(),
        pod_disruption_budget::kind(),
        rbac::cluster_role_binding::kind(),
        rbac::cluster_role::kind(),
        rbac::role_binding::kind(),
        rbac::role::kind(),
        dra::device_class::kind(),
        dra::resource_claim::kind(),
        dra::resource_claim_template::kind(),
        dra::resource_slice::kind(),
        priority_class::kind(),
        csi_driver::kind(),
        csi_node::kind(),
        csi_storage_capacity::kind(),
        storage_class::kind(),
        volume_attachment::kind(),
        volume_attributes_class::kind(),
    ]);
    kinds
}
