//! SPDY/3.1 over any byte stream: what kubectl speaks for exec, attach and port-forward where it does not
//! use WebSocket, and inside WebSocket for port-forward.

mod dictionary;
mod frame;
mod headers;

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub(crate) use frame::{Decoder, Encoder, Frame, REFUSED_STREAM};
pub(crate) use headers::Headers;

/// Reads frames.
pub(crate) struct Reader<R> {
    io: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self {
            io,
            decoder: Decoder::new(),
        }
    }

    /// The next frame; `None` at an end between frames. Not cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut header = [0; frame::HEADER];
        if self.io.read(&mut header[..1]).await? == 0 {
            return Ok(None);
        }
        self.io.read_exact(&mut header[1..]).await?;
        let mut payload = BytesMut::zeroed(frame::payload_length(header)?);
        self.io.read_exact(&mut payload).await?;
        Ok(Some(self.decoder.decode(header, payload.freeze())?))
    }

    /// Reads and drops everything until the other side closes.
    pub(crate) async fn drain(&mut self) {
        let mut sink = tokio::io::sink();
        // The session is over; how it ends no longer matters.
        let _ = tokio::io::copy(&mut self.io, &mut sink).await;
    }
}

/// Writes frames, each flushed.
pub(crate) struct Writer<W> {
    io: W,
    encoder: Encoder,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub(crate) fn new(io: W) -> Self {
        Self {
            io,
            encoder: Encoder::new(),
        }
    }

    pub(crate) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let bytes = self.encoder.encode(frame)?;
        self.io.write_all(&bytes).await?;
        self.io.flush().await
    }

    pub(crate) async fn data(&mut self, stream: u32, data: Bytes) -> io::Result<()> {
        self.send(&Frame::Data {
            stream,
            fin: false,
            data,
        })
        .await
    }

    /// Closes our half of a stream.
    pub(crate) async fn fin(&mut self, stream: u32) -> io::Result<()> {
        self.send(&Frame::Data {
            stream,
            fin: true,
            data: Bytes::new(),
        })
        .await
    }

    /// Accepts a stream.
    pub(crate) async fn reply(&mut self, stream: u32) -> io::Result<()> {
        self.send(&Frame::SynReply {
            stream,
            fin: false,
            headers: Headers::default(),
        })
        .await
    }

    /// Says that no more comes, and closes our half of the connection.
    pub(crate) async fn finish(&mut self, last_stream: u32) -> io::Result<()> {
        self.send(&Frame::GoAway {
            last_stream,
            status: 0,
        })
        .await?;
        self.io.shutdown().await
    }
}

#[cfg(test)]
mod tests;
