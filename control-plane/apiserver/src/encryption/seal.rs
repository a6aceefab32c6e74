//! The form of encrypted values: `k8s:enc:aesgcm:v1:KEY-NAME:`, a nonce, the ciphertext and its tag. The store's key is
//! authenticated along, so that a value cannot be moved to another object.

use rand::RngCore as _;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// What all encrypted values begin with.
pub(super) const ENCRYPTED: &[u8] = b"k8s:enc:";
/// What values of this kind begin with.
const PREFIX: &[u8] = b"k8s:enc:aesgcm:v1:";

/// A key with its name.
pub(super) struct Key {
    name: String,
    key: LessSafeKey,
}

impl Key {
    /// Of 16 or 32 bytes.
    pub(super) fn new(name: &str, secret: &[u8]) -> Option<Self> {
        let algorithm = match secret.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            _ => return None,
        };
        let key = UnboundKey::new(algorithm, secret).ok()?;
        Some(Self {
            name: name.to_owned(),
            key: LessSafeKey::new(key),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The encrypted form of a value that lies at `at`. `None` only for values beyond what AES-GCM can take.
    pub(super) fn seal(&self, at: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        let mut sealed = plain.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(at),
                &mut sealed,
            )
            .ok()?;
        let head = PREFIX.len() + self.name.len() + 1 + NONCE_LEN;
        let mut out = Vec::with_capacity(head + sealed.len());
        out.extend_from_slice(PREFIX);
        out.extend_from_slice(self.name.as_bytes());
        out.push(b':');
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Some(out)
    }

    /// The value, when it was sealed with this key and for this place.
    pub(super) fn open(&self, at: &[u8], sealed: &Sealed<'_>) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.body.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut buffer = rest.to_vec();
        let plain = self
            .key
            .open_in_place(nonce, Aad::from(at), &mut buffer)
            .ok()?
            .len();
        buffer.truncate(plain);
        Some(buffer)
    }
}

/// An encrypted value, taken apart.
pub(super) struct Sealed<'a> {
    /// Name of its key.
    pub key: &'a str,
    body: &'a [u8],
}

/// What a value is.
pub(super) enum Form<'a> {
    Plain,
    AesGcm(Sealed<'a>),
    /// Encrypted in a way that is not known here; the way's name.
    Unknown(&'a str),
}

/// Takes a value apart.
pub(super) fn form(value: &[u8]) -> Form<'_> {
    let Some(rest) = value.strip_prefix(ENCRYPTED) else {
        return Form::Plain;
    };
    let text = |bytes| std::str::from_utf8(bytes).unwrap_or("?");
    let sealed = value.strip_prefix(PREFIX).and_then(|rest| {
        let end = rest.iter().position(|b| *b == b':')?;
        let key = std::str::from_utf8(&rest[..end]).ok()?;
        Some(Sealed {
            key,
            body: &rest[end + 1..],
        })
    });
    match sealed {
        Some(sealed) => Form::AesGcm(sealed),
        None => Form::Unknown(text(rest.split(|b| *b == b':').next().unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sealed(value: &[u8]) -> Sealed<'_> {
        match form(value) {
            Form::AesGcm(sealed) => sealed,
            _ => panic!("not sealed"),
        }
    }

    #[test]
    fn a_value_opens_with_its_key_at_its_place_only() {
        let key = Key::new("one", &[7; 32]).unwrap();
        let value = key.seal(b"/registry/core/secrets/d/a", b"hello").unwrap();
        assert!(value.starts_with(b"k8s:enc:aesgcm:v1:one:"));
        let taken = sealed(&value);
        assert_eq!(taken.key, "one");
        assert_eq!(
            key.open(b"/registry/core/secrets/d/a", &taken).unwrap(),
            b"hello"
        );
        assert_eq!(key.open(b"/registry/core/secrets/d/b", &taken), None);
        let other = Key::new("one", &[8; 32]).unwrap();
        assert_eq!(other.open(b"/registry/core/secrets/d/a", &taken), None);
    }

    #[test]
    fn cut_off_and_foreign_values_are_told_apart() {
        let key = Key::new("one", &[7; 16]).unwrap();
        let value = key.seal(b"k", b"hello").unwrap();
        assert_eq!(key.open(b"k", &sealed(&value[..25])), None);
        assert!(matches!(form(b"{}"), Form::Plain));
        assert!(matches!(form(b"k8s:enc:kms:v2:x"), Form::Unknown("kms")));
        assert!(matches!(form(b"k8s:enc:"), Form::Unknown("")));
    }
}
