//! One informer per kind, shared by all controllers, and the indexes several of them use.

use std::fmt::Debug;

use balsa_client::{Index, Informer, InformerOptions};
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::{
    CSIDriver, StorageClass, VolumeAttachment, VolumeAttributesClass,
};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::support::owner;

/// Name of the ConfigMap with the cluster CA.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
/// Type of Secrets that hold a ServiceAccount's token.
pub(crate) const TOKEN_SECRET: &str = "kubernetes.io/service-account-token";
/// Where nodes renew their Leases.
pub(crate) const NODE_LEASES: &str = "kube-node-lease";

pub(crate) struct Informers {
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) node_leases: Informer<Lease>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) services: Informer<Service>,
    pub(crate) endpoints: Informer<Endpoints>,
    pub(crate) endpoint_slices: Informer<EndpointSlice>,
    pub(crate) service_accounts: Informer<ServiceAccount>,
    /// Only those named [`ROOT_CA`].
    pub(crate) root_ca_maps: Informer<ConfigMap>,
    pub(crate) replica_sets: Informer<ReplicaSet>,
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) daemon_sets: Informer<DaemonSet>,
    pub(crate) stateful_sets: Informer<StatefulSet>,
    pub(crate) replication_controllers: Informer<ReplicationController>,
    pub(crate) revisions: Informer<ControllerRevision>,
    pub(crate) jobs: Informer<Job>,
    pub(crate) cron_jobs: Informer<CronJob>,
    pub(crate) cluster_roles: Informer<ClusterRole>,
    pub(crate) disruption_budgets: Informer<PodDisruptionBudget>,
    pub(crate) quotas: Informer<ResourceQuota>,
    pub(crate) volumes: Informer<PersistentVolume>,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) storage_classes: Informer<StorageClass>,
    pub(crate) attributes_classes: Informer<VolumeAttributesClass>,
    pub(crate) attachments: Informer<VolumeAttachment>,
    pub(crate) drivers: Informer<CSIDriver>,
    pub(crate) certificate_requests: Informer<CertificateSigningRequest>,
    /// Only those of type [`TOKEN_SECRET`].
    pub(crate) token_secrets: Informer<Secret>,
    /// By the controller's uid, and orphans by [`orphans_of`] their namespace.
    pub(crate) pods_by_owner: Index<Pod, String>,
    /// By `spec.nodeName`; pods without a node under the empty name.
    pub(crate) pods_by_node: Index<Pod, String>,
    /// As `pods_by_owner`.
    pub(crate) replica_sets_by_owner: Index<ReplicaSet, String>,
    /// As `pods_by_owner`.
    pub(crate) revisions_by_owner: Index<ControllerRevision, String>,
    /// As `pods_by_owner`.
    pub(crate) jobs_by_owner: Index<Job, String>,
    /// By `namespace/name` of the claims that a pod's volumes use.
    pub(crate) pods_by_claim: Index<Pod, String>,
    /// By [`slices_of`] a Service.
    pub(crate) slices_by_service: Index<EndpointSlice, String>,
}

impl Informers {
    pub(crate) fn start(
        client: &kube::Client,
        pods: Informer<Pod>,
        stop: &CancellationToken,
    ) -> Self {
        let replica_sets: Informer<ReplicaSet> = all(client, InformerOptions::default(), stop);
        let endpoint_slices: Informer<EndpointSlice> =
            all(client, InformerOptions::default(), stop);
        let revisions: Informer<ControllerRevision> = all(client, InformerOptions::default(), stop);
        let jobs: Informer<Job> = all(client, InformerOptions::default(), stop);
        let lease_api = Api::namespaced(client.clone(), NODE_LEASES);
        Self {
            namespaces: all(client, InformerOptions::default(), stop),
            nodes: all(client, InformerOptions::default(), stop),
            node_leases: Informer::start(lease_api, InformerOptions::default(), stop.clone()),
            services: all(client, InformerOptions::default(), stop),
            endpoints: all(client, InformerOptions::default(), stop),
            service_accounts: all(client, InformerOptions::default(), stop),
            root_ca_maps: all(
                client,
                InformerOptions::fields(format!("metadata.name={ROOT_CA}")),
                stop,
            ),
            deployments: all(client, InformerOptions::default(), stop),
            daemon_sets: all(client, InformerOptions::default(), stop),
            stateful_sets: all(client, InformerOptions::default(), stop),
            replication_controllers: all(client, InformerOptions::default(), stop),
            cron_jobs: all(client, InformerOptions::default(), stop),
            cluster_roles: all(client, InformerOptions::default(), stop),
            disruption_budgets: all(client, InformerOptions::default(), stop),
            quotas: all(client, InformerOptions::default(), stop),
            volumes: all(client, InformerOptions::default(), stop),
            claims: all(client, InformerOptions::default(), stop),
            storage_classes: all(client, InformerOptions::default(), stop),
            attributes_classes: all(client, InformerOptions::default(), stop),
            attachments: all(client, InformerOptions::default(), stop),
            drivers: all(client, InformerOptions::default(), stop),
            certificate_requests: all(client, InformerOptions::default(), stop),
            token_secrets: all(
                client,
                InformerOptions::fields(format!("type={TOKEN_SECRET}")),
                stop,
            ),
            pods_by_owner: pods.index(|pod| vec![owner_or_orphan(pod)]),
            pods_by_node: pods.index(|pod| {
                vec![
                    pod.spec
                        .as_ref()
                        .and_then(|spec| spec.node_name.clone())
                        .unwrap_or_default(),
                ]
            }),
            replica_sets_by_owner: replica_sets.index(|set| vec![owner_or_orphan(set)]),
            revisions_by_owner: revisions.index(|revision| vec![owner_or_orphan(revision)]),
            jobs_by_owner: jobs.index(|job| vec![owner_or_orphan(job)]),
            pods_by_claim: pods.index(|pod| {
                let namespace = pod.namespace().unwrap_or_default();
                let claims = claims_of(pod);
                claims.map(|claim| format!("{namespace}/{claim}")).collect()
            }),
            slices_by_service: endpoint_slices.index(|slice| {
                let service = slice.labels().get("kubernetes.io/service-name");
                service
                    .map(|service| slices_of(&slice.namespace().unwrap_or_default(), service))
                    .into_iter()
                    .collect()
            }),
            pods,
            replica_sets,
            revisions,
            jobs,
            endpoint_slices,
        }
    }
}

fn all<K>(client: &kube::Client, options: InformerOptions, stop: &CancellationToken) -> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    Informer::start(Api::all(client.clone()), options, stop.clone())
}

fn owner_or_orphan<K: Resource>(object: &K) -> String {
    match owner::controller_of(object.meta()) {
        Some(controller) => controller.uid.clone(),
        None => orphans_of(object.meta().namespace.as_deref().unwrap_or_default()),
    }
}

/// Names of the claims that a pod uses, those of its ephemeral volumes included.
pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().filter_map(|volume| {
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(claim.claim_name.clone());
        }
        let named = || format!("{}-{}", pod.name_any(), volume.name);
        volume.ephemeral.as_ref().map(|_| named())
    })
}

/// Index value of objects without a controller.
pub(crate) fn orphans_of(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

/// Index value of a Service's slices.
pub(crate) fn slices_of(namespace: &str, service: &str) -> String {
    format!("{namespace}/{service}")
}
