//! The frames of exec and attach between server and node, see [`balsa_link::protocol::Channel`].

use std::io;

use balsa_link::protocol::MAX_FRAME;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Reads one frame; `None` at an end between frames. Not cancel safe.
pub(super) async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u8, Bytes)>> {
    let mut channel = [0; 1];
    if io.read(&mut channel).await? == 0 {
        return Ok(None);
    }
    let length = io.read_u32().await? as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the node sent a frame over the limit",
        ));
    }
    let mut payload = BytesMut::zeroed(length);
    io.read_exact(&mut payload).await?;
    Ok(Some((channel[0], payload.freeze())))
}

/// Writes a payload as one frame, or several if it is over the limit.
pub(super) async fn write(
    io: &mut (impl AsyncWrite + Unpin),
    channel: u8,
    payload: &[u8],
) -> io::Result<()> {
    for part in payload.chunks(MAX_FRAME) {
        let mut frame = Vec::with_capacity(part.len() + 5);
        frame.push(channel);
        frame.extend(u32::try_from(part.len()).unwrap_or_default().to_be_bytes());
        frame.extend_from_slice(part);
        io.write_all(&frame).await?;
    }
    io.flush().await
}
