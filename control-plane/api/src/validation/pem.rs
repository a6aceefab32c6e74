//! PEM blocks (RFC 7468), and the X.509 documents in them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What a certificate request is called in PEM.
const REQUEST: &str = "CERTIFICATE REQUEST";
const CERTIFICATE: &str = "CERTIFICATE";

#[derive(Debug, PartialEq, Eq)]
struct Block {
    label: String,
    has_headers: bool,
    der: Vec<u8>,
}

/// The blocks of a text. What is between them is passed over, and so is a block that does not end or is not base64, as Go
/// does it.
fn blocks(text: &str) -> Vec<Block> {
    let mut lines = text.lines().map(str::trim_end);
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let label = line
            .strip_prefix("-----BEGIN ")
            .and_then(|rest| rest.strip_suffix("-----"));
        let Some(label) = label else { continue };
        let end = format!("-----END {label}-----");
        let mut rest = lines.clone();
        let body: Vec<&str> = rest.by_ref().take_while(|line| *line != end).collect();
        let headers = body.iter().take_while(|line| line.contains(':')).count();
        let base64: String = body[headers..].concat().split_whitespace().collect();
        let closed = lines.clone().any(|line| line == end);
        if let (true, Ok(der)) = (closed, STANDARD.decode(base64)) {
            found.push(Block {
                label: label.to_owned(),
                has_headers: headers > 0,
                der,
            });
            lines = rest;
        }
    }
    found
}

/// Reads the text of a bytes field.
fn text(field: &str) -> String {
    let bytes = STANDARD.decode(field).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Problems of a bytes field that holds a certificate request (PKCS #10), whose signature must be its key's.
///
/// # Errors
/// What is wrong with it.
pub fn certificate_request(field: &str) -> Result<(), String> {
    let block = blocks(&text(field)).into_iter().next();
    let Some(block) = block.filter(|b| b.label == REQUEST) else {
        return Err(format!("PEM block type must be {REQUEST}"));
    };
    let request = match X509CertificationRequest::from_der(&block.der) {
        Ok(([], request)) => request,
        Ok(_) => return Err("asn1: syntax error: trailing data".into()),
        Err(error) => return Err(format!("asn1: structure error: {error}")),
    };
    match request.verify_signature() {
        // Whoever signs it may know more algorithms.
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => Ok(()),
        Err(_) => Err("x509: the signature is not by the request's key".into()),
    }
}

/// Problems of a bytes field that holds certificates.
///
/// # Errors
/// What is wrong with them.
pub fn certificates(field: &str) -> Result<(), String> {
    let blocks = blocks(&text(field));
    if blocks.is_empty() {
        return Err(format!("must contain at least one {CERTIFICATE} PEM block"));
    }
    for block in blocks {
        if block.label != CERTIFICATE {
            return Err(format!(
                "only {CERTIFICATE} PEM blocks are allowed, found {:?}",
                block.label
            ));
        }
        if block.has_headers {
            return Err("no PEM block headers are permitted".into());
        }
        let mut rest = block.der.as_slice();
        if rest.is_empty() {
            return Err(format!(
                "found {CERTIFICATE} PEM block containing 0 certificates"
            ));
        }
        while !rest.is_empty() {
            (rest, _) = X509Certificate::from_der(rest)
                .map_err(|error| format!("x509: malformed certificate: {error}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Of `O=dev, CN=ann`, by her key.
    pub(crate) const ANNS_REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIHVMH4CAQAwHDEMMAoGA1UECgwDZGV2MQwwCgYDVQQDDANhbm4wWTATBgcqhkjO
PQIBBggqhkjOPQMBBwNCAATWFMZssxXid/ZmnZm6qFIchSp4PoFDEJfvbimiAeQQ
rdbCzgG7xo7HdilGDhZFmu1LdiQQDHzV8qL5Gf6fSd4FoAAwCgYIKoZIzj0EAwID
RwAwRAIgPAELRdR3FcJI3nSzp7eMfZclpcxOaFmiqosbjf7tTEsCIET3Kq0CjPOX
tLenCezDhIsQoBEcGWb1bVHpkiTo710o
-----END CERTIFICATE REQUEST-----
";
    /// By the same key, until 2126.
    pub(crate) const ANNS_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBczCCARmgAwIBAgIUEISTHRhZXhBn6iUtdeP9agzAmrUwCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDYW5uMCAXDTI2MTEyMjEzNDM0NloYDzIxMjYxMDI5MTM0MzQ2
WjAOMQwwCgYDVQQDDANhbm4wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATWFMZs
sxXid/ZmnZm6qFIchSp4PoFDEJfvbimiAeQQrdbCzgG7xo7HdilGDhZFmu1LdiQQ
DHzV8qL5Gf6fSd4Fo1MwUTAdBgNVHQ4EFgQUTjtYQStJ3EiwBm1WXXpsJ1Fytfww
HwYDVR0jBBgwFoAUTjtYQStJ3EiwBm1WXXpsJ1FytfwwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNIADBFAiBdeen7EGP1YRoH+ij1hLjU82q/mi+XNpFsOe4C
lH8VrQIhAOxfhHnvQu8oxQtabqt6QpVkhhoZpy+XlJBP5GiHOvAL
-----END CERTIFICATE-----
";

    pub(crate) fn field(text: &str) -> String {
        STANDARD.encode(text)
    }

    #[test]
    fn a_request_is_by_the_key_it_is_for() {
        assert_eq!(certificate_request(&field(ANNS_REQUEST)), Ok(()));
        // Another name than was signed.
        let forged = ANNS_REQUEST.replace("DANhbm4w", "DANhbm8w");
        let problem = certificate_request(&field(&forged)).unwrap_err();
        assert_eq!(problem, "x509: the signature is not by the request's key");
        let cut = "-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n";
        let problem = certificate_request(&field(cut)).unwrap_err();
        assert!(problem.starts_with("asn1: structure error"), "{problem}");
        for text in ["", "no PEM", ANNS_CERTIFICATE] {
            let problem = certificate_request(&field(text)).unwrap_err();
            assert_eq!(problem, "PEM block type must be CERTIFICATE REQUEST");
        }
    }

    #[test]
    fn certificates_come_in_blocks_of_their_own_with_words_between() {
        let text = format!("of ann:\n{ANNS_CERTIFICATE}and again\n{ANNS_CERTIFICATE}");
        assert_eq!(certificates(&field(&text)), Ok(()));
        let header = ANNS_CERTIFICATE.replacen("\nMII", "\nOf: ann\n\nMII", 1);
        let mixed = format!("{ANNS_CERTIFICATE}{ANNS_REQUEST}");
        for (text, problem) in [
            ("of ann", "must contain at least one CERTIFICATE PEM block"),
            (
                "-----BEGIN CERTIFICATE-----\nMAA=\n",
                "must contain at least one CERTIFICATE PEM block",
            ),
            (
                "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
                "found CERTIFICATE PEM block containing 0 certificates",
            ),
            (&header, "no PEM block headers are permitted"),
            (
                &mixed,
                "only CERTIFICATE PEM blocks are allowed, found \"CERTIFICATE REQUEST\"",
            ),
        ] {
            assert_eq!(certificates(&field(text)), Err(problem.into()));
        }
        let cut = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let problem = certificates(&field(cut)).unwrap_err();
        assert!(problem.starts_with("x509: malformed"), "{problem}");
    }
}
