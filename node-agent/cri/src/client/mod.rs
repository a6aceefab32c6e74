//! CRI v1 over gRPC, for every runtime.

mod convert;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{debug, warn};

use crate::error::{Error, Result};
use crate::runtime::{Runtime, Session, StreamSpec, Streams};
use crate::types::{
    Auth, CALL_TIMEOUT, ContainerConfig, ContainerInfo, ContainerStats, ContainerStatus,
    ExecOutput, FilesystemUsage, Image, PULL_TIMEOUT, Resources, RuntimeEvent, RuntimeStatus,
    START_TIMEOUT, SandboxConfig, SandboxInfo, SandboxStatus, Version,
};
use crate::websocket;

/// Lists of thousands of containers fit.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;

/// Pause between attempts to subscribe to events.
const RESUBSCRIBE: Duration = Duration::from_millis(200);

/// Label of sandboxes that has their pod's UID, as kubelet sets it.
const UID_LABEL: &str = "io.kubernetes.pod.uid";

/// Period of the safety net when a runtime has no events at all.
const RELIST: Duration = Duration::from_secs(1);

/// A client of any CRI runtime behind a unix socket.
#[derive(Clone)]
pub struct CriClient {
    endpoint: PathBuf,
    channel: Channel,
}

impl CriClient {
    /// A client of the runtime at that socket. Connects when first used and again whenever needed.
    pub fn new(endpoint: impl AsRef<Path>) -> Self {
        let endpoint = endpoint.as_ref().to_owned();
        Self {
            channel: lazy_channel(&endpoint),
            endpoint,
        }
    }

    /// Path of the socket.
    pub fn endpoint(&self) -> &Path {
        &self.endpoint
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Attaches by one connection.
    async fn attach_by_one(&self, container_id: &str, spec: StreamSpec) -> Result<Session> {
        let request = cri::AttachRequest {
            container_id: container_id.to_owned(),
            tty: spec.tty,
            // Also where it is not wanted: containerd takes the end of an input that was not asked for to be there at
            // once, and closes the container's.
            stdin: true,
            stdout: spec.stdout,
            stderr: spec.stderr && !spec.tty,
        };
        let url = call("Attach", CALL_TIMEOUT, self.runtime().attach(request))
            .await?
            .url;
        websocket::open(&url, spec).await
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    async fn sandboxes(&self, filter: Option<cri::PodSandboxFilter>) -> Result<Vec<SandboxInfo>> {
        let request = cri::ListPodSandboxRequest { filter };
        let answer = call(
            "ListPodSandbox",
            CALL_TIMEOUT,
            self.runtime().list_pod_sandbox(request),
        )
        .await?;
        let items = answer.items.into_iter();
        Ok(items.map(convert::sandbox_info).collect())
    }

    /// Follows CRI's own container events. Ends with the stream, or with an error.
    async fn follow_events(&self, events: &mpsc::Sender<RuntimeEvent>) -> Result<()> {
        let mut stream = self
            .runtime()
            .get_container_events(cri::GetEventsRequest {})
            .await?
            .into_inner();
        if events.send(RuntimeEvent::Resync).await.is_err() {
            return Ok(());
        }
        while let Some(event) = stream.next().await {
            let event = event?;
            let sandbox_id = event.pod_sandbox_status.map(|status| status.id);
            if events
                .send(RuntimeEvent::Changed {
                    id: event.container_id,
                    sandbox_id,
                })
                .await
                .is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A channel that dials the socket on first use.
pub(crate) fn lazy_channel(path: &Path) -> Channel {
    let path = path.to_owned();
    // The address is never used: the connector dials the socket.
    tonic::transport::Endpoint::from_static("http://[::]")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector_lazy(tower::service_fn(move |_: tonic::transport::Uri| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(hyper_util::rt::TokioIo::new)
            }
        }))
}

/// Awaits a call within a deadline and takes the answer out.
pub(crate) async fn call<T>(
    name: &'static str,
    after: Duration,
    future: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match tokio::time::timeout(after, future).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Error::Timeout { call: name, after }),
    }
}

fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

fn image_spec(image: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    })
}

fn missing(what: &str) -> Error {
    Error::Local {
        what: "the runtime's answer".to_owned(),
        message: format!("has no {what}"),
    }
}

#[async_trait]
impl Runtime for CriClient {
    async fn version(&self) -> Result<Version> {
        let request = cri::VersionRequest {
            version: "v1".to_owned(),
        };
        let answer = call("Version", CALL_TIMEOUT, self.runtime().version(request)).await?;
        Ok(Version {
            name: answer.runtime_name,
            version: answer.runtime_version,
            api: answer.runtime_api_version,
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let request = cri::StatusRequest { verbose: false };
        let answer = call("Status", CALL_TIMEOUT, self.runtime().status(request)).await?;
        Ok(convert::runtime_status(answer))
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String> {
        let request = cri::RunPodSandboxRequest {
            config: Some(convert::sandbox_config(config)),
            runtime_handler: config.runtime_handler.clone(),
        };
        Ok(call(
            "RunPodSandbox",
            START_TIMEOUT,
            self.runtime().run_pod_sandbox(request),
        )
        .await?
        .pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let done = call(
            "StopPodSandbox",
            START_TIMEOUT,
            self.runtime().stop_pod_sandbox(request),
        )
        .await;
        gone_is_fine(done.map(|_| ()))
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let done = call(
            "RemovePodSandbox",
            START_TIMEOUT,
            self.runtime().remove_pod_sandbox(request),
        )
        .await;
        gone_is_fine(done.map(|_| ()))
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxInfo>> {
        self.sandboxes(None).await
    }

    async fn pod_sandboxes(&self, uid: &str) -> Result<Vec<SandboxInfo>> {
        let filter = cri::PodSandboxFilter {
            label_selector: [(UID_LABEL.to_owned(), uid.to_owned())].into(),
            ..Default::default()
        };
        self.sandboxes(Some(filter)).await
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        // Verbose, because only there does containerd tell the path of the network namespace.
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let answer = call(
            "PodSandboxStatus",
            CALL_TIMEOUT,
            self.runtime().pod_sandbox_status(request),
        )
        .await?;
        let status = answer.status.ok_or_else(|| missing("sandbox status"))?;
        Ok(convert::sandbox_status(status, answer.info.get("info")))
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
        sandbox: &SandboxConfig,
    ) -> Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(convert::container_config(config)),
            sandbox_config: Some(convert::sandbox_config(sandbox)),
        };
        let mut client = self.runtime();
        let made = Box::pin(call(
            "CreateContainer",
            START_TIMEOUT,
            client.create_container(request),
        ));
        Ok(made.await?.container_id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let request = cri::StartContainerRequest {
            container_id: id.to_owned(),
        };
        call(
            "StartContainer",
            START_TIMEOUT,
            self.runtime().start_container(request),
        )
        .await
        .map(|_| ())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        let deadline = START_TIMEOUT.saturating_add(grace);
        let done = call(
            "StopContainer",
            deadline,
            self.runtime().stop_container(request),
        )
        .await;
        gone_is_fine(done.map(|_| ()))
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let request = cri::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let done = call(
            "RemoveContainer",
            START_TIMEOUT,
            self.runtime().remove_container(request),
        )
        .await;
        gone_is_fine(done.map(|_| ()))
    }

    async fn list_containers(&self) -> Result<Vec<ContainerInfo>> {
        let request = cri::ListContainersRequest { filter: None };
        let answer = call(
            "ListContainers",
            CALL_TIMEOUT,
            self.runtime().list_containers(request),
        )
        .await?;
        Ok(answer
            .containers
            .into_iter()
            .map(convert::container_info)
            .collect())
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = call(
            "ContainerStatus",
            CALL_TIMEOUT,
            self.runtime().container_status(request),
        )
        .await?;
        answer
            .status
            .map(convert::container_status)
            .ok_or_else(|| missing("container status"))
    }

    async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(convert::resources(resources)),
            ..Default::default()
        };
        let mut client = self.runtime();
        call(
            "UpdateContainerResources",
            CALL_TIMEOUT,
            client.update_container_resources(request),
        )
        .await
        .map(|_| ())
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = cri::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        call(
            "ReopenContainerLog",
            CALL_TIMEOUT,
            self.runtime().reopen_container_log(request),
        )
        .await
        .map(|_| ())
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        let seconds = timeout.as_secs_f64().ceil();
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: seconds as i64,
        };
        // The runtime keeps the deadline; ours only covers a runtime that does not.
        let deadline = timeout.saturating_add(Duration::from_secs(10));
        let answer = call("ExecSync", deadline, self.runtime().exec_sync(request)).await?;
        Ok(ExecOutput {
            stdout: answer.stdout,
            stderr: answer.stderr,
            exit_code: answer.exit_code,
        })
    }

    async fn list_stats(&self) -> Result<Vec<ContainerStats>> {
        let request = cri::ListContainerStatsRequest { filter: None };
        let answer = call(
            "ListContainerStats",
            CALL_TIMEOUT,
            self.runtime().list_container_stats(request),
        )
        .await?;
        Ok(answer
            .stats
            .into_iter()
            .map(convert::container_stats)
            .collect())
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        let request = cri::ListImagesRequest { filter: None };
        let answer = call(
            "ListImages",
            CALL_TIMEOUT,
            self.images().list_images(request),
        )
        .await?;
        Ok(answer.images.into_iter().map(convert::image).collect())
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let request = cri::ImageStatusRequest {
            image: image_spec(image),
            verbose: false,
        };
        let answer = call(
            "ImageStatus",
            CALL_TIMEOUT,
            self.images().image_status(request),
        )
        .await?;
        Ok(answer.image.map(convert::image))
    }

    async fn pull_image(&self, image: &str, auth: Option<&Auth>) -> Result<String> {
        let request = cri::PullImageRequest {
            image: image_spec(image),
            auth: auth.map(convert::auth),
            sandbox_config: None,
        };
        let mut client = self.images();
        let pulled = Box::pin(call("PullImage", PULL_TIMEOUT, client.pull_image(request)));
        Ok(pulled.await?.image_ref)
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let request = cri::RemoveImageRequest {
            image: image_spec(image),
        };
        let done = call(
            "RemoveImage",
            START_TIMEOUT,
            self.images().remove_image(request),
        )
        .await;
        gone_is_fine(done.map(|_| ()))
    }

    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        let answer = call(
            "ImageFsInfo",
            CALL_TIMEOUT,
            self.images().image_fs_info(cri::ImageFsInfoRequest {}),
        )
        .await?;
        Ok(answer
            .image_filesystems
            .into_iter()
            .map(convert::filesystem)
            .collect())
    }

    async fn watch_events(&self, events: mpsc::Sender<RuntimeEvent>, stop: CancellationToken) {
        let mut pause = RESUBSCRIBE;
        while !stop.is_cancelled() && !events.is_closed() {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow_events(&events) => ended,
            };
            match ended {
                Err(error) if error.is_unimplemented() => {
                    // This runtime tells nothing: every list must be compared.
                    pause = RELIST;
                    if events.send(RuntimeEvent::Resync).await.is_err() {
                        return;
                    }
                }
                Err(error) if error.is_unavailable() => debug!(%error, "no runtime events for now"),
                Err(error) => warn!(%error, "runtime events broke off"),
                Ok(()) => debug!("runtime events ended"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

#[async_trait]
impl Streams for CriClient {
    async fn exec(
        &self,
        container_id: &str,
        command: &[String],
        spec: StreamSpec,
    ) -> Result<Session> {
        let request = cri::ExecRequest {
            container_id: container_id.to_owned(),
            cmd: command.to_vec(),
            tty: spec.tty,
            stdin: spec.stdin,
            stdout: spec.stdout,
            stderr: spec.stderr && !spec.tty,
        };
        let url = call("Exec", CALL_TIMEOUT, self.runtime().exec(request))
            .await?
            .url;
        websocket::open(&url, spec).await
    }

    async fn attach(&self, container_id: &str, spec: StreamSpec) -> Result<Session> {
        if !spec.stdin || !(spec.stdout || spec.stderr) {
            return self.attach_by_one(container_id, spec).await;
        }
        // Two connections, because the protocol has no other end of standard input than the connection's. Outputs
        // first: nothing may be missed of what the input brings about.
        let outputs = StreamSpec {
            stdin: false,
            ..spec
        };
        let input = StreamSpec {
            stdout: false,
            stderr: false,
            ..spec
        };
        let outputs = self.attach_by_one(container_id, outputs).await?;
        let input = self.attach_by_one(container_id, input).await?;
        Ok(websocket::join(outputs, input, spec.ends_with_input))
    }

    async fn import_image(&self, _archive: &Path) -> Result<()> {
        Err(Error::Rpc {
            code: "Unimplemented",
            message: "this runtime can't load image archives over CRI; use its own tool (CRI-O: skopeo copy)".to_owned(),
        })
    }
}
