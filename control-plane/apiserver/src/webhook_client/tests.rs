#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{CallError, ClientConfig, Dialer, Io, Place, WebhookClient};

/// What a webhook of a test answers: path and request to status and body; `None` never answers.
pub(crate) type Answers = Arc<dyn Fn(&str, Value) -> Option<(u16, Value)> + Send + Sync>;

/// An HTTPS server on the loopback, with a certificate for some names.
pub(crate) struct Server {
    pub address: SocketAddr,
    pub ca_bundle: String,
    pub connections: Arc<AtomicUsize>,
}

impl Server {
    /// Without HTTP/2 it is an old one, that speaks nothing newer than TLS 1.2 either.
    pub async fn start(names: &[&str], h2: bool, answers: Answers) -> Self {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let version = if h2 {
            &rustls::version::TLS13
        } else {
            &rustls::version::TLS12
        };
        let mut tls = rustls::ServerConfig::builder_with_provider(balsa_identity::tls::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = if h2 { vec![b"h2".to_vec()] } else { Vec::new() };
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let (acceptor, answers) = (acceptor.clone(), Arc::clone(&answers));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request| answer(Arc::clone(&answers), request));
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            ca_bundle: base64::engine::general_purpose::STANDARD.encode(made.cert.pem()),
            connections,
        }
    }

    /// The `clientConfig` of a path.
    pub fn config(&self, path: &str) -> Value {
        json!({"url": format!("https://localhost:{}{path}", self.address.port()),
               "caBundle": self.ca_bundle})
    }
}

async fn answer(
    answers: Answers,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let Some((code, body)) = answers(&path, body) else {
        std::future::pending::<()>().await;
        unreachable!()
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = code.try_into().unwrap();
    Ok(response)
}

/// Leads everything to the loopback.
pub(crate) struct Loopback(pub SocketAddr);

#[async_trait]
impl Dialer for Loopback {
    async fn dial(&self, _: &Place) -> Result<Box<dyn Io>, String> {
        let stream = TcpStream::connect(self.0)
            .await
            .map_err(|e| e.to_string())?;
        Ok(Box::new(stream))
    }
}

fn echo() -> Answers {
    Arc::new(|path, body| match path {
        "/slow" => None,
        "/broken" => Some((500, json!("boom"))),
        path => Some((200, json!({"path": path, "got": body}))),
    })
}

#[tokio::test]
async fn calls_share_connections_over_both_versions_of_http() {
    for h2 in [false, true] {
        let server = Server::start(&["localhost"], h2, echo()).await;
        let client = WebhookClient::over(Arc::new(Loopback(server.address)));
        let config = ClientConfig::from_json(&server.config("/a")).unwrap();
        for i in 0..3 {
            let answer = client
                .call(&config, &json!(i), Duration::from_secs(10))
                .await
                .unwrap();
            assert_eq!(answer, json!({"path": "/a", "got": i}));
        }
        assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_service_is_called_by_its_name_in_the_cluster() {
    let server = Server::start(&["hook.ns.svc"], true, echo()).await;
    let client = WebhookClient::over(Arc::new(Loopback(server.address)));
    let config = json!({"service": {"namespace": "ns", "name": "hook", "path": "p"},
                        "caBundle": server.ca_bundle});
    let config = ClientConfig::from_json(&config).unwrap();
    let one = json!(1);
    let call = client.call(&config, &one, Duration::from_secs(10));
    assert_eq!(call.await.unwrap()["path"], "/p");
    // Another service's name is not in the certificate.
    let other = json!({"service": {"namespace": "ns", "name": "other"},
                       "caBundle": server.ca_bundle});
    let other = ClientConfig::from_json(&other).unwrap();
    let call = client.call(&other, &one, Duration::from_secs(10));
    let error = call.await.unwrap_err().to_string();
    assert!(
        error.contains("x509: certificate is not valid for other.ns.svc"),
        "{error}"
    );
}

#[tokio::test]
async fn failures_read_like_those_of_go() {
    let server = Server::start(&["localhost"], false, echo()).await;
    let client = WebhookClient::over(Arc::new(Loopback(server.address)));
    let port = server.address.port();
    let call = async |path: &str| {
        let config = ClientConfig::from_json(&server.config(path)).unwrap();
        client
            .call(&config, &json!(1), Duration::from_secs(1))
            .await
            .unwrap_err()
    };
    assert_eq!(
        call("/slow").await.to_string(),
        format!(
            "failed to call webhook: Post \"https://localhost:{port}/slow?timeout=1s\": context deadline exceeded"
        )
    );
    assert!(
        matches!(call("/broken").await, CallError::Status(why) if why.contains("an error on the server"))
    );
    let config = json!({"url": format!("https://localhost:{port}/"), "caBundle": ""});
    let config = ClientConfig::from_json(&config).unwrap();
    let unknown = client
        .call(&config, &json!(1), Duration::from_secs(10))
        .await;
    let text = unknown.unwrap_err().to_string();
    assert!(
        text.contains("x509: certificate signed by unknown authority"),
        "{text}"
    );
    for bad in [
        json!({}),
        json!({"url": "http://x/"}),
        json!({"url": "https://x/", "caBundle": "?"}),
    ] {
        assert!(matches!(
            ClientConfig::from_json(&bad),
            Err(CallError::Config(_))
        ));
    }
}
