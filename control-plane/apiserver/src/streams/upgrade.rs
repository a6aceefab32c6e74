//! Leaving HTTP: what a client wants to upgrade to, and the 101 that grants it.

use balsa_api::status::Status;
use bytes::Bytes;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};

use super::websocket;
use crate::seam::ResponseBody;

const SPDY: &str = "spdy/3.1";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What a request asks to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    WebSocket,
    Spdy,
}

/// What the client wants instead of HTTP.
///
/// # Errors
/// 400 when it wants nothing that streams.
pub(super) fn wish(headers: &HeaderMap) -> Result<Wish, Status> {
    let has = |name: HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|v| v.trim().eq_ignore_ascii_case(wanted))
    };
    if has(CONNECTION, "upgrade") {
        if has(UPGRADE, "websocket") {
            return Ok(Wish::WebSocket);
        }
        if has(UPGRADE, SPDY) {
            return Ok(Wish::Spdy);
        }
    }
    Err(Status::bad_request("Upgrade request required"))
}

/// The first of the client's protocols that is supported. A client that names none gets `fallback`.
fn negotiate(
    headers: &HeaderMap,
    name: HeaderName,
    supported: &[&'static str],
    fallback: Option<&'static str>,
) -> Option<&'static str> {
    let mut offered = headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|v| !v.is_empty())
        .peekable();
    if offered.peek().is_none() {
        return fallback;
    }
    offered.find_map(|o| supported.iter().copied().find(|s| *s == o))
}

/// An empty body.
pub(super) fn empty() -> ResponseBody {
    Empty::<Bytes>::new()
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body of one piece.
pub(super) fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn switching(upgrade: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
    response
}

/// The answer to a WebSocket request and the protocol chosen.
///
/// # Errors
/// 400 without a key or a common protocol.
pub(super) fn to_websocket(
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Result<(&'static str, Response<ResponseBody>), Status> {
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .and_then(|v| v.to_str().ok())
        .ok_or_else(|| Status::bad_request("the WebSocket request has no Sec-WebSocket-Key"))?;
    let fallback = supported.contains(&"").then_some("");
    let protocol =
        negotiate(headers, SEC_WEBSOCKET_PROTOCOL, supported, fallback).ok_or_else(|| {
            Status::bad_request(format!(
                "none of the WebSocket protocols is supported; supported are {supported:?}"
            ))
        })?;
    let mut response = switching("websocket");
    let accept = HeaderValue::try_from(websocket::accept_key(key)).map_err(Status::internal)?;
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        response
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok((protocol, response))
}

/// The answer to a SPDY request and the protocol chosen; `Err` is the 403 that lists what is supported.
pub(super) fn to_spdy(
    headers: &HeaderMap,
    supported: &[&'static str],
    fallback: Option<&'static str>,
) -> Result<(&'static str, Response<ResponseBody>), Response<ResponseBody>> {
    match negotiate(headers, STREAM_PROTOCOL, supported, fallback) {
        Some(protocol) => {
            let mut response = switching("SPDY/3.1");
            if !protocol.is_empty() {
                response
                    .headers_mut()
                    .insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
            Ok((protocol, response))
        }
        None => {
            let text = format!(
                "unable to upgrade: unable to negotiate protocol: server supports {supported:?}"
            );
            let mut response = Response::new(full(text));
            *response.status_mut() = StatusCode::FORBIDDEN;
            for protocol in supported.iter().filter(|p| !p.is_empty()) {
                response
                    .headers_mut()
                    .append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(protocol));
            }
            Err(response)
        }
    }
}
