//! Passing requests on to another server, and asking it questions of our own.

use std::sync::Arc;

use balsa_api::status::Status;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio_rustls::TlsConnector;
use tracing::Instrument as _;

use super::{Aggregator, Outside, PATIENCE, Remote};
use crate::http::respond::full;
use crate::seam::{RequestBody, ResponseBody, User};
use crate::streams::proxy_tls::Anybody;
use crate::streams::splice;
use crate::webhook_client::Place;

/// Largest answer to a question of ours.
const MAX_ANSWER: usize = 8 << 20;
/// Headers that concern one connection, or that the server behind must get from nobody but us.
const DROPPED: [HeaderName; 5] = [AUTHORIZATION, CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE];
/// Keys of extra attributes stand in header names.
const NOT_IN_HEADER_NAMES: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b'(')
    .add(b')')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'{')
    .add(b'}');

fn unavailable(why: &str) -> Status {
    Status::new(503, "ServiceUnavailable", why)
}

/// Whether a header says who somebody is, or pretends to.
fn is_identity(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-remote-") || name.starts_with("impersonate-")
}

/// Puts the caller's identity into headers.
fn identify(headers: &mut HeaderMap, user: &User) -> Result<(), Status> {
    let bad = |_| Status::bad_request("the user's attributes cannot be written as headers");
    let value = |text: &str| HeaderValue::from_str(text).map_err(bad);
    headers.insert("x-remote-user", value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert("x-remote-uid", value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("x-remote-group", value(group)?);
    }
    for (key, values) in &user.extra {
        let key = utf8_percent_encode(&key.to_lowercase(), NOT_IN_HEADER_NAMES).to_string();
        let name = HeaderName::try_from(format!("x-remote-extra-{key}")).map_err(|_| {
            Status::bad_request("the user's attributes cannot be written as headers")
        })?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Ok(())
}

/// The client's headers as the server behind gets them, before the identity is put in.
fn passed_on(sent: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in sent {
        if !DROPPED.contains(name) && !is_identity(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    if let Some(wish) = sent.get(UPGRADE) {
        headers.insert(UPGRADE, wish.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    headers
}

fn tls_config(remote: &Remote, outside: &Outside) -> Result<ClientConfig, String> {
    let provider = balsa_identity::tls::provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = if remote.insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody::new(provider)))
    } else {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&remote.ca_bundle).flatten() {
            roots.add(certificate).map_err(|e| e.to_string())?;
        }
        builder.with_root_certificates(roots)
    };
    Ok(builder.with_client_cert_resolver(Arc::clone(&outside.front_proxy)))
}

impl Aggregator {
    async fn open(&self, remote: &Remote) -> Result<http1::SendRequest<RequestBody>, String> {
        let outside = self
            .outside
            .as_ref()
            .ok_or("this server has no way to other servers")?;
        let config = tls_config(remote, outside)?;
        let place = Place::Service {
            namespace: remote.namespace.clone(),
            name: remote.service.clone(),
            port: remote.port,
        };
        let io = outside.dialer.dial(&place).await?;
        let name = ServerName::try_from(remote.server_name()).map_err(|e| e.to_string())?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, io)
            .await
            .map_err(|e| e.to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        let span = tracing::debug_span!("aggregated API", service = %remote.name);
        // Ends with the exchange: the sender and the answer's body are its only users.
        let run = async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection failed");
            }
        };
        tokio::spawn(run.instrument(span));
        Ok(sender)
    }

    /// Passes a request on, and the answer back. What is upgraded (an exec, say) becomes a stream in between.
    ///
    /// # Errors
    /// 503 when the server cannot be reached.
    pub(crate) async fn pass(
        &self,
        remote: &Remote,
        user: &User,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        if !remote.available {
            return Err(unavailable("service unavailable"));
        }
        let client = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        parts.headers = passed_on(&parts.headers);
        identify(&mut parts.headers, user)?;
        let mut response = self
            .send(remote, Request::from_parts(parts, body))
            .await
            .map_err(|why| {
                tracing::debug!(
                    name = remote.name,
                    why,
                    "an aggregated API could not be reached"
                );
                unavailable(&format!("error trying to reach service: {why}"))
            })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let server = hyper::upgrade::on(&mut response);
            let span = tracing::debug_span!("aggregated stream", service = %remote.name);
            tokio::spawn(splice(client, server).instrument(span));
            return Ok(response.map(|_| full(Bytes::new())));
        }
        let (mut parts, body) = response.into_parts();
        for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
            parts.headers.remove(name);
        }
        Ok(Response::from_parts(
            parts,
            body.map_err(Into::into).boxed_unsync(),
        ))
    }

    async fn send(
        &self,
        remote: &Remote,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, String> {
        let mut sender = tokio::time::timeout(PATIENCE, self.open(remote))
            .await
            .map_err(|_| "the connection did not come about in time".to_owned())??;
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = path
            .parse::<Uri>()
            .map_err(|e: http::uri::InvalidUri| e.to_string())?;
        *request.version_mut() = http::Version::HTTP_11;
        let host = HeaderValue::try_from(remote.server_name()).map_err(|e| e.to_string())?;
        request.headers_mut().insert(HOST, host);
        sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())
    }

    /// Asks for a JSON document on our own account. The code comes with it.
    pub(super) async fn ask(&self, remote: &Remote, path: &str) -> Result<(u16, Value), String> {
        let mut request = Request::new(full(Bytes::new()));
        *request.method_mut() = Method::GET;
        *request.uri_mut() = path
            .parse::<Uri>()
            .map_err(|e: http::uri::InvalidUri| e.to_string())?;
        let user = User {
            name: "system:kube-aggregator".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            ..User::default()
        };
        identify(request.headers_mut(), &user).map_err(|status| status.message)?;
        request
            .headers_mut()
            .insert("accept", HeaderValue::from_static("application/json"));
        let work = async {
            let response = self.send(remote, request).await?;
            let code = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|e| e.to_string())?
                .to_bytes();
            Ok((code, serde_json::from_slice(&body).unwrap_or_default()))
        };
        tokio::time::timeout(PATIENCE, work)
            .await
            .map_err(|_| "the server did not answer in time".to_owned())?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_asks_is_said_by_us_alone() {
        let user = User {
            name: "ann".into(),
            groups: vec!["a".into(), "b".into()],
            extra: [("Example.com/Key".to_owned(), vec!["v".to_owned()])].into(),
            ..User::default()
        };
        let mut headers = HeaderMap::new();
        identify(&mut headers, &user).unwrap();
        assert_eq!(headers["x-remote-user"], "ann");
        assert_eq!(headers.get_all("x-remote-group").iter().count(), 2);
        assert_eq!(headers["x-remote-extra-example.com%2fkey"], "v");
        for forged in ["x-remote-user", "X-Remote-Group", "impersonate-user"] {
            assert!(is_identity(&HeaderName::try_from(forged).unwrap()));
        }
    }

    #[test]
    fn only_the_wish_for_another_protocol_is_passed_on_of_the_connections_headers() {
        let mut sent = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("authorization", "Bearer x"),
            ("x-remote-user", "root"),
            ("sec-websocket-key", "k"),
        ] {
            sent.insert(name, HeaderValue::from_static(value));
        }
        let headers = passed_on(&sent);
        assert_eq!(headers.len(), 3);
        assert_eq!(headers["connection"], "Upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        sent.remove("upgrade");
        assert!(!passed_on(&sent).contains_key("connection"));
    }
}
