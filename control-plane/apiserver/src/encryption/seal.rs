//! The form of encrypted values: `k8s:enc:PROVIDER:v1:KEY-NAME:`, and what the provider makes of the value. They are
//! upstream's forms, so that values written by one can be read by the other.
//!
//! `aesgcm`: a nonce, the ciphertext and its tag; the store's key is authenticated along, so that a value cannot be moved
//! to another object. `secretbox`: NaCl's, a nonce before it. `aescbc`: an initialisation vector and the padded
//! ciphertext; nothing is authenticated, whoever can write the disk can change what is read.

use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, block_padding::Pkcs7};
use rand::RngCore as _;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::secretbox::SecretBox;

/// What all encrypted values begin with.
pub(super) const ENCRYPTED: &[u8] = b"k8s:enc:";
/// Length of AES' blocks.
const BLOCK: usize = 16;

/// A way to encrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    AesGcm,
    AesCbc,
    SecretBox,
}

impl Method {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::AesGcm, Self::AesCbc, Self::SecretBox];

    /// The provider's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aesgcm",
            Self::AesCbc => "aescbc",
            Self::SecretBox => "secretbox",
        }
    }

    /// How long its keys are, for a message.
    pub(super) fn key_lengths(self) -> &'static str {
        match self {
            Self::AesGcm => "16 or 32",
            Self::AesCbc => "16, 24 or 32",
            Self::SecretBox => "32",
        }
    }
}

enum Secret {
    // With its tables half a kilobyte, the others a few bytes.
    AesGcm(Box<LessSafeKey>),
    Aes128Cbc([u8; 16]),
    Aes192Cbc([u8; 24]),
    Aes256Cbc([u8; 32]),
    SecretBox(SecretBox),
}

/// A key with its name.
pub(super) struct Key {
    name: String,
    method: Method,
    secret: Secret,
}

impl Key {
    /// Of a length that the method takes.
    pub(super) fn new(method: Method, name: &str, secret: &[u8]) -> Option<Self> {
        let gcm = |algorithm| {
            UnboundKey::new(algorithm, secret)
                .ok()
                .map(|key| Box::new(LessSafeKey::new(key)))
        };
        let secret = match (method, secret.len()) {
            (Method::AesGcm, 16) => Secret::AesGcm(gcm(&AES_128_GCM)?),
            (Method::AesGcm, 32) => Secret::AesGcm(gcm(&AES_256_GCM)?),
            (Method::AesCbc, 16) => Secret::Aes128Cbc(secret.try_into().ok()?),
            (Method::AesCbc, 24) => Secret::Aes192Cbc(secret.try_into().ok()?),
            (Method::AesCbc, 32) => Secret::Aes256Cbc(secret.try_into().ok()?),
            (Method::SecretBox, 32) => Secret::SecretBox(SecretBox::new(secret.try_into().ok()?)),
            _ => return None,
        };
        Some(Self {
            name: name.to_owned(),
            method,
            secret,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn method(&self) -> Method {
        self.method
    }

    /// The encrypted form of a value that lies at `at`. `None` only for values beyond what the method can take.
    pub(super) fn seal(&self, at: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let body = match &self.secret {
            Secret::AesGcm(key) => seal_gcm(key, at, plain)?,
            Secret::Aes128Cbc(key) => seal_cbc::<aes::Aes128>(key, plain)?,
            Secret::Aes192Cbc(key) => seal_cbc::<aes::Aes192>(key, plain)?,
            Secret::Aes256Cbc(key) => seal_cbc::<aes::Aes256>(key, plain)?,
            Secret::SecretBox(key) => key.seal(plain),
        };
        let head = format!("k8s:enc:{}:v1:{}:", self.method.name(), self.name);
        Some([head.as_bytes(), &body].concat())
    }

    /// The value, when it was sealed with this key (and, with `aesgcm`, for this place).
    pub(super) fn open(&self, at: &[u8], sealed: &Sealed<'_>) -> Option<Vec<u8>> {
        match &self.secret {
            Secret::AesGcm(key) => open_gcm(key, at, sealed.body),
            Secret::Aes128Cbc(key) => open_cbc::<aes::Aes128>(key, sealed.body),
            Secret::Aes192Cbc(key) => open_cbc::<aes::Aes192>(key, sealed.body),
            Secret::Aes256Cbc(key) => open_cbc::<aes::Aes256>(key, sealed.body),
            Secret::SecretBox(key) => key.open(sealed.body),
        }
    }
}

fn seal_gcm(key: &LessSafeKey, at: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    let mut nonce = [0; NONCE_LEN];
    rand::rng().fill_bytes(&mut nonce);
    let mut sealed = plain.to_vec();
    let own = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(own, Aad::from(at), &mut sealed)
        .ok()?;
    Some([&nonce[..], &sealed].concat())
}

fn open_gcm(key: &LessSafeKey, at: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = body.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut buffer = rest.to_vec();
    let plain = key
        .open_in_place(nonce, Aad::from(at), &mut buffer)
        .ok()?
        .len();
    buffer.truncate(plain);
    Some(buffer)
}

fn seal_cbc<A>(key: &[u8], plain: &[u8]) -> Option<Vec<u8>>
where
    cbc::Encryptor<A>: KeyIvInit + BlockModeEncrypt,
    A: aes::cipher::BlockCipherEncrypt,
{
    let mut vector = [0; BLOCK];
    rand::rng().fill_bytes(&mut vector);
    let cipher = cbc::Encryptor::<A>::new_from_slices(key, &vector).ok()?;
    let padded = BLOCK - plain.len() % BLOCK + plain.len();
    let mut out = vec![0; BLOCK + padded];
    out[..BLOCK].copy_from_slice(&vector);
    cipher
        .encrypt_padded_b2b::<Pkcs7>(plain, &mut out[BLOCK..])
        .ok()?;
    Some(out)
}

fn open_cbc<A>(key: &[u8], body: &[u8]) -> Option<Vec<u8>>
where
    cbc::Decryptor<A>: KeyIvInit + BlockModeDecrypt,
    A: aes::cipher::BlockCipherDecrypt,
{
    let (vector, sealed) = body.split_at_checked(BLOCK)?;
    let cipher = cbc::Decryptor::<A>::new_from_slices(key, vector).ok()?;
    let mut buffer = sealed.to_vec();
    let plain = cipher.decrypt_padded::<Pkcs7>(&mut buffer).ok()?.len();
    buffer.truncate(plain);
    // Without a tag another key may seem to fit; objects are what is stored.
    (buffer.first() == Some(&b'{')).then_some(buffer)
}

/// An encrypted value, taken apart.
pub(super) struct Sealed<'a> {
    /// What it was encrypted with.
    pub method: Method,
    /// Name of its key.
    pub key: &'a str,
    body: &'a [u8],
}

/// What a value is.
pub(super) enum Form<'a> {
    Plain,
    Sealed(Sealed<'a>),
    /// Encrypted in a way that is not known here; the way's name.
    Unknown(&'a str),
}

/// Takes a value apart.
pub(super) fn form(value: &[u8]) -> Form<'_> {
    let Some(rest) = value.strip_prefix(ENCRYPTED) else {
        return Form::Plain;
    };
    let mut parts = rest.splitn(4, |b| *b == b':');
    let name = std::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or("?");
    let method = Method::ALL.into_iter().find(|m| m.name() == name);
    match (method, parts.next(), parts.next(), parts.next()) {
        (Some(method), Some(b"v1"), Some(key), Some(body)) => match std::str::from_utf8(key) {
            Ok(key) => Form::Sealed(Sealed { method, key, body }),
            Err(_) => Form::Unknown(name),
        },
        _ => Form::Unknown(name),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const AT: &[u8] = b"/registry/core/secrets/d/a";

    fn sealed(value: &[u8]) -> Sealed<'_> {
        match form(value) {
            Form::Sealed(sealed) => sealed,
            _ => panic!("not sealed"),
        }
    }

    #[test]
    fn a_value_opens_with_its_key_only() {
        for (method, length) in [
            (Method::AesGcm, 16),
            (Method::AesGcm, 32),
            (Method::AesCbc, 16),
            (Method::AesCbc, 24),
            (Method::AesCbc, 32),
            (Method::SecretBox, 32),
        ] {
            let key = Key::new(method, "one", &vec![7; length]).unwrap();
            let other = Key::new(method, "one", &vec![8; length]).unwrap();
            let head = format!("k8s:enc:{}:v1:one:", method.name());
            for plain in [&b"{}"[..], b"{\"fourteen\": 1}", &[b'{'; 5000]] {
                let value = key.seal(AT, plain).unwrap();
                assert!(value.starts_with(head.as_bytes()));
                let taken = sealed(&value);
                assert_eq!((taken.method, taken.key), (method, "one"));
                assert_eq!(key.open(AT, &taken).unwrap(), plain);
                assert_eq!(other.open(AT, &taken), None, "{method:?}");
                assert_eq!(key.open(AT, &sealed(&value[..head.len() + 20])), None);
            }
        }
    }

    #[test]
    fn galois_values_cannot_be_moved() {
        let key = Key::new(Method::AesGcm, "one", &[7; 32]).unwrap();
        let value = key.seal(AT, b"{}").unwrap();
        assert_eq!(
            key.open(b"/registry/core/secrets/d/b", &sealed(&value)),
            None
        );
    }

    #[test]
    fn keys_have_the_length_of_their_method() {
        for (method, length) in [
            (Method::AesGcm, 24),
            (Method::AesCbc, 31),
            (Method::SecretBox, 16),
        ] {
            assert!(Key::new(method, "k", &vec![0; length]).is_none());
        }
    }

    #[test]
    fn what_upstream_wrote_in_cbc_is_read() {
        // openssl enc -aes-256-cbc, key 00..1f, vector 16 times 5a.
        let key: Vec<u8> = (0..32).collect();
        let key = Key::new(Method::AesCbc, "k", &key).unwrap();
        let body = hex::decode(CBC_OF_OPENSSL).unwrap();
        let value = [b"k8s:enc:aescbc:v1:k:", &[0x5a; 16][..], &body].concat();
        assert_eq!(
            key.open(AT, &sealed(&value)).unwrap(),
            b"{\"kind\":\"Secret\"}"
        );
    }

    const CBC_OF_OPENSSL: &str = "741e51f18e0c8523165918aad4e1489264fabacfee31643ba048b349f63300d8";

    #[test]
    fn cut_off_and_foreign_values_are_told_apart() {
        assert!(matches!(form(b"{}"), Form::Plain));
        assert!(matches!(form(b"k8s:enc:kms:v2:x"), Form::Unknown("kms")));
        assert!(matches!(
            form(b"k8s:enc:aesgcm:v2:x:y"),
            Form::Unknown("aesgcm")
        ));
        assert!(matches!(form(b"k8s:enc:"), Form::Unknown("")));
    }
}
