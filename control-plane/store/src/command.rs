//! What goes through the log: commands, in batches, in packs.
//!
//! A member gathers what its callers propose into a [`Batch`]. The leader puts the batches that reach it
//! while an entry is under way into one [`Pack`], and that is one Raft entry. A batch names its origin and
//! has a number, so that it can be sent again after a leader died and is still applied once.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::types::{Compare, LeaseId, MemberId, Op, Revision, Txn};

/// The version of the encoding of packs.
const PACK_VERSION: u8 = 1;
/// Version and time.
const PACK_HEAD: usize = 9;

/// One thing to be done by every member's state machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// A transaction.
    Txn(Txn),
    /// Make a lease.
    Grant {
        /// Its life in milliseconds of the cluster's clock.
        ttl_ms: u64,
    },
    /// End a lease.
    Revoke {
        /// Which.
        lease: LeaseId,
    },
    /// Give up history.
    Compact {
        /// The last revision to give up.
        to: Revision,
    },
    /// Nothing, but the pack's time: leases end.
    Tick,
}

/// Who proposes: a member, and which of its lives. Lives are numbered upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub member: MemberId,
    pub life: u64,
}

/// Commands of one origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub origin: Origin,
    /// Counts up from 1 in a life.
    pub seq: u64,
    /// Batches before this one will not be sent again: what was remembered of them can be forgotten.
    pub settled: u64,
    pub commands: Vec<Command>,
}

impl Batch {
    /// # Errors
    /// Never in practice: writing to memory.
    pub fn encode(&self) -> Result<Bytes, postcard::Error> {
        postcard::to_stdvec(self).map(Bytes::from)
    }

    /// # Errors
    /// Bytes that are not a batch.
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

/// The data of one Raft entry: the cluster's time and encoded batches.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pack(pub Bytes);

impl Pack {
    /// Packs batches under the leader's reading of the cluster's clock, in milliseconds.
    pub fn new(time_ms: u64, batches: &[Bytes]) -> Self {
        let size = batches.iter().map(|batch| batch.len() + 4).sum::<usize>();
        let mut bytes = BytesMut::with_capacity(PACK_HEAD + size);
        bytes.put_u8(PACK_VERSION);
        bytes.put_u64(time_ms);
        for batch in batches {
            bytes.put_u32(u32::try_from(batch.len()).unwrap_or(u32::MAX));
            bytes.put_slice(batch);
        }
        Self(bytes.freeze())
    }

    /// Whether all batches are of one member. Looks at their first bytes only.
    pub fn is_only_of(&self, member: MemberId) -> bool {
        let mut rest = self.0.get(PACK_HEAD..).unwrap_or_default();
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            let Some((batch, tail)) = tail.split_at_checked(u32::from_be_bytes(*len) as usize)
            else {
                return false;
            };
            match postcard::take_from_bytes::<Origin>(batch) {
                Ok((origin, _)) if origin.member == member => rest = tail,
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    /// What is in it.
    ///
    /// # Errors
    /// [`Malformed`] for bytes that no member of this version writes.
    pub fn open(&self) -> Result<Opened, Malformed> {
        let (head, mut rest) = self.0.split_at_checked(PACK_HEAD).ok_or(Malformed)?;
        let (version, time) = head.split_first().ok_or(Malformed)?;
        if *version != PACK_VERSION {
            return Err(Malformed);
        }
        let time_ms = u64::from_be_bytes(time.try_into().map_err(|_| Malformed)?);
        let mut batches = Vec::new();
        while !rest.is_empty() {
            let (len, tail) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
            let len = u32::from_be_bytes(*len) as usize;
            let (batch, tail) = tail.split_at_checked(len).ok_or(Malformed)?;
            batches.push(Batch::decode(batch).map_err(|_| Malformed)?);
            rest = tail;
        }
        Ok(Opened { time_ms, batches })
    }
}

/// A [`Pack`] as it is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The proposer's clock, in milliseconds.
    pub time_ms: u64,
    pub batches: Vec<Batch>,
}

impl Opened {
    /// The keys that are compared or changed, in no order, some more than once.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let commands = self.batches.iter().flat_map(|batch| &batch.commands);
        let txns = commands.filter_map(|command| match command {
            Command::Txn(txn) => Some(txn),
            _ => None,
        });
        txns.flat_map(|txn| {
            let compared = txn.compares.iter().map(Compare::key);
            compared.chain(txn.ops.iter().map(Op::key))
        })
    }
}

/// A pack that cannot be read: the log is damaged or was written by a newer version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a log entry cannot be read: it is damaged, or a newer version wrote it")]
pub(crate) struct Malformed;

impl fmt::Debug for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pack({} bytes)", self.0.len())
    }
}

impl fmt::Display for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::Op;

    fn batch(seq: u64) -> Batch {
        let put = Op::Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            lease: Some(7),
        };
        let txn = Txn {
            ops: vec![put],
            ..Txn::default()
        };
        Batch {
            origin: Origin { member: 3, life: 9 },
            seq,
            settled: 1,
            commands: vec![Command::Txn(txn)],
        }
    }

    #[test]
    fn a_pack_returns_its_time_and_batches() {
        let encoded = [batch(1).encode().unwrap(), batch(2).encode().unwrap()];
        let Opened {
            time_ms: time,
            batches,
        } = Pack::new(42, &encoded).open().unwrap();
        assert_eq!((time, batches), (42, vec![batch(1), batch(2)]));
    }

    #[test]
    fn a_damaged_pack_is_refused_at_every_cut() {
        let whole = Pack::new(42, &[batch(1).encode().unwrap()]).0;
        for cut in 0..whole.len() {
            // A cut exactly after the head is a pack without batches.
            assert_eq!(
                Pack(whole.slice(..cut)).open().is_ok(),
                cut == PACK_HEAD,
                "cut at {cut}"
            );
        }
    }
}
