//! Signed tokens of foreign issuers: their form, and the keys that verify them.
//!
//! Sources: RFC 7515 (JWS), RFC 7517 (JWK), RFC 7518 (algorithms).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde_json::Value;

/// Longer tokens are refused unread.
const MAX_TOKEN: usize = 64 * 1024;
/// Keys of an issuer that are read.
const MAX_KEYS: usize = 256;

/// The algorithms that are verified.
pub(super) const ALGORITHMS: [&str; 8] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384",
];

/// A token, not verified yet.
pub(super) struct Token<'a> {
    pub(super) alg: String,
    pub(super) kid: String,
    pub(super) claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

fn decode(text: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

impl<'a> Token<'a> {
    /// Takes a token apart; `None` for what is no signed token.
    pub(super) fn parse(token: &'a str) -> Option<Self> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header = decode(header)?;
        // An extension that must be understood: none is.
        if header.get("crit").is_some() {
            return None;
        }
        let claims = decode(claims).filter(Value::is_object)?;
        let text = |key: &str| header[key].as_str().unwrap_or_default().to_owned();
        Some(Self {
            alg: text("alg"),
            kid: text("kid"),
            claims,
            signed,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// `iss`.
    pub(super) fn issuer(&self) -> &str {
        self.claims["iss"].as_str().unwrap_or_default()
    }

    /// Whether one of the keys made the signature; keys of other names are not tried.
    pub(super) fn verified_by(&self, keys: &[Key]) -> bool {
        let named = |key: &&Key| self.kid.is_empty() || key.kid.is_empty() || key.kid == self.kid;
        keys.iter().filter(named).any(|key| key.verifies(self))
    }
}

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
}

/// A public key.
pub(super) struct Key {
    kid: String,
    /// The one algorithm it is for, where it says so.
    alg: String,
    material: Material,
}

impl Key {
    /// `None` for keys that are not for signatures, or of kinds that are not verified here.
    fn read(jwk: &Value) -> Option<Self> {
        let text = |key: &str| jwk[key].as_str().unwrap_or_default();
        if !matches!(text("use"), "" | "sig") {
            return None;
        }
        let bytes = |key: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(text(key)).ok();
            bytes.filter(|bytes| !bytes.is_empty())
        };
        // An uncompressed point.
        let point = |size: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == size && y.len() == size).then(|| [&[4][..], &x, &y].concat())
        };
        let material = match (text("kty"), text("crv")) {
            ("RSA", _) => Material::Rsa {
                n: bytes("n")?,
                e: bytes("e")?,
            },
            ("EC", "P-256") => Material::P256(point(32)?),
            ("EC", "P-384") => Material::P384(point(48)?),
            _ => return None,
        };
        Some(Self {
            kid: text("kid").to_owned(),
            alg: text("alg").to_owned(),
            material,
        })
    }

    fn verifies(&self, token: &Token<'_>) -> bool {
        if !self.alg.is_empty() && self.alg != token.alg {
            return false;
        }
        let (message, signature) = (token.signed.as_bytes(), token.signature.as_slice());
        match (&self.material, token.alg.as_str()) {
            (Material::Rsa { n, e }, alg) => rsa(alg).is_some_and(|parameters| {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(parameters, message, signature).is_ok()
            }),
            (Material::P256(point), "ES256") => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
                    .is_ok()
            }
            (Material::P384(point), "ES384") => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, signature)
                    .is_ok()
            }
            _ => false,
        }
    }
}

fn rsa(alg: &str) -> Option<&'static RsaParameters> {
    Some(match alg {
        "RS256" => &RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &RSA_PSS_2048_8192_SHA256,
        "PS384" => &RSA_PSS_2048_8192_SHA384,
        "PS512" => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// The usable keys of a JWK set.
pub(super) fn keys(set: &Value) -> Vec<Key> {
    let all = set["keys"].as_array().into_iter().flatten();
    all.take(MAX_KEYS).filter_map(Key::read).collect()
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    /// Signs tokens with ES256.
    pub struct Signer {
        pair: EcdsaKeyPair,
        kid: &'static str,
    }

    impl Signer {
        pub fn new(kid: &'static str) -> Self {
            let random = SystemRandom::new();
            let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
            Self { pair, kid }
        }

        pub fn jwk(&self) -> Value {
            let point = self.pair.public_key().as_ref();
            json!({"kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "alg": "ES256",
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])})
        }

        pub fn sign(&self, claims: &Value) -> String {
            let header = json!({"alg": "ES256", "kid": self.kid}).to_string();
            let signed = format!(
                "{}.{}",
                URL_SAFE_NO_PAD.encode(header),
                URL_SAFE_NO_PAD.encode(claims.to_string())
            );
            let signature = self
                .pair
                .sign(&SystemRandom::new(), signed.as_bytes())
                .unwrap();
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
        }
    }

    #[test]
    fn a_token_is_verified_by_the_key_it_names_and_no_other() {
        let (one, other) = (Signer::new("one"), Signer::new("other"));
        let set = |jwks: Value| keys(&json!({"keys": jwks}));
        let text = one.sign(&json!({"iss": "https://x"}));
        let token = Token::parse(&text).unwrap();
        assert_eq!(token.issuer(), "https://x");
        assert!(token.verified_by(&set(json!([other.jwk(), one.jwk()]))));
        assert!(!token.verified_by(&set(json!([other.jwk()]))));
        // A key of the same name that did not make it.
        let mut forged = other.jwk();
        forged["kid"] = "one".into();
        assert!(!token.verified_by(&set(json!([forged]))));
        // Claims that were changed after the signature.
        let (head, rest) = text.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let claims = URL_SAFE_NO_PAD.encode("{\"iss\":\"https://y\"}");
        let changed = format!("{head}.{claims}.{signature}");
        assert!(
            !Token::parse(&changed)
                .unwrap()
                .verified_by(&set(json!([one.jwk()])))
        );
    }

    #[test]
    fn unsigned_and_senseless_tokens_are_refused() {
        let none = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}"),
            URL_SAFE_NO_PAD.encode("{}")
        );
        let keys = keys(
            &json!({"keys": [Signer::new("a").jwk(), {"kty": "RSA"}, {"kty": "oct", "k": "AA"}]}),
        );
        assert_eq!(keys.len(), 1);
        assert!(!Token::parse(&none).unwrap().verified_by(&keys));
        for text in ["", ".", "..", "a.b.c", "e30.W10.AA"] {
            assert!(Token::parse(text).is_none(), "{text}");
        }
    }
}
