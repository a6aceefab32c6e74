//! The end of a pod on its node.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tracing::warn;

use super::{Done, Ops, names};
use crate::cgroups;
use crate::cluster::ApiError;
use crate::pods::{Context, sandbox, status};
use crate::volumes;

/// Pauses between attempts of the final clean-up.
const FINISH_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

impl Ops {
    /// The pod's end: reports, removes it from the API, and cleans up, however often it takes.
    pub(crate) async fn finish(self, pod: Pod, api: PodStatus, in_api: bool) -> Done {
        let report = async {
            if in_api {
                retry("remove the pod from the API", || {
                    self.take_leave(&pod, &api)
                })
                .await;
            }
        };
        tokio::join!(
            report,
            retry("clean up after the pod", || self.clean_up(&pod))
        );
        self.context.cluster.release(&self.uid);
        self.context.routes.forget(&self.uid);
        Done::Finished
    }

    async fn take_leave(&self, pod: &Pod, api: &PodStatus) -> Result<(), String> {
        let (namespace, name) = names(pod);
        let cluster = &self.context.cluster;
        let wanted = pod.status.clone().unwrap_or_default();
        if let Some(patch) = status::patch(api, &wanted, &self.uid) {
            match cluster.patch_status(&namespace, &name, &patch).await {
                Ok(_) => {}
                Err(ApiError::Gone) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        match cluster.delete(&namespace, &name, &self.uid).await {
            Ok(()) | Err(ApiError::Gone) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn clean_up(&self, pod: &Pod) -> Result<(), String> {
        let (namespace, name) = names(pod);
        clean_up(&self.context, &namespace, &name, &self.uid).await
    }
}

/// Removes everything that is on the node of a pod whose containers have ended.
pub(crate) async fn clean_up(
    context: &Context,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<(), String> {
    let runtime = &context.runtime;
    let sandboxes = runtime
        .list_sandboxes()
        .await
        .map_err(|error| error.to_string())?;
    for sandbox in sandboxes.into_iter().filter(|sandbox| sandbox.uid == uid) {
        runtime
            .stop_sandbox(&sandbox.id)
            .await
            .map_err(|error| error.to_string())?;
        runtime
            .remove_sandbox(&sandbox.id)
            .await
            .map_err(|error| error.to_string())?;
    }
    let pod_dir = context.paths.pod(uid);
    let logs = context.paths.pod_logs(namespace, name, uid);
    let cgroup = sandbox::cgroup_parent(&context.config, uid);
    let work = move || {
        volumes::cleanup(&pod_dir)?;
        match std::fs::remove_dir_all(logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        cgroups::remove(&cgroup)
    };
    let done = tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

/// Tries until it works, with growing pauses.
async fn retry<F: Future<Output = Result<(), String>>>(what: &str, mut attempt: impl FnMut() -> F) {
    let mut pause = FINISH_RETRY.0;
    while let Err(error) = attempt().await {
        warn!(error, "could not {what}, trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(FINISH_RETRY.1);
    }
}
