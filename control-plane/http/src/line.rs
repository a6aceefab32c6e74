//! The socket under an HTTP/2 connection: how long it waits for a client to begin, and how it ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Bytes that every client sends first (RFC 9113, 3.4). hyper waits for them for ever.
const PREFACE: usize = 24;
/// Time for the client to close its side after ours. A socket that is closed while bytes for it are on their way answers
/// them with a reset, which can overtake the last answers.
const LINGER: Duration = Duration::from_secs(1);

/// A stream that fails when the client does not begin in time, and that after its end reads on, and forgets what it
/// reads, until the client ends too.
pub(crate) struct Line<T> {
    inner: T,
    /// Bytes of the preface that are missing, and until when.
    opening: Option<(usize, Pin<Box<Sleep>>)>,
    /// Our side is closed: until when we wait for the client's.
    closing: Option<Pin<Box<Sleep>>>,
}

impl<T> Line<T> {
    pub(crate) fn new(inner: T, patience: Duration) -> Self {
        Self {
            inner,
            opening: Some((PREFACE, Box::pin(tokio::time::sleep(patience)))),
            closing: None,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Line<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut me.inner).poll_read(cx, buf);
        if let Some((missing, deadline)) = &mut me.opening {
            *missing = missing.saturating_sub(buf.filled().len() - before);
            if *missing == 0 {
                me.opening = None;
            } else if read.is_pending() && deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Line<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.closing.is_none() {
            ready!(Pin::new(&mut me.inner).poll_shutdown(cx))?;
        }
        let closing = me
            .closing
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        // Asked before each round: a client that does not stop sending must not hold the line.
        while closing.as_mut().poll(cx).is_pending() {
            let mut bytes = [0; 4096];
            let mut rest = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut me.inner).poll_read(cx, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
