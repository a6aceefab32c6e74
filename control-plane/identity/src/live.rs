//! A certificate that is replaced while connections are made with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::ca::KeyAndChain;
use crate::error::Error;
use crate::files;
use crate::tls;

/// A key and certificate in a file and in use. New handshakes see a replacement at once.
#[derive(Debug)]
pub struct LiveCertificate {
    path: PathBuf,
    current: ArcSwap<Loaded>,
}

/// What is in use now.
#[derive(Debug)]
pub struct Loaded {
    /// As it stands in the file.
    pub pem: KeyAndChain,
    /// Ready for handshakes.
    pub key: Arc<CertifiedKey>,
    /// Start of validity, seconds since 1970.
    pub not_before: i64,
    /// End of validity, seconds since 1970.
    pub not_after: i64,
}

impl Loaded {
    fn parse(text: &str) -> Result<Self, Error> {
        let (key_pem, chain_pem) = split(text)?;
        let chain = certificates(&chain_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|e| Error::invalid("private key", e))?;
        let certified = CertifiedKey::from_der(chain, key, &tls::provider())?;
        let leaf = certified.end_entity_cert()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|e| Error::invalid("certificate", e))?;
        let validity = parsed.validity();
        let (not_before, not_after) = (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        );
        Ok(Self {
            pem: KeyAndChain { key_pem, chain_pem },
            key: Arc::new(certified),
            not_before,
            not_after,
        })
    }

    /// True from two thirds of the validity on, and before it: one made while the clock was ahead is refused by
    /// everybody until that time comes.
    #[must_use]
    pub fn renewal_due(&self, now: Timestamp) -> bool {
        now.as_second() < self.not_before
            || now.as_second() >= self.not_before + (self.not_after - self.not_before) / 3 * 2
    }
}

/// All certificates of a PEM text.
pub(crate) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(list) if list.is_empty() => Err(Error::invalid("certificate", "the text holds none")),
        Ok(list) => Ok(list),
        Err(e) => Err(Error::invalid("certificate", e)),
    }
}

/// Takes a file of one key and a chain apart.
fn split(text: &str) -> Result<(String, String), Error> {
    const END: &str = "-----END PRIVATE KEY-----\n";
    let at = text
        .find(END)
        .ok_or_else(|| Error::invalid("private key", "the file holds none"))?
        + END.len();
    Ok((text[..at].to_owned(), text[at..].to_owned()))
}

impl LiveCertificate {
    /// Reads the file; `None` when it is not there.
    ///
    /// # Errors
    /// When it is unreadable or not a key with its certificate.
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let Some(text) = files::read(path)? else {
            return Ok(None);
        };
        let loaded =
            Loaded::parse(&text).map_err(|e| Error::invalid(path.display().to_string(), e))?;
        Ok(Some(Self {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(loaded),
        }))
    }

    /// Writes a new key and chain to a file and uses it.
    ///
    /// # Errors
    /// When it cannot be written or key and certificate do not belong together.
    pub fn store(path: &Path, pem: &KeyAndChain) -> Result<Self, Error> {
        let loaded = Self::write(path, pem)?;
        Ok(Self {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(loaded),
        })
    }

    /// Replaces key and chain, in the file first.
    ///
    /// # Errors
    /// As [`Self::store`]; the old certificate then stays in use.
    pub fn replace(&self, pem: &KeyAndChain) -> Result<(), Error> {
        let loaded = Self::write(&self.path, pem)?;
        self.current.store(Arc::new(loaded));
        Ok(())
    }

    fn write(path: &Path, pem: &KeyAndChain) -> Result<Loaded, Error> {
        let text = format!("{}{}", pem.key_pem, pem.chain_pem);
        let loaded = Loaded::parse(&text)?;
        files::write_secret(path, text.as_bytes())?;
        Ok(loaded)
    }

    /// What is in use now.
    #[must_use]
    pub fn current(&self) -> Arc<Loaded> {
        self.current.load_full()
    }
}

impl ResolvesServerCert for LiveCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }
}

impl ResolvesClientCert for LiveCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
