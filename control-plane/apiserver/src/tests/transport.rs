//! Over a socket: TLS, both HTTP versions, draining.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;

struct Running {
    address: SocketAddr,
    certificate: rustls::pki_types::CertificateDer<'static>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// Starts what serves a listener, with a certificate of its own.
async fn start<F>(
    serve: impl FnOnce(TcpListener, Arc<rustls::ServerConfig>, CancellationToken) -> F,
) -> Running
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
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
    let task = tokio::spawn(serve(listener, Arc::new(tls), stop.clone()));
    Running {
        address,
        certificate,
        stop,
        task,
    }
}

async fn run(api: ApiServer) -> Running {
    start(|listener, tls, stop| async move { api.serve(listener, tls, stop).await }).await
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

async fn http2(
    io: TokioIo<tokio_rustls::client::TlsStream<TcpStream>>,
) -> hyper::client::conn::http2::SendRequest<Full<bytes::Bytes>> {
    let (client, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
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
    let mut two = http2(dial(&running, b"h2").await).await;
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

/// Answers after a moment, and counts what it began.
#[derive(Default)]
struct Slow(AtomicUsize);

impl balsa_http::Service for Slow {
    fn answer(
        &self,
        request: Request<crate::seam::RequestBody>,
        _: Arc<Peer>,
    ) -> BoxFuture<'static, Response<ResponseBody>> {
        let count = self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            tokio::time::sleep(Duration::from_millis(count as u64 % 7)).await;
            Response::new(full(body))
        })
    }

    fn draining(&self) {}
}

/// Sends one request after the other until the connection takes no more; how many were answered.
async fn keep_asking(
    mut client: hyper::client::conn::http2::SendRequest<Full<bytes::Bytes>>,
) -> usize {
    let sent = bytes::Bytes::from(vec![b'x'; 40_000]);
    let mut answered = 0;
    while client.ready().await.is_ok() {
        let request = Request::post("https://localhost/")
            .body(Full::new(sent.clone()))
            .unwrap();
        // A request behind the last that GOAWAY names was never begun.
        let Ok(answer) = client.send_request(request).await else {
            break;
        };
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), sent);
        answered += 1;
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_a_stopping_server_took_over_http2_is_answered() {
    let slow = Arc::new(Slow::default());
    let service = Arc::clone(&slow) as Arc<dyn balsa_http::Service>;
    let drain = Duration::from_secs(10);
    let running =
        start(|listener, tls, stop| balsa_http::serve(service, listener, tls, drain, stop)).await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = http2(dial(&running, b"h2").await).await;
        for _ in 0..32 {
            asking.spawn(keep_asking(client.clone()));
        }
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    running.stop.cancel();
    let answered: usize = asking.join_all().await.into_iter().sum();
    assert_eq!(answered, slow.0.load(Ordering::Relaxed));
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_has_not_spoken_yet_is_still_answered_when_the_server_stops() {
    let h = Harness::new();
    let running = run(h.api.clone()).await;
    let io = dial(&running, b"h2").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut client = http2(io).await;
    let answer = client.send_request(request("https://localhost/version"));
    assert_eq!(answer.await.unwrap().status(), 200);
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_agrees_on_a_protocol_and_says_nothing_is_sent_away() {
    let h = Harness::new();
    let running = run(h.api.clone()).await;
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let mut io = dial(&running, protocol).await.into_inner();
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::time::pause();
        let mut byte = [0];
        loop {
            let read = io.read(&mut byte);
            let read = tokio::time::timeout(Duration::from_secs(60), read).await;
            // What the server says first of HTTP/2 is its own settings.
            if !matches!(read.expect("the server waits for ever"), Ok(1)) {
                break;
            }
        }
        tokio::time::resume();
    }
}

/// Reads frames, and answers PINGs, until the server ends.
async fn read_to_the_end(io: &mut tokio_rustls::client::TlsStream<TcpStream>) {
    let mut head = [0; 9];
    while io.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        io.read_exact(&mut payload).await.unwrap();
        if (head[3], head[4]) == (6, 0) {
            head[4] = 1;
            io.write_all(&[&head[..], &payload].concat()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_comes_after_the_end_of_a_connection_is_not_answered_with_a_reset() {
    let h = Harness::new();
    let running = run(h.api.clone()).await;
    let mut io = dial(&running, b"h2").await.into_inner();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat();
    io.write_all(&opening).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.stop.cancel();
    read_to_the_end(&mut io).await;
    io.write_all(&settings).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (socket, _) = io.get_mut();
    assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
    drop(io);
    running.task.await.unwrap().unwrap();
}
