//! The server's end: accepts agents, remembers when each was last heard, opens streams to them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::protocol::{Hello, StreamReply, StreamRequest};
use crate::{ALPN, Error, transport, wire};

/// How long a node may take to answer a stream request.
const REPLY: Duration = Duration::from_secs(30);

/// All nodes linked to this server. Cheap to clone.
#[derive(Clone, Default)]
pub struct Nodes {
    inner: Arc<Mutex<HashMap<String, Node>>>,
}

struct Node {
    connection: Option<quinn::Connection>,
    last_seen: Instant,
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The node has no link to this server now.
    #[error("node {0:?} is not connected to this server")]
    NotConnected(String),
    /// The link broke or the node did not answer in time.
    #[error("node {node:?} did not answer: {why}")]
    NoAnswer {
        /// Node name.
        node: String,
        /// What happened.
        why: String,
    },
    /// The node said no.
    #[error("{message}")]
    Refused {
        /// HTTP status code.
        code: u16,
        /// `Status.reason`.
        reason: String,
        /// `Status.message`.
        message: String,
    },
}

/// A stream to a node after its positive reply.
pub struct OpenStream {
    /// HTTP status code of the reply.
    pub code: u16,
    /// From the node.
    pub reader: quinn::RecvStream,
    /// To the node.
    pub writer: quinn::SendStream,
}

impl Nodes {
    /// When the node's last heartbeat came in, over this server's link.
    #[must_use]
    pub fn last_seen(&self, node: &str) -> Option<Instant> {
        self.inner.lock().get(node).map(|n| n.last_seen)
    }

    /// Names of the nodes whose link is up.
    #[must_use]
    pub fn connected(&self) -> Vec<String> {
        let nodes = self.inner.lock();
        let mut names: Vec<String> = nodes
            .iter()
            .filter(|(_, n)| n.connection.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }

    /// Opens a stream to a node and waits for its reply.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self, node: &str, request: &StreamRequest) -> Result<OpenStream, OpenError> {
        let connection = self
            .inner
            .lock()
            .get(node)
            .and_then(|n| n.connection.clone())
            .ok_or_else(|| OpenError::NotConnected(node.to_owned()))?;
        let no_answer = |why: String| OpenError::NoAnswer {
            node: node.to_owned(),
            why,
        };
        let exchange = async {
            let (mut writer, mut reader) = connection
                .open_bi()
                .await
                .map_err(|e| no_answer(e.to_string()))?;
            wire::write_message(&mut writer, request)
                .await
                .map_err(|e| no_answer(e.to_string()))?;
            let reply = wire::read_message(&mut reader)
                .await
                .map_err(|e| no_answer(e.to_string()))?;
            match reply {
                StreamReply::Ok { code } => Ok(OpenStream {
                    code,
                    reader,
                    writer,
                }),
                StreamReply::Error {
                    code,
                    reason,
                    message,
                } => Err(OpenError::Refused {
                    code,
                    reason,
                    message,
                }),
            }
        };
        tokio::time::timeout(REPLY, exchange)
            .await
            .unwrap_or_else(|_| Err(no_answer(format!("no reply within {} s", REPLY.as_secs()))))
    }

    fn heard(&self, node: &str, connection: &quinn::Connection) {
        let mut nodes = self.inner.lock();
        let entry = nodes.entry(node.to_owned()).or_insert_with(|| Node {
            connection: None,
            last_seen: Instant::now(),
        });
        entry.last_seen = Instant::now();
        let known = entry.connection.as_ref().map(quinn::Connection::stable_id);
        if known != Some(connection.stable_id()) {
            // A node has one link; a new one means that the old one is dead or about to be.
            entry.connection = Some(connection.clone());
        }
    }

    fn lost(&self, node: &str, connection: &quinn::Connection) {
        let mut nodes = self.inner.lock();
        if let Some(entry) = nodes.get_mut(node)
            && entry.connection.as_ref().map(quinn::Connection::stable_id)
                == Some(connection.stable_id())
        {
            entry.connection = None;
        }
    }
}

/// Accepts agents until `stop`. The TLS configuration must require client certificates of the cluster CA;
/// an agent is the node that its certificate names (`system:node:NAME`).
///
/// # Errors
/// When the socket or the TLS configuration cannot be used.
pub fn serve(
    listen: SocketAddr,
    mut tls: rustls::ServerConfig,
    nodes: Nodes,
    stop: CancellationToken,
) -> Result<SocketAddr, Error> {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    // An agent that changes its address keeps its link.
    config.migration(true);
    let endpoint = quinn::Endpoint::server(config, listen).map_err(|source| Error::Bind {
        address: listen,
        source,
    })?;
    let bound = endpoint.local_addr().map_err(|source| Error::Bind {
        address: listen,
        source,
    })?;
    tokio::spawn(accept(endpoint, nodes, stop).instrument(info_span!("node-links")));
    Ok(bound)
}

async fn accept(endpoint: quinn::Endpoint, nodes: Nodes, stop: CancellationToken) {
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => break,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming,
                None => break,
            },
        };
        let (nodes, stop) = (nodes.clone(), stop.clone());
        let task = async move {
            match incoming.await {
                Ok(connection) => serve_agent(&connection, &nodes, &stop).await,
                Err(error) => debug!(%error, "an agent could not connect"),
            }
        };
        tokio::spawn(task.in_current_span());
    }
    endpoint.close(0u32.into(), b"server stops");
    let _ = tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
}

async fn serve_agent(connection: &quinn::Connection, nodes: &Nodes, stop: &CancellationToken) {
    let address = connection.remote_address();
    let Some(node) = certificate_node(connection) else {
        warn!(%address, "a client without a node certificate was refused");
        connection.close(
            1u32.into(),
            b"a node certificate (system:node:NAME) is needed",
        );
        return;
    };
    let reason = tokio::select! {
        () = stop.cancelled() => return,
        reason = heartbeats(connection, &node, nodes) => reason,
    };
    nodes.lost(&node, connection);
    connection.close(0u32.into(), b"link ended");
    info!(node, %address, %reason, "node disconnected");
}

/// Reads heartbeats until the link ends; the text says why it did.
async fn heartbeats(connection: &quinn::Connection, node: &str, nodes: &Nodes) -> String {
    let mut stream = match connection.accept_uni().await {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    let mut first = true;
    loop {
        let hello: Hello = match wire::read_message(&mut stream).await {
            Ok(hello) => hello,
            Err(error) => return error.to_string(),
        };
        if hello.node != node {
            return format!(
                "it calls itself {:?}, its certificate says {node:?}",
                hello.node
            );
        }
        if first {
            info!(node, address = %connection.remote_address(), version = hello.version, "node connected");
            first = false;
        }
        nodes.heard(node, connection);
    }
}

/// NAME of the client certificate's common name `system:node:NAME`.
fn certificate_node(connection: &quinn::Connection) -> Option<String> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast_ref::<Vec<rustls_pki_types::CertificateDer<'static>>>()?;
    let peer = balsa_identity::PeerIdentity::from_certificate(chain.first()?).ok()?;
    peer.node().map(str::to_owned)
}
