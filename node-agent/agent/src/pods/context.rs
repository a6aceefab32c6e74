//! What all pod workers share.

use std::collections::HashMap;
use std::sync::Arc;

use balsa_client::{EventRecorder, EventType};
use balsa_cri::{Dns, Runtime, RuntimeFeatures};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodSpec};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::capacity::Capacity;
use super::fields::Facts;
use super::resources::Host;
use super::users::UserRanges;
use crate::cgroups::Cgroups;
use crate::cluster::Cluster;
use crate::config::{AgentConfig, Paths};
use crate::csi::Csi;
use crate::devices::Devices;
use crate::images::Images;

/// What all pod workers share.
pub(crate) struct Context {
    pub(crate) config: AgentConfig,
    pub(crate) paths: Paths,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) cluster: Arc<dyn Cluster>,
    pub(crate) recorder: EventRecorder,
    pub(crate) images: Images,
    /// Bounds sandboxes made at the same time.
    pub(crate) sandbox_slots: Semaphore,
    pub(crate) routes: Routes,
    /// Asks the manager for a fresh look at the whole runtime.
    pub(crate) relist: Notify,
    /// The node's own name resolution.
    pub(crate) node_dns: Dns,
    /// Addresses of the node, primary first.
    pub(crate) host_ips: Vec<String>,
    /// What settings of containers depend on beside their pods.
    pub(crate) host: Host,
    /// What has been granted to pods.
    pub(crate) capacity: Capacity,
    pub(crate) cgroups: Cgroups,
    /// User ids of pods with user namespaces.
    pub(crate) users: UserRanges,
    /// What the runtime can do beyond what all can.
    pub(crate) features: RuntimeFeatures,
    /// Volumes of CSI drivers.
    pub(crate) csi: Arc<Csi>,
    /// Devices of plugins.
    pub(crate) devices: Arc<Devices>,
    /// Ends with the agent, or when it begins anew.
    pub(crate) stop: CancellationToken,
}

impl Context {
    /// Facts about a pod with these addresses.
    pub(crate) fn facts(&self, spec: &PodSpec, ips: &[String]) -> Facts {
        let host_network = balsa_pod::spec::host_network(spec);
        Facts {
            pod_ips: if host_network {
                self.host_ips.clone()
            } else {
                ips.to_vec()
            },
            host_ips: self.host_ips.clone(),
            allocatable: ["cpu", "memory", "ephemeral-storage"]
                .into_iter()
                .filter_map(|name| {
                    // The pod's own limit is as much as its containers can have (KEP-2837).
                    let own = spec.resources.as_ref().and_then(|all| all.limits.as_ref());
                    let own = own.and_then(|limits| limits.get(name)?.0.parse().ok());
                    Some((name, own.or_else(|| self.capacity.allocatable(name))?))
                })
                .collect(),
        }
    }

    /// Reports an event about a pod.
    pub(crate) fn event(
        &self,
        pod: &Pod,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder.event(pod, kind, reason, message);
    }

    /// Reports an event about a container of a pod.
    pub(crate) fn container_event(
        &self,
        pod: &Pod,
        name: &str,
        kind: EventType,
        reason: &str,
        message: String,
    ) {
        let spec = pod.spec.as_ref();
        let init = spec.is_some_and(|spec| {
            let mut inits = spec.init_containers.iter().flatten();
            inits.any(|init| init.name == name)
        });
        let ephemeral = spec.is_some_and(|spec| {
            let mut all = spec.ephemeral_containers.iter().flatten();
            all.any(|container| container.name == name)
        });
        let field = match (init, ephemeral) {
            (true, _) => "initContainers",
            (_, true) => "ephemeralContainers",
            _ => "containers",
        };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            field_path: Some(format!("spec.{field}{{{name}}}")),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            uid: pod.metadata.uid.clone(),
        };
        self.recorder.report(about, kind, reason, message);
    }
}

/// Which pod a container or sandbox belongs to: events name only the former.
#[derive(Default)]
pub(crate) struct Routes(Mutex<HashMap<String, String>>);

impl Routes {
    /// Notes the pod of a container or sandbox.
    pub(crate) fn add(&self, id: &str, uid: &str) {
        self.0.lock().insert(id.to_owned(), uid.to_owned());
    }

    /// The pod of a container or sandbox.
    pub(crate) fn get(&self, id: &str) -> Option<String> {
        self.0.lock().get(id).cloned()
    }

    /// Forgets a pod.
    pub(crate) fn forget(&self, uid: &str) {
        self.0.lock().retain(|_, owner| owner != uid);
    }

    /// Forgets a container.
    pub(crate) fn forget_container(&self, id: &str) {
        self.0.lock().remove(id);
    }
}
