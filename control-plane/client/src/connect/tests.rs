//! Over real sockets and TLS, on loopback.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::Timeouts;
use crate::informer::{Informer, InformerOptions};

struct Authority {
    pem: String,
    tls: Arc<rustls::ServerConfig>,
}

/// A certificate for 127.0.0.1 that is its own authority.
fn authority() -> Authority {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "test");
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Authority {
        pem: certificate.pem(),
        tls: Arc::new(tls),
    }
}

/// A server with one ConfigMap, named after it, and watches that stay open.
struct Server {
    address: SocketAddr,
    task: AbortHandle,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Server {
    async fn start(authority: &Authority, name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&authority.tls));
        let connections: Arc<Mutex<Vec<AbortHandle>>> = Arc::default();
        let open = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                let connection = tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else {
                        return;
                    };
                    let service =
                        service_fn(move |_| async move { Ok::<_, Infallible>(watch(name)) });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
                open.lock().push(connection.abort_handle());
            }
        });
        Self {
            address,
            task: task.abort_handle(),
            connections,
        }
    }

    /// As kill -9: the kernel closes its sockets.
    fn kill(&self) {
        self.task.abort();
        self.connections.lock().iter().for_each(AbortHandle::abort);
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

type Lines = StreamBody<futures::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// The state of this server, as a watch from the beginning, which stays open.
fn watch(name: &str) -> Response<Lines> {
    let object = serde_json::json!({"type": "ADDED", "object": {"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "default", "name": name, "uid": name, "resourceVersion": "7"}}});
    let end = serde_json::json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}}}});
    let lines = Bytes::from(format!("{object}\n{end}\n"));
    let first = futures::stream::iter([Ok(Frame::data(lines))]);
    let stream = futures::StreamExt::chain(first, futures::stream::pending());
    Response::new(StreamBody::new(futures::StreamExt::boxed(stream)))
}

fn client(authority: &Authority, servers: Vec<String>) -> Connection {
    connect(ClientConfig {
        servers,
        ca_pem: authority.pem.clone().into_bytes(),
        credentials: Credentials::Anonymous,
        user_agent: "test",
        timeouts: Timeouts::default(),
    })
    .unwrap()
}

/// Waits for an object; the limit is for broken builds.
async fn shows(informer: &Informer<ConfigMap>, name: &str) {
    for _ in 0..2000 {
        if informer.get("default", name).is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never showed {name}");
}

#[tokio::test]
async fn a_watch_moves_to_another_server_when_its_own_is_killed() {
    let authority = authority();
    let (first, second) = (
        Server::start(&authority, "one").await,
        Server::start(&authority, "two").await,
    );
    let connection = client(&authority, vec![first.url()]);
    let stop = CancellationToken::new();
    let api: Api<ConfigMap> = Api::all(connection.client.clone());
    let informer = Informer::start(api, InformerOptions::default(), stop.clone());
    shows(&informer, "one").await;
    // Learned while running.
    connection
        .servers
        .set(&[first.url(), second.url()])
        .unwrap();
    first.kill();
    shows(&informer, "two").await;
    stop.cancel();
}

#[tokio::test]
async fn a_server_that_takes_connections_but_says_nothing_is_left() {
    let authority = authority();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = Server::start(&authority, "two").await;
    let silent_url = format!("https://{}", silent.local_addr().unwrap());
    let connection = client(&authority, vec![silent_url.clone()]);
    connection.servers.set(&[silent_url, second.url()]).unwrap();
    let stop = CancellationToken::new();
    let api: Api<ConfigMap> = Api::all(connection.client.clone());
    let informer = Informer::start(api, InformerOptions::default(), stop.clone());
    shows(&informer, "two").await;
    stop.cancel();
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_trusted() {
    let server = Server::start(&authority(), "one").await;
    let connection = client(&authority(), vec![server.url()]);
    let api: Api<ConfigMap> = Api::all(connection.client.clone());
    let error = api.get("one").await.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
}
