//! A small HTTP client for probes and hooks: one request, one connection, certificates not checked (as
//! upstream: the kubelet can't know who signed a pod's certificate).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Most bytes of a body that are kept.
const MAX_BODY: usize = 10 * 1024;

/// Most redirections that are followed.
const MAX_REDIRECTS: usize = 10;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: String,
    /// Where it sends the client.
    location: Option<String>,
}

/// Makes the request that an `httpGet` describes.
pub(crate) async fn get(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
    timeout: Duration,
) -> Result<Answer, String> {
    let host = action
        .host
        .clone()
        .filter(|host| !host.is_empty())
        .unwrap_or_else(|| pod_ip.to_owned());
    let port = port_of(&action.port, container)?;
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let https = action.scheme.as_deref() == Some("HTTPS");
    let scheme = if https { "https" } else { "http" };
    let url = format!("{scheme}://{}{path}", authority(&host, port));
    let once = async |path: &str| {
        let request = request(action, &host, port, path)?;
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| {
                let address = authority(&host, port);
                format!("dial tcp {address}: connect: {}", go_words(&error))
            })?;
        if https {
            let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
            let tls = tokio_rustls::TlsConnector::from(Arc::new(insecure_tls()?));
            let stream = tls
                .connect(name, stream)
                .await
                .map_err(|error| error.to_string())?;
            exchange(stream, request).await
        } else {
            exchange(stream, request).await
        }
    };
    let work = async {
        let mut path = path.clone();
        let mut answer = once(&path).await?;
        for _ in 0..MAX_REDIRECTS {
            // A redirection to elsewhere says that the server works, and is not followed.
            let next = Some(&answer).filter(|answer| (300..400).contains(&answer.code));
            let next = next.and_then(|answer| answer.location.as_deref());
            let Some(next) = next.and_then(|next| local_path(next, scheme, &host, port)) else {
                break;
            };
            path = next;
            answer = once(&path).await?;
        }
        Ok(answer)
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(answer) => answer.map_err(|error: String| format!("Get \"{url}\": {error}")),
        Err(_) => Err(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

/// Path and query of a redirection that stays at the same server.
fn local_path(location: &str, scheme: &str, host: &str, port: u16) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(location.to_owned());
    }
    let uri: hyper::Uri = location.parse().ok()?;
    let default = if scheme == "https" { 443 } else { 80 };
    let same = uri.scheme_str() == Some(scheme)
        && uri.host().map(|host| host.trim_matches(['[', ']'])) == Some(host)
        && uri.port_u16().unwrap_or(default) == port;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    same.then(|| path.to_owned())
}

/// An operating system's error in the words that Go has for it.
pub(crate) fn go_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        _ => error.to_string(),
    }
}

pub(crate) fn authority(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

/// A port by number, or by its name in the container.
pub(crate) fn port_of(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_ref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => name
                    .parse()
                    .map_err(|_| format!("couldn't find port: {name:?}"))?,
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

fn request(
    action: &HTTPGetAction,
    host: &str,
    port: u16,
    path: &str,
) -> Result<Request<Empty<Bytes>>, String> {
    let mut builder = Request::get(path);
    let mut named_host = false;
    let mut named_agent = false;
    for header in action.http_headers.iter().flatten() {
        named_host |= header.name.eq_ignore_ascii_case("host");
        named_agent |= header.name.eq_ignore_ascii_case("user-agent");
        builder = builder.header(header.name.as_str(), header.value.as_str());
    }
    if !named_host {
        builder = builder.header("Host", authority(host, port));
    }
    if !named_agent {
        builder = builder.header("User-Agent", "kube-probe/1.35");
    }
    let builder = builder
        .header("Accept", "*/*")
        .header("Connection", "close");
    builder
        .body(Empty::new())
        .map_err(|error| error.to_string())
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connection.map_err(|error| error.to_string())?;
    let talk = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let code = response.status().as_u16();
        let location = response.headers().get(hyper::header::LOCATION);
        let location = location
            .and_then(|location| location.to_str().ok())
            .map(str::to_owned);
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let data = frame.into_data().unwrap_or_default();
            let room = MAX_BODY.saturating_sub(bytes.len());
            bytes.extend_from_slice(&data[..data.len().min(room)]);
            if bytes.len() >= MAX_BODY {
                break;
            }
        }
        Ok(Answer {
            code,
            body: String::from_utf8_lossy(&bytes).into_owned(),
            location,
        })
    };
    // The connection is driven beside the exchange and dropped with it.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = talk => answer,
        () = drive => Err("connection closed".to_owned()),
    }
}

fn insecure_tls() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider
        .signature_verification_algorithms
        .supported_schemes();
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?.dangerous();
    Ok(builder
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(schemes)))
        .with_no_client_auth())
}

/// Takes every certificate: a probe asks whether something answers, not who.
#[derive(Debug)]
struct AnyCertificate(Vec<rustls::SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_with_its_code_and_body() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 1024];
            let length = stream.read(&mut buffer).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy")
                .await
                .unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        let action = HTTPGetAction {
            path: Some("health".to_owned()),
            port: IntOrString::String("web".to_owned()),
            ..HTTPGetAction::default()
        };
        let json =
            serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]});
        let container: Container = serde_json::from_value(json).unwrap();
        let answer = get(&action, &container, "127.0.0.1", Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!((answer.code, answer.body.as_str()), (503, "busy"));
        assert!(
            server
                .await
                .unwrap()
                .starts_with("GET /health HTTP/1.1\r\n")
        );
    }

    #[test]
    fn only_redirections_within_the_server_are_followed() {
        let local = |location| local_path(location, "http", "10.0.0.1", 80);
        assert_eq!(local("/healthz?x=1").as_deref(), Some("/healthz?x=1"));
        assert_eq!(local("http://10.0.0.1/a").as_deref(), Some("/a"));
        for elsewhere in [
            "http://10.0.0.2/a",
            "https://10.0.0.1/a",
            "http://10.0.0.1:81/a",
            "//x/a",
        ] {
            assert_eq!(local(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn ports_are_found_by_number_or_name() {
        let container = Container::default();
        assert_eq!(port_of(&IntOrString::Int(80), &container), Ok(80));
        assert!(port_of(&IntOrString::Int(0), &container).is_err());
        assert!(port_of(&IntOrString::String("x".to_owned()), &container).is_err());
    }
}
