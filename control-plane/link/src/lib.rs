//! The node link: one QUIC connection with mutual TLS from an agent to each server, and streams opened
//! back over it by the servers.
//!
//! The agent dials, so it needs no open port and may sit behind NAT. Its heartbeats go up a
//! unidirectional stream; servers open bidirectional streams for exec, attach, logs, port-forward,
//! stats and plain TCP to pod addresses. [`protocol`] says what is on the wire.

pub mod agent;
pub mod join;
pub mod protocol;
pub mod server;
mod wire;

#[cfg(test)]
mod tests;

pub use wire::{read_frame, read_message, write_frame, write_message};

/// ALPN of the link.
pub use balsa_identity::LINK_ALPN as ALPN;

/// How long a connection may be silent before both ends call it dead. Heartbeats come every
/// [`HEARTBEAT`], so this is several missed in a row.
pub const IDLE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

/// Time between an agent's heartbeats.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_millis(500);

/// Streams that may be open on one link at a time (200 execs at once and room to spare).
pub const MAX_STREAMS: u32 = 1024;

/// Why a link could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TLS configuration has no TLS 1.3 cipher that QUIC can start with.
    #[error("the node link's TLS configuration does not fit QUIC: {0}")]
    Tls(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// The UDP socket could not be made.
    #[error("cannot open UDP {address} for the node link: {source}")]
    Bind {
        /// What was asked for.
        address: std::net::SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
}

fn transport() -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config.max_concurrent_bidi_streams(MAX_STREAMS.into());
    config.keep_alive_interval(Some(HEARTBEAT * 2));
    config.max_idle_timeout(quinn::IdleTimeout::try_from(IDLE_TIMEOUT).ok());
    config
}
