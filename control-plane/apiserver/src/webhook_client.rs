//! Calls webhooks: admission and conversion. A webhook is a URL, or a Service of the cluster, which is reached as
//! the service proxy reaches it, at a ready endpoint through a node. Always TLS, verified against the webhook's
//! own CA bundle; connections are kept and shared.
//!
//! Errors read like those of Go's HTTP client, because that is what people and tests look for.

mod config;
mod dial;
mod pool;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::extensions::crd::ConversionCaller;
use crate::seam::{NodeStreams, ObjectReader};

pub use config::{ClientConfig, Place};
pub use dial::{ClusterDialer, Dialer, Io};
use pool::{Pool, Sender};

/// Largest answer of a webhook, in bytes.
const MAX_ANSWER: usize = 10 << 20;
/// A connection has this long to come about, within the call's own time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a call brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The webhook's description makes no sense.
    #[error("could not get REST client: {0}")]
    Config(String),
    /// It could not be reached, or broke off.
    #[error("failed to call webhook: Post {url:?}: {why}")]
    Transport {
        /// What was called.
        url: String,
        /// Why.
        why: String,
    },
    /// It took too long.
    #[error("failed to call webhook: Post {url:?}: context deadline exceeded")]
    Timeout {
        /// What was called.
        url: String,
    },
    /// It answered with an error.
    #[error("failed to call webhook: {0}")]
    Status(String),
    /// It answered with something else than JSON.
    #[error("failed to call webhook: {0}")]
    Body(String),
}

/// Calls webhooks. Shared by all who do.
pub struct WebhookClient {
    dialer: Arc<dyn Dialer>,
    pool: Pool,
    stop: CancellationToken,
    /// Ends the connections' tasks with the client.
    _stop: DropGuard,
}

impl WebhookClient {
    /// Reaches Services through nodes.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>, nodes: Arc<dyn NodeStreams>) -> Self {
        Self::over(Arc::new(ClusterDialer::new(reader, nodes)))
    }

    /// Reaches them as a dialer does.
    #[must_use]
    pub fn over(dialer: Arc<dyn Dialer>) -> Self {
        let stop = CancellationToken::new();
        Self {
            dialer,
            pool: Pool::default(),
            _stop: stop.clone().drop_guard(),
            stop,
        }
    }

    /// Posts a document and returns the answer. The webhook hears of the time that it has.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(
        &self,
        config: &ClientConfig,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, CallError> {
        let url = config.url(timeout);
        let work = self.exchange(config, &url, Bytes::from(body.to_string()));
        match tokio::time::timeout(timeout, work).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Timeout { url }),
        }
    }

    /// Reads a JSON document from an https URL, on a connection of its own. `ca_bundle` is PEM; empty for the roots
    /// that the machine trusts.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn get(
        &self,
        url: &str,
        ca_bundle: &[u8],
        timeout: Duration,
    ) -> Result<Value, String> {
        let ca = base64::engine::general_purpose::STANDARD.encode(ca_bundle);
        let config = ClientConfig::from_json(&serde_json::json!({"url": url, "caBundle": ca}))
            .map_err(|e| e.to_string())?;
        let work = async {
            let mut sender = pool::connect(&*self.dialer, &config, &self.stop).await?;
            let mut request =
                request(&config, url, Bytes::new(), sender.is_h2()).map_err(|e| e.to_string())?;
            *request.method_mut() = Method::GET;
            request.headers_mut().remove(CONTENT_TYPE);
            let response = sender.send(request).await.map_err(|e| shown(&e))?;
            let status = response.status();
            if !status.is_success() {
                return Err(format!("it answered {status}"));
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
            let body = body.await.map_err(|e| e.to_string())?.to_bytes();
            serde_json::from_slice(&body).map_err(|e| format!("the answer is not JSON: {e}"))
        };
        tokio::time::timeout(timeout, work)
            .await
            .map_err(|_| "it did not answer in time".to_owned())?
            .map_err(|why| format!("Get {url:?}: {why}"))
    }

    async fn exchange(
        &self,
        config: &ClientConfig,
        url: &str,
        body: Bytes,
    ) -> Result<Value, CallError> {
        let transport = |why: String| CallError::Transport {
            url: url.to_owned(),
            why,
        };
        let key = config.key();
        // A kept connection may have been closed from the other side just now; then a new one serves.
        if let Some(mut sender) = self.pool.take(&key)
            && let Ok(answer) = self.send(config, url, &body, &mut sender).await
        {
            self.pool.put(key, sender);
            return answer;
        }
        let connect = pool::connect(&*self.dialer, config, &self.stop);
        let mut sender = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| transport("dial: i/o timeout".to_owned()))?
            .map_err(transport)?;
        let answer = self
            .send(config, url, &body, &mut sender)
            .await
            .map_err(transport)?;
        self.pool.put(key, sender);
        answer
    }

    /// The outer error says that the connection is of no use.
    async fn send(
        &self,
        config: &ClientConfig,
        url: &str,
        body: &Bytes,
        sender: &mut Sender,
    ) -> Result<Result<Value, CallError>, String> {
        let request = match request(config, url, body.clone(), sender.is_h2()) {
            Ok(request) => request,
            Err(error) => return Ok(Err(error)),
        };
        let response = sender.send(request).await.map_err(|e| shown(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| e.to_string())?
            .to_bytes();
        Ok(if status.is_success() {
            serde_json::from_slice(&body)
                .map_err(|e| CallError::Body(format!("the answer is not JSON: {e}")))
        } else {
            Err(CallError::Status(explain(status.as_u16(), &body)))
        })
    }
}

/// An error with what caused it.
fn shown(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn request(
    config: &ClientConfig,
    url: &str,
    body: Bytes,
    h2: bool,
) -> Result<Request<Full<Bytes>>, CallError> {
    let bad = |e: String| CallError::Config(format!("invalid webhook URL {url:?}: {e}"));
    let uri: Uri = url
        .parse()
        .map_err(|e: http::uri::InvalidUri| bad(e.to_string()))?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    // HTTP/2 has the authority in the request's head, HTTP/1.1 in a header.
    *request.uri_mut() = if h2 {
        uri
    } else {
        path.parse()
            .map_err(|e: http::uri::InvalidUri| bad(e.to_string()))?
    };
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static("kube-apiserver-admission"),
    );
    if !h2 {
        let host = HeaderValue::try_from(config.authority()).map_err(|e| bad(e.to_string()))?;
        headers.insert(HOST, host);
    }
    Ok(request)
}

/// What an answer that is no success means, in the words of upstream's client.
fn explain(code: u16, body: &[u8]) -> String {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    if status["kind"] == "Status"
        && let Some(message) = status["message"].as_str()
    {
        return message.to_owned();
    }
    let text = String::from_utf8_lossy(body);
    let text: String = text.trim().chars().take(2048).collect();
    match code {
        404 => "the server could not find the requested resource".to_owned(),
        500..=599 => {
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        _ => format!("the server rejected our request for an unknown reason ({code}: {text:?})"),
    }
}

#[async_trait]
impl ConversionCaller for WebhookClient {
    async fn call(
        &self,
        config: &Value,
        review: &Value,
        timeout: Duration,
    ) -> Result<Value, String> {
        let config = ClientConfig::from_json(config).map_err(|why| why.to_string())?;
        Self::call(self, &config, review, timeout)
            .await
            .map_err(|error| {
                let text = error.to_string();
                text.strip_prefix("failed to call webhook: ")
                    .unwrap_or(&text)
                    .to_owned()
            })
    }
}

#[cfg(test)]
pub(crate) mod tests;
