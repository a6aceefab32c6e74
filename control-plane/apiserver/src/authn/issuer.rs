//! OIDC discovery of the ServiceAccount token issuer, with which others verify tokens of this cluster.
//!
//! Rules: OpenID Connect Discovery 1.0 section 4, KEP-1393.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_identity::ServiceAccountKeys;
use http::{HeaderValue, Request, Response};

use crate::http::respond;
use crate::seam::{Extension, Peer, RequestBody, ResponseBody, User};

/// Path of the discovery document.
pub const CONFIGURATION: &str = "/.well-known/openid-configuration";
/// Path of the public keys.
pub const KEYS: &str = "/openid/v1/jwks";
/// How long clients may keep either.
const CACHE: &str = "public, max-age=3600";

/// Answers both paths.
pub struct IssuerDiscovery {
    keys: Arc<ServiceAccountKeys>,
}

impl IssuerDiscovery {
    /// For tokens signed by these keys.
    #[must_use]
    pub fn new(keys: Arc<ServiceAccountKeys>) -> Self {
        Self { keys }
    }
}

#[async_trait]
impl Extension for IssuerDiscovery {
    async fn handle(
        &self,
        request: Request<RequestBody>,
        _user: &User,
        _peer: &Peer,
    ) -> Response<ResponseBody> {
        let path = request.uri().path().trim_end_matches('/');
        let (body, type_) = match path {
            CONFIGURATION => (
                ServiceAccountKeys::openid_configuration(),
                "application/json",
            ),
            KEYS => (self.keys.jwks(), "application/jwk-set+json"),
            _ => return crate::handle::not_found(),
        };
        if !matches!(*request.method(), http::Method::GET | http::Method::HEAD) {
            return respond::status(&crate::handle::not_allowed());
        }
        let mut response = respond::json(200, &body);
        let headers = response.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(type_));
        headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static(CACHE));
        response
    }
}
