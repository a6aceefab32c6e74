//! What the store keeps and what it is asked to do.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A point in the store's history: +1 for every transaction that changes something. Starts at 1 (an empty
/// store), so that 0 can mean "none".
pub type Revision = u64;

/// A Raft term. A term has at most one leader, so a term names a leader.
pub type Term = u64;

/// Names a lease. Never 0, never reused.
pub type LeaseId = u64;

/// Names a member of the cluster. Chosen by whoever starts the member; stable for its life.
pub type MemberId = u64;

/// The longest key, in bytes.
pub const MAX_KEY: usize = 4 * 1024;
/// The longest value, in bytes: 1.5 MiB, as etcd's users expect.
pub const MAX_VALUE: usize = 1536 * 1024;
/// The most that one transaction may carry, in bytes of keys and values.
pub const MAX_TXN: usize = 4 * 1024 * 1024;
/// The most compares, and the most operations, that one transaction may have.
pub const MAX_TXN_OPS: usize = 1024;

/// One key as it is at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// When the key was created; deleting and creating it again starts anew.
    pub create_revision: Revision,
    /// When the key was last written.
    pub mod_revision: Revision,
    /// Number of writes since creation; the first is 1.
    pub version: u64,
    /// The lease that ends the key's life, if any.
    pub lease: Option<LeaseId>,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was created or replaced.
    Put {
        /// The key as it is now.
        kv: KeyValue,
        /// The key as it was; `None` if it was created.
        previous: Option<KeyValue>,
    },
    /// The key was deleted.
    Delete {
        /// The key.
        key: Bytes,
        /// When.
        revision: Revision,
        /// The key as it was.
        previous: KeyValue,
    },
}

impl Event {
    /// The revision of the change. All changes of one transaction share it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { kv, .. } => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { kv, .. } => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The key as it was before.
    #[must_use]
    pub fn previous(&self) -> Option<&KeyValue> {
        match self {
            Self::Put { previous, .. } => previous.as_ref(),
            Self::Delete { previous, .. } => Some(previous),
        }
    }
}

/// What must hold for a transaction to be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// The key does not exist.
    Absent(Bytes),
    /// The key exists.
    Exists(Bytes),
    /// The key exists and was last written at this revision.
    ModRevision(Bytes, Revision),
}

impl Compare {
    /// The key that is looked at.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Absent(key) | Self::Exists(key) | Self::ModRevision(key, _) => key,
        }
    }

    /// Whether the compare holds for what was found.
    #[must_use]
    pub fn holds(&self, mod_revision: Option<Revision>) -> bool {
        match self {
            Self::Absent(_) => mod_revision.is_none(),
            Self::Exists(_) => mod_revision.is_some(),
            Self::ModRevision(_, wanted) => mod_revision == Some(*wanted),
        }
    }
}

/// One change that a transaction makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Create or replace a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// The lease that ends its life. Unless it is given again, a replaced key loses its lease.
        lease: Option<LeaseId>,
    },
    /// Delete a key; nothing happens if there is none.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Op {
    /// The key that is changed.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// All or nothing: if every compare holds, every operation is carried out, at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Txn {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What to do. No key twice.
    pub ops: Vec<Op>,
    /// Refuse with [`Error::Fenced`](crate::Error::Fenced) unless the leader that orders the transaction is
    /// the one of this term. For writes that only a leader's controllers may make.
    pub fence: Option<Term>,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Carried out. If it changed nothing (no operations, or deletes of absent keys), `revision` is that of
    /// the store then.
    Committed {
        /// The transaction's revision.
        revision: Revision,
    },
    /// A compare did not hold, and nothing was done.
    Refused {
        /// The store's revision when it was decided.
        revision: Revision,
        /// What was found, for each compare's key, in order.
        found: Vec<Option<KeyValue>>,
    },
}

/// Part of a range, in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeOutcome {
    /// The keys.
    pub kvs: Vec<KeyValue>,
    /// More keys with the prefix follow.
    pub more: bool,
    /// The revision that was read at: pass it as `at` to go on consistently.
    pub revision: Revision,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// Where the others reach it, `host:port`.
    pub address: String,
    /// Counts for majorities; otherwise it is still catching up.
    pub voter: bool,
}

/// Who leads, as this member knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The term.
    pub term: Term,
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    /// This member leads, and its local state holds everything that earlier leaders acknowledged.
    pub is_me: bool,
}

/// How this member is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    /// Member of a cluster: initialized, or admitted by one.
    pub member: bool,
    /// What is wrong, in words for people. Empty if nothing is.
    pub problems: Vec<String>,
}

impl Health {
    /// Reads and writes are expected to work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.member && self.leader.is_some() && self.problems.is_empty()
    }
}
