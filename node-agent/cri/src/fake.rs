//! A runtime in memory, for tests of everything above it. Containers do what the test says with
//! [`FakeRuntime::exit`]; calls are recorded, and any of them can be made to fail.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::runtime::{Runtime, Session, StreamSpec, Streams};
use crate::types::{
    Auth, ContainerConfig, ContainerInfo, ContainerState, ContainerStats, ContainerStatus,
    ExecOutput, FilesystemUsage, Image, Nanos, Resources, RuntimeEvent, RuntimeStatus,
    SandboxConfig, SandboxInfo, SandboxState, SandboxStatus, Version,
};

/// A runtime in memory. Clones share it.
#[derive(Clone)]
pub struct FakeRuntime {
    inner: Arc<Mutex<Inner>>,
    events: broadcast::Sender<RuntimeEvent>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    clock: Nanos,
    sandboxes: BTreeMap<String, SandboxStatus>,
    containers: BTreeMap<String, (ContainerInfo, ContainerStatus, ContainerConfig)>,
    images: BTreeMap<String, Image>,
    pullable: Vec<String>,
    calls: Vec<String>,
    failures: BTreeMap<&'static str, Vec<Error>>,
    exec: BTreeMap<String, ExecOutput>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

fn not_found(id: &str) -> Error {
    Error::Rpc {
        code: "NotFound",
        message: format!("{id}: not found"),
    }
}

impl FakeRuntime {
    /// An empty runtime.
    pub fn new() -> Self {
        Self {
            inner: Arc::default(),
            events: broadcast::channel(256).0,
        }
    }

    /// Says which network namespace a sandbox has.
    pub fn set_netns(&self, id: &str, path: &str) {
        if let Some(sandbox) = self.inner.lock().sandboxes.get_mut(id) {
            sandbox.netns = Some(path.to_owned());
        }
    }

    /// Puts an image on the node.
    pub fn add_image(&self, name: &str) {
        let image = Image {
            id: format!("sha256:{name}"),
            tags: vec![name.to_owned()],
            size: 1,
            ..Image::default()
        };
        self.inner.lock().images.insert(name.to_owned(), image);
    }

    /// Puts an image into the registry.
    pub fn add_pullable(&self, name: &str) {
        self.inner.lock().pullable.push(name.to_owned());
    }

    /// Makes the next call of that name (`run_sandbox`, `start_container`, ...) fail.
    pub fn fail_next(&self, call: &'static str, error: Error) {
        self.inner
            .lock()
            .failures
            .entry(call)
            .or_default()
            .push(error);
    }

    /// What `exec_sync` of that command (joined by spaces) answers.
    pub fn on_exec(&self, command: &str, output: ExecOutput) {
        self.inner.lock().exec.insert(command.to_owned(), output);
    }

    /// Ends a running container.
    pub fn exit(&self, id: &str, code: i32) {
        let at = {
            let mut inner = self.inner.lock();
            let at = inner.tick();
            inner.end(id, code, at);
            at
        };
        let _ = self.events.send(RuntimeEvent::Exited {
            id: id.to_owned(),
            code,
            at,
        });
    }

    /// Kills a sandbox, as when its process dies.
    pub fn kill_sandbox(&self, id: &str) {
        let at = {
            let mut inner = self.inner.lock();
            if let Some(sandbox) = inner.sandboxes.get_mut(id) {
                sandbox.info.state = SandboxState::NotReady;
            }
            inner.tick()
        };
        let _ = self.events.send(RuntimeEvent::Exited {
            id: id.to_owned(),
            code: 137,
            at,
        });
    }

    /// Id of the newest container of that name.
    pub fn container_named(&self, name: &str) -> Option<String> {
        let inner = self.inner.lock();
        let named = inner
            .containers
            .values()
            .filter(|(info, ..)| info.name == name);
        named
            .max_by_key(|(info, ..)| info.attempt)
            .map(|(info, ..)| info.id.clone())
    }

    /// Configuration of a container.
    pub fn container_config(&self, id: &str) -> Option<ContainerConfig> {
        self.inner
            .lock()
            .containers
            .get(id)
            .map(|(.., config)| config.clone())
    }

    /// All calls so far, as `name argument`.
    pub fn calls(&self) -> Vec<String> {
        self.inner.lock().calls.clone()
    }

    fn record(&self, call: &'static str, argument: &str) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.calls.push(format!("{call} {argument}"));
        match inner.failures.get_mut(call) {
            Some(errors) if !errors.is_empty() => Err(errors.remove(0)),
            _ => Ok(()),
        }
    }
}

impl Inner {
    fn tick(&mut self) -> Nanos {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        self.clock = (self.clock + 1).max(Nanos::try_from(since.as_nanos()).unwrap_or(Nanos::MAX));
        self.clock
    }

    fn id(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}-{}", self.next)
    }

    fn end(&mut self, id: &str, code: i32, at: Nanos) {
        if let Some((info, status, _)) = self.containers.get_mut(id)
            && status.state != ContainerState::Exited
        {
            info.state = ContainerState::Exited;
            status.state = ContainerState::Exited;
            status.exit_code = code;
            status.finished_at = at;
            status.reason = if code == 0 {
                "Completed".to_owned()
            } else {
                "Error".to_owned()
            };
        }
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<Version> {
        self.record("version", "")?;
        Ok(Version {
            name: "fake".to_owned(),
            version: "1.0.0".to_owned(),
            api: "v1".to_owned(),
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        self.record("status", "")?;
        Ok(RuntimeStatus::default())
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String> {
        self.record("run_sandbox", &config.name)?;
        let mut inner = self.inner.lock();
        let id = inner.id("sandbox");
        let created_at = inner.tick();
        let info = SandboxInfo {
            id: id.clone(),
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            uid: config.uid.clone(),
            attempt: config.attempt,
            state: SandboxState::Ready,
            created_at,
            labels: config.labels.clone(),
        };
        let ips = vec![format!("10.244.0.{}", inner.next + 1)];
        inner.sandboxes.insert(
            id.clone(),
            SandboxStatus {
                info,
                ips,
                netns: None,
            },
        );
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.record("stop_sandbox", id)?;
        let mut inner = self.inner.lock();
        let at = inner.tick();
        if let Some(sandbox) = inner.sandboxes.get_mut(id) {
            sandbox.info.state = SandboxState::NotReady;
        }
        let inside = inner
            .containers
            .values()
            .filter(|(info, ..)| info.sandbox_id == id);
        let inside: Vec<String> = inside.map(|(info, ..)| info.id.clone()).collect();
        for container in inside {
            inner.end(&container, 137, at);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.record("remove_sandbox", id)?;
        let mut inner = self.inner.lock();
        inner.sandboxes.remove(id);
        inner
            .containers
            .retain(|_, (info, ..)| info.sandbox_id != id);
        Ok(())
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxInfo>> {
        self.record("list_sandboxes", "")?;
        Ok(self
            .inner
            .lock()
            .sandboxes
            .values()
            .map(|status| status.info.clone())
            .collect())
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        self.record("sandbox_status", id)?;
        self.inner
            .lock()
            .sandboxes
            .get(id)
            .cloned()
            .ok_or_else(|| not_found(id))
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
        _: &SandboxConfig,
    ) -> Result<String> {
        self.record("create_container", &config.name)?;
        let mut inner = self.inner.lock();
        if !inner.sandboxes.contains_key(sandbox_id) {
            return Err(not_found(sandbox_id));
        }
        let id = inner.id("container");
        let created_at = inner.tick();
        let info = ContainerInfo {
            id: id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            name: config.name.clone(),
            attempt: config.attempt,
            state: ContainerState::Created,
            created_at,
            image_ref: config.image.clone(),
            labels: config.labels.clone(),
        };
        let status = ContainerStatus {
            id: id.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            state: ContainerState::Created,
            created_at,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            image: config.image.clone(),
            image_ref: config.image.clone(),
            reason: String::new(),
            message: String::new(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: config.log_path.clone(),
            user: None,
            recursive_readonly: Vec::new(),
        };
        inner
            .containers
            .insert(id.clone(), (info, status, config.clone()));
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.record("start_container", id)?;
        let mut inner = self.inner.lock();
        let at = inner.tick();
        let (info, status, _) = inner.containers.get_mut(id).ok_or_else(|| not_found(id))?;
        info.state = ContainerState::Running;
        status.state = ContainerState::Running;
        status.started_at = at;
        Ok(())
    }

    async fn stop_container(&self, id: &str, _grace: Duration) -> Result<()> {
        self.record("stop_container", id)?;
        self.exit(id, 143);
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.record("remove_container", id)?;
        self.inner.lock().containers.remove(id);
        Ok(())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerInfo>> {
        self.record("list_containers", "")?;
        Ok(self
            .inner
            .lock()
            .containers
            .values()
            .map(|(info, ..)| info.clone())
            .collect())
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        self.record("container_status", id)?;
        let inner = self.inner.lock();
        inner
            .containers
            .get(id)
            .map(|(_, status, _)| status.clone())
            .ok_or_else(|| not_found(id))
    }

    async fn update_resources(&self, id: &str, _: &Resources) -> Result<()> {
        self.record("update_resources", id)
    }

    async fn signal_container(&self, id: &str, signal: i32) -> Result<()> {
        self.record("signal_container", &format!("{id} {signal}"))
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        self.record("reopen_log", id)
    }

    async fn exec_sync(&self, _id: &str, command: &[String], _: Duration) -> Result<ExecOutput> {
        let command = command.join(" ");
        self.record("exec_sync", &command)?;
        Ok(self
            .inner
            .lock()
            .exec
            .get(&command)
            .cloned()
            .unwrap_or_default())
    }

    async fn list_stats(&self) -> Result<Vec<ContainerStats>> {
        self.record("list_stats", "")?;
        Ok(Vec::new())
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        self.record("list_images", "")?;
        Ok(self.inner.lock().images.values().cloned().collect())
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        self.record("image_status", image)?;
        Ok(self.inner.lock().images.get(image).cloned())
    }

    async fn pull_image(&self, image: &str, _auth: Option<&Auth>) -> Result<String> {
        self.record("pull_image", image)?;
        if !self.inner.lock().pullable.iter().any(|name| name == image) {
            let message = format!("failed to pull and unpack image {image:?}: not found");
            return Err(Error::Rpc {
                code: "NotFound",
                message,
            });
        }
        self.add_image(image);
        Ok(format!("sha256:{image}"))
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.record("remove_image", image)?;
        self.inner
            .lock()
            .images
            .retain(|name, status| name != image && status.id != image);
        Ok(())
    }

    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        self.record("image_fs_info", "")?;
        Ok(Vec::new())
    }

    async fn watch_events(&self, events: mpsc::Sender<RuntimeEvent>, stop: CancellationToken) {
        let mut source = self.events.subscribe();
        if events.send(RuntimeEvent::Resync).await.is_err() {
            return;
        }
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = source.recv() => event,
            };
            let event = match event {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(_)) => RuntimeEvent::Resync,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

#[async_trait]
impl Streams for FakeRuntime {
    async fn exec(&self, container_id: &str, command: &[String], _: StreamSpec) -> Result<Session> {
        self.record("exec", container_id)?;
        let output = self
            .inner
            .lock()
            .exec
            .get(&command.join(" "))
            .cloned()
            .unwrap_or_default();
        let (exit_tx, exit) = tokio::sync::oneshot::channel();
        let _ = exit_tx.send(Ok(output.exit_code));
        Ok(Session {
            stdin: Some(Box::new(tokio::io::sink())),
            stdout: Some(Box::new(std::io::Cursor::new(output.stdout))),
            stderr: Some(Box::new(std::io::Cursor::new(output.stderr))),
            control: mpsc::channel(1).0,
            exit,
        })
    }

    async fn attach(&self, container_id: &str, _: StreamSpec) -> Result<Session> {
        self.record("attach", container_id)?;
        Err(not_found(container_id))
    }

    async fn import_image(&self, archive: &Path) -> Result<()> {
        self.record("import_image", &archive.display().to_string())?;
        self.add_image(
            &archive
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default(),
        );
        Ok(())
    }
}
