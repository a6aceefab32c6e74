//! How a machine joins: what it sends, what it gets, and the bundle of keys that makes a server.
//!
//! The exchange is one request over TLS made with [`crate::tls::first_contact`], so the secret goes to the
//! right cluster only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::server::Identity;
use crate::token::{JoinRole, JoinToken, TokenRecord};

/// All secrets a server needs. Everything else derives from it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// CA certificate and key.
    pub ca_pem: String,
    /// Keys that sign ServiceAccount tokens; the first signs, all verify.
    pub service_account_keys_pem: Vec<String>,
    /// Certificate and key of the CA that signs what servers show to aggregated API servers.
    pub front_proxy_ca_pem: String,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bundle(secret)")
    }
}

struct Aes256;

impl KeyType for Aes256 {
    fn len(&self) -> usize {
        AES_256_GCM.key_len()
    }
}

fn sealing_key(token: &JoinToken) -> Result<LessSafeKey, Error> {
    let failed = |_| Error::Crypto("deriving a key");
    let mut key = [0_u8; 32];
    Salt::new(HKDF_SHA256, token.id.as_bytes())
        .extract(token.secret().as_bytes())
        .expand(&[b"balsa join bundle v1"], Aes256)
        .and_then(|okm| okm.fill(&mut key))
        .map_err(failed)?;
    Ok(LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM, &key).map_err(failed)?,
    ))
}

impl Bundle {
    /// Encrypts the bundle (AES-256-GCM, key from the token's secret by HKDF-SHA256) so that it may be
    /// kept where others read. Base64 of nonce and ciphertext.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn seal(&self, token: &JoinToken) -> Result<String, Error> {
        let mut nonce = [0_u8; NONCE_LEN];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| Error::Crypto("random numbers"))?;
        let mut text = serde_json::to_vec(self).map_err(|e| Error::invalid("bundle", e))?;
        sealing_key(token)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(token.id.as_bytes()),
                &mut text,
            )
            .map_err(|_| Error::Crypto("sealing"))?;
        Ok(STANDARD.encode([nonce.as_slice(), &text].concat()))
    }

    /// Decrypts what [`Self::seal`] made with the same token.
    ///
    /// # Errors
    /// When the token is another or the text was changed.
    pub fn open(sealed: &str, token: &JoinToken) -> Result<Self, Error> {
        let refuse = || Error::Refused("the sealed keys do not open with this join token".into());
        let bytes = STANDARD.decode(sealed).map_err(|_| refuse())?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN).ok_or_else(refuse)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| refuse())?;
        let mut text = text.to_vec();
        let plain = sealing_key(token)?
            .open_in_place(nonce, Aad::from(token.id.as_bytes()), &mut text)
            .map_err(|_| refuse())?;
        serde_json::from_slice(plain).map_err(|e| Error::invalid("bundle", e))
    }
}

/// What a joining machine sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinRequest {
    /// [`JoinToken::id`].
    pub token_id: String,
    /// [`JoinToken::secret`].
    pub secret: String,
    /// What it wants to be.
    pub role: JoinRole,
    /// Its node name.
    pub node: String,
    /// Certificate request of its node agent, if it will run one and is no server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_pem: Option<String>,
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinResponse {
    /// The CA certificate.
    pub ca_pem: String,
    /// The node's certificate chain, when one was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_pem: Option<String>,
    /// The cluster's keys, for servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Bundle>,
}

/// Answers a machine that joins. `record` is the cluster's record of the request's token id, `None` when
/// there is none.
///
/// # Errors
/// [`Error::Refused`] for a token that does not allow it; others for a bad node name or request.
pub fn answer(
    identity: &Identity,
    record: Option<&TokenRecord>,
    request: &JoinRequest,
    now: Timestamp,
) -> Result<JoinResponse, Error> {
    let Some(record) = record else {
        return Err(Error::Refused(
            "the join token is not valid for this cluster".into(),
        ));
    };
    record.check(&request.secret, request.role, now)?;
    check_node_name(&request.node)?;
    let certificate_pem = match &request.request_pem {
        Some(csr) => Some(identity.ca().sign_node_request(csr, &request.node, now)?),
        None => None,
    };
    let bundle = (request.role == JoinRole::Server).then(|| identity.bundle());
    Ok(JoinResponse {
        ca_pem: identity.ca().certificate_pem().to_owned(),
        certificate_pem,
        bundle,
    })
}

/// Node names are DNS-1123 subdomains.
///
/// # Errors
/// When the name is none.
pub fn check_node_name(name: &str) -> Result<(), Error> {
    let label = |l: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(l.bytes().next())
            && edge(l.bytes().last())
            && l.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Ok(())
    } else {
        Err(Error::invalid(
            format!("node name {name:?}"),
            "must consist of lower-case letters, digits, '-' and '.', and start and end with a letter or digit",
        ))
    }
}
