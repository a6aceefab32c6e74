//! A tower service that sends each request to a server that works.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::Instant;
use tower::{BoxError, Service};

use crate::config::Timeouts;
use crate::servers::Servers;

/// Sends one complete request to one server. The real one is hyper's pooled client; tests fake it.
pub(crate) trait Transport: Send + Sync + 'static {
    /// Response body.
    type Body: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;
    /// The response's headers, or why there are none.
    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Self::Body>, SendError>>;
}

/// Why a request has no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// Nothing was sent: safe to send elsewhere.
    #[error("cannot connect: {0}")]
    Connect(BoxError),
    /// It may have been received and carried out.
    #[error("the connection broke: {0}")]
    Broken(BoxError),
}

/// No server answered.
#[derive(Debug, thiserror::Error)]
#[error("no API server answered: {}", .0.join("; "))]
pub struct Unavailable(pub Vec<String>);

/// Supplies the `Authorization` header.
pub(crate) type Bearer = Arc<dyn Fn() -> Option<HeaderValue> + Send + Sync>;

pub(crate) struct Failover<T> {
    pub(crate) transport: Arc<T>,
    pub(crate) servers: Servers,
    pub(crate) timeouts: Timeouts,
    pub(crate) bearer: Bearer,
    /// `User-Agent`.
    pub(crate) agent: HeaderValue,
}

impl<T> Clone for Failover<T> {
    fn clone(&self) -> Self {
        Self {
            transport: Arc::clone(&self.transport),
            servers: self.servers.clone(),
            timeouts: self.timeouts.clone(),
            bearer: Arc::clone(&self.bearer),
            agent: self.agent.clone(),
        }
    }
}

impl<T: Transport> Service<Request<Body>> for Failover<T> {
    type Response = Response<Guarded<T::Body>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            parts
                .headers
                .entry(header::USER_AGENT)
                .or_insert_with(|| this.agent.clone());
            if let Some(bearer) = (this.bearer)() {
                parts.headers.insert(header::AUTHORIZATION, bearer);
            }
            this.send(parts, body).await
        })
    }
}

enum Attempt<B> {
    Answered(Response<Guarded<B>>),
    TryNext(String),
    GiveUp(BoxError),
}

impl<T: Transport> Failover<T> {
    async fn send(
        &self,
        parts: http::request::Parts,
        body: Bytes,
    ) -> Result<Response<Guarded<T::Body>>, BoxError> {
        let mut problems = Vec::new();
        for authority in self.servers.order(Instant::now()) {
            match self.attempt(&authority, &parts, body.clone()).await {
                Attempt::Answered(response) => return Ok(response),
                Attempt::TryNext(problem) => problems.push(format!("{authority}: {problem}")),
                Attempt::GiveUp(error) => return Err(error),
            }
        }
        Err(Unavailable(problems).into())
    }

    async fn attempt(
        &self,
        authority: &Authority,
        parts: &http::request::Parts,
        body: Bytes,
    ) -> Attempt<T::Body> {
        let read = parts.method == Method::GET || parts.method == Method::HEAD;
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.headers_mut() = parts.headers.clone();
        *request.uri_mut() = match target(authority, &parts.uri) {
            Ok(uri) => uri,
            Err(error) => return Attempt::GiveUp(error.into()),
        };
        let deadline = if read {
            self.timeouts.read
        } else {
            self.timeouts.write
        };
        let sent = tokio::time::timeout(deadline, self.transport.send(request)).await;
        let error = match sent {
            // A server that cannot serve now (starting, stopping, without quorum) says so; for a read
            // another may be better off. Writes are the caller's to repeat.
            Ok(Ok(response)) if read && response.status() == StatusCode::SERVICE_UNAVAILABLE => {
                let more = self.servers.order(Instant::now()).last() != Some(authority);
                if more {
                    self.servers.failed(authority, Instant::now());
                    return Attempt::TryNext("503 Service Unavailable".into());
                }
                return Attempt::Answered(self.guard(authority, response));
            }
            Ok(Ok(response)) => {
                self.judge(authority, response.status());
                return Attempt::Answered(self.guard(authority, response));
            }
            Ok(Err(error)) => error,
            Err(_) => SendError::Broken(no_answer(deadline)),
        };
        self.servers.failed(authority, Instant::now());
        tracing::debug!(server = %authority, %error, "API server failed");
        match error {
            SendError::Connect(_) => Attempt::TryNext(error.to_string()),
            SendError::Broken(_) if read => Attempt::TryNext(error.to_string()),
            SendError::Broken(error) => Attempt::GiveUp(error),
        }
    }

    /// Notes what an answer says of its server. One that refuses a write for want of a quorum may be cut off
    /// from the others, and would be asked for ever if that counted as working; the last one is kept, as
    /// nobody is better off then.
    fn judge(&self, authority: &Authority, status: StatusCode) {
        let refused = matches!(
            status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        );
        if !refused {
            self.servers.worked(authority);
        } else if self.servers.order(Instant::now()).last() != Some(authority) {
            self.servers.failed(authority, Instant::now());
        }
    }

    fn guard(
        &self,
        authority: &Authority,
        response: Response<T::Body>,
    ) -> Response<Guarded<T::Body>> {
        let (servers, authority) = (self.servers.clone(), authority.clone());
        response.map(|inner| Guarded {
            inner,
            servers,
            authority,
        })
    }
}

fn no_answer(deadline: Duration) -> BoxError {
    format!("no answer within {deadline:?}").into()
}

fn target(authority: &Authority, uri: &Uri) -> Result<Uri, http::Error> {
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::builder()
        .scheme(Scheme::HTTPS)
        .authority(authority.clone())
        .path_and_query(path)
        .build()
}

/// A response body that reports its server when the connection breaks, so that the next request, most
/// often the same watch again, goes elsewhere at once.
pub(crate) struct Guarded<B> {
    inner: B,
    servers: Servers,
    authority: Authority,
}

impl<B> HttpBody for Guarded<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| {
                self.servers.failed(&self.authority, Instant::now());
                error.into()
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
