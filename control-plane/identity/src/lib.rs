//! The cluster's CA, certificates, join tokens, service account token keys and kubeconfig files.
//!
//! A server holds an [`Identity`]: the CA key and everything that derives from it. An agent holds a
//! [`NodeIdentity`]: one client certificate and the CA certificate. A [`JoinToken`] carries a machine from
//! holding nothing to holding one of the two.

pub mod ca;
pub mod csr;
pub mod error;
pub mod files;
pub mod join;
pub mod jwt;
pub mod kubeconfig;
pub mod live;
pub mod node;
pub mod peer;
pub mod server;
pub mod tls;
pub mod token;

pub use ca::CertificateAuthority;
pub use error::Error;
pub use join::{Bundle, JoinRequest, JoinResponse};
pub use jwt::{Claims, ServiceAccountKeys, TokenError};
pub use kubeconfig::Kubeconfig;
pub use node::{NodeIdentity, PendingNode};
pub use peer::PeerIdentity;
pub use server::{Identity, ServerNames};
pub use tls::{LinkTls, RaftTls};
pub use token::{JoinRole, JoinToken, TokenRecord};

/// Group of client certificates with all rights (`kubernetes-admin`).
pub const GROUP_MASTERS: &str = "system:masters";
/// Group of node agents.
pub const GROUP_NODES: &str = "system:nodes";
/// Common name of the certificate that servers show to aggregated API servers.
pub const FRONT_PROXY_USER: &str = "front-proxy-client";
/// Group of the servers among themselves (Raft).
pub const GROUP_SERVERS: &str = "system:balsa:servers";
/// User name prefix of node agents; the node's name follows.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// Name that every server's Raft certificate carries, so that a server may change its address.
pub const RAFT_SERVER_NAME: &str = "raft.balsa.internal";
/// Name that every server's node-link certificate carries, for the same reason.
pub const LINK_SERVER_NAME: &str = "link.balsa.internal";
/// ALPN of the node link.
pub const LINK_ALPN: &[u8] = b"balsa-link/1";

#[cfg(test)]
mod tests;
