//! port-forward over WebSocket channels, as clients other than kubectl speak it: for port i of the request,
//! channel 2i carries its data and channel 2i+1 what went wrong. Both begin with the port's number (little-endian).

use std::io;
use std::sync::Arc;

use balsa_api::status::Status;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::portforward::{Destination, TUNNEL};
use super::query::Query;
use super::remote_ws::{self, Dialect};
use super::websocket::{Message, NORMAL, Reader, Writer};
use crate::seam::NodeStream;

/// Protocols of port-forward over WebSocket, SPDY inside it included.
pub(super) const PROTOCOLS: [&str; 3] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// Ports of one session; two channels each must fit into a byte, and in base64 a channel is one digit.
const MAX_PORTS: usize = 127;
const MAX_PORTS_BASE64: usize = 5;
/// Messages waiting for one port. When they are full the whole session waits.
const WAITING: usize = 16;
const READ_SIZE: usize = 32 * 1024;

/// The ports that a request names: `ports` or `port`, repeated or separated by commas.
///
/// # Errors
/// 400 when there are none, too many, or something else.
pub(super) fn ports(query: &Query, protocol: &str) -> Result<Vec<u16>, Status> {
    let mut named = query.all("ports");
    named.extend(query.all("port"));
    let mut ports = Vec::new();
    for text in named.iter().flat_map(|n| n.split(',')).map(str::trim) {
        let port = text.parse::<u16>().ok().filter(|p| *p != 0);
        let bad = || Status::bad_request(format!("invalid port {text:?}, must be 1 to 65535"));
        ports.push(port.ok_or_else(bad)?);
    }
    let most = if protocol.contains("base64") {
        MAX_PORTS_BASE64
    } else {
        MAX_PORTS
    };
    if ports.is_empty() {
        return Err(Status::bad_request("query parameter \"ports\" is required"));
    }
    if ports.len() > most {
        return Err(Status::bad_request(format!(
            "at most {most} ports can be forwarded in one session"
        )));
    }
    Ok(ports)
}

/// Serves a session until the client leaves or all its connections have ended.
///
/// # Errors
/// When the connection fails or the client sends nonsense.
pub(super) async fn serve<R, W>(
    reader: R,
    writer: W,
    protocol: &'static str,
    ports: Vec<u16>,
    destination: Destination,
) -> io::Result<()>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let dialect = Dialect::of(protocol);
    let mut reader = Reader::server(reader);
    let out = Arc::new(Mutex::new(Writer::server(writer)));
    let destination = Arc::new(destination);
    let mut connections = JoinSet::new();
    let mut inputs = Vec::new();
    for (port, channel) in ports.into_iter().zip((0..=252).step_by(2)) {
        let hello = port.to_le_bytes();
        for channel in [channel, channel + 1] {
            remote_ws::send(&out, dialect, channel, &hello).await?;
        }
        let (sender, input) = mpsc::channel(WAITING);
        inputs.push(sender);
        let forwarding = Forwarding {
            destination: Arc::clone(&destination),
            port,
            channel,
            dialect,
            out: Arc::clone(&out),
        };
        let span = tracing::debug_span!("forwarded connection", port);
        connections.spawn(forwarding.run(input).instrument(span));
    }
    let receiving = async {
        loop {
            let message = match reader.next().await? {
                None | Some(Message::Close) => return Ok(()),
                Some(Message::Ping(payload)) => {
                    out.lock().await.pong(&payload).await?;
                    continue;
                }
                Some(message) => message,
            };
            let Some((channel, data)) = remote_ws::decode(&message, dialect)? else {
                continue;
            };
            // Odd channels are ours; what comes for a connection that has ended is dropped.
            if channel % 2 == 0
                && !data.is_empty()
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                let _ = input.send(data).await;
            }
        }
    };
    let ended = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        left = receiving => return left,
        () = ended => {}
    }
    out.lock().await.finish(NORMAL).await
}

/// One port of a session.
struct Forwarding<W> {
    destination: Arc<Destination>,
    port: u16,
    channel: u8,
    dialect: Dialect,
    out: Arc<Mutex<Writer<W>>>,
}

impl<W: AsyncWrite + Unpin> Forwarding<W> {
    async fn run(self, input: mpsc::Receiver<Bytes>) {
        let outcome = match self.destination.open(self.port).await {
            Ok(node) => self.copy(node, input).await,
            Err(status) => Err(status.message),
        };
        if let Err(why) = outcome {
            let text = self.destination.explain(self.port, &why);
            let told =
                remote_ws::send(&self.out, self.dialect, self.channel + 1, text.as_bytes()).await;
            if let Err(error) = told {
                tracing::debug!(%error, "the client is gone");
            }
        }
    }

    /// Copies both ways until the pod has closed.
    async fn copy(&self, node: NodeStream, mut input: mpsc::Receiver<Bytes>) -> Result<(), String> {
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
                let read = from_pod.read_buf(&mut buffer).await;
                if read.map_err(|e| e.to_string())? == 0 {
                    return Ok(());
                }
                remote_ws::send(&self.out, self.dialect, self.channel, &buffer)
                    .await
                    .map_err(|e| e.to_string())?;
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
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn named(query: &str, protocol: &str) -> Result<Vec<u16>, Status> {
        let uri = format!("/x?{query}").parse().unwrap();
        ports(&Query::of(&uri), protocol)
    }

    #[test]
    fn ports_are_named_in_several_ways() {
        let binary = PROTOCOLS[1];
        assert_eq!(named("ports=80&ports=81", binary).unwrap(), [80, 81]);
        assert_eq!(named("port=80,81", binary).unwrap(), [80, 81]);
        for bad in ["", "ports=0", "ports=x", "ports=70000"] {
            assert_eq!(named(bad, binary).unwrap_err().code, 400);
        }
        assert_eq!(
            named("ports=1,2,3,4,5,6", PROTOCOLS[2]).unwrap_err().code,
            400
        );
    }
}
