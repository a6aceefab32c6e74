//! The end of a pod on its node.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tracing::warn;

use super::{Done, Ops, names};
use crate::cluster::ApiError;
use crate::pods::{Context, status};
use crate::volumes::{self, IMAGES};

/// Pauses between attempts of the final clean-up.
const FINISH_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

impl Ops {
    /// The pod's end: reports, removes it from the API, and cleans up, however often it takes.
    pub(crate) async fn finish(self, pod: Pod, api: PodStatus, in_api: bool) -> Done {
        // Before a successor can be sent here for them.
        self.context.devices.release(&self.uid);
        // As upstream, a pod is gone when its volumes are: whoever waits for that may move them elsewhere.
        if self.context.csi.has_volumes(&self.uid) {
            retry("take back the pod's volumes", || self.take_back_volumes()).await;
        }
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
        self.context.capacity.release(&self.uid);
        self.context.csi.forget(&self.uid);
        Done::Finished
    }

    async fn take_back_volumes(&self) -> Result<(), String> {
        take_back_volumes(&self.context, &self.uid).await
    }

    /// Gives back what a pod held that has ended and stays in the API: its logs and ended containers are kept.
    pub(crate) async fn release(self) -> Done {
        self.context.capacity.release(&self.uid);
        let give_back = || async {
            self.take_back_volumes().await?;
            unmount_images(&self.context, &self.uid).await?;
            let (pod_dir, uid) = (self.pod_dir(), self.uid.clone());
            let cgroups = self.context.cgroups.clone();
            blocking(move || {
                volumes::release(&pod_dir)?;
                cgroups.remove_pod(&uid)
            })
            .await
        };
        tokio::select! {
            // Deletion cleans up by itself.
            () = self.going.cancelled() => {}
            () = retry("give back what the ended pod held", give_back) => {}
        }
        self.context.cluster.release(&self.uid);
        Done::Released
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
        .pod_sandboxes(uid)
        .await
        .map_err(|error| error.to_string())?;
    for sandbox in sandboxes {
        runtime
            .stop_sandbox(&sandbox.id)
            .await
            .map_err(|error| error.to_string())?;
        runtime
            .remove_sandbox(&sandbox.id)
            .await
            .map_err(|error| error.to_string())?;
    }
    unmount_images(context, uid).await?;
    take_back_volumes(context, uid).await?;
    let pod_dir = context.paths.pod(uid);
    let logs = context.paths.pod_logs(namespace, name, uid);
    let (cgroups, own) = (context.cgroups.clone(), uid.to_owned());
    blocking(move || {
        volumes::cleanup(&pod_dir)?;
        match std::fs::remove_dir_all(logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        cgroups.remove_pod(&own)
    })
    .await?;
    context.users.release(uid);
    Ok(())
}

/// Has CSI drivers take back what they mounted for a pod whose containers have ended.
async fn take_back_volumes(context: &Context, uid: &str) -> Result<(), String> {
    if !context.csi.has_volumes(uid) {
        return Ok(());
    }
    // A mounted part of a volume would keep its device busy.
    let pod_dir = context.paths.pod(uid);
    blocking(move || volumes::unpin(&pod_dir)).await?;
    context.csi.tear_down(uid).await
}

/// Has the runtime take back the images that it mounted as volumes.
async fn unmount_images(context: &Context, uid: &str) -> Result<(), String> {
    let folder = context.paths.pod(uid).join(IMAGES);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let done = context.runtime.unmount_image(&entry.path()).await;
        done.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn blocking(
    work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<(), String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
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
