//! How lists and maps of built-in types merge: the markers that upstream keeps in Go struct tags and comments
//! (`+listType`, `+listMapKey`, `+mapType`, `patchStrategy`, `patchMergeKey`) and JSON Schema does not carry.
//!
//! Definitions are named by their last three parts. Lists that are not here are atomic.

use Merge::{Atomic, Default, Granular, Map, Set};

/// How a field's value is merged by server-side apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merge {
    /// As its type says: lists atomic, maps and structs granular.
    Default,
    /// A map owned as a whole.
    Atomic,
    /// A field of an atomic type that is granular nevertheless.
    Granular,
    /// A list of unique scalars.
    Set,
    /// A list of objects with these keys.
    Map(&'static [&'static str]),
}

/// What is particular about a field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) definition: &'static str,
    pub(super) field: &'static str,
    pub(super) merge: Merge,
    /// `patchStrategy`.
    pub(super) strategies: &'static [&'static str],
    /// `patchMergeKey`.
    pub(super) merge_key: &'static str,
}

const fn rule(
    definition: &'static str,
    field: &'static str,
    merge: Merge,
    strategies: &'static [&'static str],
    merge_key: &'static str,
) -> Rule {
    Rule {
        definition,
        field,
        merge,
        strategies,
        merge_key,
    }
}

/// The rule for a field, if it has one.
pub(super) fn of(definition: &str, field: &str) -> Option<&'static Rule> {
    let definition = tail(definition);
    RULES
        .iter()
        .find(|r| r.definition == definition && r.field == field)
}

/// All rules, for checking them against the schema.
#[cfg(test)]
pub(super) fn all() -> &'static [Rule] {
    RULES
}

/// Whether values of a type are owned as a whole.
pub(super) fn is_atomic(definition: &str) -> bool {
    ATOMIC.contains(&tail(definition))
}

/// The default of a field that is part of a list-map key; empty when it has none.
pub(super) fn key_default(definition: &str, field: &str) -> &'static str {
    match (tail(definition), field) {
        ("core.v1.ContainerPort" | "core.v1.ServicePort", "protocol") => "TCP",
        _ => "",
    }
}

/// Whether k8s-openapi calls a field required that upstream does not: the metadata of kinds, and names in
/// references, because the Rust fields have no `Option`.
pub(super) fn is_optional(definition: &str, field: &str, is_kind: bool) -> bool {
    match field {
        "metadata" => is_kind,
        "name" => OPTIONAL_NAME.contains(&tail(definition)),
        _ => false,
    }
}

const OPTIONAL_NAME: &[&str] = &[
    "core.v1.ConfigMapEnvSource",
    "core.v1.ConfigMapKeySelector",
    "core.v1.ConfigMapProjection",
    "core.v1.ConfigMapVolumeSource",
    "core.v1.LocalObjectReference",
    "core.v1.SecretEnvSource",
    "core.v1.SecretKeySelector",
    "core.v1.SecretProjection",
];

/// `io.k8s.api.core.v1.Pod` -> `core.v1.Pod`.
fn tail(definition: &str) -> &str {
    definition
        .rmatch_indices('.')
        .nth(2)
        .map_or(definition, |(index, _)| &definition[index + 1..])
}

#[rustfmt::skip]
const RULES: &[Rule] = &[
    rule("admissionregistration.v1.MutatingWebhook", "matchConditions", Map(&["name"]), &["merge"], "name"),
    rule("admissionregistration.v1.MutatingWebhookConfiguration", "webhooks", Map(&["name"]), &["merge"], "name"),
    rule("admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec", "validationActions", Set, &[], ""),
    rule("admissionregistration.v1.ValidatingAdmissionPolicySpec", "matchConditions", Map(&["name"]), &["merge"], "name"),
    rule("admissionregistration.v1.ValidatingAdmissionPolicySpec", "variables", Map(&["name"]), &["merge"], "name"),
    rule("admissionregistration.v1.ValidatingAdmissionPolicyStatus", "conditions", Map(&["type"]), &[], ""),
    rule("admissionregistration.v1.ValidatingWebhook", "matchConditions", Map(&["name"]), &["merge"], "name"),
    rule("admissionregistration.v1.ValidatingWebhookConfiguration", "webhooks", Map(&["name"]), &["merge"], "name"),
    rule("admissionregistration.v1beta1.MutatingAdmissionPolicySpec", "matchConditions", Map(&["name"]), &["merge"], "name"),
    rule("apps.v1.DaemonSetStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("apps.v1.DeploymentSpec", "strategy", Default, &["retainKeys"], ""),
    rule("apps.v1.DeploymentStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("apps.v1.ReplicaSetStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("apps.v1.StatefulSetStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("autoscaling.v2.HorizontalPodAutoscalerStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("batch.v1.JobStatus", "conditions", Default, &["merge"], "type"),
    rule("batch.v1.PodFailurePolicyOnExitCodesRequirement", "values", Set, &[], ""),
    rule("batch.v1.UncountedTerminatedPods", "failed", Set, &[], ""),
    rule("batch.v1.UncountedTerminatedPods", "succeeded", Set, &[], ""),
    rule("certificates.v1.CertificateSigningRequestStatus", "conditions", Map(&["type"]), &[], ""),
    rule("core.v1.ComponentStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("core.v1.Container", "env", Map(&["name"]), &["merge"], "name"),
    rule("core.v1.Container", "ports", Map(&["containerPort", "protocol"]), &["merge"], "containerPort"),
    rule("core.v1.Container", "volumeDevices", Map(&["devicePath"]), &["merge"], "devicePath"),
    rule("core.v1.Container", "volumeMounts", Map(&["mountPath"]), &["merge"], "mountPath"),
    rule("core.v1.ContainerRestartRuleOnExitCodes", "values", Set, &[], ""),
    rule("core.v1.ContainerStatus", "allocatedResourcesStatus", Map(&["name"]), &["merge"], "name"),
    rule("core.v1.ContainerStatus", "volumeMounts", Map(&["mountPath"]), &["merge"], "mountPath"),
    rule("core.v1.EphemeralContainer", "env", Map(&["name"]), &["merge"], "name"),
    rule("core.v1.EphemeralContainer", "ports", Map(&["containerPort", "protocol"]), &["merge"], "containerPort"),
    rule("core.v1.EphemeralContainer", "volumeDevices", Map(&["devicePath"]), &["merge"], "devicePath"),
    rule("core.v1.EphemeralContainer", "volumeMounts", Map(&["mountPath"]), &["merge"], "mountPath"),
    rule("core.v1.NamespaceStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("core.v1.NodeSpec", "podCIDRs", Set, &["merge"], ""),
    rule("core.v1.NodeStatus", "addresses", Map(&["type"]), &["merge"], "type"),
    rule("core.v1.NodeStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("core.v1.PersistentVolumeClaimStatus", "allocatedResourceStatuses", Granular, &[], ""),
    rule("core.v1.PersistentVolumeClaimStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("core.v1.PersistentVolumeSpec", "claimRef", Granular, &[], ""),
    rule("core.v1.PodSpec", "containers", Map(&["name"]), &["merge"], "name"),
    rule("core.v1.PodSpec", "ephemeralContainers", Map(&["name"]), &["merge"], "name"),
    rule("core.v1.PodSpec", "hostAliases", Map(&["ip"]), &["merge"], "ip"),
    rule("core.v1.PodSpec", "imagePullSecrets", Map(&["name"]), &["merge"], "name"),
    rule("core.v1.PodSpec", "initContainers", Map(&["name"]), &["merge"], "name"),
    rule("core.v1.PodSpec", "nodeSelector", Atomic, &[], ""),
    rule("core.v1.PodSpec", "resourceClaims", Map(&["name"]), &["merge", "retainKeys"], "name"),
    rule("core.v1.PodSpec", "schedulingGates", Map(&["name"]), &["merge"], "name"),
    rule("core.v1.PodSpec", "topologySpreadConstraints", Map(&["topologyKey", "whenUnsatisfiable"]), &["merge"], "topologyKey"),
    rule("core.v1.PodSpec", "volumes", Map(&["name"]), &["merge", "retainKeys"], "name"),
    rule("core.v1.PodStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("core.v1.PodStatus", "hostIPs", Default, &["merge"], "ip"),
    rule("core.v1.PodStatus", "podIPs", Map(&["ip"]), &["merge"], "ip"),
    rule("core.v1.PodStatus", "resourceClaimStatuses", Map(&["name"]), &["merge", "retainKeys"], "name"),
    rule("core.v1.ReplicationControllerSpec", "selector", Atomic, &[], ""),
    rule("core.v1.ReplicationControllerStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("core.v1.ResourceRequirements", "claims", Map(&["name"]), &[], ""),
    rule("core.v1.ResourceStatus", "resources", Map(&["resourceID"]), &[], ""),
    rule("core.v1.ServiceAccount", "secrets", Map(&["name"]), &["merge"], "name"),
    rule("core.v1.ServiceSpec", "ports", Map(&["port", "protocol"]), &["merge"], "port"),
    rule("core.v1.ServiceSpec", "selector", Atomic, &[], ""),
    rule("core.v1.ServiceStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("discovery.v1.Endpoint", "addresses", Set, &[], ""),
    rule("flowcontrol.v1.FlowSchemaStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("flowcontrol.v1.NonResourcePolicyRule", "nonResourceURLs", Set, &[], ""),
    rule("flowcontrol.v1.NonResourcePolicyRule", "verbs", Set, &[], ""),
    rule("flowcontrol.v1.PriorityLevelConfigurationStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("flowcontrol.v1.ResourcePolicyRule", "apiGroups", Set, &[], ""),
    rule("flowcontrol.v1.ResourcePolicyRule", "namespaces", Set, &[], ""),
    rule("flowcontrol.v1.ResourcePolicyRule", "resources", Set, &[], ""),
    rule("flowcontrol.v1.ResourcePolicyRule", "verbs", Set, &[], ""),
    rule("networking.v1.ServiceCIDRStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("node.v1.Scheduling", "nodeSelector", Atomic, &[], ""),
    rule("policy.v1.PodDisruptionBudgetSpec", "selector", Default, &["replace"], ""),
    rule("policy.v1.PodDisruptionBudgetStatus", "conditions", Map(&["type"]), &["merge"], "type"),
    rule("resource.v1.AllocatedDeviceStatus", "conditions", Map(&["type"]), &[], ""),
    rule("resource.v1.ResourceClaimStatus", "devices", Map(&["driver", "device", "pool", "shareID"]), &[], ""),
    rule("resource.v1.ResourceClaimStatus", "reservedFor", Map(&["uid"]), &["merge"], "uid"),
    rule("storage.v1.CSIDriverSpec", "volumeLifecycleModes", Set, &[], ""),
    rule("storage.v1.CSINodeSpec", "drivers", Map(&["name"]), &["merge"], "name"),
    rule("apiextensions.v1.CustomResourceDefinitionStatus", "conditions", Map(&["type"]), &[], ""),
    rule("apiextensions.v1.JSONSchemaProps", "x-kubernetes-validations", Map(&["rule"]), &["merge"], "rule"),
    rule("meta.v1.ObjectMeta", "finalizers", Set, &["merge"], ""),
    rule("meta.v1.ObjectMeta", "ownerReferences", Map(&["uid"]), &["merge"], "uid"),
    rule("apiregistration.v1.APIServiceStatus", "conditions", Map(&["type"]), &["merge"], "type"),
];

const ATOMIC: &[&str] = &[
    "admissionregistration.v1.MatchResources",
    "admissionregistration.v1.NamedRuleWithOperations",
    "admissionregistration.v1.ParamKind",
    "admissionregistration.v1.ParamRef",
    "admissionregistration.v1.Variable",
    "admissionregistration.v1beta1.MatchResources",
    "admissionregistration.v1beta1.NamedRuleWithOperations",
    "admissionregistration.v1beta1.ParamKind",
    "admissionregistration.v1beta1.ParamRef",
    "admissionregistration.v1beta1.Variable",
    "autoscaling.v1.CrossVersionObjectReference",
    "core.v1.ConfigMapKeySelector",
    "core.v1.EndpointAddress",
    "core.v1.EndpointPort",
    "core.v1.FileKeySelector",
    "core.v1.LocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ObjectFieldSelector",
    "core.v1.ObjectReference",
    "core.v1.ResourceFieldSelector",
    "core.v1.ScopeSelector",
    "core.v1.SecretKeySelector",
    "core.v1.SecretReference",
    "core.v1.TopologySelectorTerm",
    "core.v1.TypedLocalObjectReference",
    "discovery.v1.EndpointPort",
    "networking.v1.ServiceBackendPort",
    "rbac.v1.RoleRef",
    "rbac.v1.Subject",
    "meta.v1.LabelSelector",
    "meta.v1.OwnerReference",
];
