#![allow(clippy::unwrap_used)]
//! Sessions from the client's bytes to the node's frames, over a real HTTP connection in memory.

use std::sync::Arc;

use balsa_link::protocol::Channel;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::spdy::{Frame, Headers};
use super::*;
use crate::authz::fake::Objects;

type Behaviour = dyn Fn(StreamRequest, DuplexStream) -> Result<(), Status> + Send + Sync;

/// Nodes that do with the far end of each stream what the test says.
struct Nodes {
    asked: Mutex<Vec<(String, StreamRequest)>>,
    behaviour: Box<Behaviour>,
}

#[async_trait]
impl NodeStreams for Nodes {
    async fn open(&self, node: &str, request: StreamRequest) -> Result<NodeStream, Status> {
        self.asked.lock().push((node.to_owned(), request.clone()));
        let (ours, theirs) = tokio::io::duplex(4096);
        (self.behaviour)(request, theirs)?;
        let (reader, writer) = tokio::io::split(ours);
        Ok(NodeStream {
            code: 200,
            reader: Box::new(reader),
            writer: Box::new(writer),
        })
    }
}

struct World {
    streams: Arc<Streams>,
    nodes: Arc<Nodes>,
}

fn world(
    behaviour: impl Fn(StreamRequest, DuplexStream) -> Result<(), Status> + Send + Sync + 'static,
) -> World {
    let pod = |name: &str, spec: Value| {
        json!({"metadata": {"namespace": "default", "name": name, "uid": "u1"}, "spec": spec,
               "status": {"podIP": "10.244.0.9"}})
    };
    let one = json!([{"name": "main", "ports": [{"containerPort": 8080}]}]);
    let objects = Objects::new()
        .with("", "nodes", json!({"metadata": {"name": "a1"}}))
        .with(
            "",
            "pods",
            pod("web", json!({"nodeName": "a1", "containers": one})),
        )
        .with("", "pods", pod("pending", json!({"containers": one})))
        .with(
            "",
            "pods",
            pod(
                "two",
                json!({"nodeName": "a1", "containers": [{"name": "a"}, {"name": "b"}]}),
            ),
        );
    let nodes = Arc::new(Nodes {
        asked: Mutex::new(Vec::new()),
        behaviour: Box::new(behaviour),
    });
    let streams = Streams::new(
        Arc::new(objects),
        Arc::clone(&nodes) as _,
        CancellationToken::new(),
    );
    World {
        streams: Arc::new(streams),
        nodes,
    }
}

impl World {
    /// A connection to a server whose every request is about one subresource.
    fn dial(&self, pod: &str, subresource: &str, tail: &str) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let context = ConnectContext {
            user: crate::seam::User::default(),
            namespace: "default".into(),
            resource: "pods".into(),
            name: pod.into(),
            subresource: subresource.into(),
            tail: tail.into(),
        };
        let streams = Arc::clone(&self.streams);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (streams, context) = (Arc::clone(&streams), context.clone());
                async move {
                    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                    Ok::<_, std::convert::Infallible>(
                        streams.connect(context, request).await.unwrap_or_else(|s| {
                            let mut response = Response::new(upgrade::full(s.body().to_string()));
                            *response.status_mut() = http::StatusCode::from_u16(s.code).unwrap();
                            response
                        }),
                    )
                }
            });
            let builder = hyper::server::conn::http1::Builder::new();
            builder
                .serve_connection(TokioIo::new(server), service)
                .with_upgrades()
                .await
                .unwrap();
        });
        client
    }

    /// Sends a request head and reads the answer's head.
    async fn ask(
        &self,
        pod: &str,
        subresource: &str,
        method: &str,
        query: &str,
        headers: &str,
    ) -> (DuplexStream, String) {
        let mut connection = self.dial(pod, subresource, "");
        let head = format!("{method} /x?{query} HTTP/1.1\r\nHost: s\r\n{headers}\r\n");
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(connection.read_u8().await.unwrap());
        }
        (connection, String::from_utf8(answer).unwrap())
    }

    /// The Status of a refusal.
    async fn refusal(&self, pod: &str, subresource: &str, query: &str) -> (u16, String) {
        let (mut connection, head) = self.ask(pod, subresource, "POST", query, SPDY_V4).await;
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .to_ascii_lowercase()
            .split("content-length: ")
            .nth(1)
            .unwrap()
            .split('\r')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        (code, body["message"].as_str().unwrap().to_owned())
    }
}

const SPDY_V4: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n\
                       X-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\n";
const SPDY_FORWARD: &str =
    "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n";

fn websocket_head(protocol: &str) -> String {
    format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    )
}

fn exit(code: u8) -> Value {
    json!({"kind": "Status", "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
           "message": format!("command terminated with exit code {code}"),
           "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
}

/// A command that repeats its input (in capitals), tells terminal sizes on stderr, and exits with 7 at the
/// input's end.
fn shouting(_request: StreamRequest, mut far: DuplexStream) -> Result<(), Status> {
    tokio::spawn(async move {
        while let Some((channel, payload)) = frames::read(&mut far).await.unwrap() {
            match channel {
                Channel::STDIN => {
                    frames::write(&mut far, Channel::STDOUT, &payload.to_ascii_uppercase())
                        .await
                        .unwrap()
                }
                Channel::RESIZE => frames::write(&mut far, Channel::STDERR, &payload)
                    .await
                    .unwrap(),
                Channel::CLOSE => {
                    assert_eq!(payload[..], [Channel::STDIN]);
                    break;
                }
                other => panic!("channel {other}"),
            }
        }
        frames::write(&mut far, Channel::STATUS, exit(7).to_string().as_bytes())
            .await
            .unwrap();
    });
    Ok(())
}

const EXEC: &str = "command=sh&command=-c&stdin=true&stdout=true&stderr=true";

#[tokio::test]
async fn exec_over_websocket_carries_input_output_and_exit_code() {
    let world = world(shouting);
    let (connection, head) = world
        .ask(
            "web",
            "exec",
            "GET",
            EXEC,
            &websocket_head("v5.channel.k8s.io"),
        )
        .await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(
        head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") && head.contains("v5.channel.k8s.io"),
        "{head}"
    );
    let (read, write) = tokio::io::split(connection);
    let (mut reader, mut writer) = (
        websocket::Reader::client(read),
        websocket::Writer::client(write),
    );
    writer.binary(&[&[Channel::STDIN], b"hello"]).await.unwrap();
    writer.ping(b"are you there").await.unwrap();
    writer
        .binary(&[&[Channel::CLOSE, Channel::STDIN]])
        .await
        .unwrap();
    let mut output = Vec::new();
    loop {
        match reader.next().await.unwrap() {
            Some(websocket::Message::Binary(bytes)) => output.push(bytes),
            Some(websocket::Message::Close) => break,
            Some(websocket::Message::Pong) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(output[0], Bytes::from_static(b"\x01HELLO"));
    assert_eq!(output[1][0], Channel::STATUS);
    assert_eq!(
        serde_json::from_slice::<Value>(&output[1][1..]).unwrap(),
        exit(7)
    );
    let (node, request) = world.nodes.asked.lock()[0].clone();
    let StreamRequest::Exec {
        target,
        command,
        io,
    } = request
    else {
        panic!("not exec")
    };
    assert_eq!(
        (
            node.as_str(),
            target.container.as_str(),
            target.uid.as_str()
        ),
        ("a1", "main", "u1")
    );
    assert_eq!(command, ["sh", "-c"]);
    assert!(io.stdin && io.stdout && io.stderr && !io.tty);
}

#[tokio::test]
async fn exec_in_base64_is_open_with_an_empty_message() {
    let world = world(shouting);
    let (connection, _) = world
        .ask(
            "web",
            "exec",
            "GET",
            EXEC,
            &websocket_head("v4.base64.channel.k8s.io"),
        )
        .await;
    let (read, write) = tokio::io::split(connection);
    let (mut reader, mut writer) = (
        websocket::Reader::client(read),
        websocket::Writer::client(write),
    );
    assert_eq!(
        reader.next().await.unwrap(),
        Some(websocket::Message::Text("1".into()))
    );
    writer.text(&[b"0aGk="]).await.unwrap();
    assert_eq!(
        reader.next().await.unwrap(),
        Some(websocket::Message::Text("1SEk=".into()))
    );
}

/// The client's side of SPDY.
struct SpdyClient {
    reader: spdy::Reader<tokio::io::ReadHalf<DuplexStream>>,
    writer: spdy::Writer<tokio::io::WriteHalf<DuplexStream>>,
}

impl SpdyClient {
    fn new(connection: DuplexStream) -> Self {
        let (read, write) = tokio::io::split(connection);
        Self {
            reader: spdy::Reader::new(read),
            writer: spdy::Writer::new(write),
        }
    }

    /// Opens a stream and waits until it is accepted.
    async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let headers = Headers(
            headers
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
        );
        self.writer
            .send(&Frame::SynStream {
                stream,
                fin: false,
                headers,
            })
            .await
            .unwrap();
        let reply = self.reader.next().await.unwrap();
        assert!(
            matches!(reply, Some(Frame::SynReply { stream: s, .. }) if s == stream),
            "{reply:?}"
        );
    }

    /// Everything received until a stream is closed.
    async fn read_until_fin(&mut self, stream: u32) -> Vec<(u32, Bytes)> {
        let mut all = Vec::new();
        loop {
            match self.reader.next().await.unwrap() {
                Some(Frame::Data {
                    stream: s,
                    fin,
                    data,
                }) => {
                    if !data.is_empty() {
                        all.push((s, data));
                    }
                    if fin && s == stream {
                        return all;
                    }
                }
                Some(Frame::Ping { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn exec_over_spdy_carries_input_output_sizes_and_exit_code() {
    let world = world(shouting);
    let query = "command=sh&stdin=true&stdout=true&stderr=true";
    let (connection, head) = world.ask("web", "exec", "POST", query, SPDY_V4).await;
    assert!(
        head.starts_with("HTTP/1.1 101")
            && head.contains("x-stream-protocol-version: v4.channel.k8s.io"),
        "{head}"
    );
    let mut client = SpdyClient::new(connection);
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    client
        .writer
        .data(3, Bytes::from_static(b"abc"))
        .await
        .unwrap();
    client.writer.send(&Frame::Ping { id: 1 }).await.unwrap();
    client.writer.fin(3).await.unwrap();
    let output = client.read_until_fin(1).await;
    assert_eq!(output[0], (5, Bytes::from_static(b"ABC")));
    assert_eq!(output[1].0, 1);
    assert_eq!(
        serde_json::from_slice::<Value>(&output[1].1).unwrap(),
        exit(7)
    );
    assert_eq!(
        client.reader.next().await.unwrap(),
        Some(Frame::GoAway {
            last_stream: 7,
            status: 0
        })
    );
}

#[tokio::test]
async fn terminal_sizes_are_told_one_by_one() {
    let world = world(shouting);
    let query = "command=sh&stdin=true&stdout=true&stderr=true&tty=true";
    let (connection, _) = world
        .ask(
            "web",
            "exec",
            "GET",
            query,
            &websocket_head("v5.channel.k8s.io"),
        )
        .await;
    let (read, write) = tokio::io::split(connection);
    let (mut reader, mut writer) = (
        websocket::Reader::client(read),
        websocket::Writer::client(write),
    );
    writer
        .binary(&[
            &[Channel::RESIZE],
            b"{\"Width\":80,\"Height\":24}\n{\"Width\":",
        ])
        .await
        .unwrap();
    writer
        .binary(&[&[Channel::RESIZE], b"90,\"Height\":25}\n"])
        .await
        .unwrap();
    for width in [80, 90] {
        let Some(websocket::Message::Binary(bytes)) = reader.next().await.unwrap() else {
            panic!("no size")
        };
        assert_eq!(
            serde_json::from_slice::<Value>(&bytes[1..]).unwrap()["Width"],
            width
        );
    }
    assert!(
        matches!(world.nodes.asked.lock()[0].1, StreamRequest::Exec { io, .. } if io.tty && !io.stderr)
    );
}

#[tokio::test]
async fn a_lost_node_is_told_as_the_outcome() {
    let world = world(|_, far| {
        drop(far);
        Ok(())
    });
    let (connection, _) = world
        .ask(
            "web",
            "attach",
            "GET",
            "stdout=1",
            &websocket_head("v5.channel.k8s.io"),
        )
        .await;
    let mut reader = websocket::Reader::client(connection);
    let Some(websocket::Message::Binary(bytes)) = reader.next().await.unwrap() else {
        panic!("no outcome")
    };
    let outcome: Value = serde_json::from_slice(&bytes[1..]).unwrap();
    assert_eq!(
        (bytes[0], &outcome["reason"]),
        (Channel::STATUS, &json!("InternalError"))
    );
}

#[tokio::test]
async fn a_command_that_ignores_much_input_still_ends_the_session() {
    let world = world(|_, mut far| {
        tokio::spawn(async move {
            frames::read(&mut far).await.unwrap();
            let success = json!({"status": "Success"}).to_string();
            frames::write(&mut far, Channel::STATUS, success.as_bytes())
                .await
                .unwrap();
        });
        Ok(())
    });
    let (connection, _) = world
        .ask(
            "web",
            "exec",
            "GET",
            EXEC,
            &websocket_head("v5.channel.k8s.io"),
        )
        .await;
    let (read, write) = tokio::io::split(connection);
    let mut writer = websocket::Writer::client(write);
    let flood = tokio::spawn(async move {
        let chunk = vec![b'x'; 32 * 1024];
        while writer.binary(&[&[Channel::STDIN], &chunk]).await.is_ok() {}
    });
    let mut reader = websocket::Reader::client(read);
    let Some(websocket::Message::Binary(bytes)) = reader.next().await.unwrap() else {
        panic!("no outcome")
    };
    assert_eq!(bytes[0], Channel::STATUS);
    assert_eq!(
        reader.next().await.unwrap(),
        Some(websocket::Message::Close)
    );
    drop(reader);
    flood.abort();
}

#[tokio::test]
async fn bad_requests_are_refused_before_the_upgrade_in_known_words() {
    let world = world(|_, _| {
        Err(Status::new(
            503,
            "ServiceUnavailable",
            "node \"a1\" is not connected",
        ))
    });
    for (pod, query, code, words) in [
        ("none", EXEC, 404, "pods \"none\" not found"),
        (
            "pending",
            EXEC,
            400,
            "pod pending does not have a host assigned",
        ),
        (
            "two",
            EXEC,
            400,
            "a container name must be specified for pod two, choose one of: [a b]",
        ),
        (
            "two",
            "container=c&command=x&stdout=1",
            400,
            "container c is not valid for pod two",
        ),
        (
            "web",
            "command=x",
            400,
            "you must specify at least 1 of stdin, stdout, stderr",
        ),
        (
            "web",
            "stdout=true",
            400,
            "you must specify at least one command for the container",
        ),
        ("web", EXEC, 503, "node \"a1\" is not connected"),
    ] {
        assert_eq!(
            world.refusal(pod, "exec", query).await,
            (code, words.to_owned())
        );
    }
    let (_, head) = world.ask("web", "exec", "POST", EXEC, "").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let unknown = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n";
    let (_, head) = world.ask("web", "exec", "POST", EXEC, unknown).await;
    assert!(
        head.starts_with("HTTP/1.1 403")
            && head.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
        "{head}"
    );
}

/// Port 80 repeats what it gets until the end, others refuse.
fn echo_server(request: StreamRequest, far: DuplexStream) -> Result<(), Status> {
    let StreamRequest::PortForward { port, .. } = request else {
        panic!("not a port-forward")
    };
    if port != 80 {
        return Err(Status::new(500, "InternalError", "connection refused"));
    }
    tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(far);
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    Ok(())
}

async fn forward_and_check(mut client: SpdyClient) {
    let pair = |kind: &'static str, port: &'static str, id: &'static str| {
        [("streamtype", kind), ("port", port), ("requestid", id)]
    };
    client.open(1, &pair("error", "80", "0")).await;
    client.writer.fin(1).await.unwrap();
    client.open(3, &pair("data", "80", "0")).await;
    client
        .writer
        .data(3, Bytes::from_static(b"ping"))
        .await
        .unwrap();
    client.writer.fin(3).await.unwrap();
    assert_eq!(
        client.read_until_fin(1).await,
        [(3, Bytes::from_static(b"ping"))]
    );

    client.open(5, &pair("error", "81", "1")).await;
    client.writer.fin(5).await.unwrap();
    client.open(7, &pair("data", "81", "1")).await;
    let told = client.read_until_fin(5).await;
    assert_eq!(
        told,
        [(
            5,
            Bytes::from_static(b"error forwarding port 81 to pod web, uid u1: connection refused")
        )]
    );
}

#[tokio::test]
async fn port_forward_over_spdy_serves_connections_and_tells_errors() {
    let world = world(echo_server);
    let (connection, head) = world
        .ask("web", "portforward", "POST", "", SPDY_FORWARD)
        .await;
    assert!(
        head.starts_with("HTTP/1.1 101")
            && head.contains("x-stream-protocol-version: portforward.k8s.io"),
        "{head}"
    );
    forward_and_check(SpdyClient::new(connection)).await;
}

#[tokio::test]
async fn port_forward_with_spdy_inside_websocket() {
    let world = world(echo_server);
    let (connection, head) = world
        .ask(
            "web",
            "portforward",
            "GET",
            "",
            &websocket_head(portforward::TUNNEL),
        )
        .await;
    assert!(
        head.starts_with("HTTP/1.1 101") && head.contains("SPDY/3.1+portforward.k8s.io"),
        "{head}"
    );
    // The client's tunnel: bytes of the SPDY client to messages and back.
    let (read, write) = tokio::io::split(connection);
    let (mut reader, mut writer) = (
        websocket::Reader::client(read),
        websocket::Writer::client(write),
    );
    let (near, far) = tokio::io::duplex(4096);
    let (mut from_client, mut to_client) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut buffer = [0; 100];
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            writer.binary(&[&buffer[..n]]).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok(Some(websocket::Message::Binary(bytes))) = reader.next().await {
            to_client.write_all(&bytes).await.unwrap();
        }
    });
    forward_and_check(SpdyClient::new(near)).await;
}

#[tokio::test]
async fn a_session_ends_when_the_server_stops() {
    let world = world(shouting);
    let (mut connection, _) = world
        .ask("web", "portforward", "POST", "", SPDY_FORWARD)
        .await;
    world.streams.stop.cancel();
    assert_eq!(connection.read(&mut [0; 1]).await.unwrap(), 0);
}

async fn get(
    world: &World,
    pod: &str,
    subresource: &str,
    tail: &str,
    uri: &str,
    headers: &[(&str, &str)],
) -> (http::response::Parts, Bytes) {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(world.dial(pod, subresource, tail)))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut request = Request::get(uri).header("host", "server");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender
        .send_request(request.body(http_body_util::Empty::<Bytes>::new()).unwrap())
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    (parts, body.collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn a_log_is_plain_text_with_the_options_asked_for() {
    let world = world(|_, mut far| {
        tokio::spawn(async move { far.write_all(b"line\n").await.unwrap() });
        Ok(())
    });
    let (parts, body) = get(
        &world,
        "web",
        "log",
        "",
        "/x?tailLines=5&timestamps=true&limitBytes=9",
        &[],
    )
    .await;
    assert_eq!(
        (
            parts.status.as_u16(),
            &parts.headers["content-type"],
            &body[..]
        ),
        (200, &"text/plain".parse().unwrap(), &b"line\n"[..])
    );
    let asked = world.nodes.asked.lock()[0].1.clone();
    let StreamRequest::Logs { options, .. } = asked else {
        panic!("not logs")
    };
    assert_eq!(
        (
            options.tail_lines,
            options.limit_bytes,
            options.timestamps,
            options.follow
        ),
        (Some(5), Some(9), true, false)
    );

    let (parts, body) = get(&world, "pending", "log", "", "/x", &[]).await;
    assert_eq!((parts.status.as_u16(), body.len()), (200, 0));
    for (query, code) in [
        ("tailLines=-1", 422),
        ("tailLines=x", 400),
        ("sinceSeconds=0", 422),
        ("stream=Both", 422),
        ("container=no", 400),
    ] {
        let (parts, _) = get(&world, "web", "log", "", &format!("/x?{query}"), &[]).await;
        assert_eq!(parts.status.as_u16(), code, "{query}");
    }
}

/// An HTTP server that tells what it was asked.
fn telling(request: StreamRequest, far: DuplexStream) -> Result<(), Status> {
    let StreamRequest::Dial { address } = request else {
        panic!("not a dial")
    };
    tokio::spawn(async move {
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let told = format!(
                "{address} {} auth={}",
                request.uri(),
                request.headers().contains_key("authorization")
            );
            async move { Ok::<_, std::convert::Infallible>(Response::new(upgrade::full(told))) }
        });
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(far), service)
            .await
            .unwrap();
    });
    Ok(())
}

#[tokio::test]
async fn a_pod_behind_the_proxy_gets_its_path_and_no_credentials() {
    let world = world(telling);
    let uri = "/api/v1/namespaces/default/pods/web/proxy/a/b?c=d";
    let (parts, body) = get(
        &world,
        "web",
        "proxy",
        "/a/b",
        uri,
        &[("authorization", "Bearer x")],
    )
    .await;
    assert_eq!(
        (parts.status.as_u16(), &body[..]),
        (200, &b"10.244.0.9:8080 /a/b?c=d auth=false"[..])
    );
    let (parts, _) = get(&world, "web", "proxy", "", "/x/proxy?y", &[]).await;
    assert_eq!(
        (parts.status.as_u16(), &parts.headers["location"]),
        (301, &"/x/proxy/?y".parse().unwrap())
    );
}
