//! Connections: TLS, HTTP/1.1 and HTTP/2, limits against slow and greedy clients, draining.

mod line;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::line::Line;

/// Time for TLS, and then for HTTP/2, to begin.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time to send a request's head.
const HEADER_READ: Duration = Duration::from_secs(20);
const MAX_HEADERS: u32 = 64 * 1024;
const MAX_STREAMS: u32 = 1000;
const MAX_CONNECTIONS: usize = 16_384;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const WINDOW: u32 = 256 * 1024;
/// Pause after accept() failed, for example because all file descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// So long after the stop clients are still let in, and HTTP/1.1 connections stay to say with their next answer that
/// they close: a request that is on its way meets a server, not an end. HTTP/2 has GOAWAY for that.
const FAREWELL: Duration = Duration::from_millis(500);

/// Body type of all requests (boxed, so that calls from inside the process work too).
pub type RequestBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
/// Body type of all responses.
pub type ResponseBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// What the connection says of the client.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Remote address; `None` for calls from inside the process.
    pub address: Option<SocketAddr>,
    /// Client certificate chain (DER), already verified against the cluster CA by TLS.
    pub certificates: Vec<Vec<u8>>,
}

/// Who answers.
pub trait Service: Send + Sync + 'static {
    /// Answers a request of a client; dropped when the client goes away.
    fn answer(
        &self,
        request: Request<RequestBody>,
        peer: Arc<Peer>,
    ) -> BoxFuture<'static, Response<ResponseBody>>;

    /// Draining begins: answers that would go on for ever are to end.
    fn draining(&self);
}

/// Serves a listener until `stop`, then drains: soon no new connections, open requests get the time `drain`.
///
/// # Errors
/// None at present: a connection that cannot be accepted is logged and tried again.
pub async fn serve(
    service: Arc<dyn Service>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    drain: Duration,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let door = Arc::new(Door {
        service,
        acceptor: TlsAcceptor::from(Arc::new(tls)),
        one: one(),
        two: two(),
        stop,
    });
    let mut connections = JoinSet::new();
    let mut leaving = pin!(async {
        door.stop.cancelled().await;
        door.service.draining();
        tokio::time::sleep(FAREWELL).await;
    });
    loop {
        let accepted = tokio::select! {
            () = leaving.as_mut() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((socket, address)) => admit(&door, &mut connections, socket, address),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Those that the kernel let in already would be reset along with the listener.
    while connections.len() < MAX_CONNECTIONS
        && let Some(Ok((socket, address))) = listener.accept().now_or_never()
    {
        admit(&door, &mut connections, socket, address);
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, drained).await.is_err() {
        tracing::warn!("some requests did not end in time and are cut off");
    }
    Ok(())
}

/// What all connections share.
struct Door {
    service: Arc<dyn Service>,
    acceptor: TlsAcceptor,
    one: http1::Builder,
    two: http2::Builder<TokioExecutor>,
    stop: CancellationToken,
}

fn one() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ)
        .max_buf_size(MAX_HEADERS as usize)
        .half_close(true);
    http
}

fn two() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW);
    http
}

fn admit(door: &Arc<Door>, connections: &mut JoinSet<()>, socket: TcpStream, address: SocketAddr) {
    let span = tracing::debug_span!("connection", %address);
    connections.spawn(connection(Arc::clone(door), socket, address).instrument(span));
}

async fn connection(door: Arc<Door>, socket: TcpStream, address: SocketAddr) {
    // Answers and watch events are small and must not wait for each other.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let stream = match tokio::time::timeout(HANDSHAKE, door.acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = Arc::new(Peer {
        address: Some(address),
        certificates: certificates.iter().map(|c| c.as_ref().to_vec()).collect(),
    });
    let protocol = stream.get_ref().1.alpn_protocol();
    let multiplexed = protocol.is_some_and(|name| name == b"h2");
    let late = door.stop.is_cancelled();
    let service = Arc::clone(&door.service);
    let leaving = door.stop.clone();
    let answer = service_fn(move |request: Request<Incoming>| {
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        let answer = service.answer(request, Arc::clone(&peer));
        let leaving = leaving.clone();
        async move {
            let mut answer = answer.await;
            let upgrade = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
            if leaving.is_cancelled() && !multiplexed && !upgrade {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let end = async {
        door.stop.cancelled().await;
        // HTTP/1.1 takes leave with an answer; whoever comes now has nowhere else to go yet.
        if late || !multiplexed {
            tokio::time::sleep(FAREWELL).await;
        }
    };
    let result = if multiplexed {
        let io = TokioIo::new(Line::new(stream, HANDSHAKE));
        let served = door.two.serve_connection(io, answer);
        until(end, served, http2::Connection::graceful_shutdown).await
    } else {
        let served = door.one.serve_connection(TokioIo::new(stream), answer);
        let leave = http1::UpgradeableConnection::graceful_shutdown;
        until(end, served.with_upgrades(), leave).await
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

/// Serves a connection, and has it take its leave after `end`.
async fn until<C: Future<Output = hyper::Result<()>>>(
    end: impl Future<Output = ()>,
    served: C,
    leave: impl FnOnce(Pin<&mut C>),
) -> hyper::Result<()> {
    let mut served = pin!(served);
    tokio::select! {
        result = served.as_mut() => result,
        () = end => {
            leave(served.as_mut());
            served.await
        }
    }
}
