//! Watches over WebSocket, as browsers ask for them: one event in JSON per text message.

use std::io;

use balsa_api::status::Status;
use bytes::BytesMut;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tracing::Instrument as _;

use super::upgrade::{self, Wish};
use super::websocket::{self, Message, NORMAL, Reader, Writer};
use crate::http::respond::JSON;
use crate::seam::ResponseBody;

/// What clients call the protocol; the messages are the same under each name.
const PROTOCOLS: [&str; 4] = [
    "base64.binary.k8s.io",
    "binary.k8s.io",
    "base64.channel.k8s.io",
    "",
];

/// Whether a request wants to become a WebSocket.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    matches!(upgrade::wish(headers), Ok(Wish::WebSocket))
}

/// Turns a watch's answer into messages, which are sent once the 101 is out. Ends with the watch, which ends with
/// the server, or when the client goes.
///
/// # Errors
/// 400 for a protocol that nobody knows, 406 for a watch in another format than JSON.
pub(crate) fn upgraded(
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    watch: Response<ResponseBody>,
) -> Result<Response<ResponseBody>, Status> {
    if watch.headers().get(CONTENT_TYPE).is_none_or(|t| t != JSON) {
        let why = "only the following media types are accepted: application/json";
        return Err(Status::new(406, "NotAcceptable", why));
    }
    let (_, answer) = upgrade::to_websocket(headers, &PROTOCOLS)?;
    let work = async move {
        let connection = match upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => return tracing::debug!(%error, "the client left before the upgrade"),
        };
        if let Err(error) = serve(connection, watch.into_body()).await {
            tracing::debug!(%error, "watch failed");
        }
    };
    tokio::spawn(work.instrument(tracing::debug_span!("watch over WebSocket")));
    Ok(answer)
}

async fn serve<C>(connection: C, mut events: ResponseBody) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (reader, writer) = tokio::io::split(connection);
    let (mut reader, writer) = (Reader::server(reader), Mutex::new(Writer::server(writer)));
    let sending = async {
        let mut rest = BytesMut::new();
        while let Some(frame) = events.frame().await {
            let Ok(data) = frame.map_err(io::Error::other)?.into_data() else {
                continue;
            };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line = rest.split_to(end + 1);
                writer.lock().await.text(&[&line[..end]]).await?;
            }
        }
        writer.lock().await.finish(NORMAL).await
    };
    let leaving = async {
        while let Some(message) = reader.next().await? {
            match message {
                Message::Close => break,
                Message::Ping(payload) => writer.lock().await.pong(&payload).await?,
                _ => {}
            }
        }
        Ok(())
    };
    websocket::one_way(sending, leaving).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use futures::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn each_event_is_a_message_however_the_body_is_cut() {
        let (client, server) = tokio::io::duplex(1024);
        let pieces = ["{\"type\":\"ADDED\"}\n{\"ty", "pe\":\"DELETED\"}\n"];
        let frames = pieces.map(|p| Ok(Frame::data(Bytes::from_static(p.as_bytes()))));
        let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        let serving = tokio::spawn(serve(server, body));
        let (reader, writer) = tokio::io::split(client);
        let (mut reader, mut writer) = (Reader::client(reader), Writer::client(writer));
        for wanted in ["{\"type\":\"ADDED\"}", "{\"type\":\"DELETED\"}"] {
            let message = reader.next().await.unwrap();
            assert_eq!(message, Some(Message::Text(wanted.into())));
        }
        assert_eq!(reader.next().await.unwrap(), Some(Message::Close));
        writer.close(NORMAL).await.unwrap();
        serving.await.unwrap().unwrap();
    }
}
