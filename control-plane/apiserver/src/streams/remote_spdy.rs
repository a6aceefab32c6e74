//! exec and attach over SPDY: one stream per channel, told apart by its `streamtype` header.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use balsa_link::protocol::{Channel, StreamIo};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;

use super::remote::{ClientReader, ClientWriter, Incoming};
use super::spdy::{Frame, REFUSED_STREAM, Reader, Writer};

/// Protocols in the server's order; the client's order decides. The empty one is the first version, for
/// clients that name none.
pub(super) const PROTOCOLS: [&str; 5] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
    "",
];
/// How long a client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);

fn channel_of(streamtype: &str) -> Option<u8> {
    Some(match streamtype {
        "stdin" => Channel::STDIN,
        "stdout" => Channel::STDOUT,
        "stderr" => Channel::STDERR,
        "error" => Channel::STATUS,
        "resize" => Channel::RESIZE,
        _ => return None,
    })
}

/// How many streams the client will open.
fn expected(io: StreamIo, protocol: &str) -> usize {
    let resize = io.tty && (protocol.starts_with("v4") || protocol.starts_with("v3"));
    1 + usize::from(io.stdin)
        + usize::from(io.stdout)
        + usize::from(io.stderr)
        + usize::from(resize)
}

struct SpdyReader<R, W> {
    io: Reader<R>,
    writer: Arc<Mutex<Writer<W>>>,
    /// Channel of each stream the client opened.
    channels: HashMap<u32, u8>,
    /// Read but not asked for yet.
    waiting: VecDeque<Incoming>,
}

struct SpdyWriter<W> {
    io: Arc<Mutex<Writer<W>>>,
    /// Stream of each channel.
    streams: HashMap<u8, u32>,
}

/// Waits for the client's streams and accepts them.
///
/// # Errors
/// When the client opens too few in time, or sends nonsense.
pub(super) async fn client<R, W>(
    reader: R,
    writer: W,
    io: StreamIo,
    protocol: &str,
) -> io::Result<(impl ClientReader, impl ClientWriter)>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let writer = Arc::new(Mutex::new(Writer::new(writer)));
    let mut reader = SpdyReader {
        io: Reader::new(reader),
        writer: Arc::clone(&writer),
        channels: HashMap::new(),
        waiting: VecDeque::new(),
    };
    let wanted = expected(io, protocol);
    let open = async {
        while reader.channels.len() < wanted {
            reader.step().await?;
            if reader.waiting.back() == Some(&Incoming::End) {
                let why = "the client left before it had opened its streams";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
        }
        Ok(())
    };
    tokio::time::timeout(OPENING, open).await.map_err(|_| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            "timed out waiting for the client's streams",
        )
    })??;
    let streams = reader
        .channels
        .iter()
        .map(|(stream, channel)| (*channel, *stream))
        .collect();
    Ok((
        reader,
        SpdyWriter {
            io: writer,
            streams,
        },
    ))
}

impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send> SpdyReader<R, W> {
    /// Reads one frame, does what it asks for, and queues what it means for the node.
    async fn step(&mut self) -> io::Result<()> {
        let Some(frame) = self.io.next().await? else {
            self.waiting.push_back(Incoming::End);
            return Ok(());
        };
        match frame {
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => {
                let channel = headers.get("streamtype").and_then(channel_of);
                let mut writer = self.writer.lock().await;
                let Some(channel) =
                    channel.filter(|c| !self.channels.values().any(|known| known == c))
                else {
                    return writer
                        .send(&Frame::RstStream {
                            stream,
                            status: REFUSED_STREAM,
                        })
                        .await;
                };
                writer.reply(stream).await?;
                self.channels.insert(stream, channel);
                self.waiting.extend(fin.then_some(Incoming::Close(channel)));
            }
            Frame::Data { stream, fin, data } => {
                let Some(&channel) = self.channels.get(&stream) else {
                    return Ok(());
                };
                if !data.is_empty() {
                    self.waiting.push_back(Incoming::Data(channel, data));
                }
                self.waiting.extend(fin.then_some(Incoming::Close(channel)));
            }
            Frame::RstStream { stream, .. } => {
                self.waiting.extend(
                    self.channels
                        .get(&stream)
                        .map(|channel| Incoming::Close(*channel)),
                );
            }
            Frame::Ping { id } => self.writer.lock().await.send(&Frame::Ping { id }).await?,
            Frame::GoAway { .. } => self.waiting.push_back(Incoming::End),
            _ => {}
        }
        Ok(())
    }
}

impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send> ClientReader for SpdyReader<R, W> {
    async fn next(&mut self) -> io::Result<Incoming> {
        loop {
            match self.waiting.pop_front() {
                // That the client will not write to output or outcome is known.
                Some(Incoming::Close(channel)) if channel != Channel::STDIN => {}
                Some(incoming) => return Ok(incoming),
                None => self.step().await?,
            }
        }
    }

    async fn drain(&mut self) {
        self.io.drain().await;
    }
}

impl<W: AsyncWrite + Unpin + Send> ClientWriter for SpdyWriter<W> {
    async fn data(&mut self, channel: u8, data: Bytes) -> io::Result<()> {
        match self.streams.get(&channel) {
            Some(stream) if !data.is_empty() => self.io.lock().await.data(*stream, data).await,
            _ => Ok(()),
        }
    }

    async fn finish(&mut self) -> io::Result<()> {
        let mut io = self.io.lock().await;
        for channel in [Channel::STDOUT, Channel::STDERR, Channel::STATUS] {
            if let Some(stream) = self.streams.get(&channel) {
                io.fin(*stream).await?;
            }
        }
        io.finish(self.streams.values().copied().max().unwrap_or_default())
            .await
    }
}
