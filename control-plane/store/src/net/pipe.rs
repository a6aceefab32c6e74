//! Raw connections between members, for what is frequent and small: appends, forwarded batches, and the
//! questions of linearizable reads. gRPC costs several times as much for each message; what is rare keeps it.
//!
//! A pipe has one purpose, said when it opens. Whoever has nothing to say gives a sign of life now and then, and a
//! side that hears nothing for a while gives the pipe up.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use futures::{FutureExt, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::frame::{self, Frame};
use super::listen::Conn;
use super::proto::Message;
use super::wire;
use crate::types::MemberId;

/// The first byte of a pipe; HTTP/2 begins with a letter.
pub(super) const FIRST: u8 = 0xBA;
/// How often a sign of life goes out.
const PULSE: Duration = Duration::from_secs(1);
/// A pipe over which nothing comes for so long is given up.
const SILENCE: Duration = Duration::from_secs(4);
/// What is read at once, at least.
const READ: usize = 16 << 10;
/// Up to how many bytes are written at once, if so much is ready.
const WRITE: usize = 256 << 10;

/// What a pipe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// Replication, from the leader. Requests are pipelined; answers come in their order.
    Append,
    /// Batches of proposals, to the leader. Nothing is answered: outcomes come through the log. The pipe ends when
    /// its sender must send everything again. It is always open, and shows that the leader lives.
    Forward,
    /// Asks the leader for the log index that a linearizable read must wait for.
    Read,
    /// Asks a follower, for the leader, what term it has promised to be in.
    Confirm,
}

/// What a pipe begins with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Opening {
    pub purpose: Purpose,
    /// The cluster that the caller belongs to.
    pub cluster: Option<String>,
    pub from: MemberId,
    /// The member that is meant.
    pub to: MemberId,
}

/// The answer to an opening: why it is refused, if it is.
pub(super) type Opened = Result<(), String>;

/// Both directions.
pub(crate) struct Pipe {
    reading: Reading,
    writing: Writing,
}

impl Pipe {
    pub(super) fn new(conn: Conn) -> Self {
        let (reader, writer) = tokio::io::split(conn);
        let mut pulse = tokio::time::interval_at(Instant::now() + PULSE, PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            reading: Reading {
                io: reader,
                buffer: BytesMut::new(),
            },
            writing: Writing {
                io: writer,
                buffer: BytesMut::new(),
                written: false,
                pulse,
            },
        }
    }

    /// Opens one to another member, over a new connection.
    ///
    /// # Errors
    /// The connection broke, or the other side refuses; then the reason is in `PermissionDenied`.
    pub(super) async fn open(mut conn: Conn, opening: &Opening) -> io::Result<Self> {
        conn.write_all(&[FIRST]).await?;
        let mut pipe = Self::new(conn);
        let answer = pipe.call(&wire::encode(opening)).await?;
        match wire::decode::<Opened>(&answer).map_err(io::Error::other)? {
            Ok(()) => Ok(pipe),
            Err(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
        }
    }

    /// Queues a message, to be sent by the next [`Self::next`].
    pub fn push(&mut self, message: &Message) -> io::Result<()> {
        frame::encode(message, &mut self.writing.buffer)
    }

    /// Sends what is queued, and signs of life while nothing comes; returns what comes, `None` at the end.
    /// Cancel-safe.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            self.writing.flush().await?;
            tokio::select! {
                biased;
                message = self.reading.next() => return message,
                _ = self.writing.pulse.tick() => frame::pulse(&mut self.writing.buffer),
            }
        }
    }

    /// Sends a message.
    pub async fn send(&mut self, message: &Message) -> io::Result<()> {
        self.push(message)?;
        self.writing.flush().await
    }

    /// Sends a question and waits for its answer, one at a time.
    pub async fn call(&mut self, question: &Message) -> io::Result<Message> {
        self.push(question)?;
        self.next()
            .await?
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    pub fn split(self) -> (Reading, Writing) {
        (self.reading, self.writing)
    }
}

pub(crate) struct Reading {
    io: ReadHalf<Conn>,
    buffer: BytesMut,
}

impl Reading {
    /// What comes next; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            match frame::decode(&mut self.buffer)? {
                Some(Frame::Message(message)) => return Ok(Some(message)),
                Some(Frame::Pulse) => continue,
                None => {}
            }
            if self.buffer.capacity() - self.buffer.len() < READ / 4 {
                self.buffer.reserve(READ);
            }
            let read = tokio::time::timeout(SILENCE, self.io.read_buf(&mut self.buffer)).await??;
            if read == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }
}

pub(crate) struct Writing {
    io: WriteHalf<Conn>,
    buffer: BytesMut,
    /// Something was written and not flushed.
    written: bool,
    pulse: Interval,
}

impl Writing {
    /// Sends what is queued. Cancel-safe: what was sent is not queued any more.
    async fn flush(&mut self) -> io::Result<()> {
        while !self.buffer.is_empty() {
            if self.io.write_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.written = true;
        }
        if self.written {
            self.io.flush().await?;
            self.written = false;
        }
        Ok(())
    }

    /// Sends messages as they come, those that are ready together, and signs of life between them; then ends this
    /// direction.
    pub async fn pump(mut self, messages: impl Stream<Item = Message>) -> io::Result<()> {
        let mut messages = std::pin::pin!(messages.fuse());
        loop {
            tokio::select! {
                biased;
                next = messages.next() => match next {
                    Some(message) => frame::encode(&message, &mut self.buffer)?,
                    None => return self.io.shutdown().await,
                },
                _ = self.pulse.tick() => frame::pulse(&mut self.buffer),
            }
            while self.buffer.len() < WRITE
                && let Some(Some(message)) = messages.next().now_or_never()
            {
                frame::encode(&message, &mut self.buffer)?;
            }
            self.flush().await?;
        }
    }
}
