//! Streaming subresources: exec, attach, port-forward and log of pods, and proxies to pods, services and
//! nodes. See OVERVIEW.md beside this file.

mod frames;
#[cfg(test)]
mod fuzz;
mod log;
pub(crate) mod node_proxy;
mod pod;
mod portforward;
mod portforward_ws;
mod proxy;
mod proxy_html;
pub(crate) mod proxy_tls;
mod query;
mod remote;
mod remote_spdy;
mod remote_ws;
mod spdy;
mod tunnel;
mod upgrade;
pub(crate) mod watch_ws;
mod websocket;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use balsa_api::status::Status;
use balsa_link::protocol::{StreamIo, StreamRequest};
use http::{Method, Request, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::seam::{
    Connect, ConnectContext, NodeStream, NodeStreams, ObjectReader, RequestBody, ResponseBody,
};
pub(crate) use proxy::splice;
use upgrade::Wish;

/// How long a node may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens a connection to a ready endpoint of a service's port, through a node as service proxies do: servers need
/// not be in the cluster's network.
///
/// # Errors
/// 404 for a service that is not there, 503 when it has no ready endpoint or none can be reached.
pub async fn dial_service(
    reader: &dyn ObjectReader,
    nodes: &dyn NodeStreams,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<NodeStream, Status> {
    proxy::Proxy { reader, nodes }
        .dial_service(namespace, name, port)
        .await
}

/// Handles all streaming subresources.
pub struct Streams {
    reader: Arc<dyn ObjectReader>,
    nodes: Arc<dyn NodeStreams>,
    stop: CancellationToken,
}

impl Streams {
    /// Over the objects of a reader and the streams of nodes. `stop` ends all sessions.
    #[must_use]
    pub fn new(
        reader: Arc<dyn ObjectReader>,
        nodes: Arc<dyn NodeStreams>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            reader,
            nodes,
            stop,
        }
    }

    fn pod(&self, context: &ConnectContext) -> Result<Arc<Value>, Status> {
        self.reader
            .get("", "pods", &context.namespace, &context.name)
            .ok_or_else(|| Status::not_found("", "pods", &context.name))
    }

    /// Runs a session on the connection once the 101 is out.
    fn session<F>(
        &self,
        name: &'static str,
        context: &ConnectContext,
        upgrade: OnUpgrade,
        run: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
    ) where
        F: Future<Output = io::Result<()>> + Send,
    {
        let span = tracing::info_span!("stream", kind = name, namespace = %context.namespace,
                                       name = %context.name, user = %context.user.name);
        let stop = self.stop.clone();
        let work = async move {
            let connection = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => return tracing::debug!(%error, "the client left before the upgrade"),
            };
            match stop.run_until_cancelled(run(connection)).await {
                None | Some(Ok(())) => tracing::debug!("session ended"),
                // The client's network or the client's fault; the cluster's operator can do nothing.
                Some(Err(error)) => tracing::debug!(%error, "session failed"),
            }
        };
        tokio::spawn(work.instrument(span));
    }

    async fn remote(
        &self,
        context: &ConnectContext,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let query = query::Query::of(request.uri());
        let io = query.stream_io()?;
        let wish = upgrade::wish(request.headers())?;
        let pod = self.pod(context)?;
        let target = pod::target(&pod, pod::container(&pod, query.first("container"))?);
        let node = pod::assigned_node(&pod)?;
        let exec = context.subresource == "exec";
        let ask = if exec {
            let command = query.all("command");
            if command.is_empty() {
                return Err(Status::bad_request(
                    "you must specify at least one command for the container",
                ));
            }
            StreamRequest::Exec {
                target,
                command,
                io,
            }
        } else {
            StreamRequest::Attach { target, io }
        };
        let name = if exec { "exec" } else { "attach" };
        match wish {
            Wish::WebSocket => {
                let (protocol, response) =
                    upgrade::to_websocket(request.headers(), &remote_ws::PROTOCOLS)?;
                let stream = open(&*self.nodes, node, ask).await?;
                let on_upgrade = hyper::upgrade::on(&mut request);
                self.session(name, context, on_upgrade, move |c| {
                    over_websocket(c, stream, protocol)
                });
                Ok(response)
            }
            Wish::Spdy => {
                let chosen = upgrade::to_spdy(request.headers(), &remote_spdy::PROTOCOLS, Some(""));
                let (protocol, response) = match chosen {
                    Ok(chosen) => chosen,
                    Err(refusal) => return Ok(refusal),
                };
                let stream = open(&*self.nodes, node, ask).await?;
                let on_upgrade = hyper::upgrade::on(&mut request);
                self.session(name, context, on_upgrade, move |c| {
                    over_spdy(c, stream, protocol, io)
                });
                Ok(response)
            }
        }
    }

    /// A session of a pod that is asked for by its node's path: context and request as the pod's subresource has
    /// them.
    fn of_node(
        &self,
        context: &ConnectContext,
        request: Request<RequestBody>,
    ) -> Result<(ConnectContext, Request<RequestBody>), Status> {
        let wanted = proxy::parse_name(&context.name)?;
        let Some(session) = node_proxy::session(&context.tail) else {
            return Err(Status::internal("no session is asked for"));
        };
        let (namespace, name) = session.pod();
        let pod = self.reader.get("", "pods", namespace, name);
        if !pod.is_some_and(|pod| session.is_of(&pod, wanted.name)) {
            return Err(Status::not_found("", "pods", name));
        }
        session.of_pod(context, request)
    }

    /// Whether a request means a session that the node's agent would serve, were it a kubelet.
    fn is_node_session(&self, context: &ConnectContext) -> bool {
        let to_agent = |wanted: proxy::Name<'_>| {
            let node = self.reader.get("", "nodes", "", wanted.name);
            let door = node.map(|node| node_proxy::door(&node, wanted.name, wanted.port));
            matches!(door, Some(Ok(node_proxy::Door::Agent)))
        };
        (context.resource == "nodes" && context.subresource == "proxy")
            && node_proxy::session(&context.tail).is_some()
            && proxy::parse_name(&context.name).is_ok_and(to_agent)
    }

    /// The log as the answer's body, or as messages to a client that asks for a WebSocket.
    async fn log(
        &self,
        context: &ConnectContext,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let pod = self.pod(context)?;
        if !matches!(upgrade::wish(request.headers()), Ok(Wish::WebSocket)) {
            return log::serve(&*self.nodes, &pod, request.uri()).await;
        }
        let (protocol, response) = upgrade::to_websocket(request.headers(), &log::PROTOCOLS)?;
        let stream = log::open_log(&*self.nodes, &pod, request.uri()).await?;
        let on_upgrade = hyper::upgrade::on(&mut request);
        self.session("log", context, on_upgrade, move |connection| {
            log::over_websocket(connection, stream, protocol)
        });
        Ok(response)
    }

    async fn port_forward(
        &self,
        context: &ConnectContext,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let wish = upgrade::wish(request.headers())?;
        let pod = self.pod(context)?;
        let destination = portforward::Destination {
            nodes: Arc::clone(&self.nodes),
            node: pod::assigned_node(&pod)?.to_owned(),
            target: pod::target(&pod, String::new()),
        };
        match wish {
            Wish::WebSocket => {
                let (protocol, response) =
                    upgrade::to_websocket(request.headers(), &portforward_ws::PROTOCOLS)?;
                let ports = if protocol == portforward::TUNNEL {
                    None
                } else {
                    let query = query::Query::of(request.uri());
                    Some(portforward_ws::ports(&query, protocol)?)
                };
                let on_upgrade = hyper::upgrade::on(&mut request);
                if let Some(ports) = ports {
                    self.session("port-forward", context, on_upgrade, move |connection| {
                        let (reader, writer) = tokio::io::split(connection);
                        portforward_ws::serve(reader, writer, protocol, ports, destination)
                    });
                    return Ok(response);
                }
                self.session("port-forward", context, on_upgrade, |connection| {
                    let (reader, writer) = tokio::io::split(connection);
                    tunnel::run(reader, writer, |bytes| {
                        let (reader, writer) = tokio::io::split(bytes);
                        portforward::serve(reader, writer, destination)
                    })
                });
                Ok(response)
            }
            Wish::Spdy => {
                let protocols = [portforward::PROTOCOL];
                let (_, response) =
                    match upgrade::to_spdy(request.headers(), &protocols, Some(protocols[0])) {
                        Ok(chosen) => chosen,
                        Err(refusal) => return Ok(refusal),
                    };
                let on_upgrade = hyper::upgrade::on(&mut request);
                self.session("port-forward", context, on_upgrade, |connection| {
                    let (reader, writer) = tokio::io::split(connection);
                    portforward::serve(reader, writer, destination)
                });
                Ok(response)
            }
        }
    }
}

async fn over_websocket(
    connection: TokioIo<hyper::upgrade::Upgraded>,
    node: NodeStream,
    protocol: &'static str,
) -> io::Result<()> {
    let dialect = remote_ws::Dialect::of(protocol);
    let (reader, writer) = tokio::io::split(connection);
    let (reader, writer) = remote_ws::client(reader, writer, dialect).await?;
    remote::run(reader, writer, node, dialect.status_json).await
}

async fn over_spdy(
    connection: TokioIo<hyper::upgrade::Upgraded>,
    node: NodeStream,
    protocol: &'static str,
    io: StreamIo,
) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(connection);
    let (reader, writer) = remote_spdy::client(reader, writer, io, protocol).await?;
    remote::run(reader, writer, node, protocol.starts_with("v4.")).await
}

/// Opens a stream to a node, within a time.
async fn open(
    nodes: &dyn NodeStreams,
    node: &str,
    request: StreamRequest,
) -> Result<NodeStream, Status> {
    match tokio::time::timeout(OPEN_TIMEOUT, nodes.open(node, request)).await {
        Ok(result) => result,
        Err(_) => {
            let why = format!(
                "node {node:?} did not answer within {} seconds",
                OPEN_TIMEOUT.as_secs()
            );
            Err(Status::new(504, "Timeout", why))
        }
    }
}

#[async_trait]
impl Connect for Streams {
    async fn connect(
        &self,
        context: ConnectContext,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let (context, request) = if self.is_node_session(&context) {
            self.of_node(&context, request)?
        } else {
            (context, request)
        };
        match (context.resource.as_str(), context.subresource.as_str()) {
            ("pods", "exec" | "attach") => self.remote(&context, request).await,
            ("pods", "portforward") => self.port_forward(&context, request).await,
            ("pods", "log") if request.method() == Method::GET => self.log(&context, request).await,
            (_, "proxy") => {
                proxy::Proxy {
                    reader: &*self.reader,
                    nodes: &*self.nodes,
                }
                .serve(&context, request)
                .await
            }
            _ => Err(Status::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )),
        }
    }
}

#[cfg(test)]
mod tests;
