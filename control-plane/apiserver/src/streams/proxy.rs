//! `proxy` of pods, services and nodes: HTTP to an address of the cluster network, through a node.

use std::io;

use balsa_api::status::Status;
use balsa_link::protocol::StreamRequest;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE,
    HOST, LOCATION, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::TokioIo;
use rand::Rng as _;
use serde_json::Value;
use tracing::Instrument as _;

use super::node_proxy::{self, Door};
use super::{log, open, proxy_html, proxy_tls, upgrade};
use crate::authn::impersonate::is_impersonation;
use crate::seam::{
    ConnectContext, NodeStream, NodeStreams, ObjectReader, RequestBody, ResponseBody,
};

/// Headers that concern one connection only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "proxy-connection",
];
/// Nodes tried for an address, the one it is on first.
const MAX_NODES: usize = 3;

/// Serves proxy requests.
pub(super) struct Proxy<'a> {
    pub(super) reader: &'a dyn ObjectReader,
    pub(super) nodes: &'a dyn NodeStreams,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Location {
    address: String,
    tls: bool,
    node: Option<String>,
}

/// `[scheme:]name[:port]` as it stands in paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name<'a> {
    tls: bool,
    pub(super) name: &'a str,
    pub(super) port: &'a str,
}

pub(super) fn parse_name(text: &str) -> Result<Name<'_>, Status> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => ("?", "", ""),
    };
    if !["", "http", "https"].contains(&scheme) || name.is_empty() {
        return Err(Status::bad_request(format!(
            "invalid proxy request {text:?}, must be [scheme:]name[:port]"
        )));
    }
    Ok(Name {
        tls: scheme == "https",
        name,
        port,
    })
}

fn unavailable(why: String) -> Status {
    Status::new(503, "ServiceUnavailable", why)
}

pub(super) fn join_address(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

fn pod_location(pod: &Value, wanted: Name<'_>) -> Result<Location, Status> {
    let ip = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty());
    let ip = ip.ok_or_else(|| {
        unavailable(format!(
            "pod {:?} does not have an IP address yet",
            wanted.name
        ))
    })?;
    let containers = || pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers().flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let port = match wanted.port {
        "" => ports
            .next()
            .and_then(|p| p["containerPort"].as_u64())
            .unwrap_or(if wanted.tls { 443 } else { 80 }),
        text => text
            .parse()
            .map_err(|_| Status::bad_request(format!("invalid port {text:?} in proxy request")))?,
    };
    let port = u16::try_from(port)
        .map_err(|_| Status::bad_request(format!("invalid port {port} in proxy request")))?;
    let node = pod["spec"]["nodeName"].as_str().map(str::to_owned);
    Ok(Location {
        address: join_address(ip, port),
        tls: wanted.tls,
        node,
    })
}

/// The name of a service's port that is given by name or number.
fn port_name(service: &Value, wanted: Name<'_>) -> Result<String, Status> {
    let Ok(number) = wanted.port.parse::<u64>() else {
        return Ok(wanted.port.to_owned());
    };
    service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["port"].as_u64() == Some(number))
        .map(|p| p["name"].as_str().unwrap_or_default().to_owned())
        .ok_or_else(|| {
            unavailable(format!(
                "no service port {number} found for service {:?}",
                wanted.name
            ))
        })
}

/// All ready endpoints of a service's port.
fn endpoints(slices: &[std::sync::Arc<Value>], port: &str, tls: bool) -> Vec<Location> {
    let mut found = Vec::new();
    for slice in slices {
        let ports = slice["ports"].as_array().map_or(&[][..], Vec::as_slice);
        let matching = ports.iter().filter(|p| {
            p["name"].as_str().unwrap_or_default() == port || (port.is_empty() && ports.len() == 1)
        });
        for number in matching.filter_map(|p| u16::try_from(p["port"].as_u64()?).ok()) {
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                let Some(ip) = endpoint["addresses"][0].as_str() else {
                    continue;
                };
                if endpoint["conditions"]["ready"] == false {
                    continue;
                }
                let node = endpoint["nodeName"].as_str().map(str::to_owned);
                found.push(Location {
                    address: join_address(ip, number),
                    tls,
                    node,
                });
            }
        }
    }
    found
}

impl Proxy<'_> {
    pub(super) async fn serve(
        &self,
        context: &ConnectContext,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let name = parse_name(&context.name)?;
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        // Clients that upgrade follow no redirect.
        if context.tail.is_empty() && reads && !request.headers().contains_key(UPGRADE) {
            return redirect_to_root(request.uri());
        }
        if context.resource == "nodes" {
            return self.node(name, context, request).await;
        }
        let location = self.locate(context, name)?;
        self.forward(context, location, request).await
    }

    fn locate(&self, context: &ConnectContext, name: Name<'_>) -> Result<Location, Status> {
        let namespace = &context.namespace;
        let object = self
            .reader
            .get("", &context.resource, namespace, name.name)
            .ok_or_else(|| Status::not_found("", &context.resource, name.name))?;
        if context.resource == "pods" {
            return pod_location(&object, name);
        }
        self.endpoint(namespace, &object, name)
    }

    /// A ready endpoint of a service's port.
    fn endpoint(
        &self,
        namespace: &str,
        service: &Value,
        name: Name<'_>,
    ) -> Result<Location, Status> {
        let port = port_name(service, name)?;
        let mut slices = self
            .reader
            .list("discovery.k8s.io", "endpointslices", Some(namespace));
        slices.retain(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == name.name);
        let mut all = endpoints(&slices, &port, name.tls);
        if all.is_empty() {
            return Err(unavailable(format!(
                "no endpoints available for service {:?}",
                name.name
            )));
        }
        let chosen = rand::rng().random_range(0..all.len());
        Ok(all.swap_remove(chosen))
    }

    /// Opens a connection to a ready endpoint of a service's port.
    pub(super) async fn dial_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<NodeStream, Status> {
        let service = self
            .reader
            .get("", "services", namespace, name)
            .ok_or_else(|| Status::not_found("", "services", name))?;
        let port = port.to_string();
        let wanted = Name {
            tls: true,
            name,
            port: &port,
        };
        self.dial(&self.endpoint(namespace, &service, wanted)?)
            .await
    }

    /// The node's own endpoints, or another port of its address.
    async fn node(
        &self,
        wanted: Name<'_>,
        context: &ConnectContext,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let name = wanted.name;
        let Some(node) = self.reader.get("", "nodes", "", name) else {
            return Err(Status::not_found("", "nodes", name));
        };
        if let Door::Address(address) = node_proxy::door(&node, name, wanted.port)? {
            let location = Location {
                address,
                tls: wanted.tls,
                node: Some(name.to_owned()),
            };
            return self.forward(context, location, request).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Status::new(
                405,
                "MethodNotAllowed",
                "a node's endpoints can only be read",
            ));
        }
        let path = target_uri(&context.tail, request.uri())?.to_string();
        let stream = open(self.nodes, name, StreamRequest::Http { path }).await?;
        let mut response = Response::new(log::body_of(stream.reader));
        *response.status_mut() =
            StatusCode::from_u16(stream.code).unwrap_or(StatusCode::BAD_GATEWAY);
        Ok(response)
    }

    /// Opens a connection to an address, from the node it is on or from another.
    async fn dial(&self, location: &Location) -> Result<NodeStream, Status> {
        let others = self.reader.list("", "nodes", None);
        let others = others.iter().filter_map(|n| n["metadata"]["name"].as_str());
        let preferred = location.node.as_deref();
        let candidates = preferred
            .into_iter()
            .chain(others.filter(|n| Some(*n) != preferred));
        let mut last = unavailable("no node is there to reach it from".into());
        for node in candidates.take(MAX_NODES) {
            let request = StreamRequest::Dial {
                address: location.address.clone(),
            };
            match open(self.nodes, node, request).await {
                Ok(stream) => return Ok(stream),
                Err(status) => last = status,
            }
        }
        Err(unavailable(format!(
            "error trying to reach service: {}",
            last.message
        )))
    }

    async fn forward(
        &self,
        context: &ConnectContext,
        location: Location,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let stream = self.dial(&location).await?;
        let io = tokio::io::join(stream.reader, stream.writer);
        if location.tls {
            let io = proxy_tls::connect(io, &location.address)
                .await
                .map_err(|e| unavailable(format!("error trying to reach service: {e}")))?;
            return exchange(io, context, &location, request).await;
        }
        exchange(io, context, &location, request).await
    }
}

/// A browser that asks for the proxy without a path would resolve links wrongly.
fn redirect_to_root(uri: &Uri) -> Result<Response<ResponseBody>, Status> {
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let to = HeaderValue::try_from(format!("{}/{query}", uri.path())).map_err(Status::internal)?;
    let mut response = Response::new(upgrade::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, to);
    Ok(response)
}

/// The path and query that the target sees.
fn target_uri(tail: &str, original: &Uri) -> Result<Uri, Status> {
    let path = if tail.is_empty() { "/" } else { tail };
    let query = original
        .query()
        .map(|q| format!("?{q}"))
        .unwrap_or_default();
    let text = format!("{path}{query}");
    PathAndQuery::try_from(text)
        .map(Uri::from)
        .map_err(|e| Status::bad_request(format!("invalid path: {e}")))
}

/// Sends the request over a connection of its own and passes the answer on.
async fn exchange<T>(
    io: T,
    context: &ConnectContext,
    location: &Location,
    mut request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, Status>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let failed = |e: hyper::Error| unavailable(format!("error trying to reach service: {e}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, RequestBody>(TokioIo::new(io))
            .await
            .map_err(failed)?;
    let span = tracing::debug_span!("proxy connection", address = %location.address);
    // Ends with the response: the sender is dropped then, or the body is.
    tokio::spawn(
        async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection failed");
            }
        }
        .instrument(span),
    );
    let base = request
        .uri()
        .path()
        .strip_suffix(context.tail.as_str())
        .unwrap_or_default()
        .to_owned();
    let client_upgrade = hyper::upgrade::on(&mut request);
    let mut response = sender
        .send_request(outgoing(request, context, location)?)
        .await
        .map_err(failed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let node_upgrade = hyper::upgrade::on(&mut response);
        tokio::spawn(splice(client_upgrade, node_upgrade).in_current_span());
        return Ok(response.map(|_| upgrade::empty()));
    }
    let headers = response.headers_mut();
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    rewrite_location(headers, &base);
    if !is_plain_html(headers) {
        return Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()));
    }
    headers.remove(CONTENT_LENGTH);
    Ok(response.map(|body| rewrite_links(body, &base)))
}

fn is_plain_html(headers: &HeaderMap) -> bool {
    let html = headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split(';').next())
        .is_some_and(|t| t.trim().eq_ignore_ascii_case("text/html"));
    html && !headers.contains_key(CONTENT_ENCODING)
}

/// A page whose links stay behind the proxy.
fn rewrite_links(body: hyper::body::Incoming, base: &str) -> ResponseBody {
    let rewriter = Some(proxy_html::Rewriter::new(base));
    let pieces = futures::stream::unfold((body, rewriter), |(mut body, mut rewriter)| async move {
        let state = rewriter.as_mut()?;
        let piece = match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Ok(state.feed(&data)),
                // Trailers; a page has none that matter.
                Err(_) => Ok(Vec::new()),
            },
            Some(Err(error)) => Err(error.into()),
            None => rewriter.take().map(|mut state| Ok(state.finish()))?,
        };
        Some((
            piece.map(|bytes| Frame::data(Bytes::from(bytes))),
            (body, rewriter),
        ))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// The request as the target gets it: without our credentials, and for its path only.
fn outgoing(
    request: Request<RequestBody>,
    context: &ConnectContext,
    location: &Location,
) -> Result<Request<RequestBody>, Status> {
    let (parts, body) = request.into_parts();
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = target_uri(&context.tail, &parts.uri)?;
    let upgrades = parts.headers.contains_key(UPGRADE);
    for (name, value) in &parts.headers {
        let dropped = HOP_BY_HOP.contains(&name.as_str())
            || name == AUTHORIZATION
            || name == HOST
            // A page must be readable here for its links.
            || name == ACCEPT_ENCODING
            || is_impersonation(name);
        if !dropped {
            outgoing.headers_mut().append(name.clone(), value.clone());
        }
    }
    if upgrades {
        outgoing
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let host = HeaderValue::try_from(location.address.as_str()).map_err(Status::internal)?;
    outgoing.headers_mut().insert(HOST, host.clone());
    let original = parts.headers.get(HOST).cloned().unwrap_or(host);
    outgoing
        .headers_mut()
        .insert(HeaderName::from_static("x-forwarded-host"), original);
    Ok(outgoing)
}

/// A redirect within the target stays behind the proxy.
fn rewrite_location(headers: &mut HeaderMap, base: &str) {
    let Some(to) = headers.get(LOCATION).and_then(|v| v.to_str().ok()) else {
        return;
    };
    if to.starts_with('/')
        && !to.starts_with("//")
        && let Ok(value) = HeaderValue::try_from(format!("{base}{to}"))
    {
        headers.insert(LOCATION, value);
    }
}

/// Joins two upgraded connections until both have closed.
pub(crate) async fn splice(client: hyper::upgrade::OnUpgrade, node: hyper::upgrade::OnUpgrade) {
    let both = async {
        let (client, node) = tokio::try_join!(client, node).map_err(io::Error::other)?;
        tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(node)).await
    };
    if let Err(error) = both.await {
        tracing::debug!(%error, "upgraded proxy connection failed");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn names_may_carry_scheme_and_port() {
        let name = |tls, name, port| Name { tls, name, port };
        assert_eq!(parse_name("web").unwrap(), name(false, "web", ""));
        assert_eq!(parse_name("web:http").unwrap(), name(false, "web", "http"));
        assert_eq!(
            parse_name("https:web:443").unwrap(),
            name(true, "web", "443")
        );
        assert_eq!(parse_name("http:web:").unwrap(), name(false, "web", ""));
        for bad in ["", "ftp:web:1", "a:b:c:d", "http::80"] {
            parse_name(bad).unwrap_err();
        }
    }

    #[test]
    fn a_pod_is_reached_at_its_first_port() {
        let pod = json!({"spec": {"nodeName": "a1", "containers": [{"name": "x"}, {"ports": [{"containerPort": 8080}]}]},
                         "status": {"podIP": "10.244.1.5"}});
        let at = |text| pod_location(&pod, parse_name(text).unwrap()).map(|l| l.address);
        assert_eq!(at("web").unwrap(), "10.244.1.5:8080");
        assert_eq!(at("web:81").unwrap(), "10.244.1.5:81");
        assert_eq!(at("web:99999").unwrap_err().code, 400);
        assert_eq!(
            pod_location(&json!({}), parse_name("web").unwrap())
                .unwrap_err()
                .code,
            503
        );
    }

    #[test]
    fn only_ready_endpoints_of_the_port_are_taken() {
        let service =
            json!({"spec": {"ports": [{"name": "http", "port": 80}, {"name": "m", "port": 9090}]}});
        let slices = [Arc::new(json!({
            "ports": [{"name": "http", "port": 8080}, {"name": "m", "port": 9091}],
            "endpoints": [{"addresses": ["fd00::1"], "nodeName": "a1"},
                          {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]}))];
        let port = |text| port_name(&service, parse_name(text).unwrap());
        let found = endpoints(&slices, &port("web:80").unwrap(), false);
        assert_eq!(
            found,
            [Location {
                address: "[fd00::1]:8080".into(),
                tls: false,
                node: Some("a1".into())
            }]
        );
        assert_eq!(
            endpoints(&slices, &port("web:m").unwrap(), false)[0].address,
            "[fd00::1]:9091"
        );
        assert!(endpoints(&slices, "", false).is_empty());
        assert_eq!(
            port("web:81").unwrap_err().message,
            "no service port 81 found for service \"web\""
        );
    }

    #[test]
    fn redirects_stay_behind_the_proxy() {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, "/next".parse().unwrap());
        rewrite_location(&mut headers, "/api/v1/namespaces/d/pods/p/proxy");
        assert_eq!(headers[LOCATION], "/api/v1/namespaces/d/pods/p/proxy/next");
        headers.insert(LOCATION, "https://elsewhere/".parse().unwrap());
        rewrite_location(&mut headers, "/x");
        assert_eq!(headers[LOCATION], "https://elsewhere/");
    }
}
