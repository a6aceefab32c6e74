//! TLS connections to webhooks, kept for the next call. HTTP/2 ones are shared, HTTP/1.1 ones are used in turn.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig as TlsConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{ClientConfig, Dialer, Place};

/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(60);
/// Unused HTTP/1.1 connections to one webhook.
const PER_PLACE: usize = 8;
/// Webhooks that connections are kept to.
const PLACES: usize = 128;

/// Where the machine's own roots are, on the common distributions.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

type Key = (Place, Vec<u8>);

/// A connection's sending half.
pub enum Sender {
    /// HTTP/1.1
    H1(http1::SendRequest<Full<Bytes>>),
    /// HTTP/2
    H2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    /// Whether it is HTTP/2.
    pub fn is_h2(&self) -> bool {
        matches!(self, Self::H2(_))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::H1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::H2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::H1(sender) => sender.is_closed(),
            Self::H2(sender) => sender.is_closed(),
        }
    }
}

/// Kept connections.
#[derive(Default)]
pub struct Pool {
    kept: Mutex<HashMap<Key, Vec<(Sender, Instant)>>>,
}

impl Pool {
    /// A connection that is open, as far as is known.
    pub fn take(&self, key: &Key) -> Option<Sender> {
        let mut kept = self.kept.lock();
        let senders = kept.get_mut(key)?;
        senders.retain(|(sender, used)| !sender.is_closed() && used.elapsed() < IDLE);
        match senders.last_mut() {
            Some((Sender::H2(sender), used)) => {
                *used = Instant::now();
                Some(Sender::H2(sender.clone()))
            }
            _ => senders.pop().map(|(sender, _)| sender),
        }
    }

    /// Keeps a connection.
    pub fn put(&self, key: Key, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut kept = self.kept.lock();
        kept.retain(|_, senders| {
            senders.retain(|(sender, used)| !sender.is_closed() && used.elapsed() < IDLE);
            !senders.is_empty()
        });
        if kept.len() >= PLACES && !kept.contains_key(&key) {
            return;
        }
        let senders = kept.entry(key).or_default();
        let shared = sender.is_h2() && senders.iter().any(|(kept, _)| kept.is_h2());
        if !shared && senders.len() < PER_PLACE {
            senders.push((sender, Instant::now()));
        }
    }
}

/// Opens a connection and shakes hands. Its task ends with the connection or with `stop`.
///
/// # Errors
/// Why not, for people.
pub async fn connect(
    dialer: &dyn Dialer,
    config: &ClientConfig,
    stop: &CancellationToken,
) -> Result<Sender, String> {
    let tls = tls_config(&config.ca_bundle)?;
    let name = config.server_name();
    let server =
        ServerName::try_from(name.clone()).map_err(|_| format!("invalid server name {name:?}"))?;
    let io = dialer.dial(&config.place).await?;
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(server, io)
        .await
        .map_err(|error| tls_failure(&error, &name))?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let span = tracing::debug_span!("webhook connection", webhook = %name);
    let stop = stop.clone();
    if h2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(run(connection, stop).instrument(span));
        return Ok(Sender::H2(sender));
    }
    let (sender, connection) = http1::handshake(io).await.map_err(|e| e.to_string())?;
    tokio::spawn(run(connection, stop).instrument(span));
    Ok(Sender::H1(sender))
}

async fn run(connection: impl Future<Output = Result<(), hyper::Error>>, stop: CancellationToken) {
    // Whoever is waiting for an answer hears of a failure too, and reports it.
    if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
        tracing::debug!(%error, "connection failed");
    }
}

fn tls_config(ca_bundle: &[u8]) -> Result<TlsConfig, String> {
    let mut roots = RootCertStore::empty();
    let system;
    let pem = if ca_bundle.is_empty() {
        let found = SYSTEM_ROOTS
            .iter()
            .find_map(|path| std::fs::read(path).ok());
        system = found.unwrap_or_default();
        &system
    } else {
        ca_bundle
    };
    for certificate in CertificateDer::pem_slice_iter(pem).flatten() {
        let added = roots.add(certificate);
        if added.is_err() && !ca_bundle.is_empty() {
            return Err(
                "unable to load root certificates: invalid certificate in caBundle".to_owned(),
            );
        }
    }
    if roots.is_empty() && !ca_bundle.is_empty() {
        return Err("unable to load root certificates: no certificate in caBundle".to_owned());
    }
    let mut config = TlsConfig::builder_with_provider(balsa_identity::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A failed handshake in the words of Go's TLS.
fn tls_failure(error: &std::io::Error, name: &str) -> String {
    use rustls::CertificateError as Bad;
    use rustls::Error as Tls;
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<Tls>());
    let why = match tls {
        Some(Tls::InvalidCertificate(Bad::UnknownIssuer)) => {
            "certificate signed by unknown authority".to_owned()
        }
        Some(Tls::InvalidCertificate(
            Bad::NotValidForName | Bad::NotValidForNameContext { .. },
        )) => format!("certificate is not valid for {name}"),
        Some(Tls::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
            "certificate has expired or is not yet valid".to_owned()
        }
        _ => return error.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}
