#![allow(clippy::unwrap_used)]
//! Sessions from the client's bytes to the node's frames, over a real HTTP connection in memory. Here is
//! what they share.

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

mod bodies;
mod forward;
mod remote;

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
