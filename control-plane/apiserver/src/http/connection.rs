//! Connections: TLS, HTTP/1.1 and HTTP/2, limits against slow and greedy clients, draining.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::seam::Peer;
use crate::server::ApiServer;

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

/// Serves until `stop`, then drains. See [`ApiServer::serve`].
pub(crate) async fn serve(
    api: ApiServer,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let http = Arc::new(builder());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                let connection = connection(
                    api.clone(),
                    acceptor.clone(),
                    Arc::clone(&http),
                    socket,
                    address,
                    stop.clone(),
                );
                connections
                    .spawn(connection.instrument(tracing::debug_span!("connection", %address)));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    api.end_watches();
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(api.core.config.drain, drained)
        .await
        .is_err()
    {
        tracing::warn!("some requests did not end in time and are cut off");
    }
    Ok(())
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ)
        .max_buf_size(MAX_HEADERS as usize)
        .half_close(true);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW);
    http
}

async fn connection(
    api: ApiServer,
    acceptor: TlsAcceptor,
    http: Arc<auto::Builder<TokioExecutor>>,
    socket: TcpStream,
    address: SocketAddr,
    stop: CancellationToken,
) {
    // Answers and watch events are small and must not wait for each other.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = Arc::new(Peer {
        address: Some(address),
        certificates: certificates.iter().map(|c| c.as_ref().to_vec()).collect(),
    });
    let service = service_fn(|request: Request<Incoming>| {
        let (api, peer) = (api.clone(), Arc::clone(&peer));
        async move {
            let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            Ok::<_, Infallible>(api.handle(request, &peer, None).await)
        }
    });
    let served = http.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
