//! Connections from other members.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::Instrument;

use super::proto::peer_server::PeerServer;
use super::{CONNECTION_WINDOW, MAX_MESSAGE, STREAM_WINDOW, Service, pipe};
use crate::config::Tls;
use crate::error::OpenError;

/// A handshake takes at most this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at once: a flood of strangers must not take all the time.
const HANDSHAKES: usize = 64;
/// Pipes that are open at once: a few for each member.
const PIPES: usize = 256;
/// How long to wait when the system has no more files to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection.
pub(super) struct Conn {
    /// A byte that was read to know what the connection is for, and is to be read again.
    first: Option<u8>,
    io: Io,
}

/// Encrypted or (in tests) not.
pub(super) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    #[cfg(test)]
    Simulated(turmoil::net::TcpStream),
}

impl From<Io> for Conn {
    fn from(io: Io) -> Self {
        Self { first: None, io }
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() > 0
            && let Some(first) = this.first.take()
        {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        match &mut this.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
            #[cfg(test)]
            Io::Simulated(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
            #[cfg(test)]
            Io::Simulated(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
            #[cfg(test)]
            Io::Simulated(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
            #[cfg(test)]
            Io::Simulated(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            #[cfg(test)]
            Io::Simulated(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
            #[cfg(test)]
            Io::Simulated(_) => false,
        }
    }
}

impl Connected for Conn {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

enum Socket {
    Real(TcpListener),
    #[cfg(test)]
    Simulated(turmoil::net::TcpListener),
}

impl Socket {
    async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        #[cfg(test)]
        if turmoil::in_simulation() {
            let bound = turmoil::net::TcpListener::bind(address).await?;
            return Ok(Self::Simulated(bound));
        }
        TcpListener::bind(address).await.map(Self::Real)
    }

    /// The next connection, before its handshake.
    async fn accept(&self) -> std::io::Result<Io> {
        match self {
            Self::Real(tcp) => tcp.accept().await.map(|(tcp, _)| Io::Plain(tcp)),
            #[cfg(test)]
            Self::Simulated(tcp) => tcp.accept().await.map(|(tcp, _)| Io::Simulated(tcp)),
        }
    }
}

/// A bound address.
pub(crate) struct Listener {
    tcp: Socket,
    acceptor: Option<TlsAcceptor>,
}

impl Listener {
    /// Binds. Must be called on a runtime.
    pub async fn bind(address: SocketAddr, tls: Option<&Tls>) -> Result<Self, OpenError> {
        let tcp = Socket::bind(address)
            .await
            .map_err(|source| OpenError::Listen { address, source })?;
        let acceptor = tls.map(|tls| {
            let mut server = (*tls.server).clone();
            server.alpn_protocols = vec![b"h2".to_vec()];
            TlsAcceptor::from(Arc::new(server))
        });
        Ok(Self { tcp, acceptor })
    }

    /// Accepts until nobody wants connections any more. Handshakes run beside each other. Connections for gRPC go to
    /// its server; pipes are served here.
    async fn accept(self, service: Service, grpc: mpsc::Sender<std::io::Result<Conn>>) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let pipes = Arc::new(Semaphore::new(PIPES));
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = grpc.closed() => return,
                accepted = self.tcp.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
            };
            let io = match accepted {
                Ok(io) => io,
                Err(error) => {
                    tracing::warn!(%error, "a member's connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(turn) = handshakes.clone().acquire_owned().await else {
                return;
            };
            let (acceptor, service) = (self.acceptor.clone(), service.clone());
            let (grpc, pipes) = (grpc.clone(), pipes.clone());
            let serving = async move {
                let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(io, acceptor)).await;
                drop(turn);
                match shaken {
                    Ok(Ok(Caller::Grpc(conn))) => drop(grpc.send(Ok(conn)).await),
                    Ok(Ok(Caller::Pipe(conn))) => match pipes.try_acquire() {
                        Ok(_place) => service.pipe(conn).await,
                        Err(_) => tracing::warn!("too many pipes are open: one more was refused"),
                    },
                    Ok(Err(error)) => tracing::debug!(%error, "a connection was refused"),
                    Err(_) => tracing::debug!("a connection did not finish its handshake"),
                }
            };
            tasks.spawn(serving.in_current_span());
        }
    }
}

/// What a connection is for.
enum Caller {
    Grpc(Conn),
    Pipe(Conn),
}

async fn handshake(io: Io, acceptor: Option<TlsAcceptor>) -> std::io::Result<Caller> {
    let mut io = io;
    if let Io::Plain(tcp) = io {
        tcp.set_nodelay(true)?;
        io = match acceptor {
            None => Io::Plain(tcp),
            Some(acceptor) => Io::Tls(Box::new(acceptor.accept(tcp).await?.into())),
        };
    }
    let mut conn = Conn::from(io);
    let first = conn.read_u8().await?;
    if first == pipe::FIRST {
        return Ok(Caller::Pipe(conn));
    }
    conn.first = Some(first);
    Ok(Caller::Grpc(conn))
}

/// Serves the other members until the stop.
pub(crate) async fn serve(listener: Listener, service: Service, stop: CancellationToken) {
    const KEEPALIVE: Duration = Duration::from_secs(2);
    let (ready, incoming) = mpsc::channel(16);
    let accepting = listener.accept(service.clone(), ready);
    let service = PeerServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let serving = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(incoming));
    tokio::select! {
        () = stop.cancelled() => {}
        () = accepting => {}
        result = serving => {
            if let Err(error) = result {
                tracing::error!(%error, "the members' server ended");
            }
        }
    }
}
