//! How to reach the servers.

use std::path::PathBuf;
use std::time::Duration;

/// Where the servers are and who we are.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Base addresses, for example `https://10.0.0.1:6443`. At least one.
    pub servers: Vec<String>,
    /// CA certificates (PEM) that the servers' certificates must chain to.
    pub ca_pem: Vec<u8>,
    /// Who we are.
    pub credentials: Credentials,
    /// `User-Agent`; what is before the slash owns the fields that are written.
    pub user_agent: &'static str,
    /// Times.
    pub timeouts: Timeouts,
}

/// Proof of identity.
#[derive(Clone)]
pub enum Credentials {
    /// Nobody (`system:anonymous`).
    Anonymous,
    /// A client certificate chain and its key, PEM.
    Certificate {
        /// Chain, own certificate first.
        cert_pem: Vec<u8>,
        /// Private key.
        key_pem: Vec<u8>,
    },
    /// A bearer token.
    Token(String),
    /// A bearer token in a file that others renew; read again when it is a minute old.
    TokenFile(PathBuf),
}

impl std::fmt::Debug for Credentials {
    /// Never prints secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Anonymous => f.write_str("Anonymous"),
            Credentials::Certificate { .. } => f.write_str("Certificate"),
            Credentials::Token(_) => f.write_str("Token"),
            Credentials::TokenFile(path) => write!(f, "TokenFile({})", path.display()),
        }
    }
}

/// Times that decide how soon a dead server is left.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For TCP connect, and again for the TLS handshake.
    pub connect: Duration,
    /// A silent connection is asked this often whether it lives (HTTP/2 ping and TCP keepalive).
    pub ping_interval: Duration,
    /// An unanswered ping ends the connection, and all watches on it, after this.
    pub ping_timeout: Duration,
    /// For the response's headers of a read or of opening a watch, per server.
    pub read: Duration,
    /// For the response's headers of a write.
    pub write: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(1000),
            ping_interval: Duration::from_millis(800),
            ping_timeout: Duration::from_millis(1200),
            read: Duration::from_secs(5),
            write: Duration::from_secs(30),
        }
    }
}
