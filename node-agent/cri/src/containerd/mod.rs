//! What containerd can do beyond CRI, over the same socket: task events as they happen, exec with a
//! half-closable standard input, image archives.

mod ctr;
mod disk;
mod events;
mod exec;
mod leases;
mod lost;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_client::services::v1::ListContainersRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::client::{CriClient, call};
use crate::error::Result;
use crate::runtime::{Runtime, Session, StreamSpec, Streams};
use crate::types::{
    Auth, CALL_TIMEOUT, ContainerConfig, ContainerInfo, ContainerStats, ContainerStatus,
    ExecOutput, FilesystemUsage, Image, Resources, RuntimeEvent, RuntimeStatus, SandboxConfig,
    SandboxInfo, SandboxStatus, Version,
};

/// Namespace that containerd's CRI plugin keeps its things in.
const NAMESPACE: &str = "k8s.io";

/// How often the end of a task is waited for that is in the way of its container's removal, and how long each time.
const ENDINGS: u32 = 10;
const ENDING: Duration = Duration::from_millis(50);

/// Could a container not be removed for a task that has not ended? A start whose caller died midway can leave one of a
/// container that the CRI plugin takes for one that has ended: it does not stop that, and so cannot remove it either.
fn is_held_by_a_task(removed: &Result<()>) -> bool {
    matches!(removed, Err(error) if error.is_failed_precondition())
}

/// Removes something that tasks may hold: has those end and tries again, a few times and never without a pause.
async fn remove_held<R, E>(remove: impl Fn() -> R, end_tasks: impl Fn() -> E) -> Result<()>
where
    R: Future<Output = Result<()>>,
    E: Future<Output = Result<()>>,
{
    let mut removed = remove().await;
    for _ in 0..ENDINGS {
        if !is_held_by_a_task(&removed) {
            break;
        }
        end_tasks().await?;
        tokio::time::sleep(ENDING).await;
        removed = remove().await;
    }
    removed
}

/// A client of containerd: CRI plus its own services.
#[derive(Clone)]
pub struct Containerd {
    cri: CriClient,
    options: Arc<Options>,
    starts: Arc<exec::Starts>,
}

struct Options {
    /// Folder for the FIFOs of exec sessions.
    fifo_dir: PathBuf,
    /// containerd's command-line client, which loads image archives.
    ctr: PathBuf,
}

impl Containerd {
    /// Waits until an image that came just now is on the disk. It can be used in any case.
    async fn flush_images(&self, what: impl std::fmt::Display) {
        let flushed = match self.cri.image_fs_info().await {
            Ok(filesystems) => disk::flush(&filesystems).await,
            Err(error) => Err(error),
        };
        if let Err(error) = flushed {
            tracing::warn!(%error, "the image {what} may not outlive a loss of power in the next minute");
        }
    }

    /// Has what is left of a container's processes end.
    async fn end_task(&self, id: &str) {
        if let Err(error) = exec::end_task(self.cri.channel(), id).await {
            tracing::debug!(%error, id, "a container's task has not ended yet");
        }
    }

    /// The same for all containers of a sandbox.
    async fn end_tasks_of_sandbox(&self, id: &str) -> Result<()> {
        let containers = self.cri.list_containers().await?;
        for container in containers.iter().filter(|known| known.sandbox_id == id) {
            self.end_task(&container.id).await;
        }
        Ok(())
    }

    /// A client of the containerd at that socket. FIFOs go under `fifo_dir`, which is made when needed; `ctr`
    /// is the path of containerd's own client program.
    pub fn new(
        socket: impl AsRef<Path>,
        fifo_dir: impl AsRef<Path>,
        ctr: impl AsRef<Path>,
    ) -> Self {
        let options = Options {
            fifo_dir: fifo_dir.as_ref().to_owned(),
            ctr: ctr.as_ref().to_owned(),
        };
        Self {
            cri: CriClient::new(socket),
            options: Arc::new(options),
            starts: Arc::default(),
        }
    }

    /// Ids of all containers and sandboxes that containerd knows, those included that CRI does not tell of because
    /// they are being made or removed.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn container_ids(&self) -> Result<Vec<String>> {
        let mut client = ContainersClient::new(self.cri.channel())
            .max_decoding_message_size(crate::client::MAX_MESSAGE);
        let list = client.list(namespaced(ListContainersRequest::default()));
        let answer = call("containers.List", CALL_TIMEOUT, list).await?;
        let containers = answer.containers.into_iter();
        Ok(containers.map(|container| container.id).collect())
    }

    /// Ids of containers and sandboxes that CRI takes for running although their process has ended. One that ends just
    /// now may be among them.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn unnoticed_ends(&self) -> Result<HashSet<String>> {
        let stopped = lost::stopped(self.cri.channel()).await?;
        if stopped.is_empty() {
            return Ok(stopped);
        }
        let containers = self.cri.list_containers().await?;
        let sandboxes = self.cri.list_sandboxes().await?;
        Ok(lost::unnoticed(&stopped, &containers, &sandboxes))
    }

    /// Lets go of what a containerd kept that ended before that time, for work that it did not end. Answers how many
    /// leases there were of that.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn drop_leases(&self, before: SystemTime) -> Result<usize> {
        leases::drop_older(self.cri.channel(), before).await
    }
}

/// A request with the namespace in its metadata.
fn namespaced<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(
        "containerd-namespace",
        tonic::metadata::MetadataValue::from_static(NAMESPACE),
    );
    request
}

#[async_trait]
impl Runtime for Containerd {
    async fn version(&self) -> Result<Version> {
        self.cri.version().await
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        self.cri.status().await
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String> {
        self.cri.run_sandbox(config).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.cri.stop_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let remove = || self.cri.remove_sandbox(id);
        remove_held(remove, || self.end_tasks_of_sandbox(id)).await
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxInfo>> {
        self.cri.list_sandboxes().await
    }

    async fn pod_sandboxes(&self, uid: &str) -> Result<Vec<SandboxInfo>> {
        self.cri.pod_sandboxes(uid).await
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        self.cri.sandbox_status(id).await
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
        sandbox: &SandboxConfig,
    ) -> Result<String> {
        self.cri.create_container(sandbox_id, config, sandbox).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.cri.start_container(id).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.cri.stop_container(id, grace).await
    }

    async fn signal_container(&self, id: &str, signal: i32) -> Result<()> {
        exec::signal(self.cri.channel(), id, signal).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let end_task = || async {
            self.end_task(id).await;
            Ok(())
        };
        remove_held(|| self.cri.remove_container(id), end_task).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerInfo>> {
        self.cri.list_containers().await
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        self.cri.container_status(id).await
    }

    async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        self.cri.update_resources(id, resources).await
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        self.cri.reopen_log(id).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        self.cri.exec_sync(id, command, timeout).await
    }

    async fn list_stats(&self) -> Result<Vec<ContainerStats>> {
        self.cri.list_stats().await
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        self.cri.list_images().await
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        self.cri.image_status(image).await
    }

    async fn pull_image(&self, image: &str, auth: Option<&Auth>) -> Result<String> {
        let pulled = self.cri.pull_image(image, auth).await?;
        self.flush_images(image).await;
        Ok(pulled)
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.cri.remove_image(image).await
    }

    async fn mount_image(&self, image: &str, at: &Path) -> Result<()> {
        ctr::mount(&self.options.ctr, self.cri.endpoint(), image, at).await
    }

    async fn unmount_image(&self, at: &Path) -> Result<()> {
        ctr::unmount(&self.options.ctr, self.cri.endpoint(), at).await
    }

    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        self.cri.image_fs_info().await
    }

    async fn watch_events(&self, events: mpsc::Sender<RuntimeEvent>, stop: CancellationToken) {
        events::watch(self.cri.channel(), events, stop).await;
    }
}

#[async_trait]
impl Streams for Containerd {
    async fn exec(
        &self,
        container_id: &str,
        command: &[String],
        spec: StreamSpec,
    ) -> Result<Session> {
        exec::start(
            self.cri.channel(),
            &self.starts,
            &self.options.fifo_dir,
            container_id,
            command,
            spec,
        )
        .await
    }

    async fn attach(&self, container_id: &str, spec: StreamSpec) -> Result<Session> {
        self.cri.attach(container_id, spec).await
    }

    async fn import_image(&self, archive: &Path) -> Result<()> {
        ctr::import(&self.options.ctr, self.cri.endpoint(), archive).await?;
        self.flush_images(archive.display()).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Instant;

    use super::*;
    use crate::error::Error;

    fn refusal(code: &'static str) -> Result<()> {
        Err(Error::Rpc {
            code,
            message: "no".to_owned(),
        })
    }

    /// Removes something that is held that many times; answers with the outcome, how often tasks were ended, and how
    /// long it took.
    async fn remove(held: u32, code: &'static str) -> (Result<()>, u32, Duration) {
        let (tries, endings) = (Cell::new(0), Cell::new(0));
        let began = Instant::now();
        let attempt = || async {
            tries.set(tries.get() + 1);
            if tries.get() <= held {
                refusal(code)
            } else {
                Ok(())
            }
        };
        let end_tasks = || async {
            endings.set(endings.get() + 1);
            Ok(())
        };
        let removed = remove_held(attempt, end_tasks).await;
        (removed, endings.get(), began.elapsed())
    }

    #[tokio::test]
    async fn what_tasks_hold_is_removed_when_they_have_ended() {
        let (removed, endings, took) = remove(2, "FailedPrecondition").await;
        assert!(removed.is_ok());
        assert_eq!(endings, 2);
        assert!(took >= ENDING * 2, "{took:?}");
    }

    #[tokio::test]
    async fn every_further_try_comes_after_a_pause_and_they_end() {
        let (removed, endings, took) = remove(u32::MAX, "FailedPrecondition").await;
        assert!(removed.is_err());
        assert_eq!(endings, ENDINGS);
        assert!(took >= ENDING * ENDINGS, "{took:?}");
    }

    #[tokio::test]
    async fn what_is_refused_for_another_reason_is_not_tried_again() {
        let (removed, endings, _) = remove(1, "Unknown").await;
        assert!(removed.is_err());
        assert_eq!(endings, 0);
    }
}
