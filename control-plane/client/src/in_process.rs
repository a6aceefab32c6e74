//! A client of the API server in the same process.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use kube::client::Body;
use tower::{BoxError, Service, ServiceExt};

/// A client over a tower service: no socket, no TLS, the same bytes. `prepare` puts into each request's
/// extensions who is calling and, for leader-only work, the fencing term. `agent` is its User-Agent, whose part before
/// the slash owns the fields that it writes.
///
/// Must be called inside a tokio runtime.
pub fn in_process<S, B, F>(service: S, agent: &'static str, prepare: F) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    F: Fn(&mut http::Extensions) + Send + 'static,
{
    let service = service.map_request(move |mut request: Request<Body>| {
        request
            .headers_mut()
            .insert(header::USER_AGENT, HeaderValue::from_static(agent));
        prepare(request.extensions_mut());
        request
    });
    kube::Client::new(service, "default")
}
