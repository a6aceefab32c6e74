//! Join tokens: `balsa.<SHA-256 of the CA certificate>.<id>.<secret>`.
//!
//! The fingerprint lets the joining machine know the cluster; the secret lets the cluster know the
//! machine. Only a hash of the secret is kept. The secret has 192 random bits, so a plain SHA-256 is enough.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;

/// What a token lets a machine become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JoinRole {
    /// A server: gets the cluster's keys.
    Server,
    /// A node agent: gets one client certificate.
    Agent,
}

/// A token as people paste it. Its `Display` shows the secret, its `Debug` does not.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the cluster's CA certificate, hex.
    pub ca_sha256: String,
    /// Names the token in lists, 8 characters.
    pub id: String,
    secret: String,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "balsa.{}.{}.{}", self.ca_sha256, self.id, self.secret)
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: &str| {
            Err(Error::invalid(
                "join token",
                format_args!("{why}; it should look like balsa.<64 digits>.<id>.<secret>"),
            ))
        };
        let parts: Vec<&str> = text.trim().split('.').collect();
        let ["balsa", ca, id, secret] = parts.as_slice() else {
            return refuse("it has not four parts that start with balsa");
        };
        if ca.len() != 64 || !ca.bytes().all(|b| b.is_ascii_hexdigit()) {
            return refuse("its second part is no SHA-256");
        }
        let plain = |s: &str| {
            !s.is_empty() && s.len() <= 128 && s.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        if !plain(id) || !plain(secret) {
            return refuse(
                "its id or secret is empty or has other characters than letters and digits",
            );
        }
        Ok(Self {
            ca_sha256: ca.to_ascii_lowercase(),
            id: (*id).into(),
            secret: (*secret).into(),
        })
    }
}

fn random_hex(bytes: usize) -> Result<String, Error> {
    let mut buffer = vec![0_u8; bytes];
    SystemRandom::new()
        .fill(&mut buffer)
        .map_err(|_| Error::Crypto("random numbers"))?;
    Ok(hex::encode(buffer))
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

impl JoinToken {
    /// A new token of the cluster with this CA.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn generate(ca_sha256: &str) -> Result<Self, Error> {
        Ok(Self {
            ca_sha256: ca_sha256.to_owned(),
            id: random_hex(4)?,
            secret: random_hex(24)?,
        })
    }

    /// The secret part, which only the joining machine and the answering server see.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// What the cluster keeps of the token. `lifetime` `None` is for ever.
    #[must_use]
    pub fn record(
        &self,
        role: JoinRole,
        lifetime: Option<SignedDuration>,
        now: Timestamp,
    ) -> TokenRecord {
        TokenRecord {
            id: self.id.clone(),
            role,
            secret_sha256: hash(&self.secret),
            created: now,
            expires: lifetime.map(|l| now.checked_add(l).unwrap_or(Timestamp::MAX)),
            description: String::new(),
            sealed_bundle: None,
        }
    }
}

/// What the cluster keeps of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// See [`JoinToken::id`].
    pub id: String,
    /// What it is good for.
    pub role: JoinRole,
    /// SHA-256 of the secret, hex.
    pub secret_sha256: String,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The cluster's keys sealed with the secret (base64), for a server token that must also work after
    /// every server's data folder but the store's content is lost. See [`crate::Bundle::seal`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_bundle: Option<String>,
}

impl TokenRecord {
    /// Whether a secret may be used for a role now.
    ///
    /// # Errors
    /// [`Error::Refused`] with what is wrong; a server token may also be used by an agent, not the reverse.
    pub fn check(&self, secret: &str, role: JoinRole, now: Timestamp) -> Result<(), Error> {
        // Comparing hashes leaks nothing about the secret through timing.
        if hash(secret) != self.secret_sha256 {
            return Err(Error::Refused(
                "the join token is not valid for this cluster".into(),
            ));
        }
        if self.expires.is_some_and(|e| now >= e) {
            return Err(Error::Refused(format!(
                "the join token {} has expired; make a new one with `balsa token create`",
                self.id
            )));
        }
        if role == JoinRole::Server && self.role == JoinRole::Agent {
            return Err(Error::Refused(format!(
                "the join token {} is for agents; make one for servers with `balsa token create --role server`",
                self.id
            )));
        }
        Ok(())
    }
}
