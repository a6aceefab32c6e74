//! What servers ask of this node over the node link: exec, attach, logs, port-forward, plain connections
//! to the cluster network, and the node's own HTTP endpoints.

mod find;
mod forward;
mod session;

use std::sync::Arc;

use async_trait::async_trait;
use balsa_cri::{Runtime, StreamSpec, Streams as RuntimeStreams};
use balsa_link::agent::StreamHandler;
use balsa_link::protocol::{LogOptions, StreamIo, StreamReply, StreamRequest, Target};
use balsa_link::write_message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tracing::debug;

use crate::config::Paths;
use crate::logs;

/// From the server.
type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// To the server.
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The node's own endpoints: `/healthz`, `/pods`, `/stats/summary`, `/metrics`, ...
#[async_trait]
pub trait NodeHttp: Send + Sync + 'static {
    /// Answers a GET: status code and body.
    async fn get(&self, path: &str) -> (u16, Vec<u8>);
}

/// Why a stream is refused; becomes a `Status` for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: u16,
    reason: &'static str,
    message: String,
}

impl Refusal {
    fn bad_request(message: impl Into<String>) -> Self {
        Self { code: 400, reason: "BadRequest", message: message.into() }
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self { code: 404, reason: "NotFound", message: message.into() }
    }

    fn internal(message: impl std::fmt::Display) -> Self {
        Self { code: 500, reason: "InternalError", message: message.to_string() }
    }
}

/// Serves streams with what the container runtime offers. It keeps no state of its own, so it works from
/// the first moment after a restart.
pub struct Streams {
    runtime: Arc<dyn Runtime>,
    processes: Arc<dyn RuntimeStreams>,
    paths: Paths,
    http: Arc<dyn NodeHttp>,
}

impl Streams {
    /// With a runtime, the node's folders and its own endpoints.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        processes: Arc<dyn RuntimeStreams>,
        paths: Paths,
        http: Arc<dyn NodeHttp>,
    ) -> Self {
        Self { runtime, processes, paths, http }
    }

    async fn dispatch(&self, request: StreamRequest, reader: Reader, writer: &mut Writer) -> Result<(), Refusal> {
        match request {
            StreamRequest::Exec { target, command, io } => self.exec(&target, &command, io, reader, writer).await,
            StreamRequest::Attach { target, io } => self.attach(&target, io, reader, writer).await,
            StreamRequest::PortForward { target, port } => {
                let netns = find::netns(&*self.runtime, &target).await?;
                let socket = forward::connect_inside(netns, port).await?;
                accept(writer, 200).await;
                forward::splice(socket, reader, writer).await;
                Ok(())
            }
            StreamRequest::Dial { address } => {
                let socket = forward::dial(&address).await?;
                accept(writer, 200).await;
                forward::splice(socket, reader, writer).await;
                Ok(())
            }
            StreamRequest::Logs { target, options } => self.logs(&target, &options, writer).await,
            StreamRequest::Http { path } => {
                let (code, body) = self.http.get(&path).await;
                accept(writer, code).await;
                if let Err(error) = writer.write_all(&body).await {
                    debug!(%error, "the reader went away");
                }
                Ok(())
            }
        }
    }

    async fn exec(
        &self,
        target: &Target,
        command: &[String],
        io: StreamIo,
        reader: Reader,
        writer: &mut Writer,
    ) -> Result<(), Refusal> {
        let id = find::running(&*self.runtime, target).await?;
        let session = self.processes.exec(&id, command, spec(io)).await.map_err(Refusal::internal)?;
        accept(writer, 200).await;
        session::relay(session, reader, writer).await;
        Ok(())
    }

    async fn attach(
        &self,
        target: &Target,
        io: StreamIo,
        reader: Reader,
        writer: &mut Writer,
    ) -> Result<(), Refusal> {
        let id = find::running(&*self.runtime, target).await?;
        let session = self.processes.attach(&id, spec(io)).await.map_err(Refusal::internal)?;
        accept(writer, 200).await;
        session::relay(session, reader, writer).await;
        Ok(())
    }

    async fn logs(&self, target: &Target, options: &LogOptions, writer: &mut Writer) -> Result<(), Refusal> {
        let directory =
            self.paths.pod_logs(&target.namespace, &target.pod, &target.uid).join(&target.container);
        let attempts = logs::attempts(&directory);
        let Some(attempt) = logs::pick(&attempts, options.previous) else {
            let (container, pod) = (&target.container, &target.pod);
            return Err(Refusal::bad_request(if options.previous {
                format!("previous terminated container {container:?} in pod {pod:?} not found")
            } else {
                format!("container {container:?} in pod {pod:?} is waiting to start: ContainerCreating")
            }));
        };
        accept(writer, 200).await;
        let ended = || {
            let (runtime, target) = (Arc::clone(&self.runtime), target.clone());
            let ended: futures::future::BoxFuture<'static, bool> =
                Box::pin(async move { !find::writes(&*runtime, &target, attempt).await });
            ended
        };
        let path = logs::file(&directory, attempt);
        if let Err(error) = logs::copy(&path, options, &mut **writer, ended).await {
            debug!(%error, "the log was not copied to its end");
        }
        Ok(())
    }
}

fn spec(io: StreamIo) -> StreamSpec {
    // A terminal has one output; its errors come with it.
    StreamSpec { stdin: io.stdin, stdout: io.stdout, stderr: io.stderr && !io.tty, tty: io.tty }
}

/// Says yes. A client that is gone already is noticed by what follows.
async fn accept(writer: &mut Writer, code: u16) {
    if let Err(error) = write_message(writer, &StreamReply::Ok { code }).await {
        debug!(%error, "the reader went away");
    }
}

#[async_trait]
impl StreamHandler for Streams {
    async fn serve(&self, request: StreamRequest, reader: Reader, mut writer: Writer) {
        if let Err(refusal) = self.dispatch(request, reader, &mut writer).await {
            let reply = StreamReply::Error {
                code: refusal.code,
                reason: refusal.reason.to_owned(),
                message: refusal.message,
            };
            if let Err(error) = write_message(&mut writer, &reply).await {
                debug!(%error, "the reader went away");
            }
        }
        // Ends the stream in good order; a reader that is gone does not mind.
        let _ = writer.shutdown().await;
    }
}
