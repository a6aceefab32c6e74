//! The agent's end: keeps one connection to every server and hands over the streams they open.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::protocol::{Hello, StreamReply, StreamRequest};
use crate::{ALPN, Error, HEARTBEAT, MAX_STREAMS, transport, wire};

/// Serves the streams that servers open to this node.
#[async_trait]
pub trait StreamHandler: Send + Sync + 'static {
    /// Must write one [`StreamReply`] (with [`crate::write_message`]) and then serve the stream until it ends.
    /// Dropping both halves closes it.
    async fn serve(
        &self,
        request: StreamRequest,
        reader: Box<dyn AsyncRead + Send + Unpin>,
        writer: Box<dyn AsyncWrite + Send + Unpin>,
    );
}

/// What the agent's end needs.
pub struct Options {
    /// What this node says of itself.
    pub hello: Hello,
    /// Link addresses of all servers; changes are followed.
    pub servers: watch::Receiver<Vec<SocketAddr>>,
    /// Name that the servers' link certificates carry.
    pub server_name: String,
    /// Client certificate of the node, trust in the cluster CA.
    pub tls: rustls::ClientConfig,
}

/// Runs until `stop`: connects to every server, sends heartbeats, serves streams.
///
/// # Errors
/// Only when the socket or the TLS configuration cannot be used; lost connections are retried.
pub async fn run(
    options: Options,
    handler: Arc<dyn StreamHandler>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut tls = options.tls;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    let local = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
    let mut endpoint = quinn::Endpoint::client(local).map_err(|source| Error::Bind {
        address: local,
        source,
    })?;
    endpoint.set_default_client_config(config);
    let link = Arc::new(Link {
        endpoint,
        hello: options.hello,
        server_name: options.server_name,
        handler,
        streams: Arc::new(Semaphore::new(MAX_STREAMS as usize)),
    });
    follow_servers(&link, options.servers, &stop).await;
    link.endpoint.close(0u32.into(), b"agent stops");
    let _ = tokio::time::timeout(Duration::from_millis(200), link.endpoint.wait_idle()).await;
    Ok(())
}

struct Link {
    endpoint: quinn::Endpoint,
    hello: Hello,
    server_name: String,
    handler: Arc<dyn StreamHandler>,
    streams: Arc<Semaphore>,
}

/// Keeps one task per listed server; a server that leaves the list is disconnected.
async fn follow_servers(
    link: &Arc<Link>,
    mut servers: watch::Receiver<Vec<SocketAddr>>,
    stop: &CancellationToken,
) {
    let mut tasks: HashMap<SocketAddr, CancellationToken> = HashMap::new();
    loop {
        let wanted = servers.borrow_and_update().clone();
        tasks.retain(|address, token| {
            let keep = wanted.contains(address);
            if !keep {
                token.cancel();
            }
            keep
        });
        for address in wanted {
            tasks.entry(address).or_insert_with(|| {
                let token = stop.child_token();
                let task = keep_connected(Arc::clone(link), address, token.clone());
                tokio::spawn(task.instrument(info_span!("node-link", server = %address)));
                token
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = servers.changed() => if changed.is_err() {
                // Nobody can change the list any more: keep what there is.
                stop.cancelled().await;
                return;
            },
        }
    }
}

async fn keep_connected(link: Arc<Link>, address: SocketAddr, stop: CancellationToken) {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);
    let mut pause = FIRST;
    loop {
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = connect(&link, address) => outcome,
        };
        match outcome {
            Ok(connection) => {
                info!("connected");
                pause = FIRST;
                let reason = serve(&link, &connection, &stop).await;
                if stop.is_cancelled() {
                    connection.close(0u32.into(), b"agent stops");
                    return;
                }
                info!(%reason, "disconnected");
            }
            Err(error) => debug!(%error, "cannot connect"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST),
        }
    }
}

async fn connect(link: &Link, address: SocketAddr) -> Result<quinn::Connection, String> {
    let connecting = link
        .endpoint
        .connect(address, &link.server_name)
        .map_err(|e| e.to_string())?;
    tokio::time::timeout(crate::IDLE_TIMEOUT, connecting)
        .await
        .map_err(|_| "no answer".to_owned())?
        .map_err(|e| e.to_string())
}

/// Until the connection ends; the text says why it did.
async fn serve(
    link: &Arc<Link>,
    connection: &quinn::Connection,
    stop: &CancellationToken,
) -> String {
    tokio::select! {
        () = stop.cancelled() => "stopping".to_owned(),
        error = heartbeats(link, connection) => error,
        error = accept_streams(link, connection) => error,
    }
}

async fn heartbeats(link: &Link, connection: &quinn::Connection) -> String {
    let mut stream = match connection.open_uni().await {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    loop {
        if let Err(error) = wire::write_message(&mut stream, &link.hello).await {
            return error.to_string();
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

async fn accept_streams(link: &Arc<Link>, connection: &quinn::Connection) -> String {
    loop {
        let (writer, reader) = match connection.accept_bi().await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        let Ok(permit) = Arc::clone(&link.streams).try_acquire_owned() else {
            warn!(limit = MAX_STREAMS, "too many streams at once, one refused");
            continue;
        };
        let link = Arc::clone(link);
        let task = async move {
            serve_stream(&link, reader, writer).await;
            drop(permit);
        };
        tokio::spawn(task.in_current_span());
    }
}

async fn serve_stream(link: &Link, mut reader: quinn::RecvStream, mut writer: quinn::SendStream) {
    // A server that opens a stream says at once what for.
    const FIRST_MESSAGE: Duration = Duration::from_secs(5);
    let request = tokio::time::timeout(FIRST_MESSAGE, wire::read_message(&mut reader)).await;
    match request {
        Ok(Ok(request)) => {
            link.handler
                .serve(request, Box::new(reader), Box::new(writer))
                .await
        }
        Ok(Err(error)) => {
            let reply = StreamReply::Error {
                code: 400,
                reason: "BadRequest".into(),
                message: format!("the node does not understand the request: {error}"),
            };
            let _ = wire::write_message(&mut writer, &reply).await;
        }
        Err(_) => debug!("a stream was opened and nothing said"),
    }
}
