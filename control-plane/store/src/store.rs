//! The handle that everybody holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::config::Config;
use crate::error::{Error, OpenError};
use crate::types::{
    Event, Health, KeyValue, Leadership, LeaseId, Member, MemberId, RangeOutcome, Revision, Txn,
    TxnOutcome,
};

/// One member of a replicated store. A cheap handle: clone it freely.
#[derive(Clone)]
pub struct Store {
    leadership: Arc<watch::Sender<Leadership>>,
    reader: Reader,
}

/// Hears of every change, on the path that applies them: in order, after the change is in the database, and
/// before any writer or reader on this member is answered. It must not block, and must not call
/// [`Store::txn`].
pub trait Observer: Send + Sync + 'static {
    /// The changes of one revision.
    fn applied(&self, revision: Revision, events: &[Event]);
    /// Everything may have changed: called once while the store opens, and after a snapshot of the leader
    /// has replaced the local state. Changes that follow are newer than `reader.revision()`.
    fn reset(&self, reader: &Reader);
}

/// Reads the local state. A cheap handle: clone it freely.
#[derive(Clone)]
pub struct Reader {}

impl Reader {
    /// The newest revision that is applied here.
    #[must_use]
    pub fn revision(&self) -> Revision {
        1
    }

    /// The last revision whose history is gone: reads from this revision and watches from the next one work.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        0
    }

    /// One key, as it is here now.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn get(&self, _key: &[u8]) -> Result<Option<KeyValue>, Error> {
        Err(Error::Closed)
    }

    /// Keys with a prefix in order, from `start` (inclusive, `None` for the first), at most `limit` (0: all),
    /// as they are here now or as they were `at` a revision. To go on after a key, start at the key plus a
    /// zero byte.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::Future`], [`Error::Storage`].
    pub fn range(
        &self,
        _prefix: &[u8],
        _start: Option<&[u8]>,
        _limit: usize,
        _at: Option<Revision>,
    ) -> Result<RangeOutcome, Error> {
        Err(Error::Closed)
    }
}

/// The changes of one revision that a [`Watch`] asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The revision.
    pub revision: Revision,
    /// Its changes, in the order of the transaction's operations. Never empty.
    pub events: Vec<Event>,
}

/// Follows the changes of all keys with a prefix, without gaps and in order. It pulls: a slow watch costs
/// only itself, until history is compacted away under it.
pub struct Watch {
    _private: (),
}

impl Watch {
    /// The next changes; waits for them. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Compacted`] if the watch fell behind the history that is kept, [`Error::Storage`],
    /// [`Error::Closed`]. After an error the watch is of no more use.
    pub async fn next(&mut self) -> Result<Changes, Error> {
        Err(Error::Closed)
    }

    /// Everything up to this revision has been delivered (whether or not it concerned the prefix).
    #[must_use]
    pub fn progress(&self) -> Revision {
        0
    }
}

impl Store {
    /// Opens the data folder, starts Raft on threads of its own and listens for the other members. A folder
    /// that is empty waits to be [initialized](Self::initialize) or [added](Self::add_member).
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub async fn open(_config: Config, _observer: Arc<dyn Observer>) -> Result<Self, OpenError> {
        Err(OpenError::Raft("not wired yet".into()))
    }

    /// Makes a new cluster with this member as its only one. Nothing happens if it is one already.
    ///
    /// # Errors
    /// [`Error::Membership`] if this member belongs to a cluster with others.
    pub async fn initialize(&self) -> Result<(), Error> {
        Err(Error::Closed)
    }

    /// The cluster's id, made by [`Self::initialize`]; `None` while this member belongs to none.
    #[must_use]
    pub fn cluster_id(&self) -> Option<String> {
        None
    }

    /// This member's id.
    #[must_use]
    pub fn node_id(&self) -> MemberId {
        0
    }

    /// Adds a member that is running with an empty folder, or tells the cluster that a member has another
    /// address: learner, caught up, voter; returns when it is a voter. Any member may be asked. Asking again
    /// is harmless, and goes on where it stopped. A member that is known but came back with an empty folder
    /// is removed first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Membership`] (for example if another member answers at the address).
    pub async fn add_member(&self, _id: MemberId, _address: String) -> Result<(), Error> {
        Err(Error::Closed)
    }

    /// Removes a member, running or not. Any member may be asked; asking again is harmless.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Membership`] for the last voter.
    pub async fn remove_member(&self, _id: MemberId) -> Result<(), Error> {
        Err(Error::Closed)
    }

    /// The members, by id.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        Vec::new()
    }

    /// Carries out a transaction, on any member; returns once this member has applied it, so that a read
    /// here sees it. It is carried out once, even if leaders die meanwhile.
    ///
    /// # Errors
    /// [`Error::Unavailable`] (not carried out), [`Error::Unknown`] (the deadline passed in between),
    /// [`Error::Fenced`], [`Error::LeaseNotFound`], [`Error::Invalid`], [`Error::Closed`].
    pub async fn txn(&self, _txn: Txn) -> Result<TxnOutcome, Error> {
        Err(Error::Closed)
    }

    /// Local reads; see [`Self::read_barrier`] for linearizable ones.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// See [`Reader::revision`].
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.reader.revision()
    }

    /// See [`Reader::compacted`].
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.reader.compacted()
    }

    /// See [`Reader::get`].
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        self.reader.get(key)
    }

    /// See [`Reader::range`].
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::Future`], [`Error::Storage`].
    pub fn range(
        &self,
        prefix: &[u8],
        start: Option<&[u8]>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<RangeOutcome, Error> {
        self.reader.range(prefix, start, limit, at)
    }

    /// Waits until this member's state holds every write that was acknowledged, by any member, before the
    /// call; local reads after it are linearizable. Returns a revision that the state has reached. Readers
    /// that wait together share one round to the majority.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a leader and a majority, [`Error::Closed`].
    pub async fn read_barrier(&self) -> Result<Revision, Error> {
        Err(Error::Closed)
    }

    /// Follows the changes of keys with a prefix, those of revision `from` included; 0 means from now on.
    ///
    /// # Errors
    /// [`Error::Compacted`].
    pub fn watch(&self, _prefix: Bytes, _from: Revision) -> Result<Watch, Error> {
        Err(Error::Closed)
    }

    /// Makes a lease. When it ends, the keys that were put with it are deleted.
    ///
    /// # Errors
    /// Those of [`Self::txn`].
    pub async fn lease_grant(&self, _ttl: Duration) -> Result<LeaseId, Error> {
        Err(Error::Closed)
    }

    /// Ends a lease now. Nothing happens if it ended already.
    ///
    /// # Errors
    /// Those of [`Self::txn`].
    pub async fn lease_revoke(&self, _lease: LeaseId) -> Result<(), Error> {
        Err(Error::Closed)
    }

    /// Follows who leads.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// How this member is doing.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::default()
    }

    /// Hands leadership to a voter, or to the most advanced other voter. Nothing happens if this member does
    /// not lead, or is alone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if nobody took it in time.
    pub async fn transfer_leadership(&self, _to: Option<MemberId>) -> Result<(), Error> {
        Err(Error::Closed)
    }

    /// Adds this store's metrics to a registry, with the prefix `balsa_store`.
    pub fn register_metrics(&self, _registry: &mut Registry) {}

    /// Hands leadership over, stops, and closes the files. Other handles get [`Error::Closed`] from then on.
    pub async fn shutdown(self) {}
}
