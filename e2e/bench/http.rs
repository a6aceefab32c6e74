//! A thin HTTP/2 client: a fixed set of open connections, raw bytes in and out.
//!
//! What is measured must be the server, so nothing here decodes, retries, pools or queues. The same client
//! drives the API servers (TLS, with the kubeconfig's client certificate) and etcd (plain gRPC), so that
//! both pay the same for being measured.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// Making a connection takes at most this.
const CONNECT: Duration = Duration::from_secs(3);
/// A request is answered within this, or has failed. Long, because a saturated server is being measured.
const ANSWER: Duration = Duration::from_secs(30);
/// Room for whole lists in flight: flow control of the client's side must not be what is measured.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// A server and how to reach it.
#[derive(Clone)]
pub struct Endpoint {
    /// Host, without a port.
    pub host: String,
    /// TCP port.
    pub port: u16,
    tls: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    /// A server without TLS on this machine.
    pub fn plain(port: u16) -> Self {
        Self {
            host: "127.0.0.1".into(),
            port,
            tls: None,
        }
    }

    /// Opens one connection.
    ///
    /// # Errors
    /// When the server does not answer within three seconds, or not in HTTP/2.
    pub async fn connect(&self) -> anyhow::Result<Line> {
        let authority = format!("{}:{}", self.host, self.port);
        let opened = tokio::time::timeout(CONNECT, self.open(&authority)).await;
        let sender = opened
            .with_context(|| format!("{authority} did not answer within {} s", CONNECT.as_secs()))?
            .with_context(|| format!("cannot connect to {authority}"))?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(Line {
            sender,
            base: format!("{scheme}://{authority}"),
        })
    }

    async fn open(&self, authority: &str) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return handshake(stream).await;
        };
        let name = ServerName::try_from(self.host.clone())?;
        let stream = TlsConnector::from(tls.clone())
            .connect(name, stream)
            .await?;
        ensure!(
            stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            "the server does not speak HTTP/2"
        );
        handshake(stream).await
    }
}

async fn handshake<S>(stream: S) -> anyhow::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream))
        .await?;
    // Ends with its last sender, or with the server; whoever waits for an answer then gets the error.
    tokio::spawn(connection);
    Ok(sender)
}

/// The API servers that a kubeconfig's contexts name, or only those of the contexts in `only`.
///
/// # Errors
/// When the file cannot be used or has no such context.
pub async fn endpoints(kubeconfig: &Path, only: &[String]) -> anyhow::Result<Vec<Endpoint>> {
    let file = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for context in file
        .contexts
        .iter()
        .filter(|c| only.is_empty() || only.contains(&c.name))
    {
        let options = KubeConfigOptions {
            context: Some(context.name.clone()),
            ..Default::default()
        };
        let config = kube::Config::from_custom_kubeconfig(file.clone(), &options).await?;
        let host = config
            .cluster_url
            .host()
            .context("a server without a host")?
            .to_owned();
        let port = config.cluster_url.port_u16().unwrap_or(443);
        if endpoints.iter().any(|e| e.host == host && e.port == port) {
            continue;
        }
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        endpoints.push(Endpoint {
            host,
            port,
            tls: Some(Arc::new(tls)),
        });
    }
    ensure!(
        !endpoints.is_empty(),
        "{} has no context of {only:?}",
        kubeconfig.display()
    );
    Ok(endpoints)
}

/// An open connection; clones share it.
#[derive(Clone)]
pub struct Line {
    sender: SendRequest<Full<Bytes>>,
    base: String,
}

impl Line {
    /// Sends a request; the answer's body is still to come.
    ///
    /// # Errors
    /// When the connection breaks or nothing is answered in time.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("accept", "application/json");
        if !body.is_empty() {
            request = request.header("content-type", content);
        }
        if content == GRPC {
            request = request.header("te", "trailers");
        }
        let answer = self
            .sender
            .clone()
            .send_request(request.body(Full::new(body))?);
        Ok(tokio::time::timeout(ANSWER, answer)
            .await
            .context("no answer in time")??)
    }

    /// Sends a request and returns the body of a successful answer.
    ///
    /// # Errors
    /// As [`Self::send`], and with the start of the body if the answer is no success.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: Bytes,
    ) -> anyhow::Result<Bytes> {
        let response = self.send(method, path, content, body).await?;
        let status = response.status();
        // gRPC tells failure in trailers, or in the headers of an answer without a body.
        grpc_ok(response.headers())?;
        let body = tokio::time::timeout(ANSWER, response.into_body().collect()).await;
        let body = body.context("the answer did not end in time")??;
        body.trailers().map_or(Ok(()), grpc_ok)?;
        let body = body.to_bytes();
        if !status.is_success() {
            let start = &body[..body.len().min(300)];
            bail!("{status}: {}", String::from_utf8_lossy(start));
        }
        Ok(body)
    }

    /// A GET.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn get(&self, path: &str) -> anyhow::Result<Bytes> {
        self.call(Method::GET, path, JSON, Bytes::new()).await
    }

    /// A POST of JSON.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn post(&self, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        self.call(Method::POST, path, JSON, body).await
    }
}

fn grpc_ok(headers: &HeaderMap) -> anyhow::Result<()> {
    let failure = headers.get("grpc-status").filter(|code| *code != "0");
    ensure!(
        failure.is_none(),
        "gRPC status {failure:?}: {:?}",
        headers.get("grpc-message")
    );
    Ok(())
}

/// Content type of ordinary bodies.
pub const JSON: &str = "application/json";
/// Content type of JSON merge patches.
pub const MERGE_PATCH: &str = "application/merge-patch+json";
/// Content type of gRPC.
pub const GRPC: &str = "application/grpc";

/// Open connections to all servers, used in turn.
#[derive(Clone)]
pub struct Lines {
    lines: Arc<[Line]>,
    next: Arc<AtomicUsize>,
}

impl Lines {
    /// Opens about `connections` of them, the same number to each server and at least one.
    ///
    /// # Errors
    /// When a server cannot be reached.
    pub async fn open(endpoints: &[Endpoint], connections: usize) -> anyhow::Result<Self> {
        let mut lines = Vec::new();
        for _ in 0..connections.div_ceil(endpoints.len()) {
            for endpoint in endpoints {
                lines.push(endpoint.connect().await?);
            }
        }
        Ok(Self {
            lines: lines.into(),
            next: Arc::default(),
        })
    }

    /// The next connection in turn.
    pub fn next(&self) -> &Line {
        self.nth(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The connection of a long-lived stream.
    pub fn nth(&self, index: usize) -> &Line {
        &self.lines[index % self.lines.len()]
    }
}
