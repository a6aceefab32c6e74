//! ServiceAccount tokens to users: signature and times by the identity crate, then audience, and whether
//! account, pod, secret and node are still those the token was made for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use balsa_identity::jwt::{ISSUER, Reference};
use balsa_identity::{Claims, ServiceAccountKeys, TokenError};
use jiff::Timestamp;
use parking_lot::RwLock;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::CREDENTIAL_ID;
use crate::seam::{ObjectReader, User};

/// Seconds for which a token outlives the deletion of what it is bound to.
const DELETION_LEEWAY: i64 = 60;

/// Tokens whose signature is remembered. All are forgotten when there are more.
const REMEMBERED: usize = 4096;

/// Prefix of the user names of ServiceAccounts.
pub const USER_PREFIX: &str = "system:serviceaccount:";

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Form, signature, issuer or time.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Meant for somebody else.
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
    /// What it is bound to is gone or another of the same name.
    #[error("the {0} that the token is bound to is gone")]
    Unbound(&'static str),
}

/// Verifies ServiceAccount tokens.
pub struct TokenVerifier {
    keys: Arc<ServiceAccountKeys>,
    reader: Arc<dyn ObjectReader>,
    /// Claims by the token's SHA-256: clients send the same token with every request, and a signature costs
    /// more than all the rest of authentication. Times and bindings are checked each time.
    known: RwLock<HashMap<[u8; 32], Arc<Claims>>>,
}

/// Names and groups of a ServiceAccount as a user.
#[must_use]
pub fn service_account_user(namespace: &str, name: &str, uid: &str) -> User {
    User {
        name: format!("{USER_PREFIX}{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
        ],
        extra: BTreeMap::new(),
    }
}

impl TokenVerifier {
    /// With the cluster's keys, over the objects of a reader.
    #[must_use]
    pub fn new(keys: Arc<ServiceAccountKeys>, reader: Arc<dyn ObjectReader>) -> Self {
        Self {
            keys,
            reader,
            known: RwLock::new(HashMap::new()),
        }
    }

    /// Whose token it is. `audiences` empty asks for a token for the API server itself.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<User, Refusal> {
        self.verify_for(token, audiences, now).map(|(user, _)| user)
    }

    /// As [`Self::verify`], with those of the audiences asked for that the token has.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify_for(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<(User, Vec<String>), Refusal> {
        let claims = self.authentic(token)?;
        claims.check_times(now)?;
        let own = [ISSUER.to_owned()];
        let wanted = if audiences.is_empty() {
            &own[..]
        } else {
            audiences
        };
        let common: Vec<String> = wanted
            .iter()
            .filter(|a| claims.aud.contains(a))
            .cloned()
            .collect();
        if common.is_empty() {
            return Err(Refusal::Audience(claims.aud.clone(), wanted.to_vec()));
        }
        self.still_there(&claims, now)?;
        Ok((user_of(&claims), common))
    }

    fn authentic(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(claims) = self.known.read().get(&hash) {
            return Ok(Arc::clone(claims));
        }
        let claims = Arc::new(self.keys.authentic(token)?);
        let mut known = self.known.write();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(hash, Arc::clone(&claims));
        Ok(claims)
    }

    fn still_there(&self, claims: &Claims, now: Timestamp) -> Result<(), Refusal> {
        let bound = &claims.kubernetes;
        let namespace = bound.namespace.as_str();
        let check = |what: &'static str, resource: &str, namespace: &str, reference: &Reference| {
            let object = self.reader.get("", resource, namespace, &reference.name);
            match object {
                Some(object) if same_and_alive(&object, &reference.uid, now) => Ok(()),
                _ => Err(Refusal::Unbound(what)),
            }
        };
        check(
            "service account",
            "serviceaccounts",
            namespace,
            &bound.serviceaccount,
        )?;
        if let Some(secret) = &bound.secret {
            check("secret", "secrets", namespace, secret)?;
        }
        if let Some(pod) = &bound.pod {
            // A pod's token names the node too, but only tells it.
            check("pod", "pods", namespace, pod)?;
        } else if let Some(node) = &bound.node {
            check("node", "nodes", "", node)?;
        }
        Ok(())
    }
}

fn same_and_alive(object: &Value, uid: &str, now: Timestamp) -> bool {
    let metadata = &object["metadata"];
    let deleted = metadata["deletionTimestamp"]
        .as_str()
        .and_then(|t| t.parse::<Timestamp>().ok())
        .is_some_and(|at| at.as_second() + DELETION_LEEWAY < now.as_second());
    metadata["uid"] == uid && !deleted
}

fn user_of(claims: &Claims) -> User {
    let bound = &claims.kubernetes;
    let account = &bound.serviceaccount;
    let mut user = service_account_user(&bound.namespace, &account.name, &account.uid);
    let mut extra = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(key.to_owned(), vec![value.to_owned()]);
        }
    };
    if !claims.jti.is_empty() {
        extra(CREDENTIAL_ID, &format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &bound.pod {
        extra("authentication.kubernetes.io/pod-name", &pod.name);
        extra("authentication.kubernetes.io/pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        extra("authentication.kubernetes.io/node-name", &node.name);
        extra("authentication.kubernetes.io/node-uid", &node.uid);
    }
    user
}
