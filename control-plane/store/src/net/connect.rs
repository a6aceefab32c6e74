//! Connections to other members.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::listen::{Conn, Io};
use super::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::config::Tls;

/// Connecting and the TLS handshake together take at most this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection over which nothing comes back for so long is given up.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// A channel that connects when it is first used, and again when it was lost. Must be called on a runtime.
pub(super) fn channel(address: &str, tls: Option<&Tls>) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("{address:?} is no address: {error}"))?
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    let (address, tls) = (address.to_owned(), tls.map(alpn));
    let connector = tower::service_fn(move |_: Uri| {
        let (address, tls) = (address.clone(), tls.clone());
        async move {
            let connecting = connect(&address, tls.as_ref());
            let conn = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
                .await
                .map_err(std::io::Error::from)??;
            Ok::<_, std::io::Error>(TokioIo::new(conn))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// TLS that speaks HTTP/2.
fn alpn(tls: &Tls) -> Tls {
    let mut client = (*tls.client).clone();
    client.alpn_protocols = vec![b"h2".to_vec()];
    Tls {
        client: client.into(),
        ..tls.clone()
    }
}

pub(super) async fn connect(address: &str, tls: Option<&Tls>) -> std::io::Result<Conn> {
    #[cfg(test)]
    if turmoil::in_simulation() {
        let simulated = turmoil::net::TcpStream::connect(address).await?;
        return Ok(Io::Simulated(simulated).into());
    }
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(Io::Plain(tcp).into());
    };
    let name = ServerName::try_from(tls.server_name.clone()).map_err(std::io::Error::other)?;
    let stream = TlsConnector::from(tls.client.clone())
        .connect(name, tcp)
        .await?;
    Ok(Io::Tls(Box::new(stream.into())).into())
}

/// Whether nobody listens at an address any more: its system says so at once when a process has ended. A
/// silent or slow system says nothing, and that means `false`.
pub(super) async fn is_refused(address: &str) -> bool {
    const ANSWER: Duration = Duration::from_millis(100);
    match tokio::time::timeout(ANSWER, connect(address, None)).await {
        Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => false,
    }
}
