//! How the log is written: keys, entries, and the few single values.

use bytes::Bytes;
use openraft::EntryPayload;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::command::Pack;
use crate::raft::{Entry, LogId, Membership};

pub(super) const VOTE: &[u8] = b"\0vote";
pub(super) const COMMITTED: &[u8] = b"\0committed";
pub(super) const PURGED: &[u8] = b"\0purged";

/// Entries follow the single values.
const ENTRY: u8 = 1;
/// The version of the encoding of entries.
const ENTRY_VERSION: u8 = 1;

/// Something in the log that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Raft's log cannot be read: {0}")]
pub(crate) struct Damaged(pub String);

/// What precedes a pack's bytes.
#[derive(Serialize, Deserialize)]
struct Head {
    log_id: LogId,
    payload: Payload,
}

#[derive(Serialize, Deserialize)]
enum Payload {
    Blank,
    /// The rest of the bytes.
    Pack,
    Membership(Membership),
}

pub(super) fn key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// A key after those of all entries.
pub(super) fn after_entries() -> [u8; 1] {
    [ENTRY + 1]
}

/// The index that a key is of; `None` for single values.
pub(super) fn index(key: &[u8]) -> Option<u64> {
    match key.split_first() {
        Some((&ENTRY, index)) => Some(u64::from_be_bytes(index.try_into().ok()?)),
        _ => None,
    }
}

/// About how many bytes an entry takes, on disk and on the wire.
pub(super) fn size(entry: &Entry) -> usize {
    const HEAD: usize = 32;
    match &entry.payload {
        EntryPayload::Blank => HEAD,
        EntryPayload::Normal(pack) => HEAD + pack.0.len(),
        EntryPayload::Membership(_) => 4 * HEAD,
    }
}

/// An entry as it is on disk and on the wire.
pub(crate) fn encode_entry(entry: &Entry) -> Result<Vec<u8>, Damaged> {
    let (payload, rest) = match &entry.payload {
        EntryPayload::Blank => (Payload::Blank, None),
        EntryPayload::Normal(pack) => (Payload::Pack, Some(&pack.0)),
        EntryPayload::Membership(membership) => (Payload::Membership(membership.clone()), None),
    };
    let mut bytes = Vec::with_capacity(size(entry));
    bytes.push(ENTRY_VERSION);
    let mut bytes = postcard::to_extend(
        &Head {
            log_id: entry.log_id,
            payload,
        },
        bytes,
    )
    .map_err(|error| Damaged(error.to_string()))?;
    if let Some(rest) = rest {
        bytes.extend_from_slice(rest);
    }
    Ok(bytes)
}

/// The entry that [`encode_entry`] wrote.
pub(crate) fn decode_entry(bytes: Bytes) -> Result<Entry, Damaged> {
    match bytes.first() {
        Some(&ENTRY_VERSION) => {}
        Some(version) => {
            return Err(Damaged(format!(
                "an entry has the unknown version {version}"
            )));
        }
        None => return Err(Damaged("an entry is empty".into())),
    }
    let (head, rest) = postcard::take_from_bytes::<Head>(&bytes[1..])
        .map_err(|error| Damaged(format!("an entry: {error}")))?;
    let payload = match head.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Pack => EntryPayload::Normal(Pack(bytes.slice(bytes.len() - rest.len()..))),
        Payload::Membership(membership) => EntryPayload::Membership(membership),
    };
    Ok(Entry {
        log_id: head.log_id,
        payload,
    })
}

pub(super) fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    // Plain values into memory: cannot fail.
    postcard::to_stdvec(value).unwrap_or_default()
}

pub(super) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damaged> {
    postcard::from_bytes(bytes).map_err(|error| Damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn entry(payload: EntryPayload<Pack, u64, openraft::BasicNode>) -> Entry {
        Entry {
            log_id: LogId::new(3.into(), 9),
            payload,
        }
    }

    #[test]
    fn entries_survive_the_disk() {
        let nodes = BTreeMap::from([(1, openraft::BasicNode::new("a:1"))]);
        let membership = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Pack(Bytes::from_static(b"some pack"))),
            EntryPayload::Membership(membership),
        ] {
            let entry = entry(payload);
            assert_eq!(
                decode_entry(encode_entry(&entry).unwrap().into()).unwrap(),
                entry
            );
        }
    }

    #[test]
    fn unreadable_entries_are_errors() {
        assert!(decode_entry(Bytes::new()).is_err());
        assert!(
            decode_entry(Bytes::from_static(&[9, 1, 1]))
                .unwrap_err()
                .to_string()
                .contains("version 9")
        );
        assert!(decode_entry(Bytes::from_static(&[1, 0xff])).is_err());
    }

    #[test]
    fn keys_sort_by_index_after_single_values() {
        assert!(key(1) < key(256));
        assert!(*PURGED < key(0)[..] && key(u64::MAX)[..] < after_entries()[..]);
        assert_eq!((index(&key(7)), index(VOTE)), (Some(7), None));
    }
}
