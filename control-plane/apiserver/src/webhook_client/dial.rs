//! Connections to webhooks, before TLS.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Place;
use crate::seam::{NodeStreams, ObjectReader};
use crate::streams::dial_service;

/// A connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Opens connections.
#[async_trait]
pub trait Dialer: Send + Sync {
    /// Opens one.
    ///
    /// # Errors
    /// Why not, for people.
    async fn dial(&self, place: &Place) -> Result<Box<dyn Io>, String>;
}

/// Opens them within the cluster.
pub struct ClusterDialer {
    reader: Arc<dyn ObjectReader>,
    nodes: Arc<dyn NodeStreams>,
}

impl ClusterDialer {
    /// Finds Services in a reader and goes through nodes.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>, nodes: Arc<dyn NodeStreams>) -> Self {
        Self { reader, nodes }
    }
}

#[async_trait]
impl Dialer for ClusterDialer {
    async fn dial(&self, place: &Place) -> Result<Box<dyn Io>, String> {
        match place {
            Place::Host { host, port } => direct(host, *port).await,
            Place::Service {
                namespace,
                name,
                port,
            } => {
                let service = self
                    .reader
                    .get("", "services", namespace, name)
                    .ok_or_else(|| format!("service {name:?} not found"))?;
                if service["spec"]["type"] == "ExternalName" {
                    let host = service["spec"]["externalName"].as_str().unwrap_or_default();
                    return direct(host, *port).await;
                }
                let stream = dial_service(&*self.reader, &*self.nodes, namespace, name, *port)
                    .await
                    .map_err(|status| status.message)?;
                Ok(Box::new(tokio::io::join(stream.reader, stream.writer)))
            }
        }
    }
}

async fn direct(host: &str, port: u16) -> Result<Box<dyn Io>, String> {
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|e| format!("dial tcp {host}:{port}: {e}"))?;
    // Reviews are small and waited for.
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    Ok(Box::new(stream))
}
