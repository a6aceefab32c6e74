//! The first contact of a machine with a cluster: one HTTPS request to any of its servers, made with
//! nothing but a join token.

use std::sync::Arc;
use std::time::Duration;

use balsa_identity::{JoinRequest, JoinResponse, JoinToken, tls};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Path of the join request.
pub const PATH: &str = "/balsa/v1/join";
/// Port of the API where a server is named without one.
pub const DEFAULT_PORT: u16 = 6443;
/// One server may take this long to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer in bytes.
const LARGEST: usize = 1024 * 1024;

/// Why no server let the machine in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A server was reached and said no; asking another one is of no use.
    #[error("the cluster refused this machine: {0}")]
    Refused(String),
    /// No server could be asked; one line per server.
    #[error("no server could be reached:\n{0}")]
    Unreachable(String),
}

/// Asks the servers in turn (`host` or `host:port`) until one answers.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    servers: &[String],
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<JoinResponse, JoinError> {
    let mut failures = Vec::new();
    for server in servers {
        match tokio::time::timeout(DEADLINE, ask(server, token, request)).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(Failure::Refused(why))) => return Err(JoinError::Refused(why)),
            Ok(Err(Failure::Other(why))) => failures.push(format!("  {server}: {why}")),
            Err(_) => failures.push(format!(
                "  {server}: no answer within {} s",
                DEADLINE.as_secs()
            )),
        }
    }
    Err(JoinError::Unreachable(failures.join("\n")))
}

enum Failure {
    Refused(String),
    Other(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.to_string())
    }
}

/// Host and port of a server as people write it; the port is [`DEFAULT_PORT`] if none is given.
#[must_use]
pub fn address(server: &str) -> String {
    let bare_v6 = server.parse::<std::net::Ipv6Addr>().is_ok();
    if bare_v6 {
        format!("[{server}]:{DEFAULT_PORT}")
    } else if server
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    {
        server.to_owned()
    } else {
        format!("{server}:{DEFAULT_PORT}")
    }
}

async fn ask(
    server: &str,
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<JoinResponse, Failure> {
    // The name is not checked on first contact: the token names the CA.
    let config = tls::first_contact(&token.ca_sha256, &[b"http/1.1"])?;
    post(server, config, PATH, request).await
}

/// Sends JSON to a server's API port with the given TLS configuration and reads the JSON answer.
///
/// # Errors
/// See [`JoinError`].
pub async fn post_json<Q, A>(
    server: &str,
    tls: Arc<rustls::ClientConfig>,
    path: &str,
    body: &Q,
) -> Result<A, JoinError>
where
    Q: serde::Serialize + Sync,
    A: serde::de::DeserializeOwned,
{
    match tokio::time::timeout(DEADLINE, post(server, tls, path, body)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Failure::Refused(why))) => Err(JoinError::Refused(why)),
        Ok(Err(Failure::Other(why))) => Err(JoinError::Unreachable(format!("  {server}: {why}"))),
        Err(_) => Err(JoinError::Unreachable(format!(
            "  {server}: no answer within {} s",
            DEADLINE.as_secs()
        ))),
    }
}

async fn post<Q, A>(
    server: &str,
    config: Arc<rustls::ClientConfig>,
    path: &str,
    body: &Q,
) -> Result<A, Failure>
where
    Q: serde::Serialize + Sync,
    A: serde::de::DeserializeOwned,
{
    let address = address(server);
    let tcp = TcpStream::connect(&address).await?;
    let name = rustls_pki_types::ServerName::try_from("kubernetes")?;
    let stream = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| {
            Failure::Other(format!(
                "{error} (if this is another cluster than the token's, get a token from this one)"
            ))
        })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let body = serde_json::to_vec(body)?;
        let request = http::Request::post(path)
            .header(http::header::HOST, &address)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST)
            .collect()
            .await
            .map_err(|error| Failure::Other(error.to_string()))?
            .to_bytes();
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        let text = message(&body);
        if status.is_client_error() {
            Err(Failure::Refused(text))
        } else {
            Err(Failure::Other(text))
        }
    };
    tokio::pin!(connection);
    tokio::select! {
        outcome = exchange => outcome,
        ended = &mut connection => match ended {
            Ok(()) => Err(Failure::Other("the server closed the connection".to_owned())),
            Err(error) => Err(error.into()),
        },
    }
}

/// The `message` of a Status object, or the text itself.
fn message(body: &[u8]) -> String {
    serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|status| status.get("message")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn a_server_without_a_port_gets_the_usual_one() {
        let all = ["h", "h:7000", "192.0.2.1", "fd00::1", "[fd00::1]:7000"].map(address);
        assert_eq!(
            all,
            [
                "h:6443",
                "h:7000",
                "192.0.2.1:6443",
                "[fd00::1]:6443",
                "[fd00::1]:7000"
            ]
        );
    }
}
