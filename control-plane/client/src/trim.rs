//! Pods without what only their nodes read. A control plane keeps tens of thousands of them: commands, environments,
//! probes, mounts and the volumes that nobody attaches are half of each, and no controller looks at them.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, Volume};
use kube::Client;
use kube::api::Api;
use tokio_util::sync::CancellationToken;

use crate::informer::{Informer, InformerOptions};

/// Follows all pods as schedulers and controllers need them: not to be written back as a whole.
#[must_use]
pub fn pods(client: Client, stop: CancellationToken) -> Informer<Pod> {
    Informer::start_trimmed(Api::all(client), InformerOptions::default(), trim, stop)
}

fn trim(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else {
        return;
    };
    spec.containers.iter_mut().for_each(container);
    spec.containers.shrink_to_fit();
    for init in spec.init_containers.iter_mut().flatten() {
        container(init);
    }
    for debugger in spec.ephemeral_containers.iter_mut().flatten() {
        ephemeral(debugger);
    }
    trim_lists(spec);
    if let Some(conditions) = pod.status.as_mut().and_then(|s| s.conditions.as_mut()) {
        conditions.shrink_to_fit();
    }
}

fn trim_lists(spec: &mut PodSpec) {
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| !is_made_by_node(volume));
        volumes.shrink_to_fit();
    }
    spec.volumes = spec.volumes.take().filter(|volumes| !volumes.is_empty());
    if let Some(tolerations) = &mut spec.tolerations {
        tolerations.shrink_to_fit();
    }
}

/// Whether a volume takes nothing that the cluster gives out.
fn is_made_by_node(volume: &Volume) -> bool {
    volume.projected.is_some()
        || volume.secret.is_some()
        || volume.config_map.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.is_some()
        || volume.host_path.is_some()
}

fn container(container: &mut Container) {
    let kept = std::mem::take(container);
    *container = Container {
        name: kept.name,
        image: kept.image,
        ports: kept.ports.map(shrunk),
        resources: kept.resources,
        resize_policy: kept.resize_policy,
        restart_policy: kept.restart_policy,
        restart_policy_rules: kept.restart_policy_rules,
        ..Container::default()
    };
}

fn ephemeral(container: &mut EphemeralContainer) {
    let kept = std::mem::take(container);
    *container = EphemeralContainer {
        name: kept.name,
        image: kept.image,
        resources: kept.resources,
        target_container_name: kept.target_container_name,
        ..EphemeralContainer::default()
    };
}

fn shrunk<T>(mut list: Vec<T>) -> Vec<T> {
    list.shrink_to_fit();
    list
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_asked_of_the_cluster_stays() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "image": "i", "env": [{"name": "A"}], "ports": [{"containerPort": 80}],
                "resources": {"requests": {"cpu": "1"}}, "livenessProbe": {"tcpSocket": {"port": 80}}}],
            "initContainers": [{"name": "i", "command": ["x"], "restartPolicy": "Always"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "d"}}, {"name": "e", "emptyDir": {}}]}});
        let mut pod: Pod = serde_json::from_value(pod).unwrap();
        trim(&mut pod);
        assert_eq!(
            serde_json::to_value(&pod).unwrap()["spec"],
            json!({
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                    "resources": {"requests": {"cpu": "1"}}}],
                "initContainers": [{"name": "i", "restartPolicy": "Always"}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "d"}}]})
        );
    }
}
