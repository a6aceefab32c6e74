//! exec and attach over WebSocket: the first byte of a message is its channel.

use std::io;
use std::sync::Arc;

use balsa_link::protocol::Channel;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;

use super::remote::{ClientReader, ClientWriter, Incoming};
use super::websocket::{Message, NORMAL, Reader, Writer};

/// Protocols in our order of liking; the client's order decides. The empty one is for clients that name none.
pub(super) const PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];

/// What a protocol's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    /// Payloads are base64 in text messages, the channel is a digit.
    base64: bool,
    /// The outcome is a Status object.
    pub(super) status_json: bool,
    /// A channel can be closed.
    close: bool,
}

impl Dialect {
    pub(super) fn of(protocol: &str) -> Self {
        let v5 = protocol.starts_with("v5.");
        Self {
            base64: protocol.contains("base64."),
            status_json: v5 || protocol.starts_with("v4."),
            close: v5,
        }
    }
}

struct WsReader<R, W> {
    io: Reader<R>,
    pongs: Arc<Mutex<Writer<W>>>,
    dialect: Dialect,
}

struct WsWriter<W> {
    io: Arc<Mutex<Writer<W>>>,
    dialect: Dialect,
}

/// The two halves of a client over an upgraded connection. Older protocols expect an empty message first, as
/// sign that the stream is open.
pub(super) async fn client<R, W>(
    reader: R,
    writer: W,
    dialect: Dialect,
) -> io::Result<(impl ClientReader, impl ClientWriter)>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let shared = Arc::new(Mutex::new(Writer::server(writer)));
    let reader = WsReader {
        io: Reader::server(reader),
        pongs: Arc::clone(&shared),
        dialect,
    };
    let mut writer = WsWriter {
        io: shared,
        dialect,
    };
    if !dialect.close {
        writer.data(Channel::STDOUT, Bytes::new()).await?;
    }
    Ok((reader, writer))
}

/// Sends a payload on a channel.
pub(super) async fn send<W: AsyncWrite + Unpin>(
    io: &Mutex<Writer<W>>,
    dialect: Dialect,
    channel: u8,
    data: &[u8],
) -> io::Result<()> {
    let mut io = io.lock().await;
    if dialect.base64 {
        return io
            .text(&[&[b'0' + channel], STANDARD.encode(data).as_bytes()])
            .await;
    }
    io.binary(&[&[channel], data]).await
}

/// Channel and payload of a message; `None` for those that carry nothing.
pub(super) fn decode(message: &Message, dialect: Dialect) -> io::Result<Option<(u8, Bytes)>> {
    let bad = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let bytes = match message {
        Message::Binary(bytes) | Message::Text(bytes) => bytes,
        _ => return Ok(None),
    };
    let Some((&channel, payload)) = bytes.split_first() else {
        return Ok(None);
    };
    if !dialect.base64 {
        return Ok(Some((channel, bytes.slice_ref(payload))));
    }
    let channel = channel
        .checked_sub(b'0')
        .ok_or_else(|| bad("the channel is not a digit"))?;
    let payload = STANDARD
        .decode(payload)
        .map_err(|_| bad("the message is not base64"))?;
    Ok(Some((channel, payload.into())))
}

impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send> ClientReader for WsReader<R, W> {
    async fn next(&mut self) -> io::Result<Incoming> {
        loop {
            let message = match self.io.next().await? {
                None | Some(Message::Close) => return Ok(Incoming::End),
                Some(Message::Ping(payload)) => {
                    self.pongs.lock().await.pong(&payload).await?;
                    continue;
                }
                Some(message) => message,
            };
            match decode(&message, self.dialect)? {
                Some((Channel::CLOSE, payload)) if self.dialect.close => {
                    if let Some(&channel) = payload.first() {
                        return Ok(Incoming::Close(channel));
                    }
                }
                Some((channel, payload)) if !payload.is_empty() => {
                    return Ok(Incoming::Data(channel, payload));
                }
                _ => {}
            }
        }
    }

    async fn drain(&mut self) {
        self.io.drain().await;
    }
}

impl<W: AsyncWrite + Unpin + Send> ClientWriter for WsWriter<W> {
    async fn data(&mut self, channel: u8, data: Bytes) -> io::Result<()> {
        send(&self.io, self.dialect, channel, &data).await
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.io.lock().await.finish(NORMAL).await
    }
}
