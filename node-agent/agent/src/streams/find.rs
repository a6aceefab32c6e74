//! Which container or sandbox a request means, as the runtime has them now.

use std::path::PathBuf;

use balsa_cri::{ContainerInfo, ContainerState, Runtime, SandboxState};
use balsa_link::protocol::Target;

use super::Refusal;

/// Labels by which the agent, like any kubelet, marks what belongs to a pod.
const POD_UID: &str = "io.kubernetes.pod.uid";

fn of_target(container: &ContainerInfo, target: &Target) -> bool {
    container.name == target.container && container.labels.get(POD_UID) == Some(&target.uid)
}

/// Id of the target's running container.
pub async fn running(runtime: &dyn Runtime, target: &Target) -> Result<String, Refusal> {
    let all = runtime.list_containers().await.map_err(Refusal::internal)?;
    all.into_iter()
        .filter(|c| of_target(c, target) && c.state == ContainerState::Running)
        .max_by_key(|c| c.attempt)
        .map(|c| c.id)
        .ok_or_else(|| Refusal::not_found(format!("container not found ({:?})", target.container)))
}

/// Whether an instance of the target's container may still write to its log.
pub async fn writes(runtime: &dyn Runtime, target: &Target, attempt: u32) -> bool {
    match runtime.list_containers().await {
        Ok(all) => all.iter().any(|c| {
            of_target(c, target)
                && c.attempt == attempt
                && matches!(c.state, ContainerState::Running | ContainerState::Created)
        }),
        // A runtime that does not answer now says nothing about the container.
        Err(_) => true,
    }
}

/// Network namespace of the target's pod; `None` for a pod in the node's own.
pub async fn netns(runtime: &dyn Runtime, target: &Target) -> Result<Option<PathBuf>, Refusal> {
    let all = runtime.list_sandboxes().await.map_err(Refusal::internal)?;
    let sandbox = all
        .into_iter()
        .filter(|s| s.uid == target.uid && s.state == SandboxState::Ready)
        .max_by_key(|s| s.attempt)
        .ok_or_else(|| Refusal::not_found(format!("pod {:?} does not run on this node", target.pod)))?;
    let status = runtime.sandbox_status(&sandbox.id).await.map_err(Refusal::internal)?;
    Ok(status.netns.filter(|path| !path.is_empty()).map(PathBuf::from))
}
