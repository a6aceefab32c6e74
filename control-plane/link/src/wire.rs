//! Length-prefixed JSON messages and channel frames over any byte stream.

use std::io;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::protocol::MAX_FRAME;

/// Largest JSON message in bytes; an exec command line is the longest thing said.
const MAX_MESSAGE: usize = 1024 * 1024;

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Writes one length-prefixed JSON message.
///
/// # Errors
/// When the stream is gone.
pub async fn write_message<W, T>(writer: &mut W, message: &T) -> io::Result<()>
where
    W: AsyncWrite + Unpin + ?Sized,
    T: Serialize,
{
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut out = Vec::with_capacity(body.len() + 4);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&body);
    writer.write_all(&out).await?;
    writer.flush().await
}

/// Reads one length-prefixed JSON message.
///
/// # Errors
/// When the stream ends or the message is too long or no valid JSON.
pub async fn read_message<R, T>(reader: &mut R) -> io::Result<T>
where
    R: AsyncRead + Unpin + ?Sized,
    T: DeserializeOwned,
{
    let length = reader.read_u32().await? as usize;
    if length > MAX_MESSAGE {
        return Err(invalid(format!(
            "node link message of {length} bytes, at most {MAX_MESSAGE} are allowed"
        )));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    serde_json::from_slice(&body).map_err(|error| invalid(format!("node link message: {error}")))
}

/// Writes one frame; payloads over [`MAX_FRAME`] are split.
///
/// # Errors
/// When the stream is gone.
pub async fn write_frame<W>(writer: &mut W, channel: u8, payload: &[u8]) -> io::Result<()>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let mut rest = payload;
    loop {
        let (part, after) = rest.split_at(rest.len().min(MAX_FRAME));
        let mut header = [channel, 0, 0, 0, 0];
        // A part is at most MAX_FRAME bytes, which fits.
        header[1..].copy_from_slice(&(part.len() as u32).to_be_bytes());
        writer.write_all(&header).await?;
        writer.write_all(part).await?;
        rest = after;
        if rest.is_empty() {
            return writer.flush().await;
        }
    }
}

/// Reads one frame; `None` at a clean end between frames.
///
/// # Errors
/// When the stream ends inside a frame or the frame is too long.
pub async fn read_frame<R>(reader: &mut R) -> io::Result<Option<(u8, Bytes)>>
where
    R: AsyncRead + Unpin + ?Sized,
{
    let mut header = [0; 5];
    if reader.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut header[1..]).await?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > MAX_FRAME {
        return Err(invalid(format!(
            "node link frame of {length} bytes, at most {MAX_FRAME} are allowed"
        )));
    }
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    Ok(Some((header[0], payload.into())))
}
