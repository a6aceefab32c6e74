//! WebSocket (RFC 6455), the server's side, over an upgraded connection. The client's side only for tests.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Largest message taken, in bytes, over all its fragments.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
const MAX_CONTROL: usize = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Time for a client to answer that the session is over.
const GOODBYE: Duration = Duration::from_secs(5);

/// Close code of an orderly end.
pub(crate) const NORMAL: u16 = 1000;

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (section 4.2.2).
pub(crate) fn accept_key(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// A whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// UTF-8, unchecked.
    Text(Bytes),
    /// Bytes.
    Binary(Bytes),
    /// To be answered with a pong of the same payload.
    Ping(Bytes),
    /// Needs no answer.
    Pong,
    /// The other side is done.
    Close,
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("malformed WebSocket: {why}"),
    )
}

/// Reads messages.
pub(crate) struct Reader<R> {
    io: R,
    /// Clients must mask, servers must not (section 5.1).
    masked: bool,
    /// Opcode and content so far of a fragmented message.
    partial: Option<(u8, BytesMut)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads what clients send.
    pub(crate) fn server(io: R) -> Self {
        Self {
            io,
            masked: true,
            partial: None,
        }
    }

    /// Reads what servers send.
    #[cfg(test)]
    pub(crate) fn client(io: R) -> Self {
        Self {
            io,
            masked: false,
            partial: None,
        }
    }

    /// The next message; `None` when the connection ended. Not cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            let Some((fin, opcode, payload)) = self.frame().await? else {
                return Ok(None);
            };
            let (opcode, payload) = match (opcode, self.partial.take()) {
                (PING, partial) => {
                    self.partial = partial;
                    return Ok(Some(Message::Ping(payload.freeze())));
                }
                (PONG, partial) => {
                    self.partial = partial;
                    return Ok(Some(Message::Pong));
                }
                (CLOSE, _) => return Ok(Some(Message::Close)),
                (CONTINUATION, Some((opcode, mut start))) => {
                    if start.len() + payload.len() > MAX_MESSAGE {
                        return Err(malformed("message is too large"));
                    }
                    start.extend_from_slice(&payload);
                    (opcode, start)
                }
                (TEXT | BINARY, None) => (opcode, payload),
                _ => return Err(malformed("frame out of order")),
            };
            if !fin {
                self.partial = Some((opcode, payload));
                continue;
            }
            let payload = payload.freeze();
            return Ok(Some(if opcode == TEXT {
                Message::Text(payload)
            } else {
                Message::Binary(payload)
            }));
        }
    }

    /// Reads and drops everything until the other side closes, whatever it is.
    pub(crate) async fn drain(&mut self) {
        let mut sink = tokio::io::sink();
        // The session is over; how it ends no longer matters.
        let _ = tokio::io::copy(&mut self.io, &mut sink).await;
    }

    async fn frame(&mut self) -> io::Result<Option<(bool, u8, BytesMut)>> {
        let mut head = [0; 2];
        if self.io.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        self.io.read_exact(&mut head[1..]).await?;
        if head[0] & 0x70 != 0 {
            return Err(malformed("reserved bits are set"));
        }
        if (head[1] & 0x80 != 0) != self.masked {
            return Err(malformed("masking is wrong"));
        }
        let (fin, opcode) = (head[0] & 0x80 != 0, head[0] & 0x0f);
        let length = match head[1] & 0x7f {
            126 => u64::from(self.io.read_u16().await?),
            127 => self.io.read_u64().await?,
            short => u64::from(short),
        };
        let length = usize::try_from(length).ok().filter(|l| *l <= MAX_MESSAGE);
        let length = length.ok_or_else(|| malformed("message is too large"))?;
        if opcode & 0x08 != 0 && (length > MAX_CONTROL || !fin) {
            return Err(malformed("control frame is too large or fragmented"));
        }
        let mut key = [0; 4];
        if self.masked {
            self.io.read_exact(&mut key).await?;
        }
        let mut payload = BytesMut::zeroed(length);
        self.io.read_exact(&mut payload).await?;
        if self.masked {
            for (i, byte) in payload.iter_mut().enumerate() {
                *byte ^= key[i % 4];
            }
        }
        Ok(Some((fin, opcode, payload)))
    }
}

/// Writes messages, each in one frame and flushed.
pub(crate) struct Writer<W> {
    io: W,
    mask: Option<[u8; 4]>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes what servers send.
    pub(crate) fn server(io: W) -> Self {
        Self { io, mask: None }
    }

    /// Writes what clients send.
    #[cfg(test)]
    pub(crate) fn client(io: W) -> Self {
        Self {
            io,
            mask: Some([1, 2, 3, 4]),
        }
    }

    pub(crate) async fn binary(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.frame(BINARY, parts).await
    }

    pub(crate) async fn text(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.frame(TEXT, parts).await
    }

    #[cfg(test)]
    pub(crate) async fn ping(&mut self, payload: &[u8]) -> io::Result<()> {
        self.frame(PING, &[payload]).await
    }

    pub(crate) async fn pong(&mut self, payload: &[u8]) -> io::Result<()> {
        self.frame(PONG, &[payload]).await
    }

    pub(crate) async fn close(&mut self, code: u16) -> io::Result<()> {
        self.frame(CLOSE, &[&code.to_be_bytes()]).await
    }

    /// Says that no more comes, and closes our half of the connection.
    pub(crate) async fn finish(&mut self, code: u16) -> io::Result<()> {
        self.close(code).await?;
        self.io.shutdown().await
    }

    async fn frame(&mut self, opcode: u8, parts: &[&[u8]]) -> io::Result<()> {
        let length: usize = parts.iter().map(|p| p.len()).sum();
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        let mut bytes = Vec::with_capacity(length + 14);
        bytes.push(0x80 | opcode);
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short), _) if short < 126 => bytes.push(masked | short),
            (_, Ok(medium)) => {
                bytes.push(masked | 126);
                bytes.extend(medium.to_be_bytes());
            }
            _ => {
                bytes.push(masked | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if let Some(key) = self.mask {
            bytes.extend(key);
            let payload = parts.iter().flat_map(|p| p.iter()).enumerate();
            bytes.extend(payload.map(|(i, byte)| byte ^ key[i % 4]));
        } else {
            for part in parts {
                bytes.extend_from_slice(part);
            }
        }
        self.io.write_all(&bytes).await?;
        self.io.flush().await
    }
}

/// A session in which only the server has something to say: it ends with `sending`, or when the client leaves.
///
/// # Errors
/// What either of both ended with.
pub(crate) async fn one_way(
    sending: impl Future<Output = io::Result<()>>,
    leaving: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    tokio::pin!(sending, leaving);
    tokio::select! {
        sent = &mut sending => {
            sent?;
            // What it says until it closes is read, or the connection's end would overtake ours.
            tokio::time::timeout(GOODBYE, leaving).await.unwrap_or(Ok(()))
        }
        left = &mut leaving => left,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_key_is_answered_as_in_the_rfc() {
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn messages_of_every_length_arrive() {
        let (a, b) = tokio::io::duplex(128);
        let (mut writer, mut reader) = (Writer::client(a), Reader::server(b));
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let content = vec![9; length];
            let halves = [&content[..length / 2], &content[length / 2..]];
            let (sent, got) = tokio::join!(writer.binary(&halves), reader.next());
            sent.unwrap();
            assert_eq!(got.unwrap(), Some(Message::Binary(content.into())));
        }
        writer.text(&[b"t"]).await.unwrap();
        writer.ping(b"p").await.unwrap();
        writer.close(NORMAL).await.unwrap();
        drop(writer);
        for expected in [
            Some(Message::Text("t".into())),
            Some(Message::Ping("p".into())),
            Some(Message::Close),
            None,
        ] {
            assert_eq!(reader.next().await.unwrap(), expected);
        }
    }

    async fn read(bytes: &[u8]) -> io::Result<Option<Message>> {
        Reader::client(bytes).next().await
    }

    #[tokio::test]
    async fn fragments_are_joined_around_control_frames() {
        let mut reader = Reader::client(&[0x02, 1, b'a', 0x89, 0, 0x80, 1, b'b'][..]);
        assert_eq!(
            reader.next().await.unwrap(),
            Some(Message::Ping(Bytes::new()))
        );
        assert_eq!(
            reader.next().await.unwrap(),
            Some(Message::Binary("ab".into()))
        );
    }

    #[tokio::test]
    async fn foreign_bytes_are_errors() {
        for bad in [
            &[0xff, 0][..],
            &[0x82, 0x80],
            &[0x80, 0],
            &[0x89, 126, 1, 0],
            &[0x82, 127, 255, 0, 0, 0, 0, 0, 0, 0],
            &[0x82, 5, 1],
        ] {
            read(bad).await.unwrap_err();
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut reader = Reader::server(bytes.as_slice());
                while let Ok(Some(_)) = reader.next().await {}
            });
        }
    }
}
