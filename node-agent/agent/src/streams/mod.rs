//! What servers ask of a node over the link: exec, attach, port-forward, dial, logs, and its HTTP endpoints.

mod http;
mod session;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use balsa_cri::{ContainerInfo, ContainerState, NamespaceMode, StreamSpec, Streams};
use balsa_link::protocol::{LogOptions, StreamIo, StreamReply, StreamRequest, Target};
use balsa_link::write_message;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::debug;

use crate::logs;
use crate::pods::sandbox::labels;
use crate::pods::{Context, Manager};
use crate::stats::Stats;

/// Time allowed to a connection into a pod.
const CONNECT: Duration = Duration::from_secs(10);

/// Serves streams.
pub(crate) struct Server {
    pub(crate) context: Arc<Context>,
    pub(crate) streams: Arc<dyn Streams>,
    pub(crate) manager: Arc<Manager>,
    pub(crate) stats: Arc<Stats>,
}

/// The reading end of a stream.
pub(crate) type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// The writing end of a stream.
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Why a stream can't be opened, as it becomes a `Status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: u16,
    reason: &'static str,
    message: String,
}

impl Refusal {
    fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: 404,
            reason: "NotFound",
            message: message.into(),
        }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            code: 400,
            reason: "BadRequest",
            message: message.into(),
        }
    }

    fn internal(message: impl ToString) -> Self {
        Self {
            code: 500,
            reason: "InternalError",
            message: message.to_string(),
        }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            code: 503,
            reason: "ServiceUnavailable",
            message: message.into(),
        }
    }
}

/// Answers that a stream can't be opened.
pub(crate) async fn refuse(mut writer: Writer, refusal: Refusal) {
    let Refusal {
        code,
        reason,
        message,
    } = refusal;
    let reply = StreamReply::Error {
        code,
        reason: reason.to_owned(),
        message,
    };
    if let Err(error) = write_message(&mut writer, &reply).await {
        debug!(%error, "could not answer a stream");
    }
    let _ = writer.shutdown().await;
}

pub(crate) async fn accept(writer: &mut Writer, code: u16) -> std::io::Result<()> {
    write_message(writer, &StreamReply::Ok { code }).await
}

impl Server {
    /// Serves one stream to its end.
    pub(crate) async fn serve(&self, request: StreamRequest, reader: Reader, writer: Writer) {
        match self.own(request) {
            StreamRequest::Exec {
                target,
                command,
                io,
            } => self.exec(&target, &command, io, reader, writer).await,
            StreamRequest::Attach { target, io } => self.attach(&target, io, reader, writer).await,
            StreamRequest::PortForward { target, port } => {
                match self.connect_in_pod(&target, port).await {
                    Ok(stream) => splice(stream, reader, writer).await,
                    Err(refusal) => refuse(writer, refusal).await,
                }
            }
            StreamRequest::Dial { address } => match dial(&address).await {
                Ok(stream) => splice(stream, reader, writer).await,
                Err(refusal) => refuse(writer, refusal).await,
            },
            StreamRequest::Logs { target, options } => self.logs(&target, &options, writer).await,
            StreamRequest::Http { path } => self.http(&path, writer).await,
        }
    }

    /// The request with the pod's UID as the runtime knows it, which is not that of a static pod's mirror.
    fn own(&self, mut request: StreamRequest) -> StreamRequest {
        if let StreamRequest::Exec { target, .. }
        | StreamRequest::Attach { target, .. }
        | StreamRequest::PortForward { target, .. }
        | StreamRequest::Logs { target, .. } = &mut request
        {
            target.uid = self
                .manager
                .own_uid(&target.namespace, &target.pod, &target.uid);
        }
        request
    }

    async fn exec(
        &self,
        target: &Target,
        command: &[String],
        io: StreamIo,
        reader: Reader,
        mut writer: Writer,
    ) {
        let container = match self.running_container(target).await {
            Ok(container) => container,
            Err(refusal) => return refuse(writer, refusal).await,
        };
        // Answered before it is started, which may take long where many are: a command that can't be started is an
        // outcome of the session, not a refusal of it.
        if accept(&mut writer, 200).await.is_err() {
            return;
        }
        match self.streams.exec(&container, command, spec(io)).await {
            Ok(session) => session::run(session, reader, writer).await,
            Err(error) => session::fail(&error, writer).await,
        }
    }

    async fn attach(&self, target: &Target, io: StreamIo, reader: Reader, writer: Writer) {
        let session = async {
            let container = self.running_container(target).await?;
            let spec = StreamSpec {
                ends_with_input: io.tty || !self.input_once(target),
                ..spec(io)
            };
            let session = self.streams.attach(&container, spec).await;
            session.map_err(|error| Refusal::internal(error.message()))
        };
        match session.await {
            Ok(session) => session::serve(session, reader, writer).await,
            Err(refusal) => refuse(writer, refusal).await,
        }
    }

    /// Is the container's standard input closed with the first session that had it?
    fn input_once(&self, target: &Target) -> bool {
        let pod = self.manager.pod(&target.namespace, &target.pod);
        let spec = pod.as_ref().and_then(|pod| pod.spec.as_ref());
        let container = spec.and_then(|spec| balsa_pod::spec::container(spec, &target.container));
        container.is_some_and(|container| container.stdin_once == Some(true))
    }

    /// All instances of the target's container, newest first.
    async fn instances(&self, target: &Target) -> Result<Vec<ContainerInfo>, Refusal> {
        let all = self
            .context
            .runtime
            .list_containers()
            .await
            .map_err(Refusal::internal)?;
        let label = |container: &ContainerInfo, name: &str, value: &str| {
            container
                .labels
                .get(name)
                .is_some_and(|label| label == value)
        };
        let mut found: Vec<_> = all
            .into_iter()
            .filter(|container| label(container, labels::POD_UID, &target.uid))
            .filter(|container| label(container, labels::CONTAINER_NAME, &target.container))
            .collect();
        found.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created_at)));
        Ok(found)
    }

    async fn running_container(&self, target: &Target) -> Result<String, Refusal> {
        let newest = self.instances(target).await?.into_iter().next();
        match newest {
            Some(container) if container.state == ContainerState::Running => Ok(container.id),
            Some(_) => Err(Refusal::internal(format!(
                "container {} is not running",
                target.container
            ))),
            None => Err(Refusal::not_found(format!(
                "container not found (\"{}\")",
                target.container
            ))),
        }
    }

    async fn logs(&self, target: &Target, options: &LogOptions, mut writer: Writer) {
        let (id, path) = match self.log_of(target, options.previous).await {
            Ok(found) => found,
            Err(refusal) => return refuse(writer, refusal).await,
        };
        if accept(&mut writer, 200).await.is_err() {
            return;
        }
        let source = Container {
            context: Arc::clone(&self.context),
            id,
        };
        let copied = logs::stream(&path, options, &source, &mut writer).await;
        if let Err(error) = copied {
            debug!(%error, path = %path.display(), "a log broke off");
        }
        let _ = writer.shutdown().await;
    }

    async fn log_of(&self, target: &Target, previous: bool) -> Result<(String, PathBuf), Refusal> {
        let (container, pod) = (&target.container, &target.pod);
        let wanted = self
            .instances(target)
            .await?
            .into_iter()
            .nth(usize::from(previous));
        let Some(wanted) = wanted else {
            return Err(Refusal::bad_request(if previous {
                format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
            } else {
                let reason = self.waiting_reason(target);
                format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}")
            }));
        };
        let status = self
            .context
            .runtime
            .container_status(&wanted.id)
            .await
            .map_err(Refusal::internal)?;
        Ok((wanted.id, PathBuf::from(status.log_path)))
    }

    fn waiting_reason(&self, target: &Target) -> String {
        let pod = self.manager.pod(&target.namespace, &target.pod);
        let status = pod.as_ref().and_then(|pod| pod.status.as_ref());
        let all = status.into_iter().flat_map(|status| {
            status
                .init_container_statuses
                .iter()
                .chain(&status.container_statuses)
                .chain(&status.ephemeral_container_statuses)
                .flatten()
        });
        let mut own = all.filter(|status| status.name == target.container);
        let waiting = own
            .next()
            .and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
        waiting.unwrap_or_else(|| balsa_pod::reasons::CONTAINER_CREATING.to_owned())
    }

    /// Connects to a port on the pod's own loopback.
    async fn connect_in_pod(&self, target: &Target, port: u16) -> Result<TcpStream, Refusal> {
        let sandboxes = self
            .context
            .runtime
            .list_sandboxes()
            .await
            .map_err(Refusal::internal)?;
        let ours = sandboxes
            .into_iter()
            .filter(|sandbox| sandbox.uid == target.uid);
        let newest = ours.max_by_key(|sandbox| sandbox.attempt);
        let newest = newest
            .ok_or_else(|| Refusal::not_found(format!("pod {} has no sandbox", target.pod)))?;
        let status = self
            .context
            .runtime
            .sandbox_status(&newest.id)
            .await
            .map_err(Refusal::internal)?;
        let pod = self.manager.pod(&target.namespace, &target.pod);
        let spec = pod.as_ref().and_then(|pod| pod.spec.as_ref());
        let namespaces = spec
            .map(crate::pods::security::sandbox_namespaces)
            .unwrap_or_default();
        let netns = match (namespaces.network, status.netns) {
            (NamespaceMode::Node, _) => None,
            (_, Some(path)) => Some(PathBuf::from(path)),
            (_, None) => {
                return Err(Refusal::internal(
                    "the runtime does not tell the pod's network namespace",
                ));
            }
        };
        let connected = tokio::task::spawn_blocking(move || connect_in(netns, port)).await;
        let stream = connected.map_err(Refusal::internal)?.map_err(|error| {
            Refusal::internal(format!(
                "failed to connect to localhost:{port} inside namespace \"{}\", IPv4: dial tcp4 127.0.0.1:{port}: connect: {}",
                newest.id,
                crate::http::go_words(&error)
            ))
        })?;
        stream.set_nonblocking(true).map_err(Refusal::internal)?;
        TcpStream::from_std(stream).map_err(Refusal::internal)
    }
}

/// Connects to a port of the loopback in a network namespace. A socket stays where it was made, so a thread
/// of its own enters the namespace, connects, and ends: no other code ever runs there.
fn connect_in(netns: Option<PathBuf>, port: u16) -> std::io::Result<std::net::TcpStream> {
    let connect = move || {
        let mut last = None;
        for ip in [
            std::net::IpAddr::from([127, 0, 0, 1]),
            std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ] {
            match std::net::TcpStream::connect_timeout(&(ip, port).into(), CONNECT) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = last.or(Some(error)),
            }
        }
        Err(last.unwrap_or_else(|| std::io::Error::other("no address")))
    };
    let Some(netns) = netns else { return connect() };
    let file = std::fs::File::open(netns)?;
    let enter = move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
        connect()
    };
    let thread = std::thread::Builder::new()
        .name("port-forward".to_owned())
        .spawn(enter)?;
    thread
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the connecting thread panicked")))
}

async fn dial(address: &str) -> Result<TcpStream, Refusal> {
    match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let words = crate::http::go_words(&error);
            Err(Refusal::unavailable(format!(
                "dial tcp {address}: connect: {words}"
            )))
        }
        Err(_) => Err(Refusal::unavailable(format!(
            "dial tcp {address}: i/o timeout"
        ))),
    }
}

/// Copies both ways until both have ended.
async fn splice(stream: TcpStream, mut reader: Reader, mut writer: Writer) {
    if accept(&mut writer, 200).await.is_err() {
        return;
    }
    let (mut from_pod, mut to_pod) = stream.into_split();
    let inward = async {
        let _ = tokio::io::copy(&mut reader, &mut to_pod).await;
        let _ = to_pod.shutdown().await;
    };
    let outward = async {
        let _ = tokio::io::copy(&mut from_pod, &mut writer).await;
        let _ = writer.shutdown().await;
    };
    tokio::join!(inward, outward);
}

fn spec(io: StreamIo) -> StreamSpec {
    StreamSpec {
        stdin: io.stdin,
        stdout: io.stdout,
        stderr: io.stderr && !io.tty,
        tty: io.tty,
        ends_with_input: false,
    }
}

struct Container {
    context: Arc<Context>,
    id: String,
}

#[async_trait]
impl logs::Source for Container {
    async fn running(&self) -> bool {
        match self.context.runtime.container_status(&self.id).await {
            Ok(status) => status.state == ContainerState::Running,
            Err(error) => !error.is_not_found(),
        }
    }
}
