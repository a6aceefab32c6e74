//! The types from which everything else in the built-in schema is reached.

use k8s_openapi::api::{
    admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates,
    coordination, core, discovery, events, flowcontrol, networking, node, policy, rbac, resource,
    scheduling, storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta;
use k8s_openapi::apimachinery::pkg::version;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
use k8s_openapi::schemars::{JsonSchema, SchemaGenerator};

/// A kind with the definition of its objects.
pub(super) struct Root {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) kind: &'static str,
    pub(super) definition: String,
    /// Whether a `...List` kind goes with it.
    pub(super) listed: bool,
}

fn add<T: JsonSchema + k8s_openapi::Resource>(
    generator: &mut SchemaGenerator,
    listed: bool,
) -> Root {
    generator.subschema_for::<T>();
    Root {
        group: T::GROUP,
        version: T::VERSION,
        kind: T::KIND,
        definition: T::schema_name().into_owned(),
        listed,
    }
}

macro_rules! walk {
    ($visit:ident, $generator:ident, $listed:literal, $($module:path => [$($kind:ident),* $(,)?]),* $(,)?) => {
        $({
            use $module as module;
            $($visit(add::<module::$kind>($generator, $listed), $generator);)*
        })*
    };
}

/// Generates the schema of one kind after another and shows each to `visit`, which may empty the generator's
/// definitions meanwhile.
pub(super) fn each(
    generator: &mut SchemaGenerator,
    mut visit: impl FnMut(Root, &mut SchemaGenerator),
) {
    stored(generator, &mut visit);
    unlisted(generator, &mut visit);
    generator.subschema_for::<meta::v1::ObjectMeta>();
    generator.subschema_for::<meta::v1::ListMeta>();
    generator.subschema_for::<meta::v1::DeleteOptions>();
    generator.subschema_for::<meta::v1::Patch>();
    generator.subschema_for::<meta::v1::WatchEvent<core::v1::Pod>>();
    generator.subschema_for::<version::Info>();
}

fn stored(generator: &mut SchemaGenerator, visit: &mut impl FnMut(Root, &mut SchemaGenerator)) {
    walk!(visit, generator, true,
        core::v1 => [
            ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service,
            ServiceAccount,
        ],
        apps::v1 => [ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet],
        batch::v1 => [CronJob, Job],
        autoscaling::v1 => [HorizontalPodAutoscaler],
        autoscaling::v2 => [HorizontalPodAutoscaler],
        certificates::v1 => [CertificateSigningRequest],
        coordination::v1 => [Lease],
        discovery::v1 => [EndpointSlice],
        events::v1 => [Event],
        flowcontrol::v1 => [FlowSchema, PriorityLevelConfiguration],
        networking::v1 => [Ingress, IngressClass, IPAddress, NetworkPolicy, ServiceCIDR],
        node::v1 => [RuntimeClass],
        policy::v1 => [PodDisruptionBudget],
        rbac::v1 => [ClusterRole, ClusterRoleBinding, Role, RoleBinding],
        resource::v1 => [DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice],
        scheduling::v1 => [PriorityClass],
        storage::v1 => [
            CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass,
        ],
        admissionregistration::v1 => [
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
            ValidatingWebhookConfiguration,
        ],
        admissionregistration::v1beta1 => [MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding],
        apiextensions::v1 => [CustomResourceDefinition],
        apiregistration::v1 => [APIService],
    );
}

fn unlisted(generator: &mut SchemaGenerator, visit: &mut impl FnMut(Root, &mut SchemaGenerator)) {
    walk!(visit, generator, false,
        core::v1 => [Binding],
        authentication::v1 => [SelfSubjectReview, TokenRequest, TokenReview],
        authorization::v1 => [
            LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
        ],
        autoscaling::v1 => [Scale],
        policy::v1 => [Eviction],
        meta::v1 => [APIGroup, APIGroupList, APIResourceList, APIVersions, Status],
    );
}
