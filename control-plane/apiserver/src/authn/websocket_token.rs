//! Bearer tokens in `Sec-WebSocket-Protocol`: browsers cannot set `Authorization` on a WebSocket, so the token comes
//! as a protocol of its own beside the one that is meant.
//!
//! Source: apiserver `pkg/authentication/request/websocket`.

use balsa_api::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::unauthorized;

const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// The token that a WebSocket request carries among its protocols.
///
/// # Errors
/// 401 for more than one, for what is no text in base64url without padding, and when no protocol is left that the
/// answer could name.
pub fn token(headers: &HeaderMap) -> Result<Option<String>, Status> {
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) || !is_websocket(headers) {
        return Ok(None);
    }
    let (mut token, mut others) = (None, 0);
    for protocol in listed(headers, SEC_WEBSOCKET_PROTOCOL) {
        match protocol.strip_prefix(PREFIX) {
            Some(_) if token.is_some() => return Err(unauthorized()),
            Some(encoded) => token = Some(decode(encoded)?),
            None => others += 1,
        }
    }
    match token {
        Some(_) if others == 0 => Err(unauthorized()),
        token => Ok(token.filter(|token| !token.is_empty())),
    }
}

/// Removes tokens from a request's protocols, so that nobody behind this server sees them.
pub fn hide(headers: &mut HeaderMap) {
    let is_token = |protocol: &&str| protocol.starts_with(PREFIX);
    let all: Vec<&str> = listed(headers, SEC_WEBSOCKET_PROTOCOL).collect();
    if !all.iter().any(is_token) {
        return;
    }
    let others: Vec<&str> = all.into_iter().filter(|p| !is_token(p)).collect();
    let others = HeaderValue::try_from(others.join(", "));
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Ok(value) = others
        && !value.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
}

fn decode(encoded: &str) -> Result<String, Status> {
    let bytes = URL_SAFE_NO_PAD
        .decode(encoded)
        .map_err(|_| unauthorized())?;
    String::from_utf8(bytes).map_err(|_| unauthorized())
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let has = |name, wanted: &str| listed(headers, name).any(|v| v.eq_ignore_ascii_case(wanted));
    has(CONNECTION, "upgrade") && has(UPGRADE, "websocket")
}

/// The values of a header that is a list.
fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(protocols: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, "keep-alive, Upgrade".parse().unwrap());
        headers.insert(UPGRADE, "websocket".parse().unwrap());
        for protocol in protocols {
            headers.append(SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_token_is_read_and_hidden() {
        let secret = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode("a.b-c"));
        let mut given = headers(&["v4.channel.k8s.io", &format!("{secret}, v5.channel.k8s.io")]);
        assert_eq!(token(&given).unwrap().as_deref(), Some("a.b-c"));
        hide(&mut given);
        let left: Vec<_> = given.get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect();
        assert_eq!(left, ["v4.channel.k8s.io, v5.channel.k8s.io"]);
    }

    #[test]
    fn odd_tokens_are_refused() {
        let one = format!("{PREFIX}YQ");
        assert!(token(&headers(&[&one])).is_err(), "no protocol is left");
        let two = format!("{one}, {one}, v4.channel.k8s.io");
        assert!(token(&headers(&[&two])).is_err());
        let broken = format!("{PREFIX}!, v4.channel.k8s.io");
        assert!(token(&headers(&[&broken])).is_err());
        let no_text = format!("{PREFIX}_w, v4.channel.k8s.io");
        assert!(token(&headers(&[&no_text])).is_err());
    }

    #[test]
    fn plain_requests_carry_none() {
        let mut plain = headers(&[&format!("{PREFIX}YQ"), "v4.channel.k8s.io"]);
        plain.remove(UPGRADE);
        assert_eq!(token(&plain).unwrap(), None);
        assert_eq!(token(&headers(&["v4.channel.k8s.io"])).unwrap(), None);
    }
}
