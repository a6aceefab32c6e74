//! Signs certificate requests that came through the API (`certificates.k8s.io`).
//!
//! The certificate takes subject, subject alternative names and public key from the request byte by byte; key usages
//! and lifetime are the signer's decision. Rules: RFC 5280, upstream `pkg/controller/certificates/authority`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::SigningKey as _;
use ring::rand::{SecureRandom, SystemRandom};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::ca::{CertificateAuthority, pem};
use crate::error::Error;

/// Certificates are valid from a little earlier than now.
const BACKDATE: SignedDuration = SignedDuration::from_secs(300);
/// Shortest life that can be asked for.
const SHORTEST: Duration = Duration::from_secs(600);

/// OIDs as DER contents.
mod oid {
    pub const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    pub const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
    pub const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
    pub const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
    pub const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
    pub const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
    pub const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
    /// id-kp; one more byte follows.
    pub const KEY_PURPOSE: [u8; 7] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03];
}

/// What a request asks for, for a signer to judge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestedIdentity {
    /// Common name.
    pub common_name: String,
    /// Organizations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses, as their bytes.
    pub ips: Vec<Vec<u8>>,
    /// Mail addresses.
    pub emails: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
}

/// A request whose signature is its key's.
pub struct Request {
    der: Vec<u8>,
    /// What it asks for.
    pub identity: RequestedIdentity,
}

impl Request {
    /// Reads a PEM request and checks that whoever made it holds its key.
    ///
    /// # Errors
    /// When it is malformed, its signature is wrong or its names are not text.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let invalid = |why: &dyn std::fmt::Display| Error::invalid("certificate request", why);
        let (_, block) = x509_parser::pem::parse_x509_pem(text.as_bytes())
            .map_err(|_| invalid(&"PEM block type must be CERTIFICATE REQUEST"))?;
        if block.label != "CERTIFICATE REQUEST" && block.label != "NEW CERTIFICATE REQUEST" {
            return Err(invalid(&"PEM block type must be CERTIFICATE REQUEST"));
        }
        let (rest, parsed) =
            X509CertificationRequest::from_der(&block.contents).map_err(|e| invalid(&e))?;
        if !rest.is_empty() {
            return Err(invalid(&"there are bytes behind it"));
        }
        parsed
            .verify_signature()
            .map_err(|_| invalid(&"its signature is not by its key"))?;
        let identity = identity(&parsed)?;
        Ok(Self {
            der: block.contents,
            identity,
        })
    }
}

fn identity(request: &X509CertificationRequest<'_>) -> Result<RequestedIdentity, Error> {
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute
            .as_str()
            .map(str::to_owned)
            .map_err(|e| Error::invalid("certificate request", format_args!("subject: {e}")))
    };
    let subject = &request.certification_request_info.subject;
    let mut identity = RequestedIdentity {
        common_name: subject
            .iter_common_name()
            .next()
            .map(text)
            .transpose()?
            .unwrap_or_default(),
        organizations: subject
            .iter_organization()
            .map(text)
            .collect::<Result<_, _>>()?,
        ..RequestedIdentity::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else {
            continue;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => identity.dns.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => identity.emails.push((*name).to_owned()),
                GeneralName::URI(name) => identity.uris.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => identity.ips.push(bytes.to_vec()),
                _ => {
                    return Err(Error::invalid(
                        "certificate request",
                        "it has a subject alternative name that is no DNS name, IP address, e-mail address or URI",
                    ));
                }
            }
        }
    }
    Ok(identity)
}

/// The contents of the request's subjectAltName extension.
fn alternative_names(request: &X509CertificationRequest<'_>) -> Option<Vec<u8>> {
    use x509_parser::cri_attributes::ParsedCriAttribute;
    request
        .certification_request_info
        .iter_attributes()
        .find_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(asked) => asked
                .extensions
                .iter()
                .find(|e| e.oid.as_bytes() == oid::SUBJECT_ALT_NAME)
                .map(|e| e.value.to_vec()),
            _ => None,
        })
}

/// Bit of a usage in `KeyUsage`, or last byte of its OID in `ExtendedKeyUsage`.
enum Usage {
    Bit(u8),
    Purpose(u8),
    Any,
}

/// A usage by the name that `CertificateSigningRequestSpec.usages` has for it.
fn usage(name: &str) -> Option<Usage> {
    Some(match name {
        "signing" | "digital signature" => Usage::Bit(0),
        "content commitment" => Usage::Bit(1),
        "key encipherment" => Usage::Bit(2),
        "data encipherment" => Usage::Bit(3),
        "key agreement" => Usage::Bit(4),
        "cert sign" => Usage::Bit(5),
        "crl sign" => Usage::Bit(6),
        "encipher only" => Usage::Bit(7),
        "any" => Usage::Any,
        "server auth" => Usage::Purpose(1),
        "client auth" => Usage::Purpose(2),
        "code signing" => Usage::Purpose(3),
        "email protection" | "s/mime" => Usage::Purpose(4),
        "ipsec end system" => Usage::Purpose(5),
        "ipsec tunnel" => Usage::Purpose(6),
        "ipsec user" => Usage::Purpose(7),
        "timestamping" => Usage::Purpose(8),
        "ocsp signing" => Usage::Purpose(9),
        _ => return None,
    })
}

/// One DER element.
fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = contents.len();
    if length < 0x80 {
        out.push(u8::try_from(length).unwrap_or_default());
    } else {
        let bytes: Vec<u8> = length
            .to_be_bytes()
            .into_iter()
            .skip_while(|b| *b == 0)
            .collect();
        out.push(0x80 | u8::try_from(bytes.len()).unwrap_or_default());
        out.extend(bytes);
    }
    out.extend_from_slice(contents);
    out
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    der(0x30, &parts.concat())
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let mut parts = vec![der(0x06, oid)];
    if critical {
        parts.push(der(0x01, &[0xff]));
    }
    parts.push(der(0x04, value));
    sequence(&parts)
}

/// UTCTime until 2049, GeneralizedTime from then on (RFC 5280 section 4.1.2.5).
fn time(at: Timestamp) -> Vec<u8> {
    let year = at.to_zoned(jiff::tz::TimeZone::UTC).year();
    if year < 2050 {
        der(0x17, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        der(0x18, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

fn usages_extensions(usages: &[String]) -> Result<Vec<Vec<u8>>, Error> {
    let mut bits = 0_u8;
    let mut purposes = Vec::new();
    for name in usages {
        match usage(name) {
            Some(Usage::Bit(bit)) => bits |= 0x80 >> bit,
            Some(Usage::Purpose(last)) => {
                let mut purpose = oid::KEY_PURPOSE.to_vec();
                purpose.push(last);
                purposes.push(der(0x06, &purpose));
            }
            Some(Usage::Any) => purposes.push(der(0x06, oid::ANY_USAGE)),
            None => {
                return Err(Error::invalid(
                    "certificate request",
                    format_args!("unrecognized usage value: {name}"),
                ));
            }
        }
    }
    purposes.dedup();
    let mut all = Vec::new();
    if bits != 0 {
        // A named bit list has no trailing zero bits.
        let unused = u8::try_from(bits.trailing_zeros()).unwrap_or_default();
        all.push(extension(oid::KEY_USAGE, true, &der(0x03, &[unused, bits])));
    }
    if !purposes.is_empty() {
        all.push(extension(
            oid::EXTENDED_KEY_USAGE,
            false,
            &sequence(&purposes),
        ));
    }
    Ok(all)
}

impl CertificateAuthority {
    /// Signs a request for some usages and a life of `asked` at most; never longer than the CA's own. Answers with
    /// the certificate alone, as PEM.
    ///
    /// # Errors
    /// When a usage is not known, or the random source fails.
    pub fn sign(
        &self,
        request: &Request,
        usages: &[String],
        asked: Option<Duration>,
        now: Timestamp,
    ) -> Result<String, Error> {
        let invalid = |why: &dyn std::fmt::Display| Error::invalid("certificate request", why);
        let (_, parsed) =
            X509CertificationRequest::from_der(&request.der).map_err(|e| invalid(&e))?;
        let (_, ca) =
            x509_parser::parse_x509_certificate(self.certificate()).map_err(|e| invalid(&e))?;
        let longest = crate::ca::CERTIFICATE_LIFETIME;
        let life = asked.unwrap_or(longest).clamp(SHORTEST, longest);
        let end = now
            .as_second()
            .saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX))
            .min(ca.validity().not_after.timestamp());
        let until = Timestamp::from_second(end).map_err(|e| invalid(&e))?;
        let from = now.checked_sub(BACKDATE).map_err(|e| invalid(&e))?;
        let mut extensions = usages_extensions(usages)?;
        extensions.push(extension(oid::BASIC_CONSTRAINTS, true, &sequence(&[])));
        if let Some(key) = subject_key(&ca) {
            let value = sequence(&[der(0x80, key)]);
            extensions.push(extension(oid::AUTHORITY_KEY, false, &value));
        }
        if let Some(names) = alternative_names(&parsed) {
            extensions.push(extension(oid::SUBJECT_ALT_NAME, false, &names));
        }
        let mut serial = [0_u8; 16];
        SystemRandom::new()
            .fill(&mut serial)
            .map_err(|_| Error::Crypto("random numbers"))?;
        // A positive INTEGER without a leading zero byte.
        serial[0] = (serial[0] & 0x7f) | 0x40;
        let algorithm = sequence(&[der(0x06, oid::ECDSA_WITH_SHA256)]);
        let info = &parsed.certification_request_info;
        let body = sequence(&[
            der(0xa0, &der(0x02, &[2])),
            der(0x02, &serial),
            algorithm.clone(),
            ca.subject().as_raw().to_vec(),
            sequence(&[time(from), time(until)]),
            info.subject.as_raw().to_vec(),
            info.subject_pki.raw.to_vec(),
            der(0xa3, &sequence(&extensions)),
        ]);
        let signature = self.key().sign(&body)?;
        let signature = der(0x03, &[&[0], signature.as_slice()].concat());
        Ok(pem("CERTIFICATE", &sequence(&[body, algorithm, signature])))
    }
}

fn subject_key<'a>(ca: &'a x509_parser::certificate::X509Certificate<'_>) -> Option<&'a [u8]> {
    ca.extensions()
        .iter()
        .find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(key) => Some(key.0),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn now() -> Timestamp {
        "2026-05-01T00:00:00Z".parse().unwrap()
    }

    fn request() -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:a");
        params
            .subject_alt_names
            .push(SanType::DnsName("a.example".try_into().unwrap()));
        params
            .subject_alt_names
            .push(SanType::IpAddress([10, 0, 0, 1].into()));
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn sign(life: Option<Duration>, usages: &[&str]) -> Result<Vec<u8>, Error> {
        let ca = CertificateAuthority::generate(now()).unwrap();
        let request = Request::from_pem(&request())?;
        let usages: Vec<String> = usages.iter().map(|u| (*u).to_owned()).collect();
        let text = ca.sign(&request, &usages, life, now())?;
        let (_, block) = x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&block.contents).unwrap();
        let (_, issuer) = x509_parser::parse_x509_certificate(ca.certificate()).unwrap();
        parsed.verify_signature(Some(issuer.public_key())).unwrap();
        assert_eq!(parsed.issuer(), issuer.subject());
        Ok(block.contents)
    }

    #[test]
    fn a_certificate_says_what_the_request_says() {
        let der = sign(None, &["digital signature", "client auth"]).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let peer = crate::PeerIdentity::from_certificate(&der).unwrap();
        assert_eq!(peer.common_name, "system:node:a");
        assert_eq!(peer.organizations, ["system:nodes"]);
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 2);
        let usage = parsed.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        let extended = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && !extended.server_auth);
        assert!(!parsed.is_ca());
    }

    #[test]
    fn a_life_is_as_asked_but_neither_very_short_nor_longer_than_a_year() {
        let end = |life| {
            let der = sign(life, &["client auth"]).unwrap();
            crate::PeerIdentity::from_certificate(&der)
                .unwrap()
                .validity
                .1
        };
        let now = now().as_second();
        assert_eq!(end(Some(Duration::from_secs(3600))), now + 3600);
        assert_eq!(end(Some(Duration::from_secs(1))), now + 600);
        assert_eq!(end(Some(Duration::from_secs(10_u64.pow(9)))), end(None));
    }

    #[test]
    fn unknown_usages_and_forged_requests_are_refused() {
        assert!(sign(None, &["world domination"]).is_err());
        let text = request();
        let (_, block) = x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap();
        let mut forged = block.contents;
        let at = forged
            .windows(13)
            .position(|w| w == b"system:node:a")
            .unwrap();
        forged[at + 12] = b'b';
        assert!(Request::from_pem(&pem("CERTIFICATE REQUEST", &forged)).is_err());
        assert!(Request::from_pem("nonsense").is_err());
    }
}
