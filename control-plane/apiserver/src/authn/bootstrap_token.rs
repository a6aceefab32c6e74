//! Bootstrap tokens: Secrets in `kube-system` with which machines that have no other credentials ask for some.
//!
//! Rules: upstream `plugin/pkg/auth/authenticator/token/bootstrap`, `cluster-bootstrap/token/api`.

use std::collections::BTreeMap;

use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::seam::{ObjectReader, User};

/// Type of the Secrets.
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Namespace and name prefix of the Secrets.
const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";
/// Prefix of the user names, and of the groups a token may add.
const USER_PREFIX: &str = "system:bootstrap:";
const GROUP_PREFIX: &str = "system:bootstrappers:";
/// Group of all that come with such a token.
const GROUP: &str = "system:bootstrappers";

/// Id and secret of a text of the form `abcdef.0123456789abcdef`; `None` for anything else.
#[must_use]
pub fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let fits = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (fits(id, 6) && fits(secret, 16)).then_some((id, secret))
}

/// Whose token it is; `None` when there is no such token that is good for authentication now.
#[must_use]
pub fn verify(
    reader: &dyn ObjectReader,
    (id, secret): (&str, &str),
    now: Timestamp,
) -> Option<User> {
    let object = reader.get("", "secrets", NAMESPACE, &format!("{NAME_PREFIX}{id}"))?;
    if object["type"] != TYPE || object::is_deleting(&object) {
        return None;
    }
    let data = |key: &str| text(&object, key);
    // Hashes are compared: how long that takes tells nothing of the secret.
    let known = data("token-secret")?;
    if Sha256::digest(known.as_bytes()) != Sha256::digest(secret.as_bytes())
        || data("token-id")? != id
        || data("usage-bootstrap-authentication").as_deref() != Some("true")
    {
        return None;
    }
    if let Some(expiration) = data("expiration").filter(|e| !e.is_empty()) {
        // A time that cannot be read is one that has passed.
        let until: Timestamp = expiration.trim().parse().ok()?;
        if until <= now {
            return None;
        }
    }
    let mut groups = vec![GROUP.to_owned()];
    for extra in data("auth-extra-groups")
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|g| !g.is_empty())
    {
        if !is_group(extra) {
            return None;
        }
        groups.push(extra.to_owned());
    }
    Some(User {
        name: format!("{USER_PREFIX}{id}"),
        uid: String::new(),
        groups,
        extra: BTreeMap::new(),
    })
}

fn text(secret: &Value, key: &str) -> Option<String> {
    let bytes = STANDARD.decode(secret["data"].get(key)?.text()).ok()?;
    String::from_utf8(bytes).ok()
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`
fn is_group(group: &str) -> bool {
    group.strip_prefix(GROUP_PREFIX).is_some_and(|rest| {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        (1..=256).contains(&rest.len())
            && rest.bytes().all(|b| letter(b) || b == b':' || b == b'-')
            && rest.bytes().last().is_some_and(letter)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::authz::fake::Objects;
    use serde_json::json;

    fn secret(extra: &[(&str, &str)]) -> Value {
        let mut data = serde_json::Map::new();
        let given = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
        ];
        for (key, value) in given.iter().chain(extra) {
            data.insert((*key).into(), STANDARD.encode(value).into());
        }
        json!({"metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "type": TYPE, "data": data})
    }

    fn user(extra: &[(&str, &str)], token: &str) -> Option<User> {
        let objects = Objects::new().with("", "secrets", secret(extra));
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        verify(&objects, split(token)?, now)
    }

    #[test]
    fn a_token_makes_a_bootstrapper() {
        let groups = [(
            "auth-extra-groups",
            "system:bootstrappers:kubeadm:default-node-token",
        )];
        let user = user(&groups, "abcdef.0123456789abcdef").unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            [
                "system:bootstrappers",
                "system:bootstrappers:kubeadm:default-node-token"
            ]
        );
    }

    #[test]
    fn wrong_expired_and_unfit_tokens_make_nobody() {
        let good = "abcdef.0123456789abcdef";
        assert!(user(&[], good).is_some());
        assert!(user(&[], "abcdef.0123456789abcdee").is_none());
        assert!(user(&[], "abcdeg.0123456789abcdef").is_none());
        assert!(user(&[], "abcdef.0123456789ABCDEF").is_none());
        assert!(user(&[("expiration", "2025-12-31T00:00:00Z")], good).is_none());
        assert!(user(&[("expiration", "soon")], good).is_none());
        assert!(user(&[("expiration", "2026-12-31T00:00:00Z")], good).is_some());
        assert!(user(&[("usage-bootstrap-authentication", "false")], good).is_none());
        assert!(user(&[("auth-extra-groups", "system:masters")], good).is_none());
    }
}
