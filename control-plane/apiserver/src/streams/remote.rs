//! exec and attach: what passes between a client, whatever it speaks, and the frames of the node.
//!
//! Two loops, one per direction, that do not wait for each other: a container that writes while its input
//! is full must not stop either.

use std::future::Future;
use std::io;
use std::time::Duration;

use balsa_link::protocol::Channel;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::frames;
use crate::seam::NodeStream;

/// How long a client may take to close its end after the last byte.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// Terminal sizes come as JSON of a few bytes; more than this unparsed is not one.
const MAX_RESIZE: usize = 1024;

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Bytes for a channel.
    Data(u8, Bytes),
    /// No more for a channel.
    Close(u8),
    /// The client is gone or done.
    End,
}

/// The client's end, reading.
pub(super) trait ClientReader: Send {
    /// What comes next. Answers pings by itself.
    fn next(&mut self) -> impl Future<Output = io::Result<Incoming>> + Send;
    /// Waits until the client has closed the connection.
    fn drain(&mut self) -> impl Future<Output = ()> + Send;
}

/// The client's end, writing.
pub(super) trait ClientWriter: Send {
    /// Bytes of stdout, stderr or the outcome.
    fn data(&mut self, channel: u8, data: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Ends the session in good order.
    fn finish(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

/// Passes everything between client and node until the outcome is known or one of them is gone.
/// `status_json`: the client understands the outcome as a Status object (protocol v4 and later); before,
/// only a failure was told, as text.
///
/// # Errors
/// When the client's connection fails or it sends nonsense.
pub(super) async fn run(
    mut reader: impl ClientReader,
    mut writer: impl ClientWriter,
    node: NodeStream,
    status_json: bool,
) -> io::Result<()> {
    let NodeStream {
        reader: mut from_node,
        writer: mut to_node,
        ..
    } = node;
    {
        let up = client_to_node(&mut reader, &mut to_node);
        let down = async {
            let outcome = node_to_client(&mut from_node, &mut writer).await?;
            if let Some(text) = render(&outcome, status_json) {
                writer.data(Channel::STATUS, text).await?;
            }
            writer.finish().await
        };
        tokio::pin!(up, down);
        tokio::select! {
            result = &mut down => result?,
            // The client is gone: dropping the node's stream tells the node.
            result = &mut up => return result,
        }
    }
    // The outcome is sent. Closing at once could cut off what the client has not read yet.
    let _ = tokio::time::timeout(LINGER, reader.drain()).await;
    Ok(())
}

/// Output until the outcome.
async fn node_to_client(
    node: &mut (impl tokio::io::AsyncRead + Unpin),
    writer: &mut impl ClientWriter,
) -> io::Result<Value> {
    let lost = |why: &str| {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
               "reason": "InternalError", "message": format!("Internal error occurred: {why}"), "code": 500})
    };
    loop {
        match frames::read(node).await {
            Ok(Some((Channel::STATUS, payload))) => {
                return Ok(serde_json::from_slice(&payload)
                    .unwrap_or_else(|_| lost("the node sent an unreadable outcome")));
            }
            Ok(Some((channel @ (Channel::STDOUT | Channel::STDERR), payload))) => {
                writer.data(channel, payload).await?;
            }
            Ok(Some(_)) => {}
            Ok(None) => return Ok(lost("the connection to the node was closed")),
            Err(error) => return Ok(lost(&format!("the connection to the node failed: {error}"))),
        }
    }
}

fn render(outcome: &Value, status_json: bool) -> Option<Bytes> {
    if status_json {
        return Some(outcome.to_string().into());
    }
    if outcome["status"] == "Success" {
        return None;
    }
    Some(Bytes::from(
        outcome["message"]
            .as_str()
            .unwrap_or("command failed")
            .to_owned(),
    ))
}

/// Input and terminal sizes, until the client is gone.
async fn client_to_node(
    reader: &mut impl ClientReader,
    node: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut sizes = Vec::new();
    let mut node_reads = true;
    loop {
        let written = match reader.next().await? {
            Incoming::End => return Ok(()),
            // A node that no longer reads may still have output to send; go on for the client's sake.
            _ if !node_reads => continue,
            Incoming::Data(Channel::STDIN, data) => {
                frames::write(node, Channel::STDIN, &data).await
            }
            Incoming::Data(Channel::RESIZE, data) => {
                sizes.extend_from_slice(&data);
                resize(node, &mut sizes).await
            }
            Incoming::Data(..) => Ok(()),
            Incoming::Close(channel) => frames::write(node, Channel::CLOSE, &[channel]).await,
        };
        if written.is_err() {
            node_reads = false;
            let _ = node.shutdown().await;
        }
    }
}

/// Sends each complete terminal size of the text collected so far in a frame of its own.
async fn resize(node: &mut (impl AsyncWrite + Unpin), text: &mut Vec<u8>) -> io::Result<()> {
    let mut sizes = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    while let Some(Ok(size)) = stream.next() {
        sizes.push(size);
    }
    let used = stream.byte_offset();
    text.drain(..used.min(text.len()));
    if text.len() > MAX_RESIZE {
        text.clear();
    }
    for size in sizes {
        frames::write(node, Channel::RESIZE, size.to_string().as_bytes()).await?;
    }
    Ok(())
}
