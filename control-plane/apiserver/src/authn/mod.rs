//! Authentication: client certificates, ServiceAccount tokens, anonymous.

pub mod impersonate;
pub mod token;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::Status;
use balsa_identity::{PeerIdentity, ServiceAccountKeys};
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::seam::{Authenticator, ObjectReader, Peer, User};

pub use impersonate::impersonate;
pub use token::TokenVerifier;

/// Group of everybody who has shown credentials.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of those who have not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// User of requests without credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// Extra attribute that names the credential used.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The 401 for wrong credentials. It does not say what is wrong with them.
#[must_use]
pub fn unauthorized() -> Status {
    Status::new(401, "Unauthorized", "Unauthorized")
}

/// Authenticates requests.
pub struct Authn {
    tokens: TokenVerifier,
}

impl Authn {
    /// With the cluster's ServiceAccount keys, over the objects of a reader.
    #[must_use]
    pub fn new(keys: Arc<ServiceAccountKeys>, reader: Arc<dyn ObjectReader>) -> Self {
        Self {
            tokens: TokenVerifier::new(keys, reader),
        }
    }

    fn by_certificate(peer: &Peer, now: Timestamp) -> Result<Option<User>, Status> {
        let Some(leaf) = peer.certificates.first() else {
            return Ok(None);
        };
        let subject = PeerIdentity::from_certificate(leaf).map_err(|_| unauthorized())?;
        // TLS checked the validity when the connection was made; connections live long.
        if now.as_second() > subject.validity.1 {
            return Err(unauthorized());
        }
        if subject.common_name.is_empty() {
            return Ok(None);
        }
        let id = format!("X509SHA256={}", hex::encode(Sha256::digest(leaf)));
        Ok(Some(User {
            name: subject.common_name,
            uid: String::new(),
            groups: subject.organizations,
            extra: BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![id])]),
        }))
    }
}

/// The bearer token of a request; other schemes are not credentials to us.
fn bearer(parts: &http::request::Parts) -> Option<&str> {
    let value = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[async_trait]
impl Authenticator for Authn {
    async fn authenticate(
        &self,
        parts: &http::request::Parts,
        peer: &Peer,
    ) -> Result<User, Status> {
        let now = Timestamp::now();
        let known = match Self::by_certificate(peer, now)? {
            Some(user) => Some(user),
            None => match bearer(parts) {
                Some(token) => Some(self.tokens.verify(token, &[], now).map_err(|reason| {
                    tracing::debug!(%reason, "token refused");
                    unauthorized()
                })?),
                None => None,
            },
        };
        Ok(match known {
            Some(mut user) => {
                if !user.groups.iter().any(|g| g == AUTHENTICATED) {
                    user.groups.push(AUTHENTICATED.to_owned());
                }
                user
            }
            None => User {
                name: ANONYMOUS.to_owned(),
                groups: vec![UNAUTHENTICATED.to_owned()],
                ..User::default()
            },
        })
    }
}

#[cfg(test)]
mod tests;
