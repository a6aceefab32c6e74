//! The certificate authority: one ECDSA P-256 key that signs every certificate of the cluster.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::{GROUP_NODES, NODE_USER_PREFIX};

/// How long the CA certificate is valid.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long every other certificate is valid; it is renewed at two thirds.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Certificates are valid from a little earlier than now, for machines whose clocks differ.
const BACKDATE: Duration = Duration::from_secs(3600);

/// What a certificate says and is good for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Common name; the user name of a client certificate.
    pub common_name: String,
    /// Organization; the group of a client certificate. (Reading certificates we take several.)
    pub organization: Option<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// May be shown by a server.
    pub server: bool,
    /// May be shown by a client.
    pub client: bool,
}

/// A key and its certificate chain (leaf first, CA last) as PEM text.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyAndChain {
    /// PKCS#8 private key.
    pub key_pem: String,
    /// Leaf, then CA.
    pub chain_pem: String,
}

impl std::fmt::Debug for KeyAndChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyAndChain")
            .field("chain_pem", &self.chain_pem)
            .finish_non_exhaustive()
    }
}

/// The cluster's CA with its key.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate: CertificateDer<'static>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("sha256", &self.sha256())
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// A new CA, valid from `now` for [`CA_LIFETIME`].
    ///
    /// # Errors
    /// When the random source fails.
    pub fn generate(now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = base_params("balsa-ca", None, now, CA_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads what [`Self::to_pem`] wrote.
    ///
    /// # Errors
    /// When the text is not a CA certificate and its P-256 key.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let invalid = |why: &dyn std::fmt::Display| Error::invalid("CA", why);
        let key_der = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
            .map_err(|e| invalid(&format_args!("no private key: {e}")))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key_der, &rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|e| invalid(&format_args!("no certificate: {e}")))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|e| invalid(&e))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(invalid(
                &"the private key does not belong to the certificate",
            ));
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate_pem: pem("CERTIFICATE", &certificate),
            certificate,
        })
    }

    /// Certificate and private key, to be kept secret.
    #[must_use]
    pub fn to_pem(&self) -> String {
        format!(
            "{}{}",
            self.certificate_pem,
            self.issuer.key().serialize_pem()
        )
    }

    /// The certificate alone.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The certificate alone, DER.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn key(&self) -> &KeyPair {
        self.issuer.key()
    }

    /// SHA-256 of the certificate in hex: the cluster's fingerprint, carried by join tokens.
    #[must_use]
    pub fn sha256(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// A new key and a certificate for it.
    ///
    /// # Errors
    /// When a name is not fit for a certificate, or the random source fails.
    pub fn issue(&self, profile: &Profile, now: Timestamp) -> Result<KeyAndChain, Error> {
        let key = KeyPair::generate()?;
        let params = leaf_params(profile, now)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(KeyAndChain {
            key_pem: key.serialize_pem(),
            chain_pem: format!("{}{}", certificate.pem(), self.certificate_pem),
        })
    }

    /// Signs a node's certificate request. Nothing is taken from the request but its public key, whose
    /// possession it proves: the name is what the caller has verified. Returns the chain (leaf, CA).
    ///
    /// # Errors
    /// When the request is malformed or its signature is wrong.
    pub fn sign_node_request(
        &self,
        csr_pem: &str,
        node: &str,
        now: Timestamp,
    ) -> Result<String, Error> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| Error::invalid("certificate request", e))?;
        request.params = leaf_params(&node_profile(node), now)?;
        let certificate = request.signed_by(&self.issuer)?;
        Ok(format!("{}{}", certificate.pem(), self.certificate_pem))
    }
}

/// The client certificate of a node agent.
#[must_use]
pub fn node_profile(node: &str) -> Profile {
    Profile {
        common_name: format!("{NODE_USER_PREFIX}{node}"),
        organization: Some(GROUP_NODES.to_owned()),
        client: true,
        ..Profile::default()
    }
}

/// SHA-256 of a certificate in hex.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(Sha256::digest(certificate))
}

/// PEM text of some DER bytes.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn leaf_params(profile: &Profile, now: Timestamp) -> Result<CertificateParams, Error> {
    let mut params = base_params(
        &profile.common_name,
        profile.organization.as_deref(),
        now,
        CERTIFICATE_LIFETIME,
    )?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if profile.server {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if profile.client {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    for name in &profile.dns {
        params
            .subject_alt_names
            .push(SanType::DnsName(name.as_str().try_into()?));
    }
    params
        .subject_alt_names
        .extend(profile.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    Ok(params)
}

fn base_params(
    common_name: &str,
    organization: Option<&str>,
    now: Timestamp,
    lifetime: Duration,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = organization {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let seconds = u64::try_from(now.as_second())
        .map_err(|_| Error::invalid("clock", "the time of day lies before 1970; set the clock"))?;
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
    let mut serial = [0_u8; 16];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| Error::Crypto("random numbers"))?;
    serial[0] &= 0x7f; // a positive INTEGER of at most 20 octets, RFC 5280 section 4.1.2.2
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}
