//! A client of the API server in the same process.

use bytes::Bytes;
use http::{Request, Response};
use kube::client::Body;
use tower::{BoxError, Service, ServiceExt};

/// A client over a tower service: no socket, no TLS, the same bytes. `prepare` puts into each request's
/// extensions who is calling and, for leader-only work, the fencing term.
///
/// Must be called inside a tokio runtime.
pub fn in_process<S, B, F>(service: S, prepare: F) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    F: Fn(&mut http::Extensions) + Send + 'static,
{
    let service = service.map_request(move |mut request: Request<Body>| {
        prepare(request.extensions_mut());
        request
    });
    kube::Client::new(service, "default")
}
