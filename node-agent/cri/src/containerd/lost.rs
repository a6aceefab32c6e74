//! Ends of processes that the CRI plugin missed.
//!
//! A containerd that starts asks for the state of each container's process and then waits for the end of those that
//! run. 1.6 and 1.7 drop an end that is told before the container is entered in their tables
//! (`eventMonitor.startContainerExitMonitor`): CRI calls such a container running for ever, and it can't be stopped.

use std::collections::HashSet;

use containerd_client::services::v1::ListTasksRequest;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::types::v1::Status;
use tonic::transport::Channel;

use super::namespaced;
use crate::client::call;
use crate::error::Result;
use crate::types::{CALL_TIMEOUT, ContainerInfo, ContainerState, SandboxInfo, SandboxState};

/// Containers and sandboxes whose process has ended.
pub(super) async fn stopped(channel: Channel) -> Result<HashSet<String>> {
    let mut client = TasksClient::new(channel);
    let list = client.list(namespaced(ListTasksRequest::default()));
    let answer = call("tasks.List", CALL_TIMEOUT, list).await?;
    let stopped = answer.tasks.into_iter();
    let stopped = stopped.filter(|task| task.status == Status::Stopped as i32);
    Ok(stopped.map(|task| task.id).collect())
}

/// Which of those CRI takes for running.
pub(super) fn unnoticed(
    stopped: &HashSet<String>,
    containers: &[ContainerInfo],
    sandboxes: &[SandboxInfo],
) -> HashSet<String> {
    let containers = containers
        .iter()
        .filter(|container| container.state == ContainerState::Running)
        .map(|container| &container.id);
    let sandboxes = sandboxes
        .iter()
        .filter(|sandbox| sandbox.state == SandboxState::Ready)
        .map(|sandbox| &sandbox.id);
    let running = containers.chain(sandboxes);
    running
        .filter(|id| stopped.contains(*id))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Map;

    #[test]
    fn an_end_is_unnoticed_if_cri_says_that_it_runs() {
        let container = |id: &str, state| ContainerInfo {
            id: id.to_owned(),
            sandbox_id: String::new(),
            name: String::new(),
            attempt: 0,
            state,
            created_at: 0,
            image_ref: String::new(),
            labels: Map::new(),
        };
        let containers = [
            container("lost", ContainerState::Running),
            container("runs", ContainerState::Running),
            container("ended", ContainerState::Exited),
        ];
        let sandbox = |id: &str, state| SandboxInfo {
            id: id.to_owned(),
            name: String::new(),
            namespace: String::new(),
            uid: String::new(),
            attempt: 0,
            state,
            created_at: 0,
            labels: Map::new(),
        };
        let sandboxes = [
            sandbox("pause", SandboxState::Ready),
            sandbox("old", SandboxState::NotReady),
        ];
        let stopped = ["lost", "ended", "pause", "old", "unknown"].map(str::to_owned);
        let found = unnoticed(&stopped.into(), &containers, &sandboxes);
        assert_eq!(found, ["lost", "pause"].map(str::to_owned).into());
    }
}
