//! TCP and TLS to one server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::{BoxError, Service};

use crate::config::{Credentials, Timeouts};

/// TLS settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA bundle.
    #[error("the CA certificates cannot be read as PEM: {0}")]
    Ca(String),
    /// The client certificate.
    #[error("the client certificate or its key cannot be used: {0}")]
    Certificate(String),
}

/// rustls settings: only the cluster's CA is trusted; HTTP/2 where the server has it.
pub(crate) fn config(
    ca_pem: &[u8],
    credentials: &Credentials,
) -> Result<rustls::ClientConfig, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        let certificate = certificate.map_err(|error| TlsError::Ca(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| TlsError::Ca(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Ca("there is none in it".into()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::Ca(error.to_string()))?
        .with_root_certificates(roots);
    let invalid = |error: String| TlsError::Certificate(error);
    let mut config = match credentials {
        Credentials::Certificate { cert_pem, key_pem } => {
            let chain = CertificateDer::pem_slice_iter(cert_pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| invalid(error.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(key_pem)
                .map_err(|error| invalid(error.to_string()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| invalid(error.to_string()))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Connects to `https://host:port`. The TLS settings may be replaced while running; open connections stay.
#[derive(Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    tls: Arc<parking_lot::RwLock<Arc<rustls::ClientConfig>>>,
    handshake: Duration,
}

impl Connector {
    pub(crate) fn new(
        tls: Arc<parking_lot::RwLock<Arc<rustls::ClientConfig>>>,
        timeouts: &Timeouts,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeouts.connect));
        // For connections without HTTP/2 pings, and for data that nobody acknowledges. The kernel counts in
        // whole seconds.
        let second = Duration::from_secs(1);
        tcp.set_keepalive(Some(timeouts.ping_interval.max(second)));
        tcp.set_keepalive_interval(Some(timeouts.ping_interval.max(second)));
        tcp.set_keepalive_retries(Some(2));
        tcp.set_tcp_user_timeout(Some(timeouts.ping_interval + timeouts.ping_timeout));
        Self {
            tcp,
            tls,
            handshake: timeouts.connect,
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TlsConnection;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<TlsConnection, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri
            .host()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_owned();
        let tcp = self.tcp.call(uri);
        let tls = TlsConnector::from(Arc::clone(&self.tls.read()));
        let handshake = self.handshake;
        Box::pin(async move {
            let name = ServerName::try_from(host)?;
            let tcp = tcp.await?.into_inner();
            let stream = tokio::time::timeout(handshake, tls.connect(name, tcp)).await??;
            Ok(TlsConnection(TokioIo::new(stream)))
        })
    }
}

/// A TLS connection that tells hyper which HTTP version was agreed on.
pub(crate) struct TlsConnection(TokioIo<TlsStream<TcpStream>>);

impl Connection for TlsConnection {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.0.inner().get_ref().1.alpn_protocol() == Some(b"h2") {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl Read for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
