//! `pods/log`: the container's log as it comes from the node, flushed as it comes.

use std::io;

use balsa_api::status::Status;
use balsa_link::protocol::StreamRequest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio_util::io::ReaderStream;

use super::query::Query;
use super::websocket::{self, Message, NORMAL, Reader, Writer};
use super::{open, pod, upgrade};
use crate::seam::{NodeStream, NodeStreams, ResponseBody};

pub(super) async fn serve(
    nodes: &dyn NodeStreams,
    object: &Value,
    uri: &http::Uri,
) -> Result<Response<ResponseBody>, Status> {
    let stream = open_log(nodes, object, uri).await?;
    Ok(text(
        stream.map_or_else(upgrade::empty, |s| body_of(s.reader)),
    ))
}

/// The log of the container that the query names. `None` before the pod is scheduled: there is no log then,
/// which is no error.
pub(super) async fn open_log(
    nodes: &dyn NodeStreams,
    object: &Value,
    uri: &http::Uri,
) -> Result<Option<NodeStream>, Status> {
    let query = Query::of(uri);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let options = query.log_options(name)?;
    let container = pod::container(object, query.first("container"))?;
    let Some(node) = pod::node(object) else {
        return Ok(None);
    };
    let target = pod::target(object, container);
    open(nodes, node, StreamRequest::Logs { target, options })
        .await
        .map(Some)
}

/// WebSocket protocols of logs: bytes as they are, or base64 in text messages.
pub(super) const PROTOCOLS: [&str; 3] = ["binary.k8s.io", "base64.binary.k8s.io", ""];
const BASE64: &str = "base64.binary.k8s.io";
const PIECE: usize = 16 * 1024;

/// Sends a log as messages, until it ends or the client goes.
pub(super) async fn over_websocket<C>(
    connection: C,
    stream: Option<NodeStream>,
    protocol: &'static str,
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (reader, writer) = tokio::io::split(connection);
    let (mut reader, mut writer) = (Reader::server(reader), Writer::server(writer));
    let sending = async {
        let mut buffer = vec![0; PIECE];
        if let Some(NodeStream {
            reader: mut log, ..
        }) = stream
        {
            loop {
                let read = log.read(&mut buffer).await?;
                if read == 0 {
                    break;
                }
                if protocol == BASE64 {
                    let text = STANDARD.encode(&buffer[..read]);
                    writer.text(&[text.as_bytes()]).await?;
                } else {
                    writer.binary(&[&buffer[..read]]).await?;
                }
            }
        }
        writer.finish(NORMAL).await
    };
    // Clients have nothing to say; that one closes ends the session.
    let leaving = async {
        while let Some(message) = reader.next().await? {
            if message == Message::Close {
                break;
            }
        }
        Ok(())
    };
    websocket::one_way(sending, leaving).await
}

fn text(body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// A body of what a reader gives, each piece when it is there.
pub(super) fn body_of(reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>) -> ResponseBody {
    let stream = ReaderStream::new(reader)
        .map_ok(Frame::<Bytes>::data)
        .map_err(|e| -> Box<dyn std::error::Error + Send + Sync> { Box::new(e) });
    StreamBody::new(stream).boxed_unsync()
}
