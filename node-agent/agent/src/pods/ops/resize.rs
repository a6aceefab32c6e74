//! What a pod may use: its control group, and giving running containers more or less.

use balsa_pod::qos;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use tracing::warn;

use super::{Done, Ops};
use crate::cgroups;
use crate::pods::resources;

impl Ops {
    /// Makes the pod's control group, or brings it up to date.
    pub(super) fn make_cgroup(&self, pod: &Pod, spec: &PodSpec) {
        if let Err(error) = self.set_cgroup(pod, spec) {
            // Its containers are held to their own limits all the same.
            warn!(%error, "could not set up the pod's control group");
        }
    }

    fn set_cgroup(&self, pod: &Pod, spec: &PodSpec) -> std::io::Result<()> {
        let context = &self.context;
        let settings = cgroups::pod_settings(pod, spec, context.config.pod_pids_limit);
        let class = qos::class(spec);
        if class == qos::Qos::Burstable {
            let shares = context.capacity.burstable_cpu();
            context.cgroups.set_burstable_shares(shares)?;
        }
        context.cgroups.make_pod(class, &self.uid, &settings)
    }

    /// Has a running instance get what the pod's spec says.
    pub(crate) async fn resize(self, pod: Pod, id: String, name: String) -> Done {
        let resources = pod
            .spec
            .as_ref()
            .and_then(|spec| balsa_pod::spec::container(spec, &name))
            .and_then(|container| container.resources.clone())
            .unwrap_or_default();
        let result = self.try_resize(&pod, &id, &name).await;
        if let Err(error) = &result {
            warn!(error, id, name, "could not resize a container");
        }
        Done::Resized {
            name,
            resources,
            result,
        }
    }

    async fn try_resize(&self, pod: &Pod, id: &str, name: &str) -> Result<(), String> {
        let Some(spec) = &pod.spec else {
            return Ok(());
        };
        let Some(container) = balsa_pod::spec::container(spec, name) else {
            return Ok(());
        };
        // The pod must have room for what its containers get, and they must be small enough for what it
        // has: growing, the pod comes first; shrinking, that fails and is made good afterwards.
        let _ = self.set_cgroup(pod, spec);
        let limits = resources::container(spec, &container, &self.context.host);
        let done = self.context.runtime.update_resources(id, &limits).await;
        done.map_err(|error| error.message())?;
        self.set_cgroup(pod, spec)
            .map_err(|error| error.to_string())
    }
}
