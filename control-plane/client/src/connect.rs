//! A client over TLS to several servers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::config::{ClientConfig, Credentials};
use crate::failover::{Bearer, Failover, SendError, Transport};
use crate::servers::{InvalidServers, Servers};
use crate::tls::{self, Connector, TlsError};

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of servers.
    #[error(transparent)]
    Servers(#[from] InvalidServers),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A connected client and the handles to change it while it runs.
#[derive(Clone)]
pub struct Connection {
    /// The client; cheap to clone.
    pub client: kube::Client,
    /// The list of servers; may be replaced at any time.
    pub servers: Servers,
    tls: Arc<RwLock<Arc<rustls::ClientConfig>>>,
}

impl Connection {
    /// Uses another CA and certificate for connections from now on. (Tokens are not changed by this.)
    ///
    /// # Errors
    /// When they cannot be used; the old ones then stay.
    pub fn set_tls(&self, ca_pem: &[u8], credentials: &Credentials) -> Result<(), Error> {
        *self.tls.write() = Arc::new(tls::config(ca_pem, credentials)?);
        Ok(())
    }
}

/// Makes a client; connects lazily, so servers may be down now. Must be called inside a tokio runtime.
///
/// # Errors
/// When addresses or certificates cannot be used.
pub fn connect(config: ClientConfig) -> Result<Connection, Error> {
    let servers = Servers::new(&config.servers)?;
    let tls = Arc::new(RwLock::new(Arc::new(tls::config(
        &config.ca_pem,
        &config.credentials,
    )?)));
    let timeouts = config.timeouts;
    let hyper = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .http2_keep_alive_interval(timeouts.ping_interval)
        .http2_keep_alive_timeout(timeouts.ping_timeout)
        .http2_keep_alive_while_idle(true)
        .http2_adaptive_window(true)
        .build(Connector::new(Arc::clone(&tls), &timeouts));
    let failover = Failover {
        transport: Arc::new(Hyper(hyper)),
        servers: servers.clone(),
        timeouts,
        bearer: bearer(config.credentials),
        agent: HeaderValue::from_static(config.user_agent),
    };
    Ok(Connection {
        client: kube::Client::new(failover, "default"),
        servers,
        tls,
    })
}

struct Hyper(Client<Connector, Full<Bytes>>);

impl Transport for Hyper {
    type Body = Incoming;

    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Incoming>, SendError>> {
        let response = self.0.request(request.map(Full::new));
        Box::pin(async move {
            response.await.map_err(|error| {
                let connect = error.is_connect();
                let error = root_cause(error);
                if connect {
                    SendError::Connect(error)
                } else {
                    SendError::Broken(error)
                }
            })
        })
    }
}

/// hyper's own words ("client error (Connect)") say nothing; the innermost error does.
fn root_cause(error: hyper_util::client::legacy::Error) -> tower::BoxError {
    let mut source: &dyn std::error::Error = &error;
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    source.to_string().into()
}

const TOKEN_AGE: Duration = Duration::from_secs(60);

fn bearer(credentials: Credentials) -> Bearer {
    match credentials {
        Credentials::Anonymous | Credentials::Certificate { .. } => Arc::new(|| None),
        Credentials::Token(token) => {
            let header = header(&token);
            Arc::new(move || header.clone())
        }
        Credentials::TokenFile(path) => {
            let cached: Mutex<Option<(Instant, HeaderValue)>> = Mutex::new(None);
            Arc::new(move || {
                let mut cached = cached.lock();
                if let Some((read_at, header)) = &*cached
                    && read_at.elapsed() < TOKEN_AGE
                {
                    return Some(header.clone());
                }
                // A short local file; the old token is better than none.
                match std::fs::read_to_string(&path) {
                    Ok(token) => {
                        *cached = header(token.trim()).map(|header| (Instant::now(), header));
                    }
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "cannot read the token file")
                    }
                }
                cached.as_ref().map(|(_, header)| header.clone())
            })
        }
    }
}

fn header(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests;
