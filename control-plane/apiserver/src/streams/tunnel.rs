//! SPDY inside WebSocket: binary messages carry the bytes of a SPDY connection, cut anywhere.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Mutex;

use super::remote::LINGER;
use super::websocket::{Message, NORMAL, Reader, Writer};

/// Bytes between the two protocols, per direction.
const BUFFER: usize = 64 * 1024;

/// Runs `session` over the bytes inside a WebSocket connection until one of them ends.
///
/// # Errors
/// Those of the session or the connection.
pub(super) async fn run<R, W, F>(
    reader: R,
    writer: W,
    session: impl FnOnce(DuplexStream) -> F,
) -> io::Result<()>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    F: Future<Output = io::Result<()>>,
{
    let (inner, outer) = tokio::io::duplex(BUFFER);
    let (from_session, to_session) = tokio::io::split(outer);
    let writer = Arc::new(Mutex::new(Writer::server(writer)));
    let mut reader = Reader::server(reader);
    let result = {
        let up = unpack(&mut reader, to_session, &writer);
        let down = pack(from_session, &writer);
        let session = session(inner);
        tokio::pin!(up, down, session);
        let mut packing = true;
        let mut unpacking = true;
        loop {
            tokio::select! {
                result = &mut session => {
                    // What the session wrote last is still to be packed.
                    if packing { down.await?; }
                    break result;
                }
                result = &mut down, if packing => { result?; packing = false; }
                // The session sees the end of its input.
                result = &mut up, if unpacking => { result?; unpacking = false; }
            }
        }
    };
    writer.lock().await.finish(NORMAL).await?;
    let _ = tokio::time::timeout(LINGER, reader.drain()).await;
    result
}

async fn unpack<R, W>(
    reader: &mut Reader<R>,
    mut session: impl AsyncWrite + Unpin,
    pongs: &Mutex<Writer<W>>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        match reader.next().await? {
            None | Some(Message::Close) => return session.shutdown().await,
            Some(Message::Ping(payload)) => pongs.lock().await.pong(&payload).await?,
            Some(Message::Binary(bytes) | Message::Text(bytes)) => {
                if session.write_all(&bytes).await.is_err() {
                    // The session is over and says why itself.
                    return Ok(());
                }
            }
            Some(Message::Pong) => {}
        }
    }
}

async fn pack<W: AsyncWrite + Unpin>(
    mut session: impl AsyncRead + Unpin,
    writer: &Mutex<Writer<W>>,
) -> io::Result<()> {
    loop {
        let mut buffer = BytesMut::with_capacity(BUFFER);
        if session.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        writer.lock().await.binary(&[&buffer]).await?;
    }
}
