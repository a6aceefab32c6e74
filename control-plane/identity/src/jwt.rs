//! ServiceAccount tokens: JWTs signed with ES256, claims as Kubernetes v1.35 writes them.
//!
//! Sources: RFC 7515, RFC 7518 section 3.4, upstream `pkg/serviceaccount`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::Error;

/// `iss` of every token, and the default audience.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Seconds by which clocks may differ when times are checked.
const LEEWAY: i64 = 60;
/// Longer tokens are refused unread.
const MAX_TOKEN: usize = 16 * 1024;

/// Name and UID of an object a token speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// UID; empty only for a node of which it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    /// Namespace of the ServiceAccount and of the bound pod or secret.
    pub namespace: String,
    /// Node the token, or the pod it is bound to, belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// Pod it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// Secret it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// Whose token it is.
    pub serviceaccount: Reference,
    /// Seconds since 1970 from when on its use is called stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// All claims of a token. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// Not valid from then on.
    pub exp: i64,
    /// Issued at.
    pub iat: i64,
    /// Issuer, [`ISSUER`].
    pub iss: String,
    /// Unique id of the token.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    /// Bindings.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    /// Not valid before.
    pub nbf: i64,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
}

impl Claims {
    /// Whether the token is valid now.
    ///
    /// # Errors
    /// [`TokenError::Expired`] or [`TokenError::NotYet`].
    pub fn check_times(&self, now: Timestamp) -> Result<(), TokenError> {
        let now = now.as_second();
        if now > self.exp.saturating_add(LEEWAY) {
            return Err(TokenError::Expired);
        }
        if now.saturating_add(LEEWAY) < self.nbf.max(self.iat) {
            return Err(TokenError::NotYet);
        }
        Ok(())
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWT of ours in form.
    #[error("not a service account token")]
    Malformed,
    /// No key verifies it.
    #[error("signed by an unknown key or not at all")]
    Signature,
    /// Another issuer.
    #[error("issued by another cluster")]
    Issuer,
    /// `exp` has passed.
    #[error("service account token has expired")]
    Expired,
    /// `nbf` or `iat` lies ahead.
    #[error("service account token is not valid yet")]
    NotYet,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

struct Key {
    kid: String,
    pair: EcdsaKeyPair,
    pem: String,
    point: Vec<u8>,
}

/// The keys that sign and verify tokens.
pub struct ServiceAccountKeys {
    keys: Vec<Key>,
    random: SystemRandom,
}

impl std::fmt::Debug for ServiceAccountKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|k| &k.kid))
            .finish()
    }
}

impl Key {
    fn from_pem(pem: &str) -> Result<Self, Error> {
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256)?;
        let signing = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            pair.serialized_der(),
            &SystemRandom::new(),
        )
        .map_err(|e| Error::invalid("service account key", e))?;
        Ok(Self {
            // As upstream: the hash of the public key's DER form.
            kid: URL_SAFE_NO_PAD.encode(Sha256::digest(pair.subject_public_key_info())),
            pair: signing,
            pem: pem.to_owned(),
            point: pair.public_key_raw().to_vec(),
        })
    }
}

impl ServiceAccountKeys {
    /// One new key.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn generate() -> Result<Self, Error> {
        Self::from_pems(&[KeyPair::generate()?.serialize_pem()])
    }

    /// Keys from PKCS#8 PEM texts; the first signs, all verify.
    ///
    /// # Errors
    /// When there is none or one is not a P-256 key.
    pub fn from_pems(pems: &[String]) -> Result<Self, Error> {
        if pems.is_empty() {
            return Err(Error::invalid("service account keys", "there is none"));
        }
        let keys = pems
            .iter()
            .map(|p| Key::from_pem(p))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            keys,
            random: SystemRandom::new(),
        })
    }

    /// The keys as [`Self::from_pems`] takes them; secret.
    #[must_use]
    pub fn to_pems(&self) -> Vec<String> {
        self.keys.iter().map(|k| k.pem.clone()).collect()
    }

    /// Signs claims.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn issue(&self, claims: &Claims) -> Result<String, Error> {
        let key = self.keys.first().ok_or(Error::Crypto("no key"))?;
        let header = Header {
            alg: "ES256".into(),
            kid: key.kid.clone(),
        };
        let encode = |v: serde_json::Result<Vec<u8>>| {
            v.map(|v| URL_SAFE_NO_PAD.encode(v))
                .map_err(|e| Error::invalid("token", e))
        };
        let mut text = format!(
            "{}.{}",
            encode(serde_json::to_vec(&header))?,
            encode(serde_json::to_vec(claims))?
        );
        let signature = key
            .pair
            .sign(&self.random, text.as_bytes())
            .map_err(|_| Error::Crypto("signing"))?;
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(text)
    }

    /// Checks signature, issuer and times. Audience and whether the objects still exist is the caller's.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        let claims = self.authentic(token)?;
        claims.check_times(now)?;
        Ok(claims)
    }

    /// Checks signature and issuer only, which never change for a token: callers may remember the answer.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn authentic(&self, token: &str) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |s: &str| URL_SAFE_NO_PAD.decode(s).map_err(|_| TokenError::Malformed);
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        let signature = decode(signature)?;
        if header.alg != "ES256" {
            return Err(TokenError::Signature);
        }
        let verified = self
            .keys
            .iter()
            .filter(|k| header.kid.is_empty() || k.kid == header.kid)
            .any(|k| {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &k.point)
                    .verify(signed.as_bytes(), &signature)
                    .is_ok()
            });
        if !verified {
            return Err(TokenError::Signature);
        }
        let claims: Claims =
            serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Malformed)?;
        if claims.iss != ISSUER {
            return Err(TokenError::Issuer);
        }
        Ok(claims)
    }

    /// The public keys as served under `/openid/v1/jwks`.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let keys: Vec<Value> = self
            .keys
            .iter()
            .map(|k| {
                // An uncompressed point: 0x04, x, y.
                let (x, y) = k
                    .point
                    .get(1..)
                    .unwrap_or_default()
                    .split_at(32.min(k.point.len().saturating_sub(1)));
                json!({"use": "sig", "kty": "EC", "kid": k.kid, "crv": "P-256", "alg": "ES256",
                       "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
            })
            .collect();
        json!({ "keys": keys })
    }

    /// The document served under `/.well-known/openid-configuration`.
    #[must_use]
    pub fn openid_configuration() -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}
