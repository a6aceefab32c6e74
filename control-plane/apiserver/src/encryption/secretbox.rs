//! NaCl's `crypto_secretbox`: XSalsa20 and Poly1305, put together as its paper says (D. J. Bernstein, "Cryptography in
//! NaCl", section 9 and 10). The first 32 bytes of the key stream authenticate, the rest encrypts.

use poly1305::universal_hash::KeyInit as _;
use poly1305::{Key as TagKey, Poly1305};
use rand::RngCore as _;
use salsa20::XSalsa20;
use salsa20::cipher::{KeyIvInit as _, StreamCipher as _};

const NONCE: usize = 24;
const TAG: usize = 16;
const TAG_KEY: usize = 32;

/// A key.
pub(super) struct SecretBox([u8; 32]);

impl SecretBox {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// A random nonce, and the box.
    pub(super) fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        self.seal_with(nonce, plain)
    }

    fn seal_with(&self, nonce: [u8; NONCE], plain: &[u8]) -> Vec<u8> {
        let (mut stream, tags) = self.streams(nonce);
        let mut sealed = plain.to_vec();
        stream.apply_keystream(&mut sealed);
        let tag = tags.compute_unpadded(&sealed);
        [&nonce[..], &tag, &sealed].concat()
    }

    /// What such a box holds; `None` if it was closed with another key or has been altered.
    pub(super) fn open(&self, body: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = body.split_at_checked(NONCE)?;
        let (tag, sealed) = rest.split_at_checked(TAG)?;
        let (mut stream, tags) = self.streams(nonce.try_into().ok()?);
        let own = tags.compute_unpadded(sealed);
        // In a time that does not tell where they differ.
        let differences = own.iter().zip(tag).fold(0, |all, (a, b)| all | (a ^ b));
        if differences != 0 {
            return None;
        }
        let mut plain = sealed.to_vec();
        stream.apply_keystream(&mut plain);
        Some(plain)
    }

    fn streams(&self, nonce: [u8; NONCE]) -> (XSalsa20, Poly1305) {
        let mut stream = XSalsa20::new(&self.0.into(), &nonce.into());
        let mut key = [0; TAG_KEY];
        stream.apply_keystream(&mut key);
        (stream, Poly1305::new(&TagKey::from(key)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The example of NaCl's own tests (`tests/secretbox.c`).
    #[test]
    fn nacls_example_is_sealed_and_opened() {
        let text = |hex: &str| hex::decode(hex).unwrap();
        let key = text("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = text("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let plain = text(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
        );
        let sealed = text(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5",
        );
        let secret = SecretBox::new(key.try_into().unwrap());
        let body = secret.seal_with(nonce.clone().try_into().unwrap(), &plain);
        assert_eq!(body, [nonce, sealed].concat());
        assert_eq!(secret.open(&body).unwrap(), plain);
        let mut altered = body;
        *altered.last_mut().unwrap() ^= 1;
        assert_eq!(secret.open(&altered), None);
    }
}
