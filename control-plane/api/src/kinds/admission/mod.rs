//! What decides over admission: webhook configurations and CEL policies, with their bindings.

mod hooks;
mod policies;
mod rules;

pub(super) mod mutating_admission_policy;
pub(super) mod mutating_admission_policy_binding;
pub(super) mod mutating_webhook_configuration;
pub(super) mod validating_admission_policy;
pub(super) mod validating_admission_policy_binding;
pub(super) mod validating_webhook_configuration;

/// Their group.
const GROUP: &str = "admissionregistration.k8s.io";
