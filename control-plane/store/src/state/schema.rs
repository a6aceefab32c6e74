//! How the state is written.
//!
//! ```text
//! \0 name                          single values
//! K key                            the key as it is: Record
//! V escaped-key 00 00 mod-revision the key as it was: Old, until a later revision
//! H revision n                     the n-th change of a revision: Change (which key, what it replaced)
//! L lease                          when it ends
//! A lease key                      keys of a lease
//! O member                         the life of a member that its batches are remembered of, and what is settled
//! B member seq                     what came of a batch
//! ```
//!
//! Only `K` is touched by plain reads. `V` and `H` together are the history, and go when it is compacted:
//! a change names the version that it replaced, so compaction never searches.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::raft::LogId;
use crate::types::{KeyValue, LeaseId, MemberId, Revision};

pub(super) const META: &[u8] = b"\0meta";
pub(super) const MEMBERSHIP: &[u8] = b"\0membership";
pub(super) const SWEPT: &[u8] = b"\0swept";

pub(super) const CURRENT: u8 = b'K';
pub(super) const VERSIONS: u8 = b'V';
pub(super) const HISTORY: u8 = b'H';
pub(super) const LEASES: u8 = b'L';
pub(super) const ATTACHED: u8 = b'A';
pub(super) const ORIGINS: u8 = b'O';
pub(super) const BATCHES: u8 = b'B';

/// Something in the state that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the state cannot be read: {0}")]
pub(crate) struct Damaged(pub String);

impl From<Damaged> for crate::error::Error {
    fn from(damaged: Damaged) -> Self {
        Self::Storage(damaged.to_string())
    }
}

/// Written with every batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// The last entry that is applied.
    pub applied: Option<LogId>,
    pub revision: Revision,
    pub compacted: Revision,
    /// The cluster's clock: it moves while there is a leader.
    pub clock_ms: u64,
    pub next_lease: LeaseId,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            applied: None,
            revision: 1,
            compacted: 0,
            clock_ms: 0,
            next_lease: 1,
        }
    }
}

/// A version of a key, without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub create: Revision,
    pub modified: Revision,
    pub version: u64,
    pub lease: Option<LeaseId>,
    pub value: Bytes,
}

impl Record {
    pub fn with_key(&self, key: Bytes) -> KeyValue {
        KeyValue {
            key,
            value: self.value.clone(),
            create_revision: self.create,
            mod_revision: self.modified,
            version: self.version,
            lease: self.lease,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let head = (self.create, self.modified, self.version, self.lease);
        with_value(to_bytes(&head), &self.value)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let ((create, modified, version, lease), value) =
            split::<(u64, u64, u64, Option<u64>)>(bytes)?;
        Ok(Self {
            create,
            modified,
            version,
            lease,
            value: Bytes::copy_from_slice(value),
        })
    }
}

/// A version of a key that a later revision replaced or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Old {
    pub record: Record,
    /// The revision that ended it.
    pub until: Revision,
}

impl Old {
    pub fn encode(record: &Record, until: Revision) -> Vec<u8> {
        let head = (
            until,
            record.create,
            record.modified,
            record.version,
            record.lease,
        );
        with_value(to_bytes(&head), &record.value)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let ((until, create, modified, version, lease), value) =
            split::<(u64, u64, u64, u64, Option<u64>)>(bytes)?;
        let record = Record {
            create,
            modified,
            version,
            lease,
            value: Bytes::copy_from_slice(value),
        };
        Ok(Self { record, until })
    }
}

/// One change of history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    pub key: Bytes,
    /// The revision of the version that was replaced or deleted.
    pub previous: Option<Revision>,
    pub deleted: bool,
}

/// What came of one command of a batch, as far as it must be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Remembered {
    /// A transaction was carried out.
    Committed(Revision),
    /// A lease was made.
    Lease(LeaseId),
    /// Done; there is nothing to tell.
    Done,
    /// It changed nothing: it may be proposed again as a new one.
    Nothing,
}

pub(super) fn current(key: &[u8]) -> Vec<u8> {
    tagged(CURRENT, key)
}

pub(super) fn tagged(tag: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + rest.len());
    bytes.push(tag);
    bytes.extend_from_slice(rest);
    bytes
}

/// The start of the `V` keys of all keys that begin with some bytes.
pub(super) fn versions_from(prefix: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(prefix.len() + 11);
    bytes.push(VERSIONS);
    for &byte in prefix {
        bytes.push(byte);
        if byte == 0 {
            bytes.push(0xff);
        }
    }
    bytes
}

pub(super) fn version(key: &[u8], modified: Revision) -> Vec<u8> {
    let mut bytes = versions_from(key);
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&modified.to_be_bytes());
    bytes
}

/// The key that a `V` key is of.
pub(super) fn version_key(bytes: &[u8]) -> Option<Vec<u8>> {
    let escaped = bytes.get(1..bytes.len().checked_sub(10)?)?;
    let mut key = Vec::with_capacity(escaped.len());
    let mut skip = false;
    for &byte in escaped {
        if !skip {
            key.push(byte);
        }
        skip = !skip && byte == 0;
    }
    Some(key)
}

pub(super) fn history(revision: Revision, n: u32) -> [u8; 13] {
    let mut key = [HISTORY; 13];
    key[1..9].copy_from_slice(&revision.to_be_bytes());
    key[9..].copy_from_slice(&n.to_be_bytes());
    key
}

/// The revision that an `H` key is of.
pub(super) fn history_revision(bytes: &[u8]) -> Option<Revision> {
    match bytes.split_first() {
        Some((&HISTORY, rest)) => Some(u64::from_be_bytes(*rest.first_chunk::<8>()?)),
        _ => None,
    }
}

pub(super) fn numbered(tag: u8, number: u64) -> [u8; 9] {
    let mut key = [tag; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The number that a key made by [`numbered`], with or without more behind, is of.
pub(super) fn number(tag: u8, bytes: &[u8]) -> Option<(u64, &[u8])> {
    let rest = bytes.strip_prefix(&[tag])?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), rest))
}

pub(super) fn attached(lease: LeaseId, key: &[u8]) -> Vec<u8> {
    let mut bytes = numbered(ATTACHED, lease).to_vec();
    bytes.extend_from_slice(key);
    bytes
}

pub(super) fn batch(member: MemberId, seq: u64) -> [u8; 17] {
    let mut key = [BATCHES; 17];
    key[1..9].copy_from_slice(&member.to_be_bytes());
    key[9..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// The first key after all keys that begin with some bytes; `None` if there is none.
pub(super) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut bytes = prefix[..=last].to_vec();
    bytes[last] += 1;
    Some(bytes)
}

pub(super) fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    // Plain values into memory: cannot fail.
    postcard::to_stdvec(value).unwrap_or_default()
}

pub(super) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damaged> {
    postcard::from_bytes(bytes).map_err(|error| Damaged(error.to_string()))
}

/// The value of an `O` record.
pub(super) fn origin(life: u64, settled: u64) -> Vec<u8> {
    to_bytes(&(life, settled))
}

/// See [`origin`]. Records of earlier versions end after the life.
pub(super) fn read_origin(bytes: &[u8]) -> Result<(u64, u64), Damaged> {
    let (life, rest) = split(bytes)?;
    let settled = if rest.is_empty() {
        0
    } else {
        from_bytes(rest)?
    };
    Ok((life, settled))
}

fn split<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), Damaged> {
    postcard::take_from_bytes(bytes).map_err(|error| Damaged(error.to_string()))
}

fn with_value(mut head: Vec<u8>, value: &[u8]) -> Vec<u8> {
    head.extend_from_slice(value);
    head
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record() -> Record {
        Record {
            create: 300,
            modified: 301,
            version: 2,
            lease: Some(1 << 40),
            value: Bytes::from_static(b"\0value"),
        }
    }

    #[test]
    fn records_survive_the_disk() {
        assert_eq!(Record::decode(&record().encode()).unwrap(), record());
        let old = Old {
            record: record(),
            until: 900,
        };
        assert_eq!(Old::decode(&Old::encode(&record(), 900)).unwrap(), old);
        assert!(Record::decode(&[0xff]).is_err());
    }

    #[test]
    fn versions_sort_by_key_and_then_by_revision() {
        let keys: [&[u8]; 6] = [b"", b"\0", b"\0\0", b"a", b"a\0", b"ab"];
        let all: Vec<_> = keys
            .iter()
            .flat_map(|key| [version(key, 2), version(key, 300)])
            .collect();
        assert!(all.is_sorted(), "{all:?}");
        for key in keys {
            assert_eq!(version_key(&version(key, 7)).unwrap(), key);
            assert!(version(key, 7).starts_with(&versions_from(key)));
        }
        assert_eq!(version_key(b"V"), None);
    }

    #[test]
    fn the_end_of_a_prefix_is_the_next_one() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff\xff"), None);
    }
}
