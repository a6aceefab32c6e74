//! Over a socket: TLS, both HTTP versions, draining.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;

struct Running {
    address: SocketAddr,
    certificate: rustls::pki_types::CertificateDer<'static>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn run(api: ApiServer) -> Running {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let token = stop.clone();
    let task = tokio::spawn(async move { api.serve(listener, Arc::new(tls), token).await });
    Running {
        address,
        certificate,
        stop,
        task,
    }
}

async fn dial(
    running: &Running,
    alpn: &[u8],
) -> TokioIo<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(running.certificate.clone()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let socket = TcpStream::connect(running.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TokioIo::new(
        tokio_rustls::TlsConnector::from(Arc::new(tls))
            .connect(name, socket)
            .await
            .unwrap(),
    )
}

async fn http1(running: &Running) -> SendRequest<Full<bytes::Bytes>> {
    let io = dial(running, b"http/1.1").await;
    let (client, driver) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(driver);
    client
}

fn request(path: &str) -> Request<Full<bytes::Bytes>> {
    Request::get(path)
        .header("host", "localhost")
        .body(Full::default())
        .unwrap()
}

#[tokio::test]
async fn both_http_versions_are_served_over_tls() {
    let h = Harness::new();
    let running = run(h.api.clone()).await;
    let mut one = http1(&running).await;
    assert_eq!(
        one.send_request(request("/readyz")).await.unwrap().status(),
        200
    );
    let unauthorized = Request::get(PODS)
        .header("host", "localhost")
        .header("authorization", "Bearer x");
    let answer = one
        .send_request(unauthorized.body(Full::default()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status(), 401);
    let io = dial(&running, b"h2").await;
    let (mut two, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tokio::spawn(driver);
    let answer = two
        .send_request(request("https://localhost/version"))
        .await
        .unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap()["major"],
        "1"
    );
    running.stop.cancel();
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_watch_line_arrives_at_once_and_a_drain_ends_it() {
    let h = Harness::new();
    let running = run(h.api.clone()).await;
    let mut client = http1(&running).await;
    let answer = client
        .send_request(request(&format!("{MAPS}?watch=true")))
        .await
        .unwrap();
    assert_eq!(
        answer.status(),
        200,
        "the head comes before the first event"
    );
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let mut body = answer.into_body();
    let line = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&line).unwrap()["type"],
        "ADDED"
    );
    running.stop.cancel();
    assert!(
        tokio::time::timeout(Duration::from_secs(5), body.frame())
            .await
            .unwrap()
            .is_none()
    );
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_takes_leave_with_an_answer() {
    let h = Harness::new();
    let running = run(h.api.clone()).await;
    let mut client = http1(&running).await;
    let first = client.send_request(request("/livez")).await.unwrap();
    assert!(first.headers().get("connection").is_none());
    first.into_body().collect().await.unwrap();
    running.stop.cancel();
    client.ready().await.unwrap();
    let last = client.send_request(request("/livez")).await.unwrap();
    assert_eq!(last.headers()["connection"], "close");
    running.task.await.unwrap().unwrap();
}
