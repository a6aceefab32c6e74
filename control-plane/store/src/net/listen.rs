//! Connections from other members.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::Instrument;

use super::proto::peer_server::PeerServer;
use super::{CONNECTION_WINDOW, MAX_MESSAGE, STREAM_WINDOW, Service};
use crate::config::Tls;
use crate::error::OpenError;

/// A handshake takes at most this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at once: a flood of strangers must not take all the time.
const HANDSHAKES: usize = 64;
/// How long to wait when the system has no more files to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection, encrypted or (in tests) not.
pub(super) enum Conn {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    #[cfg(test)]
    Simulated(turmoil::net::TcpStream),
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            #[cfg(test)]
            Self::Simulated(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
            #[cfg(test)]
            Self::Simulated(_) => false,
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
    async fn accept(&self) -> std::io::Result<Conn> {
        match self {
            Self::Real(tcp) => tcp.accept().await.map(|(tcp, _)| Conn::Plain(tcp)),
            #[cfg(test)]
            Self::Simulated(tcp) => tcp.accept().await.map(|(tcp, _)| Conn::Simulated(tcp)),
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

    /// Accepts until nobody wants connections any more. Handshakes run beside each other.
    async fn accept(self, ready: mpsc::Sender<std::io::Result<Conn>>) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let accepted = tokio::select! {
                () = ready.closed() => return,
                accepted = self.tcp.accept() => accepted,
            };
            let tcp = match accepted {
                Ok(tcp) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "a member's connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(turn) = handshakes.clone().acquire_owned().await else {
                return;
            };
            let (acceptor, ready) = (self.acceptor.clone(), ready.clone());
            tokio::spawn(
                async move {
                    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(tcp, acceptor)).await {
                        Ok(Ok(conn)) => drop(ready.send(Ok(conn)).await),
                        Ok(Err(error)) => tracing::debug!(%error, "a connection was refused"),
                        Err(_) => tracing::debug!("a connection did not finish its handshake"),
                    }
                    drop(turn);
                }
                .in_current_span(),
            );
        }
    }
}

async fn handshake(conn: Conn, acceptor: Option<TlsAcceptor>) -> std::io::Result<Conn> {
    let Conn::Plain(tcp) = conn else {
        return Ok(conn);
    };
    tcp.set_nodelay(true)?;
    match acceptor {
        None => Ok(Conn::Plain(tcp)),
        Some(acceptor) => Ok(Conn::Tls(Box::new(acceptor.accept(tcp).await?.into()))),
    }
}

/// Serves the other members until the stop.
pub(crate) async fn serve(listener: Listener, service: Service, stop: CancellationToken) {
    const KEEPALIVE: Duration = Duration::from_secs(2);
    let (ready, incoming) = mpsc::channel(16);
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
        () = listener.accept(ready) => {}
        result = serving => {
            if let Err(error) = result {
                tracing::error!(%error, "the members' server ended");
            }
        }
    }
}
