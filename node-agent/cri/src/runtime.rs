//! The two traits behind which runtimes hide.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::types::{
    Auth, ContainerConfig, ContainerInfo, ContainerStats, ContainerStatus, ExecOutput,
    FilesystemUsage, Image, Resources, RuntimeEvent, RuntimeStatus, SandboxConfig, SandboxInfo,
    SandboxStatus, Version,
};

/// What the agent needs from any CRI runtime. Every call has a deadline of its own.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Who are you?
    async fn version(&self) -> Result<Version>;
    /// How are you?
    async fn status(&self) -> Result<RuntimeStatus>;

    /// Makes and starts a sandbox, network included; answers with its id.
    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String>;
    /// Stops a sandbox and whatever runs in it; again is fine.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Removes a sandbox and its containers; again is fine.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// All sandboxes.
    async fn list_sandboxes(&self) -> Result<Vec<SandboxInfo>>;
    /// The sandboxes of one pod, by its UID.
    async fn pod_sandboxes(&self, uid: &str) -> Result<Vec<SandboxInfo>> {
        let mut all = self.list_sandboxes().await?;
        all.retain(|sandbox| sandbox.uid == uid);
        Ok(all)
    }
    /// One sandbox with its addresses.
    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus>;

    /// Makes a container in a sandbox; answers with its id.
    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
        sandbox: &SandboxConfig,
    ) -> Result<String>;
    /// Starts a container.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Asks a container to end, and after `grace` makes it.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    /// Sends a signal to a container's main process.
    ///
    /// # Errors
    /// When the runtime has no way to do so: CRI has none.
    async fn signal_container(&self, id: &str, signal: i32) -> Result<()> {
        let _ = (id, signal);
        Err(Error::Rpc {
            code: "Unimplemented",
            message: "this runtime can't send signals of choice".to_owned(),
        })
    }
    /// Removes a container; again is fine.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// All containers.
    async fn list_containers(&self) -> Result<Vec<ContainerInfo>>;
    /// One container.
    async fn container_status(&self, id: &str) -> Result<ContainerStatus>;
    /// Changes limits of a running container.
    async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()>;
    /// Has the log file opened anew, after it was renamed.
    async fn reopen_log(&self, id: &str) -> Result<()>;
    /// Runs a command and waits at most `timeout` for its end.
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput>;
    /// What every container uses.
    async fn list_stats(&self) -> Result<Vec<ContainerStats>>;

    /// All images.
    async fn list_images(&self) -> Result<Vec<Image>>;
    /// One image by name or id, or `None`.
    async fn image_status(&self, image: &str) -> Result<Option<Image>>;
    /// Pulls an image; answers with a reference by digest.
    async fn pull_image(&self, image: &str, auth: Option<&Auth>) -> Result<String>;
    /// Removes an image; again is fine.
    async fn remove_image(&self, image: &str) -> Result<()>;
    /// Mounts the root file system of an image that is on the node, read-only.
    ///
    /// # Errors
    /// When the runtime has no way to do so: CRI has none before containerd 2.1.
    async fn mount_image(&self, image: &str, at: &Path) -> Result<()> {
        let _ = (image, at);
        Err(Error::Rpc {
            code: "Unimplemented",
            message: "this runtime can't mount images as volumes".to_owned(),
        })
    }
    /// Undoes [`Runtime::mount_image`]; again is fine.
    async fn unmount_image(&self, at: &Path) -> Result<()> {
        let _ = at;
        Ok(())
    }
    /// File systems that images are on.
    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>>;

    /// Feeds events until stopped, reconnecting as needed; each (re)connection begins with
    /// [`RuntimeEvent::Resync`]. Events may be lost around a reconnection, hence the resync.
    async fn watch_events(&self, events: mpsc::Sender<RuntimeEvent>, stop: CancellationToken);
}

/// Reading end of a stream.
pub type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;

/// Writing end of a stream.
pub type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// Which streams of a process are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamSpec {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; never with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
    /// An attachment ends when its standard input does. It does not where the process's own input is closed with it
    /// (`stdinOnce`), whose output is still awaited then.
    pub ends_with_input: bool,
}

/// An instruction to a running session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The terminal's new size.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Standard input has ended. Drop [`Session::stdin`] first.
    CloseStdin,
    /// Kill the process: the client left.
    Kill,
}

/// A process with its streams.
pub struct Session {
    /// Standard input.
    pub stdin: Option<WriteHalf>,
    /// Standard output.
    pub stdout: Option<ReadHalf>,
    /// Standard error.
    pub stderr: Option<ReadHalf>,
    /// Instructions.
    pub control: mpsc::Sender<Control>,
    /// Exit code, once; for an attachment, 0 when the stream ended.
    pub exit: oneshot::Receiver<Result<i32>>,
}

/// Talking with processes in containers, and loading images.
#[async_trait]
pub trait Streams: Send + Sync + 'static {
    /// Starts a command in a container.
    async fn exec(
        &self,
        container_id: &str,
        command: &[String],
        spec: StreamSpec,
    ) -> Result<Session>;
    /// Joins a container's main process.
    async fn attach(&self, container_id: &str, spec: StreamSpec) -> Result<Session>;
    /// Loads an image archive (OCI layout or `docker save`) from a file.
    async fn import_image(&self, archive: &Path) -> Result<()>;
}
