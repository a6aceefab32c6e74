//! TLS configurations: ring, certificates that may be replaced while in use. 1.3 only among the cluster's own members;
//! the API's port takes 1.2 too, with its suites of ephemeral keys and authenticated encryption (ring's provider has no
//! others): old client libraries and the probes of load balancers speak no newer one.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::ca::fingerprint;
use crate::error::Error;
use crate::live::LiveCertificate;
use crate::peer::PeerIdentity;

/// Versions of TLS that an end speaks.
pub type Versions = &'static [&'static rustls::SupportedProtocolVersion];

/// Between members of the cluster.
pub const MEMBERS: Versions = &[&rustls::version::TLS13];

/// For everybody's clients.
pub const CLIENTS: Versions = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// TLS for the servers among themselves. Clients must name the server [`crate::RAFT_SERVER_NAME`].
#[derive(Debug, Clone)]
pub struct RaftTls {
    /// Accepts other servers only.
    pub server: Arc<ServerConfig>,
    /// Dials other servers.
    pub client: Arc<ClientConfig>,
}

/// TLS for the node link (QUIC), server side; ALPN [`crate::LINK_ALPN`].
#[derive(Debug, Clone)]
pub struct LinkTls {
    /// Accepts node agents only.
    pub server: Arc<ServerConfig>,
}

/// The cryptography in use, named explicitly so that no process-wide default is needed.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    store.add(ca.clone())?;
    Ok(Arc::new(store))
}

/// A server that asks for a client certificate. With a `group`, one that names it is required;
/// without, none is needed and any of the cluster's is accepted.
///
/// # Errors
/// When the CA certificate is unusable.
pub fn server(
    ca: &CertificateDer<'static>,
    certificate: Arc<LiveCertificate>,
    group: Option<&'static str>,
    versions: Versions,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider());
    let builder = if group.is_none() {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    let inner = builder.build().map_err(|e| Error::invalid("CA", e))?;
    let verifier: Arc<dyn ClientCertVerifier> = match group {
        Some(group) => Arc::new(GroupVerifier { inner, group }),
        None => inner,
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A client that trusts the cluster's CA, and shows a certificate if given one.
///
/// # Errors
/// When the CA certificate is unusable.
pub fn client(
    ca: &CertificateDer<'static>,
    certificate: Option<Arc<LiveCertificate>>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider())
        .build()
        .map_err(|e| Error::invalid("CA", e))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(MEMBERS)?
        .with_webpki_verifier(verifier);
    let mut config = match certificate {
        Some(certificate) => builder.with_client_cert_resolver(certificate),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// For the first contact with a cluster of which only the CA's fingerprint is known, from a join token:
/// accepts exactly the servers whose chain ends in that CA. The server's name is not checked, because a
/// machine may be reached by an address its certificate does not know; only servers hold certificates
/// with which a server may answer.
///
/// # Errors
/// When the fingerprint is not 64 hex digits.
pub fn first_contact(ca_sha256: &str, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    if ca_sha256.len() != 64 || !ca_sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::invalid(
            "CA fingerprint",
            "must be 64 hexadecimal digits",
        ));
    }
    let verifier = PinnedCa {
        sha256: ca_sha256.to_ascii_lowercase(),
        provider: provider(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(MEMBERS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Requires that the client's certificate, beside being valid, names a group. One CA signs for servers,
/// nodes and administrators, so being signed is not enough to speak Raft.
#[derive(Debug)]
struct GroupVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    group: &'static str,
}

impl ClientCertVerifier for GroupVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        let peer = PeerIdentity::from_certificate(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if peer.organizations.iter().any(|o| o == self.group) {
            Ok(verified)
        } else {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// See [`first_contact`].
#[derive(Debug)]
struct PinnedCa {
    sha256: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = intermediates
            .iter()
            .find(|c| fingerprint(c) == self.sha256)
            .ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
