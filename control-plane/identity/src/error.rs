//! What can go wrong with keys and certificates.

use std::path::PathBuf;

/// An error of this crate; the text says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder already holds a cluster's keys.
    #[error("{0} already holds the keys of a cluster; use another data folder or remove this one")]
    Exists(PathBuf),
    /// The folder holds no keys.
    #[error("{0} holds no cluster keys; create a cluster or join one first")]
    Missing(PathBuf),
    /// A file or message is not what it should be.
    #[error("{what}: {why}")]
    Invalid {
        /// File or message.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate or key could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A TLS configuration could not be made.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A join token or a request made with it is refused.
    #[error("{0}")]
    Refused(String),
    /// The system's random source or a cryptographic operation failed.
    #[error("cryptographic operation failed ({0})")]
    Crypto(&'static str),
}

impl Error {
    /// Shorthand for [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Invalid {
            what: what.into(),
            why: why.to_string(),
        }
    }
}
