//! Objects encrypted at rest: values are sealed on their way into the store and opened on their way out. The log,
//! snapshots and backups hold ciphertext; the watch cache holds plain text.
//!
//! The first provider of a resource's rule writes, all of them read. After a change of keys the leader writes anew what
//! lies there in another way, so that an old key may go once `balsa` has said that nothing needs it.
//!
//! Source: Kubernetes' EncryptionConfiguration (apiserver.config.k8s.io/v1).

mod backend;
mod config;
mod seal;
mod secretbox;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use balsa_store::KeyValue;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::cache::keys;
use config::{Provider, Rule};
use seal::Form;

pub use backend::{Sealed, SealedCache};
pub use config::ConfigError;

/// Unreadable values that are remembered by name; more are only counted.
const MAX_PROBLEMS: usize = 16;

/// Why a value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its key is not in the configuration.
    #[error(
        "it is encrypted with {0} key {1:?}, which the encryption configuration does not have for this resource"
    )]
    NoKey(&'static str, String),
    /// The key of that name does not open it.
    #[error(
        "{0} key {1:?} does not decrypt it: another key of that name, or the value was altered"
    )]
    WrongKey(&'static str, String),
    /// Another provider wrote it.
    #[error("it is encrypted by provider {0:?}, which is not supported")]
    Provider(String),
}

/// How values are encrypted.
#[derive(Default)]
pub struct Encryption {
    rules: Vec<Rule>,
    problems: Mutex<BTreeMap<String, OpenError>>,
}

/// What is to be done with a value.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// It is as it would be written now.
    Current,
    /// It can be read, and would be written otherwise now.
    Stale,
}

impl Encryption {
    /// From a file.
    ///
    /// # Errors
    /// [`ConfigError`], with all that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self {
            rules: config::load(path)?,
            problems: Mutex::default(),
        })
    }

    fn rule(&self, at: &[u8]) -> Option<&Rule> {
        if self.rules.is_empty() {
            return None;
        }
        let (id, _) = keys::split(at)?;
        let (group, plural) = id.split_once('/')?;
        let group = if group == "core" { "" } else { group };
        self.rules.iter().find(|rule| rule.covers(group, plural))
    }

    /// The key that values at a place are written with.
    fn writer(&self, at: &[u8]) -> Option<&seal::Key> {
        match self.rule(at)?.providers.first()? {
            Provider::Keys(keys) => keys.first(),
            Provider::Identity => None,
        }
    }

    /// The form in which a value is stored.
    fn seal(&self, at: &[u8], plain: Bytes) -> Bytes {
        let sealed = self.writer(at).map(|key| key.seal(at, &plain));
        match sealed {
            None => plain,
            // AES-GCM, which takes the least, takes 64 GiB, the store 1.5 MiB.
            Some(sealed) => sealed.map_or(plain, Bytes::from),
        }
    }

    /// The value, and whether it would be written in the same way now.
    fn open<'a>(&self, at: &[u8], value: &'a Bytes) -> Result<(Cow<'a, Bytes>, State), OpenError> {
        let sealed = match form_of(value)? {
            None => {
                let state = match self.writer(at) {
                    None => State::Current,
                    Some(_) => State::Stale,
                };
                return Ok((Cow::Borrowed(value), state));
            }
            Some(sealed) => sealed,
        };
        let rule = self.rule(at);
        let keys = rule.iter().flat_map(|rule| &rule.providers);
        let keys = keys.filter_map(|provider| match provider {
            Provider::Keys(keys) => Some(keys),
            Provider::Identity => None,
        });
        let mut named = false;
        let fits = |key: &&seal::Key| key.method() == sealed.method && key.name() == sealed.key;
        for key in keys.flatten().filter(fits) {
            named = true;
            if let Some(plain) = key.open(at, &sealed) {
                let writes = self.writer(at).is_some_and(|w| std::ptr::eq(w, key));
                let state = if writes { State::Current } else { State::Stale };
                return Ok((Cow::Owned(plain.into()), state));
            }
        }
        let (method, name) = (sealed.method.name(), sealed.key.to_owned());
        Err(if named {
            OpenError::WrongKey(method, name)
        } else {
            OpenError::NoKey(method, name)
        })
    }

    /// As [`Self::open`], for a whole pair.
    fn open_pair(&self, kv: &mut KeyValue) -> Result<(), OpenError> {
        let opened = match self.open(&kv.key, &kv.value)?.0 {
            Cow::Borrowed(_) => None,
            Cow::Owned(plain) => Some(plain),
        };
        if let Some(plain) = opened {
            kv.value = plain;
        }
        Ok(())
    }

    fn note(&self, at: &[u8], error: OpenError) {
        let key = String::from_utf8_lossy(at).into_owned();
        tracing::error!(key, %error, "an object in the store cannot be decrypted; it is not served");
        let mut problems = self.problems.lock();
        if problems.len() < MAX_PROBLEMS {
            problems.insert(key, error);
        }
    }

    fn forget(&self, at: &[u8]) {
        let mut problems = self.problems.lock();
        if !problems.is_empty()
            && let Ok(key) = std::str::from_utf8(at)
        {
            problems.remove(key);
        }
    }

    /// What of the store's content cannot be read, if anything, and what to do.
    ///
    /// # Errors
    /// Names the first such object.
    pub fn check(&self) -> Result<(), String> {
        let problems = self.problems.lock();
        let Some((key, error)) = problems.first_key_value() else {
            return Ok(());
        };
        let more = match problems.len() {
            1 => String::new(),
            n if n < MAX_PROBLEMS => format!(" (and {} more)", n - 1),
            _ => " (and many more)".to_owned(),
        };
        Err(format!(
            "the object at {key}{more} cannot be decrypted: {error}; \
             set encryptionProviderConfig to a file that has the key"
        ))
    }
}

fn form_of(value: &Bytes) -> Result<Option<seal::Sealed<'_>>, OpenError> {
    match seal::form(value) {
        Form::Plain => Ok(None),
        Form::Sealed(sealed) => Ok(Some(sealed)),
        Form::Unknown(provider) => Err(OpenError::Provider(provider.to_owned())),
    }
}

#[cfg(test)]
mod tests;
