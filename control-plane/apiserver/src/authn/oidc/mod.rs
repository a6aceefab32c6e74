//! Users of other systems: OIDC login and structured authentication configuration. Tokens are told apart by their
//! issuer; an issuer's keys are fetched when they are first needed, and again when a token names one that is not known.
//!
//! Rules: OpenID Connect Core 1.0 section 3.1.3.7, KEP-3331, KEP-4633.

mod claims;
mod config;
mod jwt;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

use crate::seam::User;
use crate::webhook_client::WebhookClient;
use config::Trusted;
use jwt::{Key, Token};

pub use config::{Anonymous, ConfigError, OidcSettings};

/// Time for one document of an issuer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Keys are not fetched again sooner, whatever tokens say.
const AGAIN: Duration = Duration::from_secs(10);
/// Keys of which nothing new has been heard for this long are fetched again.
const OLD: Duration = Duration::from_secs(3600);
/// Seconds by which an issuer's clock may be ahead.
const LEEWAY: f64 = 300.0;

/// Reads documents of issuers; tests fake it.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// A JSON document. `ca` is PEM; empty for the machine's roots.
    ///
    /// # Errors
    /// Why not, for people.
    async fn fetch(&self, url: &str, ca: &[u8]) -> Result<Value, String>;
}

#[async_trait]
impl Fetch for WebhookClient {
    async fn fetch(&self, url: &str, ca: &[u8]) -> Result<Value, String> {
        self.get(url, ca, PATIENCE).await
    }
}

/// An issuer with its keys.
struct Issuer {
    trusted: Trusted,
    keys: ArcSwap<Vec<Key>>,
    /// Last attempt to fetch them.
    attempted: Mutex<Option<Instant>>,
    fetching: tokio::sync::Mutex<()>,
}

/// See the module.
pub struct Oidc {
    issuers: Vec<Issuer>,
    anonymous: Anonymous,
    fetch: Arc<dyn Fetch>,
}

impl Oidc {
    /// From an AuthenticationConfiguration.
    ///
    /// # Errors
    /// [`ConfigError`], with all that is wrong.
    pub fn load(path: &Path, fetch: Arc<dyn Fetch>) -> Result<Self, ConfigError> {
        Ok(Self::of(config::load(path)?, fetch))
    }

    /// With one issuer from settings.
    ///
    /// # Errors
    /// As [`Oidc::load`].
    pub fn from_settings(
        settings: &OidcSettings,
        fetch: Arc<dyn Fetch>,
    ) -> Result<Self, ConfigError> {
        Ok(Self::of(config::from_settings(settings)?, fetch))
    }

    fn of(parsed: config::Parsed, fetch: Arc<dyn Fetch>) -> Self {
        let issuers = parsed.issuers.into_iter().map(|trusted| Issuer {
            trusted,
            keys: ArcSwap::default(),
            attempted: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        });
        Self {
            issuers: issuers.collect(),
            anonymous: parsed.anonymous,
            fetch,
        }
    }

    /// Who may come without credentials.
    #[must_use]
    pub fn anonymous(&self) -> &Anonymous {
        &self.anonymous
    }

    /// Whose token it is; `None` when no issuer of ours made it.
    pub async fn authenticate(&self, token: &str, now: Timestamp) -> Option<Result<User, String>> {
        if self.issuers.is_empty() {
            return None;
        }
        let token = Token::parse(token)?;
        let issuer = self
            .issuers
            .iter()
            .find(|issuer| issuer.trusted.url == token.issuer())?;
        Some(self.verify(issuer, &token, now).await)
    }

    async fn verify(
        &self,
        issuer: &Issuer,
        token: &Token<'_>,
        now: Timestamp,
    ) -> Result<User, String> {
        let trusted = &issuer.trusted;
        if !trusted.algorithms.contains(&token.alg) {
            return Err(format!(
                "token is signed with an algorithm that is not accepted: {:?}",
                token.alg
            ));
        }
        check_claims(trusted, &token.claims, now)?;
        if issuer.is_old() {
            issuer.refresh(&*self.fetch, OLD).await;
        }
        if !token.verified_by(&issuer.keys.load()) {
            // The issuer may have changed its keys.
            issuer.refresh(&*self.fetch, AGAIN).await;
            if !token.verified_by(&issuer.keys.load()) {
                return Err("failed to verify the token's signature".to_owned());
            }
        }
        trusted.mapping.user(&token.claims)
    }
}

/// Audience and times.
fn check_claims(trusted: &Trusted, claims: &Value, now: Timestamp) -> Result<(), String> {
    let audience = &claims["aud"];
    let has = |wanted: &String| match audience {
        Value::String(one) => one == wanted,
        Value::Array(all) => all.iter().any(|one| one.as_str() == Some(wanted)),
        _ => false,
    };
    if !trusted.audiences.iter().any(has) {
        return Err(format!(
            "expected audience in {:?} got {audience}",
            trusted.audiences
        ));
    }
    let now = now.as_second() as f64;
    let expires = claims["exp"].as_f64().unwrap_or_default();
    if now > expires {
        return Err("token is expired".to_owned());
    }
    if claims["nbf"]
        .as_f64()
        .is_some_and(|from| from > now + LEEWAY)
    {
        return Err("current time is before the nbf (not before) time".to_owned());
    }
    Ok(())
}

impl Issuer {
    fn is_old(&self) -> bool {
        self.attempted.lock().is_none_or(|at| at.elapsed() > OLD)
    }

    /// Fetches the keys, unless that was tried within `age`.
    async fn refresh(&self, fetch: &dyn Fetch, age: Duration) {
        let _fetching = self.fetching.lock().await;
        let recently = self.attempted.lock().is_some_and(|at| at.elapsed() < age);
        if recently {
            return;
        }
        let found = self.read_keys(fetch).await;
        *self.attempted.lock() = Some(Instant::now());
        match found {
            Ok(keys) => self.keys.store(Arc::new(keys)),
            // The old keys stay good.
            Err(why) => tracing::warn!(
                issuer = self.trusted.url,
                why,
                "the keys of an issuer of tokens could not be read"
            ),
        }
    }

    async fn read_keys(&self, fetch: &dyn Fetch) -> Result<Vec<Key>, String> {
        let trusted = &self.trusted;
        let document = fetch.fetch(&trusted.discovery, &trusted.ca).await?;
        let named = document["issuer"].as_str().unwrap_or_default();
        if named != trusted.url {
            return Err(format!(
                "issuer did not match the issuer returned by provider, expected {:?} got {named:?}",
                trusted.url
            ));
        }
        let Some(url) = document["jwks_uri"].as_str() else {
            return Err(format!("{} names no jwks_uri", trusted.discovery));
        };
        let keys = jwt::keys(&fetch.fetch(url, &trusted.ca).await?);
        if keys.is_empty() {
            return Err(format!("{url} has no key that can be used"));
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests;
