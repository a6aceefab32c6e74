//! port-forward over a SPDY session: for each connection the client opens two streams with the same
//! `requestid`, one for errors and one for data.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use balsa_api::status::Status;
use balsa_link::protocol::{StreamRequest, Target};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tracing::Instrument as _;

use super::spdy::{Frame, Headers, REFUSED_STREAM, Reader, Writer};
use crate::seam::{NodeStream, NodeStreams};

/// The protocol's name, in the SPDY negotiation.
pub(super) const PROTOCOL: &str = "portforward.k8s.io";
/// The protocol's name when SPDY runs inside WebSocket.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Connections at a time in one session.
const MAX_CONNECTIONS: usize = 512;
/// Frames waiting for one connection. When they are full the whole session waits, as there is no flow
/// control per stream.
const WAITING_FRAMES: usize = 16;
const READ_SIZE: usize = 32 * 1024;

/// To which pod a session forwards.
pub(super) struct Destination {
    pub(super) nodes: Arc<dyn NodeStreams>,
    pub(super) node: String,
    pub(super) target: Target,
}

impl Destination {
    /// What the user is told when a connection fails.
    pub(super) fn explain(&self, port: u16, why: &str) -> String {
        let target = &self.target;
        format!(
            "error forwarding port {port} to pod {}, uid {}: {why}",
            target.pod, target.uid
        )
    }

    pub(super) async fn open(&self, port: u16) -> Result<NodeStream, Status> {
        let request = StreamRequest::PortForward {
            target: self.target.clone(),
            port,
        };
        super::open(&*self.nodes, &self.node, request).await
    }
}

/// A connection of which one stream has come.
#[derive(Default)]
struct Pair {
    error: Option<u32>,
    data: Option<u32>,
}

struct Session<W> {
    writer: Arc<Mutex<Writer<W>>>,
    destination: Arc<Destination>,
    /// By request id, until both streams are there.
    pairs: HashMap<String, Pair>,
    /// What the client sends, by data stream.
    inputs: HashMap<u32, mpsc::Sender<Bytes>>,
    /// What the client sent before the pair was complete.
    receivers: HashMap<u32, mpsc::Receiver<Bytes>>,
    handles: HashMap<u32, AbortHandle>,
    connections: JoinSet<u32>,
}

/// Serves a session until the client ends it. All its connections end with it.
///
/// # Errors
/// When the connection fails or the client sends nonsense.
pub(super) async fn serve<R, W>(reader: R, writer: W, destination: Destination) -> io::Result<()>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let mut reader = Reader::new(reader);
    let mut session = Session {
        writer: Arc::new(Mutex::new(Writer::new(writer))),
        destination: Arc::new(destination),
        pairs: HashMap::new(),
        inputs: HashMap::new(),
        receivers: HashMap::new(),
        handles: HashMap::new(),
        connections: JoinSet::new(),
    };
    while let Some(frame) = reader.next().await? {
        session.reap();
        match frame {
            Frame::SynStream {
                stream,
                headers,
                fin,
            } => session.open(stream, &headers, fin).await?,
            Frame::Data { stream, fin, data } => session.input(stream, data, fin).await,
            Frame::RstStream { stream, .. } => {
                if let Some(handle) = session.handles.get(&stream) {
                    handle.abort();
                }
                session.inputs.remove(&stream);
            }
            Frame::Ping { id } => {
                session
                    .writer
                    .lock()
                    .await
                    .send(&Frame::Ping { id })
                    .await?
            }
            Frame::GoAway { .. } => break,
            _ => {}
        }
    }
    Ok(())
}

impl<W: AsyncWrite + Unpin + Send + 'static> Session<W> {
    /// Forgets connections that have ended.
    fn reap(&mut self) {
        while let Some(ended) = self.connections.try_join_next() {
            if let Ok(stream) = ended {
                self.handles.remove(&stream);
                self.inputs.remove(&stream);
            }
        }
    }

    async fn open(&mut self, stream: u32, headers: &Headers, fin: bool) -> io::Result<()> {
        let port = headers
            .get("port")
            .and_then(|p| p.parse::<u16>().ok())
            .filter(|p| *p != 0);
        let id = headers.get("requestid").unwrap_or_default().to_owned();
        let kind = headers.get("streamtype").unwrap_or_default();
        let room = self.connections.len() + self.pairs.len() < MAX_CONNECTIONS;
        let (Some(port), true, "error" | "data") = (port, room, kind) else {
            let refusal = Frame::RstStream {
                stream,
                status: REFUSED_STREAM,
            };
            return self.writer.lock().await.send(&refusal).await;
        };
        self.writer.lock().await.reply(stream).await?;
        let pair = self.pairs.entry(id.clone()).or_default();
        if kind == "error" {
            pair.error = Some(stream);
        } else {
            pair.data = Some(stream);
            let (sender, receiver) = mpsc::channel(WAITING_FRAMES);
            if !fin {
                self.inputs.insert(stream, sender);
            }
            self.receivers.insert(stream, receiver);
        }
        if let Pair {
            error: Some(error),
            data: Some(data),
        } = *pair
        {
            self.pairs.remove(&id);
            self.connect(port, error, data);
        }
        Ok(())
    }

    fn connect(&mut self, port: u16, error: u32, data: u32) {
        let Some(input) = self.receivers.remove(&data) else {
            return;
        };
        let (writer, destination) = (Arc::clone(&self.writer), Arc::clone(&self.destination));
        let span = tracing::debug_span!("forwarded connection", port, stream = data);
        let connection = async move {
            if let Err(gone) = forward(&destination, port, error, data, input, &writer).await {
                tracing::debug!(error = %gone, "connection ended");
            }
            data
        };
        self.handles
            .insert(data, self.connections.spawn(connection.instrument(span)));
    }

    async fn input(&mut self, stream: u32, data: Bytes, fin: bool) {
        if let Some(sender) = self.inputs.get(&stream)
            && !data.is_empty()
            && sender.send(data).await.is_err()
        {
            // The connection is over; what still comes for it is dropped.
            self.inputs.remove(&stream);
        }
        if fin {
            self.inputs.remove(&stream);
        }
    }
}

/// One connection, from open to close. Errors that the user should see go to the error stream.
async fn forward<W: AsyncWrite + Unpin>(
    destination: &Destination,
    port: u16,
    error: u32,
    data: u32,
    input: mpsc::Receiver<Bytes>,
    writer: &Mutex<Writer<W>>,
) -> io::Result<()> {
    let outcome = match destination.open(port).await {
        Ok(node) => copy(node, data, input, writer).await?,
        Err(status) => Err(status.message),
    };
    let mut writer = writer.lock().await;
    if let Err(why) = outcome {
        let text = destination.explain(port, &why);
        writer.data(error, text.into()).await?;
    }
    writer.fin(data).await?;
    writer.fin(error).await
}

/// Copies both ways until the pod has closed. The outer error is the client's, the inner the pod's.
async fn copy<W: AsyncWrite + Unpin>(
    node: NodeStream,
    data: u32,
    mut input: mpsc::Receiver<Bytes>,
    writer: &Mutex<Writer<W>>,
) -> io::Result<Result<(), String>> {
    let NodeStream {
        reader: mut from_pod,
        writer: mut to_pod,
        ..
    } = node;
    let up = async {
        while let Some(bytes) = input.recv().await {
            to_pod.write_all(&bytes).await?;
            to_pod.flush().await?;
        }
        to_pod.shutdown().await
    };
    let down = async {
        loop {
            let mut buffer = BytesMut::with_capacity(READ_SIZE);
            match from_pod.read_buf(&mut buffer).await {
                Ok(0) => return Ok(Ok(())),
                Ok(_) => writer.lock().await.data(data, buffer.freeze()).await?,
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    };
    tokio::pin!(up, down);
    let mut sending = true;
    loop {
        tokio::select! {
            result = &mut down => return result,
            // Not being able to send is told by the pod's side closing, or is no matter.
            _ = &mut up, if sending => sending = false,
        }
    }
}
