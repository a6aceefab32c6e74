//! Authentication: client certificates, ServiceAccount tokens, bootstrap tokens, tokens of other issuers, anonymous.

pub mod bootstrap_token;
pub mod impersonate;
pub mod issuer;
pub mod oidc;
pub mod token;
pub mod websocket_token;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::Status;
use balsa_identity::{PeerIdentity, ServiceAccountKeys};
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::seam::{Authenticator, ObjectReader, Peer, User};

pub use impersonate::impersonate;
pub use issuer::IssuerDiscovery;
pub use oidc::{Oidc, OidcSettings};
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
    reader: Arc<dyn ObjectReader>,
    /// Users of other systems, when the configuration knows any.
    oidc: Option<Arc<Oidc>>,
    /// Users of certificates that were read, and when they end.
    certificates: Mutex<HashMap<Fingerprint, Known>>,
}

/// A certificate's user, `None` where it names nobody, and when it ends (seconds since 1970).
type Known = (Option<Arc<User>>, i64);
/// SHA-256 of a certificate.
type Fingerprint = [u8; 32];
/// Certificates that are remembered; each agent and operator has one or two.
const MAX_CERTIFICATES: usize = 4096;

impl Authn {
    /// With the cluster's ServiceAccount keys, over the objects of a reader.
    #[must_use]
    pub fn new(keys: Arc<ServiceAccountKeys>, reader: Arc<dyn ObjectReader>) -> Self {
        Self {
            tokens: TokenVerifier::new(keys, Arc::clone(&reader)),
            reader,
            oidc: None,
            certificates: Mutex::default(),
        }
    }

    /// With the issuers and the rule for anonymous requests of a configuration.
    #[must_use]
    pub fn with_oidc(mut self, oidc: Option<Arc<Oidc>>) -> Self {
        self.oidc = oidc;
        self
    }

    async fn by_token(&self, token: &str, now: Timestamp) -> Result<User, Status> {
        if let Some(parts) = bootstrap_token::split(token) {
            return bootstrap_token::verify(&*self.reader, parts, now).ok_or_else(unauthorized);
        }
        if let Some(oidc) = &self.oidc
            && let Some(answer) = oidc.authenticate(token, now).await
        {
            return answer.map_err(|reason| {
                tracing::debug!(%reason, "token refused");
                unauthorized()
            });
        }
        self.tokens.verify(token, &[], now).map_err(|reason| {
            tracing::debug!(%reason, "token refused");
            unauthorized()
        })
    }

    fn by_certificate(&self, peer: &Peer, now: Timestamp) -> Result<Option<Arc<User>>, Status> {
        let Some(leaf) = peer.certificates.first() else {
            return Ok(None);
        };
        let digest: Fingerprint = Sha256::digest(leaf).into();
        let known = self.certificates.lock().get(&digest).cloned();
        let (user, end) = match known {
            Some(known) => known,
            None => self.read_certificate(leaf, digest)?,
        };
        // TLS checked the validity when the connection was made; connections live long.
        if now.as_second() > end {
            return Err(unauthorized());
        }
        Ok(user)
    }

    /// Whose certificate it is and until when. Remembered: the same one comes with each request of a connection.
    fn read_certificate(&self, leaf: &[u8], digest: Fingerprint) -> Result<Known, Status> {
        let subject = PeerIdentity::from_certificate(leaf).map_err(|_| unauthorized())?;
        let id = format!("X509SHA256={}", hex::encode(digest));
        let user = User {
            name: subject.common_name,
            uid: String::new(),
            groups: subject.organizations,
            extra: BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![id])]),
        };
        let user = (!user.name.is_empty()).then(|| Arc::new(authenticated(user)));
        let known = (user, subject.validity.1);
        let mut certificates = self.certificates.lock();
        if certificates.len() >= MAX_CERTIFICATES {
            certificates.clear();
        }
        certificates.insert(digest, known.clone());
        Ok(known)
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
    ) -> Result<Arc<User>, Status> {
        let now = Timestamp::now();
        if let Some(user) = self.by_certificate(peer, now)? {
            return Ok(user);
        }
        let known = match bearer(parts) {
            Some(token) => Some(self.by_token(token, now).await?),
            None => match websocket_token::token(&parts.headers)? {
                Some(token) => Some(self.by_token(&token, now).await?),
                None => None,
            },
        };
        Ok(Arc::new(match known {
            Some(user) => authenticated(user),
            None if self
                .oidc
                .as_ref()
                .is_some_and(|oidc| !oidc.anonymous().allows(parts.uri.path())) =>
            {
                return Err(unauthorized());
            }
            None => User {
                name: ANONYMOUS.to_owned(),
                groups: vec![UNAUTHENTICATED.to_owned()],
                ..User::default()
            },
        }))
    }
}

/// A user with the group of all who have shown who they are.
fn authenticated(mut user: User) -> User {
    if !user.groups.iter().any(|g| g == AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

#[cfg(test)]
mod tests;
